//! The programs as a person runs them: real processes, real signals, on a network that trains in seconds.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the answer")]

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
#[path = "programs/clock.rs"]
mod clock;
#[path = "programs/dashboard.rs"]
mod dashboard;
#[path = "programs/departure.rs"]
mod departure;
#[path = "programs/evaluation.rs"]
mod evaluation;
#[path = "programs/network.rs"]
mod network;
#[path = "programs/numbers.rs"]
mod numbers;
#[path = "programs/proxy.rs"]
mod proxy;
#[path = "programs/recovery.rs"]
mod recovery;
#[path = "programs/refusals.rs"]
mod refusals;
#[path = "programs/restart.rs"]
mod restart;
#[path = "programs/security.rs"]
mod security;
#[path = "programs/soak.rs"]
mod soak;
#[path = "programs/traces.rs"]
mod traces;

/// Many short steps, so that a run is under way as long as a test needs it to be.
const SMALL: &[&str] = &[
    "data.images=128",
    "training.batch=16",
    "training.epochs=12",
    "views.crop_px=24",
    "model.width=4",
    "model.projector_dim=16",
    "model.predictor_dim=8",
    "checkpoint.every_steps=4",
    "checkpoint.keep=100",
    "evaluation.every_checkpoints=0",
];

/// `SMALL` has 96 steps.
const LAST: &str = "step-000096";

/// One that nobody drew.
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Longer than any wait here takes, even on a machine with too much to do.
const PATIENCE: Duration = Duration::from_secs(120);

/// A folder to run in.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        // Images are drawn once for all tests, into the build folder.
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache");
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env("SIMSIAM_CACHE_DIR", cache)
            .env_remove("SIMSIAM_TOKEN");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn coordinator(&self, arguments: &[&str]) -> Command {
        self.command(env!("CARGO_BIN_EXE_coordinator"), arguments)
    }

    /// A run of `SMALL` called `name`, with changes to the recipe.
    fn train(&self, name: &str, workers: &str, changes: &[&str]) -> Command {
        let mut command = self.coordinator(&["--name", name, "--workers", workers]);
        for change in SMALL.iter().chain(changes) {
            command.args(["--set", change]);
        }
        command
    }

    fn run(&self, name: &str) -> PathBuf {
        self.0.path().join("runs").join(name)
    }

    fn state_hash(&self, name: &str) -> String {
        self.state_hash_at(name, LAST)
    }

    fn state_hash_at(&self, name: &str, checkpoint: &str) -> String {
        let progress = self.run(name).join("checkpoints").join(checkpoint).join("progress.json");
        let progress: serde_json::Value = serde_json::from_slice(&fs::read(progress).unwrap()).unwrap();
        progress["state_hash"].as_str().unwrap().to_string()
    }

    /// The processes of the workers that joined, once there are `count`.
    fn workers(&self, name: &str, count: usize) -> Vec<Pid> {
        wait_for(|| {
            let journal = fs::read_to_string(self.run(name).join("journal.jsonl")).unwrap_or_default();
            let pids: Vec<Pid> = journal.lines().filter_map(joined_process).collect();
            (pids.len() == count).then_some(pids)
        })
    }

    /// Waits until some steps are committed.
    fn wait_for_steps(&self, name: &str, steps: usize) {
        wait_for(|| {
            let metrics = fs::read_to_string(self.run(name).join("metrics.jsonl")).unwrap_or_default();
            (metrics.lines().count() >= steps).then_some(())
        });
    }
}

fn joined_process(line: &str) -> Option<Pid> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    // Stragglers are told with their description, too.
    if line["event"] != "joined" {
        return None;
    }
    let description = line["description"].as_str()?;
    Pid::from_raw(description.rsplit_once("process ")?.1.parse().ok()?)
}

fn wait_for<T>(mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process is gone, or only waits for someone to ask how it ended.
fn has_ended(process: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", process.as_raw_nonzero()));
    status.map_or(true, |status| status.lines().any(|line| line.starts_with("State:\tZ")))
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn signal(process: Pid, signal: Signal) {
    kill_process(process, signal).unwrap();
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

fn expect(output: &Output, code: i32, phrases: &[&str]) {
    let words = words(output);
    assert_eq!(output.status.code(), Some(code), "{words}");
    for phrase in phrases {
        assert!(words.contains(phrase), "{words:?} lacks {phrase:?}");
    }
}

#[test]
fn one_command_trains_and_leaves_a_run_directory() {
    let place = Place::new();
    let output = place.train("one", "4", &[]).output().unwrap();
    let phrases = [
        "it takes about ",
        "worker 4 of 4 joined",
        "saved step-000004",
        " for the 86 that are left, until about ",
        "step 96/96",
        "all 96 steps are done",
    ];
    expect(&output, 0, &phrases);
    let run = place.run("one");
    for file in [
        "recipe.toml",
        "journal.jsonl",
        "metrics.jsonl",
        "checkpoints/step-000096/model.safetensors",
        "checkpoints/step-000096/optimizer.safetensors",
        "checkpoints/step-000096/progress.json",
        "checkpoints/step-000096/manifest.json",
        "logs/coordinator.log",
        "logs/worker-0.log",
        "logs/worker-3.log",
    ] {
        let length = fs::metadata(run.join(file)).unwrap_or_else(|error| panic!("{file}: {error}")).len();
        assert!(length > 0, "{file} is empty");
    }
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 96);

    // A second run of the same name is not mixed with the first.
    let again = place.train("one", "1", &[]).output().unwrap();
    expect(&again, 1, &["not empty", "--name", "--resume"]);
    // And what is finished stays so.
    let resumed = place.coordinator(&["--resume", "runs/one"]).output().unwrap();
    expect(&resumed, 0, &["goes on from step-000096", "all 96 steps are done"]);
}

#[test]
fn a_stopped_run_goes_on_to_the_same_end() {
    let place = Place::new();
    expect(&place.train("whole", "2", &[]).output().unwrap(), 0, &[]);
    for (name, by, code) in [("interrupted", Signal::INT, 130), ("terminated", Signal::TERM, 143)] {
        let child = place.train(name, "2", &[]).spawn().unwrap();
        place.wait_for_steps(name, 6);
        signal(pid(&child), by);
        expect(&child.wait_with_output().unwrap(), code, &["stopping after step", "go on with --resume"]);
        let resumed = place.coordinator(&["--resume", &format!("runs/{name}"), "--workers", "3"]);
        expect(&{ resumed }.output().unwrap(), 0, &["goes on from step-", "all 96 steps are done"]);
        assert_eq!(place.state_hash(name), place.state_hash("whole"), "{name}");
    }
}

#[test]
fn gradients_are_rounded_on_their_way_over_tcp_and_nowhere_else() {
    let place = Place::new();
    for (name, workers, medium, precision) in [
        ("exact", "2", "tcp", "f32"),
        ("alone", "1", "tcp", "bf16"),
        ("memory", "2", "shared-memory", "bf16"),
        ("rounded", "2", "tcp", "bf16"),
        ("again", "2", "tcp", "bf16"),
    ] {
        let change = format!("training.exchange_precision={precision}");
        let mut command = place.train(name, workers, &[&change]);
        let output = command.args(["--collective", medium]).output().unwrap();
        expect(&output, 0, &["all 96 steps are done"]);
    }
    let exact = place.state_hash("exact");
    assert_eq!([place.state_hash("alone"), place.state_hash("memory")], [exact.clone(), exact.clone()]);
    assert_ne!(place.state_hash("rounded"), exact);
    assert_eq!(place.state_hash("rounded"), place.state_hash("again"));
}

#[test]
fn a_killed_worker_ends_a_run_that_is_to_abort_with_a_sentence_and_a_valid_checkpoint() {
    let place = Place::new();
    let mut command = place.train("killed", "3", &[]);
    let child = command.args(["--on-failure", "abort"]).spawn().unwrap();
    let saved = place.run("killed").join("checkpoints/step-000004/manifest.json");
    wait_for(|| saved.is_file().then_some(()));
    signal(place.workers("killed", 3)[1], Signal::KILL);
    let output = child.wait_with_output().unwrap();
    expect(&output, 1, &["the process of worker-", "signal: 9", "the last checkpoint is step-", "--resume"]);
    expect(&place.coordinator(&["--resume", "runs/killed"]).output().unwrap(), 0, &["all 96 steps are done"]);
    expect(&place.train("whole", "1", &[]).output().unwrap(), 0, &[]);
    assert_eq!(place.state_hash("killed"), place.state_hash("whole"));
}

#[test]
fn no_worker_outlives_its_coordinator() {
    let place = Place::new();
    let mut child = place.train("orphans", "2", &["training.epochs=1000"]).spawn().unwrap();
    let workers = place.workers("orphans", 2);
    place.wait_for_steps("orphans", 2);
    signal(pid(&child), Signal::KILL);
    child.wait().unwrap();
    for worker in workers {
        wait_for(|| has_ended(worker).then_some(()));
    }
}

/// The address that is told to the person who starts the other workers.
fn told_address(stderr: &mut impl Read) -> String {
    let (mut told, mut byte) = (String::new(), [0]);
    while !told.ends_with("`\n") {
        assert_eq!(stderr.read(&mut byte).unwrap(), 1, "{told}");
        told.push(char::from(byte[0]));
    }
    told.rsplit_once("--join ").unwrap().1.split_whitespace().next().unwrap().to_string()
}

#[test]
fn workers_join_from_elsewhere() {
    let place = Place::new();
    expect(&place.train("alone", "1", &[]).output().unwrap(), 0, &[]);
    // Told by flags, and as a launcher tells containers, which listen on all their addresses.
    for name in ["flags", "variables"] {
        let mut leader = place.train(name, "1", &[]);
        let mut leader = leader.args(["--remote-workers", "1"]).env("SIMSIAM_TOKEN", TOKEN).spawn().unwrap();
        let mut stderr = leader.stderr.take().unwrap();
        let address = told_address(&mut stderr);
        let (host, port) = address.rsplit_once(':').unwrap();
        let mut worker = place.command(env!("CARGO_BIN_EXE_worker"), &["--no-local-files"]);
        worker.env("SIMSIAM_TOKEN", TOKEN);
        match name {
            "flags" => worker.args(["--join", &address]),
            _ => worker
                .envs([("MASTER_ADDR", host), ("MASTER_PORT", port)])
                .envs([("SIMSIAM_LISTEN", "0.0.0.0:0"), ("SIMSIAM_INSECURE_NETWORK", "1")]),
        };
        expect(&worker.output().unwrap(), 0, &["joined", "assembled", "finished"]);
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).unwrap();
        assert!(leader.wait().unwrap().success(), "{rest}");
        assert_eq!(place.state_hash(name), place.state_hash("alone"), "{name}");
    }
}

#[test]
fn what_starts_programs_again_needs_no_other_command() {
    let place = Place::new();
    expect(&place.train("whole", "1", &[]).output().unwrap(), 0, &[]);
    let start = |listen: &str| {
        let mut leader = place.train("again", "1", &[]);
        leader
            .args(["--resume-or-begin", "--remote-workers", "1", "--listen", listen])
            .env("SIMSIAM_TOKEN", TOKEN)
            .spawn()
            .unwrap()
    };
    let join = |address: &str| {
        let mut worker = place.command(env!("CARGO_BIN_EXE_worker"), &["--join", address]);
        worker.env("SIMSIAM_TOKEN", TOKEN).spawn().unwrap()
    };
    let mut leader = start("127.0.0.1:0");
    let worker = join(&told_address(leader.stderr.as_mut().unwrap()));
    place.wait_for_steps("again", 6);
    signal(pid(&leader), Signal::TERM);
    expect(&leader.wait_with_output().unwrap(), 143, &["go on with --resume"]);
    // 0 would say that there is nothing left to do.
    expect(&worker.wait_with_output().unwrap(), 143, &["start the worker again"]);
    let mut leader = start("127.0.0.1:0");
    let address = told_address(leader.stderr.as_mut().unwrap());
    let worker = join(&address);
    expect(&leader.wait_with_output().unwrap(), 0, &["goes on from step-", "all 96 steps are done"]);
    expect(&worker.wait_with_output().unwrap(), 0, &["finished"]);
    assert_eq!(place.state_hash("again"), place.state_hash("whole"));
    // Once more, after the end: nobody is to be started again without end.
    let (leader, worker) = (start(&address), join(&address));
    expect(&leader.wait_with_output().unwrap(), 0, &["all 96 steps are done"]);
    expect(&worker.wait_with_output().unwrap(), 0, &["the run is complete"]);
}

#[test]
fn another_recipe_does_not_go_on_with_a_run() {
    let place = Place::new();
    expect(
        &place.train("first", "1", &["training.epochs=1", "optimizer.warmup_epochs=0.0"]).output().unwrap(),
        0,
        &[],
    );
    let arguments = ["--resume", "runs/first", "--set", "training.epochs=9"];
    let output = place.coordinator(&arguments).output().unwrap();
    expect(&output, 1, &["training.epochs is 1, not 9", "another --name"]);
}

#[test]
fn a_recipe_is_checked_and_its_views_are_drawn_without_a_run() {
    let place = Place::new();
    let output = place.coordinator(&["check", "--workers", "4"]).output().unwrap();
    expect(
        &output,
        0,
        &[
            "name = \"quickstart\"",
            "# schedule: 2048 images",
            "learning rate",
            "a step: each of 4",
            "FLOP a step",
            "# all steps: about ",
        ],
    );
    let output = place.coordinator(&["views", "--set", "data.images=128", "--images", "2"]).output().unwrap();
    expect(&output, 0, &["views.png: 2 images of synthetic-128, each with"]);
    let output =
        place.coordinator(&["views", "--set", "data.images=128", "--images", "64"]).output().unwrap();
    expect(&output, 0, &["views.png: 32 images of synthetic-128, all that shard 0 has, each with"]);
    let picture = fs::read(place.0.path().join("views.png")).unwrap();
    assert!(picture.starts_with(b"\x89PNG"));
    assert!(!place.0.path().join("runs").exists());
}

#[test]
fn a_run_is_evaluated_while_it_goes_on() {
    let place = Place::new();
    let changes = ["evaluation.every_checkpoints=6", "evaluation.knn=[{k=20,temperature=0.07}]"];
    let mut child = place.train("judged", "2", &changes).spawn().unwrap();
    place.wait_for_steps("judged", 1);
    // A watcher of its own, which ends with the run.
    let evaluate = env!("CARGO_BIN_EXE_evaluate");
    let watched = place.command(evaluate, &["knn", "runs/judged", "--watch", "--json"]).output().unwrap();
    expect(&watched, 0, &[r#""evaluation":"knn","step":96,"figures":{"top1_k20_t0.07":"#]);
    assert!(String::from_utf8_lossy(&watched.stdout).lines().count() > 1, "{}", words(&watched));

    assert!(child.wait().unwrap().success());
    let metrics = fs::read_to_string(place.run("judged").join("metrics.jsonl")).unwrap();
    let evaluations: Vec<serde_json::Value> = metrics
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &serde_json::Value| line["evaluation"] == "knn")
        .collect();
    assert_eq!(metrics.lines().count() - evaluations.len(), 96, "a line for each step");
    let steps: Vec<u64> = evaluations.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!((steps.first(), steps.last()), (Some(&0), Some(&96)), "from random weights to the end");
    for evaluation in &evaluations {
        assert!(place.0.path().join(evaluation["card"].as_str().unwrap()).is_file());
    }
}

#[test]
fn an_evaluation_that_fails_costs_the_run_nothing() {
    let place = Place::new();
    let elsewhere = r#"evaluation.data={source="cifar10",path="nowhere"}"#;
    let output =
        place.train("unjudged", "1", &["evaluation.every_checkpoints=96", elsewhere]).output().unwrap();
    let phrases = ["evaluation of the random weights failed", "nowhere", "all 96 steps are done"];
    expect(&output, 0, &phrases);
}

#[test]
fn an_evaluation_beside_training_ends_with_its_coordinator() {
    let place = Place::new();
    expect(&place.train("short", "1", &["training.epochs=3"]).output().unwrap(), 0, &[]);
    // Watching a run whose journal is not at its end would go on for ever.
    let journal = place.run("short").join("journal.jsonl");
    let begun = fs::read_to_string(&journal).unwrap().lines().next().unwrap().to_string();
    fs::write(&journal, begun + "\n").unwrap();
    let evaluate = env!("CARGO_BIN_EXE_evaluate");
    let mut command = place.command(evaluate, &["quality", "runs/short", "--watch", "--beside-training"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    drop(wait_for(|| fs::read_dir(place.run("short").join("evaluations")).ok()?.next()?.ok()));
    assert!(!has_ended(pid(&child)), "it watches on");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

/// A file that PyTorch wrote, of the network of [`FOREIGN_NETWORK`].
fn foreign(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../evaluation/tests/fixtures/foreign");
    folder.join(name).to_str().unwrap().to_owned()
}

const FOREIGN_NETWORK: [&str; 3] = ["model.width=2", "model.projector_dim=6", "model.predictor_dim=3"];

/// `SMALL` with the network of the foreign files, as arguments.
fn foreign_recipe() -> Vec<String> {
    let changes = SMALL.iter().chain(&FOREIGN_NETWORK);
    changes.flat_map(|change| ["--set".to_owned(), (*change).to_owned()]).collect()
}

#[test]
fn a_run_starts_from_the_weights_of_another_program() {
    let place = Place::new();
    let evaluate = |arguments: &[&str]| place.command(env!("CARGO_BIN_EXE_evaluate"), arguments);
    let file = foreign("simsiam.pth.tar");
    let start = format!("start.weights={file}");
    let alone =
        place.train("alone", "1", &[&FOREIGN_NETWORK[..], &[start.as_str()]].concat()).output().unwrap();
    expect(&alone, 0, &["fc.3.bias is subtracted from", "goes on from step-000000", "all 96 steps are done"]);
    let recipe = fs::read_to_string(place.run("alone").join("recipe.toml")).unwrap();
    assert!(recipe.contains("blake3 = \"") && recipe.contains("heads = \"imported\""), "{recipe}");

    // The same in two parts: a run that has not begun, which can be evaluated, and its training.
    let output = evaluate(&["import", &file, "runs/apart"]).args(foreign_recipe()).output().unwrap();
    expect(&output, 0, &["simsiam.pth.tar as runs/apart"]);
    let output = evaluate(&["knn", "runs/apart", "--k", "5", "--temperature", "0.1"]).output().unwrap();
    expect(&output, 0, &["step-000000 on synthetic-128", "starts from", "simsiam.pth.tar", "kNN, k 5"]);
    let output = evaluate(&["embed", "runs/apart", "recipe", "features.csv"]).output().unwrap();
    expect(&output, 0, &["features.csv: 128 rows of 16 features"]);
    let table = fs::read_to_string(place.0.path().join("features.csv")).unwrap();
    assert!(table.starts_with("path,label,feature_0,") && table.lines().count() == 129);
    let output = place.coordinator(&["--resume", "runs/apart", "--workers", "2"]).output().unwrap();
    expect(&output, 0, &["all 96 steps are done"]);
    assert_eq!(place.state_hash("apart"), place.state_hash("alone"));
}

#[test]
fn weights_that_do_not_fit_get_a_sentence() {
    let place = Place::new();
    let file = place.0.path().join("weights");
    let output = |program: &str, arguments: &[&str]| {
        place.command(program, arguments).args(foreign_recipe()).output().unwrap()
    };
    let (evaluate, coordinator) = (env!("CARGO_BIN_EXE_evaluate"), env!("CARGO_BIN_EXE_coordinator"));
    let set = ["--set", "start.weights=weights"];
    expect(&output(coordinator, &set), 1, &["weights: expected a file of weights", "no such file"]);
    fs::copy(foreign("torchvision.pth"), &file).unwrap();
    let wide = [&["check"][..], &set, &["--set", "model.stem=imagenet"]].concat();
    let phrases =
        ["encoder.conv1.weight of shape [2, 3, 7, 7], found [2, 3, 3, 3]", "looks like a resnet10, width 2"];
    expect(&output(coordinator, &wide), 1, &phrases);
    let checked = output(coordinator, &[&["check"][..], &set].concat());
    expect(
        &checked,
        0,
        &["heads = \"random\"", "# weights: the classifier is left out", "drawn from seed 0"],
    );
    let bare = place.command(evaluate, &["import", "weights", "runs/a"]).output().unwrap();
    expect(&bare, 1, &["--config"]);
    assert!(!place.0.path().join("runs").exists(), "nothing is left of a run that was refused");

    // A run whose first checkpoint was lost goes on from its file, as long as that is the same one.
    expect(&output(evaluate, &["import", "weights", "runs/a"]), 0, &["drawn from seed 0: the file has none"]);
    fs::remove_dir_all(place.run("a").join("checkpoints/step-000000")).unwrap();
    fs::copy(foreign("torchvision-legacy.pth"), &file).unwrap();
    let resumed = || place.coordinator(&["--resume", "runs/a"]).output().unwrap();
    expect(&resumed(), 1, &["weights: expected BLAKE3", "made with another file of this name"]);
    let other = [&["--resume", "runs/a"][..], &set].concat();
    expect(&output(coordinator, &other), 1, &["weights: expected BLAKE3"]);
    fs::copy(foreign("torchvision.pth"), &file).unwrap();
    expect(&resumed(), 0, &["all 96 steps are done"]);
}
