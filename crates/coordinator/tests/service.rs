//! The coordinator as workers see it: real gRPC on port 0, in this process, with workers that only pretend.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the answer")]

mod fake;

use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use coordinator::journal::Record;
use coordinator::{
    EvaluationSettings, Evaluations, LocalWorkerSettings, LocalWorkers, OnFailure, Outcome, Progress,
    Request, RunDirectory,
};
use fake::*;
use protocol::v1::coordinator_client::CoordinatorClient;
use protocol::v1::order::Order;
use protocol::v1::report::Event;
use protocol::{PART_BYTES, PROTOCOL_VERSION, Token, v1};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

fn refusal<T>(result: Result<T, Status>, code: Code, phrases: &[&str]) {
    let Err(status) = result else { panic!("expected a refusal with {phrases:?}") };
    assert_eq!(status.code(), code, "{status}");
    for phrase in phrases {
        assert!(status.message().contains(phrase), "{status} lacks {phrase:?}");
    }
}

/// The files of a checkpoint, put together of the parts in which they come.
async fn files_of(worker: &mut FakeWorker, checkpoint: &str) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for part in worker.fetch_checkpoint(checkpoint).await.unwrap() {
        assert!(part.data.len() <= PART_BYTES);
        match files.last_mut() {
            Some((file, data)) if *file == part.file => data.extend(&part.data),
            _ => files.push((part.file, part.data.to_vec())),
        }
    }
    files
}

#[tokio::test]
async fn a_run_from_join_to_dismissal_and_its_resume() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let directory = create(folder.path());
    let run_id = directory.run_id();
    let mut cluster = Cluster::start(directory, 3).await;
    let mut workers = cluster.training(3).await;
    assert_eq!(workers[0].joined.run_id, run_id.as_slice());
    assert_eq!(workers[0].joined.recipe_toml, recipe().to_toml());
    assert_eq!(workers[0].joined.manifest_json, MANIFEST);

    for worker in &workers {
        for step in 1..=3 {
            worker.step_done(step).await;
        }
    }
    // A checkpoint reaches the disk before it is acknowledged; the next step is made meanwhile.
    let parts = workers[0].checkpoint(2);
    assert_eq!(workers[0].publish(parts).await.unwrap(), "step-000002");
    assert!(path.join("checkpoints/step-000002/manifest.json").is_file());

    drop(workers.pop());
    for worker in &mut workers {
        assert!(worker.dismissed().await.contains("worker 3 (fake 3) was lost"));
    }
    let mut seen = Vec::new();
    while let Some(progress) = cluster.progress.recv().await {
        seen.push(progress);
    }
    cluster.fails_with(&["worker 3 (fake 3) was lost", "step-000002", "--resume"]).await;
    assert!(matches!(seen.first(), Some(Progress::Noted { record: Record::Opened { .. }, expected: 3, .. })));
    assert!(matches!(seen.get(1), Some(Progress::Noted { record: Record::Joined { .. }, workers: 1, .. })));
    let Some(Progress::Noted { record: Record::Ended(Outcome::Failed { .. }), .. }) = seen.last() else {
        panic!("{seen:?}")
    };
    assert_eq!(seen.iter().filter(|progress| matches!(progress, Progress::Step(_))).count(), 3);
    let metrics = json_lines(&path.join("metrics.jsonl"));
    assert_eq!(metrics.iter().map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!((&metrics[0]["loss"], &metrics[0]["epoch"]), (&(-0.25).into(), &1.into()));
    assert_eq!(metrics[0]["images_per_second"], 256.0);

    // The same run again, with another number of workers.
    let cluster = Cluster::start(RunDirectory::open(&path).unwrap(), 1).await;
    let mut workers = cluster.workers(1).await;
    let worker = &mut workers[0];
    assert_eq!(worker.joined.run_id, run_id.as_slice());
    let Order::Assemble(assemble) = worker.order().await else { panic!("expected Assemble") };
    assert_eq!((assemble.step, &assemble.checkpoint[..], assemble.checkpoint_step), (2, "step-000002", 2));
    assert_eq!(assemble.generation, 2, "generations only rise");
    worker.assembled_in(2, 2, 1).await;
    let Order::Start(_) = worker.order().await else { panic!("expected Start") };
    assert_eq!(files_of(worker, "step-000002").await, checkpoint_files(2));
    assert_eq!(json_lines(&path.join("metrics.jsonl")).len(), 2, "step 3 is made again");
    worker.step_done_in(2, 3).await;
    worker.finished_in(2, TOTAL_STEPS).await;
    assert_eq!(worker.dismissed().await, "");
    drop(workers);
    assert!(matches!(cluster.end().await, Outcome::Completed { step: TOTAL_STEPS, .. }));
    assert_eq!(json_lines(&path.join("metrics.jsonl")).len(), 3);
    let journal = json_lines(&path.join("journal.jsonl"));
    let events: Vec<&str> = journal.iter().map(|line| line["event"].as_str().unwrap()).collect();
    let second = ["opened", "joined", "generation", "started", "ended"];
    assert_eq!(events[0], "created");
    assert_eq!(events[events.len() - second.len()..], second);
}

#[tokio::test]
async fn blocks_arrive_in_parts_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(create(folder.path()), 1).await;
    let mut worker = cluster.workers(1).await.remove(0);
    let parts = worker.fetch_blocks(3, vec![1, 0]).await.unwrap();
    let lengths: Vec<_> = parts.iter().map(|part| (part.block, part.data.len(), part.last)).collect();
    let full = (0, PART_BYTES, false);
    assert_eq!(lengths, [(1, 7, true), full, full, full, (0, 5, true)]);
    let block: Vec<u8> = parts[1..].iter().flat_map(|part| part.data.iter().copied()).collect();
    assert!(block == TwoBlocks::content(3, 0));

    refusal(worker.fetch_blocks(0, vec![0, 2]).await, Code::NotFound, &["shard 0 has no block 2"]);
    refusal(worker.fetch_blocks(SHARDS, vec![0]).await, Code::NotFound, &["shard 4"]);
    refusal(worker.fetch_checkpoint("step-000001").await, Code::NotFound, &["step-000001"]);
    refusal(worker.fetch_checkpoint("../run").await, Code::NotFound, &["../run"]);
    // The worker itself stays, so that the run does not end meanwhile.
    let mut stranger = worker.with_id(77);
    refusal(stranger.fetch_blocks(0, vec![0]).await, Code::FailedPrecondition, &["worker 77", "join first"]);
    refusal(stranger.fetch_checkpoint("step-000001").await, Code::FailedPrecondition, &["worker 77"]);
    refusal(stranger.attend().await, Code::FailedPrecondition, &["worker 77"]);
    // Nor does one of another run get anything, under whatever number.
    let mut foreigner = worker.with_id(worker.joined.worker_id);
    foreigner.joined.run_id = Bytes::from_static(&[7; 16]);
    let phrases = ["names run \"07070707", "join this run first"];
    refusal(foreigner.fetch_blocks(0, vec![0]).await, Code::FailedPrecondition, &phrases);
    refusal(foreigner.fetch_checkpoint("step-000001").await, Code::FailedPrecondition, &phrases);
    refusal(foreigner.attend().await, Code::FailedPrecondition, &phrases);
    let parts = foreigner.checkpoint(1);
    refusal(foreigner.publish(parts).await, Code::FailedPrecondition, &phrases);
}

#[tokio::test]
async fn the_last_few_checkpoints_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let directory = create(folder.path());
    let keep = directory.recipe().checkpoint.keep as usize;
    let cluster = Cluster::start(directory, 1).await;
    let mut worker = cluster.training(1).await.remove(0);
    let mut names = Vec::new();
    for step in 1..=keep as u64 + 2 {
        worker.step_done(step).await;
        let parts = worker.checkpoint(step);
        names.push(worker.publish(parts).await.unwrap());
    }
    worker.finished(TOTAL_STEPS).await;
    assert_eq!(worker.dismissed().await, "");
    let left = fs::read_dir(folder.path().join("run/checkpoints")).unwrap();
    let mut left: Vec<_> = left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, names[2..]);
}

#[tokio::test]
async fn a_worker_that_is_one_step_behind_gets_the_state() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start_with(create(folder.path()), 3, |run| {
        run.on_failure = OnFailure::Shrink;
    })
    .await;
    let mut workers = cluster.training(3).await;
    for worker in &workers {
        worker.step_done(1).await;
    }
    // The first dies in the fold of step 2, which the second has committed and the third has not.
    drop(workers.remove(0));
    for (worker, held_step) in workers.iter_mut().zip([2, 1]) {
        let Order::Halt(v1::Halt { generation: 1, .. }) = worker.order().await else {
            panic!("expected Halt")
        };
        if held_step == 2 {
            worker.step_done(2).await;
        }
        worker.halted(1, held_step).await;
    }
    let Order::Save(v1::Save { generation: 1 }) = workers[0].order().await else { panic!("expected Save") };
    let parts = workers[0].checkpoint(2);
    assert_eq!(workers[0].publish(parts).await.unwrap(), "step-000002");
    for worker in &mut workers {
        let Order::Assemble(assemble) = worker.order().await else { panic!("expected Assemble") };
        assert_eq!((assemble.generation, assemble.step, assemble.members.len()), (2, 2, 2));
        assert_eq!(assemble.checkpoint, "step-000002");
        assert!(worker.fetch_checkpoint("step-000002").await.is_ok());
        worker.assembled_in(2, 2, 1).await;
    }
    for worker in &mut workers {
        let Order::Start(v1::Start { generation: 2 }) = worker.order().await else {
            panic!("expected Start")
        };
    }
    for worker in &workers {
        worker.finished_in(2, TOTAL_STEPS).await;
    }
    for worker in &mut workers {
        assert_eq!(worker.dismissed().await, "");
    }
    drop(workers);
    assert!(matches!(cluster.end().await, Outcome::Completed { step: TOTAL_STEPS, .. }));
    let run = folder.path().join("run");
    let steps: Vec<_> =
        json_lines(&run.join("metrics.jsonl")).iter().map(|line| line["step"].clone()).collect();
    assert_eq!(steps, [1, 2], "a step is told even if the first rank did not live to tell it");
}

#[tokio::test]
async fn who_does_not_fit_may_not_join() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(create(folder.path()), 1).await;
    let join = |request| FakeWorker::join_as(&cluster.address, request);
    let request = v1::JoinRequest { protocol_version: 99, ..join_request(1) };
    refusal(
        join(request).await,
        Code::FailedPrecondition,
        &["protocol version 99", &format!("the coordinator {PROTOCOL_VERSION}")],
    );
    let request = v1::JoinRequest { program_version: "9.9.9".to_string(), ..join_request(1) };
    refusal(join(request).await, Code::FailedPrecondition, &["9.9.9", VERSION, "same version"]);
    let request = v1::JoinRequest { collective_address: "localhost:1".to_string(), ..join_request(1) };
    refusal(join(request).await, Code::FailedPrecondition, &["comes from 127.0.0.1", "--advertise"]);
    let mut first = join(join_request(1)).await.unwrap();
    refusal(
        join(join_request(2)).await,
        Code::FailedPrecondition,
        &["1 workers already", "--remote-workers"],
    );
    // One that comes back was looked at when it came first.
    let (worker_id, run_id) = (9, first.joined.run_id.clone());
    let returning = v1::JoinRequest { collective_address: "localhost:1".to_string(), ..join_request(9) };
    refusal(
        join(v1::JoinRequest { worker_id, run_id, ..returning }).await,
        Code::FailedPrecondition,
        &["worker 9 was lost", "start it again"],
    );
    // Nobody can listen in another's place.
    first.attend().await.unwrap();
    let mut intruder = first.with_id(first.joined.worker_id);
    refusal(intruder.attend().await, Code::FailedPrecondition, &["worker 1"]);
}

#[tokio::test]
async fn more_workers_than_shards_are_refused_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(create(folder.path()), SHARDS + 1).await;
    let error = cluster.task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("5 workers cannot share 4 shards"), "{error}");
}

#[tokio::test]
async fn differing_states_never_start() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(create(folder.path()), 2).await;
    let mut workers = cluster.workers(2).await;
    for (worker, state) in workers.iter_mut().zip([1, 2]) {
        let Order::Assemble(assemble) = worker.order().await else { panic!("expected Assemble") };
        assert_eq!(assemble.members.len(), 2);
        worker.assembled(state).await;
    }
    for worker in &mut workers {
        assert!(worker.dismissed().await.contains("state hash"));
    }
    drop(workers);
    cluster.fails_with(&["worker 2 has 0202", "worker 1 has 0101"]).await;
}

#[tokio::test]
async fn the_first_stop_waits_for_the_workers_and_the_second_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(create(folder.path()), 2).await;
    let mut workers = cluster.training(2).await;
    cluster.requests.send(Request::Stop).await.unwrap();
    for worker in &mut workers {
        let Order::Stop(_) = worker.order().await else { panic!("expected Stop") };
        worker.finished(5).await;
    }
    for worker in &mut workers {
        assert_eq!(worker.dismissed().await, "");
    }
    drop(workers);
    assert_eq!(cluster.end().await, Outcome::Stopped { step: 5 });

    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(create(folder.path()), 1).await;
    let mut worker = cluster.training(1).await.remove(0);
    for _ in 0..2 {
        cluster.requests.send(Request::Stop).await.unwrap();
    }
    let Order::Stop(_) = worker.order().await else { panic!("expected Stop") };
    assert_eq!(worker.dismissed().await, "");
    drop(worker);
    assert_eq!(cluster.end().await, Outcome::Stopped { step: 0 });
}

#[tokio::test]
async fn a_silent_worker_ends_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start_with(create(folder.path()), 1, |run| {
        run.timeouts.heartbeat = Duration::from_millis(300);
    })
    .await;
    let mut worker = cluster.training(1).await.remove(0);
    assert!(worker.dismissed().await.contains("nothing was heard of it for 0.3 s"));
    drop(worker);
    cluster.fails_with(&["worker 1 (fake 1) was lost"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_lost_because_the_coordinator_slept() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start_with(create(folder.path()), 1, |run| {
        run.timeouts.heartbeat = Duration::from_secs(2);
    })
    .await;
    let mut worker = cluster.training(1).await.remove(0);
    cluster.stall_ms.store(3000, Ordering::Relaxed);
    worker.step_done(1).await;
    worker.finished(TOTAL_STEPS).await;
    assert_eq!(worker.dismissed().await, "");
    drop(worker);
    assert!(matches!(cluster.end().await, Outcome::Completed { .. }));
}

#[tokio::test]
async fn a_run_that_is_complete_needs_no_workers_to_be_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(create(folder.path()), 1).await;
    let mut worker = cluster.training(1).await.remove(0);
    worker.step_done(TOTAL_STEPS).await;
    let parts = worker.checkpoint(TOTAL_STEPS);
    worker.publish(parts).await.unwrap();
    worker.finished(TOTAL_STEPS).await;
    assert_eq!(worker.dismissed().await, "");
    drop(worker);
    let outcome = cluster.end().await;

    // An evaluation that the first coordinator was not asked for is made.
    let run = folder.path().join("run");
    let result = r#"printf '{"evaluation":"knn","step":20,"figures":{"top1":0.5},"card":"a.json"}'"#;
    let settings = EvaluationSettings {
        executable: "/bin/sh".into(),
        arguments: vec!["-c".into(), result.into()],
        every_checkpoints: 1,
        log: folder.path().join("evaluation.log"),
    };
    for evaluations in [Some(Evaluations::new(settings)), None] {
        let directory = RunDirectory::open(&run).unwrap();
        let cluster = Cluster::start_with(directory, 1, |run| run.evaluations = evaluations).await;
        assert_eq!(cluster.end().await, outcome);
    }
    let last = json_lines(&run.join("metrics.jsonl")).pop().unwrap();
    assert_eq!((&last["evaluation"], &last["step"]), (&"knn".into(), &TOTAL_STEPS.into()));
}

#[tokio::test]
async fn unreadable_reports_are_said() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(create(folder.path()), 1).await;
    let worker = cluster.training(1).await.remove(0);
    worker
        .report(Event::Finished(v1::Finished {
            step: 1,
            state_hash: Bytes::from_static(b"short"),
            generation: 1,
        }))
        .await;
    cluster.fails_with(&["state_hash", "expected 32 bytes of BLAKE3, found 5 bytes"]).await;
}

#[tokio::test]
async fn only_whole_checkpoints_of_the_publisher_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(create(folder.path()), 2).await;
    let mut workers = cluster.training(2).await;
    let checkpoints = folder.path().join("run/checkpoints");
    let is_empty = || fs::read_dir(&checkpoints).unwrap().count() == 0;

    workers[0].step_done(5).await;
    let parts = workers[1].checkpoint(5);
    refusal(workers[1].publish(parts).await, Code::FailedPrecondition, &["worker 2 was not told to publish"]);
    let stale: Vec<_> = workers[0]
        .checkpoint(5)
        .into_iter()
        .map(|part| v1::CheckpointPart { generation: 0, ..part })
        .collect();
    refusal(workers[0].publish(stale).await, Code::FailedPrecondition, &["generation 0"]);
    let mut cut = workers[0].checkpoint(5);
    cut.pop();
    refusal(workers[0].publish(cut).await, Code::InvalidArgument, &["expected progress.json last"]);
    let mut mixed = workers[0].checkpoint(5);
    mixed[1].step = 6;
    refusal(workers[0].publish(mixed).await, Code::InvalidArgument, &["differ"]);
    refusal(workers[0].publish(Vec::new()).await, Code::InvalidArgument, &["before its first message"]);

    // One that is left half-way is taken back, and the next attempt finds the way free.
    let (sender, stream) = mpsc::channel(1);
    let mut client = workers[0].client.clone();
    let half = tokio::spawn(async move { client.publish_checkpoint(ReceiverStream::new(stream)).await });
    sender.send(workers[0].checkpoint(5).remove(0)).await.unwrap();
    half.abort();
    let parts = workers[0].checkpoint(5);
    let published = timeout(Duration::from_secs(20), async {
        loop {
            match workers[0].publish(parts.clone()).await {
                Err(status) if status.message().contains("already") => tokio::task::yield_now().await,
                other => return other.unwrap(),
            }
        }
    });
    assert_eq!(published.await.unwrap(), "step-000005");
    assert!(!is_empty());
    assert_eq!(fs::read_dir(&checkpoints).unwrap().count(), 1);
}

#[tokio::test]
async fn a_local_worker_that_dies_before_it_joins_is_noticed_with_its_last_words() {
    let folder = tempfile::tempdir().unwrap();
    let directory = create(folder.path());
    let settings = LocalWorkerSettings {
        executable: "/bin/sh".into(),
        arguments: vec!["-c".into(), "echo no device is free >&2; exit 1".into()],
        own_arguments: vec!["".into(); 2],
        threads_per_worker: 1,
        token: token(),
        logs: directory.logs(),
        restart: true,
    };
    let local_workers = LocalWorkers::spawn(&settings).unwrap();
    let cluster = Cluster::start_with(directory, 2, |run| run.local_workers = Some(local_workers)).await;
    cluster.fails_with(&["worker-", "exit status: 1", "no device is free"]).await;
}

#[tokio::test]
async fn a_checkpoint_waits_for_the_metrics_of_its_steps() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(create(folder.path()), 1).await;
    let mut worker = cluster.training(1).await.remove(0);
    let run = folder.path().join("run");
    let publishing = tokio::spawn({
        let (mut client, parts) = (worker.client.clone(), worker.checkpoint(1));
        async move { client.publish_checkpoint(tokio_stream::iter(parts)).await }
    });
    let is_received = || {
        let folders = fs::read_dir(run.join("checkpoints")).unwrap();
        folders.into_iter().any(|folder| folder.unwrap().path().join("progress.json").exists())
    };
    let received = timeout(Duration::from_secs(20), async {
        while !is_received() {
            tokio::task::yield_now().await;
        }
    });
    received.await.unwrap();
    // The run ends before the step was reported: the checkpoint must not count either.
    worker
        .report(Event::Failed(v1::Failed {
            step: 1,
            reason: "gone".to_string(),
            generation: 1,
            ..v1::Failed::default()
        }))
        .await;
    assert!(worker.dismissed().await.contains("gone"));
    refusal(publishing.await.unwrap(), Code::Unavailable, &["ended"]);
    drop(worker);
    cluster.fails_with(&["gone"]).await;
    let left: Vec<_> =
        fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn without_the_runs_token_nobody_is_heard() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(create(folder.path()), 1).await;
    // Every call is refused, before its message is looked at.
    let channel =
        Endpoint::from_shared(format!("http://{}", cluster.address)).unwrap().connect().await.unwrap();
    let mut stranger = CoordinatorClient::new(channel);
    let refusals = [
        stranger.join(join_request(1)).await.map(drop),
        stranger.attend(tokio_stream::iter([v1::Report::default()])).await.map(drop),
        stranger.fetch_blocks(v1::FetchBlocksRequest::default()).await.map(drop),
        stranger.fetch_checkpoint(v1::FetchCheckpointRequest::default()).await.map(drop),
        stranger.publish_checkpoint(tokio_stream::iter([v1::CheckpointPart::default()])).await.map(drop),
    ];
    for refusal in refusals {
        let status = refusal.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
        assert!(status.message().contains("--token-file"), "{status}");
    }
    let other = Token::random().unwrap();
    let status = FakeWorker::join_with(&cluster.address, other, join_request(1)).await.err().unwrap();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert!(status.message().contains("not that of the run"), "{status}");
    let first = cluster.progress.try_recv();
    assert!(matches!(first, Ok(Progress::Noted { record: Record::Opened { .. }, .. })), "{first:?}");
    assert!(cluster.progress.try_recv().is_err(), "membership heard of none of them");

    // A worker that has the token is not disturbed by those who have not.
    let worker = FakeWorker::join(&cluster.address, 1).await.unwrap();
    assert_eq!(worker.joined.worker_id, 1);
}

#[tokio::test]
async fn workers_that_come_without_end_are_slowed_down() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(create(folder.path()), 1).await;
    let mut worker = FakeWorker::join(&cluster.address, 1).await.unwrap();
    let mut slowed = None;
    for incarnation in 2..1000 {
        match worker.client.join(join_request(incarnation)).await {
            Err(status) if status.code() == Code::ResourceExhausted => {
                slowed = Some(status);
                break;
            }
            _ => {}
        }
    }
    let status = slowed.expect("at some time it is enough");
    assert!(status.message().contains("try again in 0."), "{status}");
}
