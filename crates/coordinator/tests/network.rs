//! What networks do to connections, done to those of a real coordinator by a proxy in between.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the answer")]

mod fake;
#[path = "../../cli/tests/programs/proxy.rs"]
mod proxy;

use std::fs;
use std::time::Duration;

use coordinator::checkpoint::CheckpointDirectory;
use coordinator::{OnFailure, Outcome, Run};
use fake::{Cluster, FakeWorker, TOTAL_STEPS, create, json_lines};
use protocol::v1::order::Order;
use protocol::v1::report::Event;
use protocol::{PART_BYTES, v1};
use proxy::{Fault, Plan, Proxy, Way};
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};
use tonic::Code;

/// Longer than anything here takes, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

fn short_waits(run: &mut Run) {
    run.on_failure = OnFailure::Shrink;
    run.timeouts.heartbeat = Duration::from_secs(2);
    run.timeouts.assemble = Duration::from_secs(5);
    run.timeouts.join = Duration::from_secs(8);
}

/// Says for ever that a worker is alive.
fn beat(worker: &FakeWorker, generation: u64) -> JoinSet<()> {
    let (reports, joined) = (worker.reports.clone().unwrap(), worker.joined.clone());
    let mut beating = JoinSet::new();
    beating.spawn(async move {
        let mut ticks = interval(Duration::from_millis(200));
        loop {
            ticks.tick().await;
            let (worker_id, run_id) = (joined.worker_id, joined.run_id.clone());
            let event = Some(Event::Heartbeat(v1::Heartbeat { generation, standstill_ms: 0 }));
            // It may be over.
            let _ = reports.send(v1::Report { worker_id, run_id, event, crc32c: 0 }.with_checksum()).await;
        }
    });
    beating
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_arrives_changed_is_refused_and_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start_with(create(folder.path()), 1, short_waits).await;
    let proxy = Proxy::to(&cluster.address);
    cluster.address = proxy.address();
    let mut worker = cluster.training(1).await.remove(0);
    let _alive = beat(&worker, 1);
    worker.step_done(5).await;
    // In the middle of the weights, which are two parts long.
    proxy.plan(Plan { connection: None, way: Way::Up, after_bytes: PART_BYTES, fault: Fault::Corrupt });
    let parts = worker.checkpoint(5);
    let refused = worker.publish(parts.clone()).await.unwrap_err();
    assert_eq!((refused.code(), proxy.happened()), (Code::DataLoss, 1), "{refused}");
    assert!(refused.message().contains("a part of model.safetensors arrived changed"), "{refused}");
    let checkpoints = folder.path().join("run/checkpoints");
    assert_eq!(fs::read_dir(&checkpoints).unwrap().count(), 0);

    assert_eq!(worker.publish(parts).await.unwrap(), "step-000005");
    CheckpointDirectory::open(&checkpoints.join("step-000005")).unwrap();
    // And on the way back.
    proxy.plan(Plan { connection: None, way: Way::Down, after_bytes: PART_BYTES, fault: Fault::Corrupt });
    let changed = |parts: Vec<v1::FilePart>| parts.iter().filter(|part| part.check().is_err()).count();
    assert_eq!(changed(worker.fetch_checkpoint("step-000005").await.unwrap()), 1);
    assert_eq!(changed(worker.fetch_checkpoint("step-000005").await.unwrap()), 0);
    worker.finished(TOTAL_STEPS).await;
    assert_eq!(worker.dismissed().await, "");
    drop(worker);
    assert!(matches!(timeout(PATIENCE, cluster.end()).await.unwrap(), Outcome::Completed { .. }));
}

/// The run goes on with whoever is left, and the one that is cut off is lost within the time that was set.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_a_connection_the_others_go_on() {
    for fault in [Fault::Reset, Fault::Blackhole, Fault::HalfClose] {
        let folder = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::start_with(create(folder.path()), 2, short_waits).await;
        let proxy = Proxy::to(&cluster.address);
        let mut workers = vec![FakeWorker::join(&cluster.address, 1).await.unwrap()];
        cluster.address = proxy.address();
        workers.push(FakeWorker::join(&cluster.address, 2).await.unwrap());
        let mut alive = Vec::new();
        for worker in &mut workers {
            worker.attend().await.unwrap();
        }
        for worker in &mut workers {
            let Order::Assemble(_) = worker.order().await else { panic!("expected Assemble") };
            worker.assembled(1).await;
        }
        for worker in &mut workers {
            let Order::Start(_) = worker.order().await else { panic!("expected Start") };
            worker.step_done(1).await;
            alive.push(beat(worker, 1));
        }
        proxy.strike(fault);
        let Order::Halt(v1::Halt { generation: 1, .. }) = workers[0].order().await else {
            panic!("expected Halt")
        };
        workers[0].halted(1, 1).await;
        let Order::Assemble(assemble) = workers[0].order().await else { panic!("expected Assemble") };
        assert_eq!((assemble.generation, assemble.members.len(), assemble.step), (2, 1, 1), "{fault:?}");
        workers[0].assembled_in(2, 1, 1).await;
        let Order::Start(_) = workers[0].order().await else { panic!("expected Start") };
        workers[0].finished_in(2, TOTAL_STEPS).await;
        assert_eq!(workers[0].dismissed().await, "");
        drop((alive, workers));
        let outcome = timeout(PATIENCE, cluster.end()).await.unwrap();
        assert!(matches!(outcome, Outcome::Completed { .. }), "{fault:?}: {outcome:?}");
        let steps = json_lines(&folder.path().join("run/metrics.jsonl"));
        assert_eq!(steps.len(), 1, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_network_is_only_slow() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start_with(create(folder.path()), 1, short_waits).await;
    let proxy = Proxy::to(&cluster.address);
    cluster.address = proxy.address();
    let mut worker = cluster.training(1).await.remove(0);
    let _alive = beat(&worker, 1);
    proxy.strike(Fault::Delay(Duration::from_millis(5)));
    worker.step_done(1).await;
    let parts = worker.checkpoint(1);
    assert_eq!(worker.publish(parts).await.unwrap(), "step-000001");
    worker.finished(TOTAL_STEPS).await;
    assert_eq!(worker.dismissed().await, "");
    drop(worker);
    assert!(matches!(timeout(PATIENCE, cluster.end()).await.unwrap(), Outcome::Completed { .. }));
}

/// A bit is changed, or some bytes come twice, somewhere in all that one of two workers says or hears.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_changed_or_repeated_the_run_ends() {
    let places = (0..24).map(|place| 11 + 29 * place);
    let mut courses = JoinSet::new();
    for (way, after_bytes) in places.flat_map(|place| [(Way::Up, place), (Way::Down, place)]) {
        let fault = if after_bytes % 3 == 0 { Fault::Duplicate } else { Fault::Corrupt };
        courses.spawn(async move {
            let plan = Plan { connection: None, way, after_bytes, fault };
            timeout(PATIENCE, run_with(plan)).await.unwrap_or_else(|_| panic!("{plan:?}: it hangs"));
        });
    }
    while let Some(course) = courses.join_next().await {
        course.unwrap();
    }
}

async fn run_with(plan: Plan) {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start_with(create(folder.path()), 2, short_waits).await;
    let proxy = Proxy::to(&cluster.address);
    proxy.plan(plan);
    let mut workers = JoinSet::new();
    for (incarnation, address) in [(1, cluster.address.clone()), (2, proxy.address())] {
        workers.spawn(take_part(address, incarnation));
    }
    cluster.address.clear();
    match (&mut cluster.task).await.unwrap() {
        Ok(Outcome::Failed { reason }) => assert!(reason.len() > 40, "{plan:?}: {reason}"),
        Ok(_) => {}
        Err(error) => panic!("{plan:?}: {error}"),
    }
    let steps: Vec<u64> = json_lines(&folder.path().join("run/metrics.jsonl"))
        .iter()
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert!(steps.is_sorted_by(|a, b| a < b), "{plan:?}: {steps:?}");
}

/// A worker that does what it is told, one step in each generation, until nobody tells it anything.
async fn take_part(address: String, incarnation: u64) -> Option<()> {
    let access = protocol::Access { token: fake::token(), tls: None };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    let mut client = protocol::connect(&address, &access, deadline).await.ok()?;
    let joining = client.join(fake::join_request(incarnation));
    let joined = timeout(Duration::from_secs(5), joining).await.ok()?.ok()?.into_inner();
    let mut worker = FakeWorker { client, joined, reports: None, orders: None };
    timeout(Duration::from_secs(5), worker.attend()).await.ok()?.ok()?;
    let mut alive = beat(&worker, 0);
    let (mut step, mut present) = (0, 0);
    loop {
        let message = worker.orders.as_mut()?.message().await.ok()??;
        let event = match message.order? {
            Order::Assemble(v1::Assemble { generation, .. }) => {
                (present, alive) = (generation, beat(&worker, generation));
                let (state_hash, layout_hash) = (fake::hash(1), fake::hash(0));
                Event::Assembled(v1::Assembled { generation, step, state_hash, layout_hash })
            }
            Order::Start(v1::Start { generation }) => {
                step = 1;
                let done = v1::StepDone { generation, step, ..v1::StepDone::default() };
                tell(&worker, Event::StepDone(done)).await?;
                Event::Finished(v1::Finished { step: TOTAL_STEPS, state_hash: fake::hash(9), generation })
            }
            Order::Halt(v1::Halt { generation, .. }) => {
                Event::Halted(v1::Halted { generation, holds_state: true, step, ..v1::Halted::default() })
            }
            Order::Save(_) | Order::Stop(_) | Order::Leave(_) => continue,
            Order::Dismiss(_) => break,
        };
        tell(&worker, event).await?;
    }
    drop((alive, present));
    Some(())
}

async fn tell(worker: &FakeWorker, event: Event) -> Option<()> {
    let (worker_id, run_id) = (worker.joined.worker_id, worker.joined.run_id.clone());
    worker
        .reports
        .as_ref()?
        .send(v1::Report { worker_id, run_id, event: Some(event), crc32c: 0 }.with_checksum())
        .await
        .ok()
}
