//! What is sent and kept when all is well: the files of the corpus from which mutations are made.

use std::io::Read;

use bytes::Bytes;
use dataset::{Deal, Images};
use prost::Message;
use protocol::{PROTOCOL_VERSION, v1};
use recipe::{QUICKSTART, Recipe};
use v1::order::Order;
use v1::report::Event;

const HASH: Bytes = Bytes::from_static(&[7; 32]);
const RUN_ID: Bytes = Bytes::from_static(&[1; 16]);

/// Each with the folder of its target.
pub(crate) fn all() -> Vec<(&'static str, Vec<u8>)> {
    let report = |event| v1::Report { worker_id: 1, run_id: RUN_ID, event: Some(event), crc32c: 0 };
    let order = |order| v1::Order { order: Some(order), crc32c: 0 };
    let reports = events().map(|event| report(event).with_checksum().encode_to_vec());
    let orders = orders().map(|which| order(which).with_checksum().encode_to_vec());
    let file = v1::FilePart::new("model.safetensors".to_owned(), Bytes::from_static(b"weights"));
    let block = v1::BlockPart { block: 3, data: Bytes::from_static(b"pixels"), last: true };
    let parts = [file.encode_to_vec(), block.encode_to_vec()];
    let of = |target: &'static str, all: Vec<Vec<u8>>| all.into_iter().map(move |bytes| (target, bytes));
    of("report", reports.into())
        .chain(of("order", orders.into()))
        .chain(of("join", joins().into()))
        .chain(of("part", parts.into()))
        .chain(of("manifest", vec![manifest()]))
        .chain(of("course", vec![course(), departure()]))
        .chain(of("publish", vec![files()]))
        .chain(of("archive", vec![archive()]))
        .chain(of("cifar10", vec![[vec![3; 3073], vec![9; 3073]].concat()]))
        .collect()
}

fn events() -> [Event; 8] {
    [
        Event::Attending(v1::Attending { generation: 3, step: 9, steps: vec![step()], ..Default::default() }),
        Event::Heartbeat(v1::Heartbeat { generation: 3, standstill_ms: 15_000 }),
        Event::Assembled(v1::Assembled { generation: 3, step: 9, state_hash: HASH, layout_hash: HASH }),
        Event::StepDone(step()),
        Event::Finished(v1::Finished { step: 9, state_hash: HASH, generation: 3 }),
        Event::Failed(v1::Failed { step: 9, reason: "full".into(), suspect_worker_id: 2, generation: 3 }),
        Event::Halted(v1::Halted { generation: 3, reason: "lost".into(), ..Default::default() }),
        Event::Leaving(v1::Leaving {}),
    ]
}

fn step() -> v1::StepDone {
    let parts = Some(v1::Parts { backbone: 0.5, projector: 1.5, predictor: 2.5 });
    let monitors = v1::Monitors {
        effective_dimensions: 12.5,
        gradient_norms: parts,
        update_ratios: parts,
        statistics_change: 0.1,
        without_gradient: vec!["encoder.bn1.bias".to_owned()],
    };
    v1::StepDone {
        generation: 3,
        step: 9,
        loss: -0.5,
        state_hash: HASH,
        monitors: Some(monitors),
        skipped: Some(v1::Skipped { shards: vec![1, 3] }),
        ..Default::default()
    }
}

fn orders() -> [Order; 7] {
    let collective_address = "10.0.0.1:7000".to_owned();
    let member = v1::Member { worker_id: 1, collective_address, first_shard: 0, shard_count: 4 };
    let assemble =
        v1::Assemble { generation: 3, members: vec![member], deadline_ms: 9, ..Default::default() };
    [
        Order::Assemble(assemble),
        Order::Start(v1::Start { generation: 3 }),
        Order::Stop(v1::Stop { reason: "asked".to_owned(), generation: 3 }),
        Order::Halt(v1::Halt { generation: 3, reason: "a peer was lost".to_owned() }),
        Order::Save(v1::Save { generation: 3 }),
        Order::Leave(v1::Leave {}),
        Order::Dismiss(v1::Dismiss { failure: "full".to_owned() }),
    ]
}

fn joins() -> [Vec<u8>; 2] {
    let request = v1::JoinRequest {
        protocol_version: PROTOCOL_VERSION,
        collective_address: "10.0.0.1:7000".to_owned(),
        incarnation: u64::MAX,
        ..Default::default()
    };
    let recipe_toml = "seed = 1".to_owned();
    let reply = v1::JoinReply { worker_id: 1, run_id: RUN_ID, recipe_toml, ..Default::default() };
    [request.with_checksum().encode_to_vec(), reply.with_checksum().encode_to_vec()]
}

fn manifest() -> Vec<u8> {
    let cache = tempfile::tempdir().unwrap();
    let small = ["data.images=64", "training.batch=16"].map(str::to_owned);
    let recipe = Recipe::from_toml(QUICKSTART, &small).unwrap();
    let images = Images::open(&recipe.data, cache.path()).unwrap();
    let deal = Deal::new(images.into(), recipe.training.shards, cache.path()).unwrap();
    deal.manifest().to_json().into_bytes()
}

/// One after the other, each with its length before it.
fn told(reports: impl IntoIterator<Item = (u64, Event)>) -> Vec<u8> {
    let report = |(worker_id, event)| v1::Report { worker_id, run_id: RUN_ID, event: Some(event), crc32c: 0 };
    reports.into_iter().flat_map(|told| report(told).encode_length_delimited_to_vec()).collect()
}

/// The parts of a checkpoint.
fn files() -> Vec<u8> {
    let parts = [("model.safetensors", "wei"), ("model.safetensors", "ghts"), ("progress.json", "{}")];
    let part = |(file, data): (&str, &'static str)| v1::FilePart::new(file.to_owned(), data.into());
    parts.into_iter().flat_map(|told| part(told).encode_length_delimited_to_vec()).collect()
}

/// What two workers report of a whole run.
fn course() -> Vec<u8> {
    let (generation, state_hash, layout_hash) = (1, HASH, HASH);
    let (assembled, finished) = (
        v1::Assembled { generation, step: 0, state_hash: HASH, layout_hash },
        v1::Finished { step: 3, state_hash, generation },
    );
    let made = |step| Event::StepDone(v1::StepDone { generation, step, loss: -0.5, ..Default::default() });
    let each = [
        Event::Attending(v1::Attending::default()),
        Event::Assembled(assembled),
        made(1),
        made(2),
        Event::Heartbeat(v1::Heartbeat { generation, standstill_ms: 9 }),
        made(3),
        Event::Finished(finished),
    ];
    told(each.into_iter().flat_map(|event| [(1, event.clone()), (2, event)]))
}

/// The second of two workers loses the first, which leaves.
fn departure() -> Vec<u8> {
    let assembled = v1::Assembled { generation: 1, step: 0, state_hash: HASH, layout_hash: HASH };
    let halted =
        v1::Halted { generation: 1, step: 1, holds_state: true, reason: "lost".into(), suspect_worker_id: 1 };
    told([
        (1, Event::Attending(v1::Attending::default())),
        (2, Event::Attending(v1::Attending::default())),
        (1, Event::Assembled(assembled.clone())),
        (2, Event::Assembled(assembled)),
        (1, Event::Leaving(v1::Leaving {})),
        (2, Event::Halted(halted)),
        (
            1,
            Event::Failed(v1::Failed { step: 1, reason: "full".into(), suspect_worker_id: 0, generation: 1 }),
        ),
    ])
}

/// The files that the decoder of archives expects, and one that it passes over.
fn archive() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in [("./set/images.bin", 20), ("set/readme", 5), ("set/labels.bin", 3)] {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes);
        archive.append_data(&mut header, name, std::io::repeat(7).take(bytes)).unwrap();
    }
    archive.into_inner().unwrap()
}
