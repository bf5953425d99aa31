//! The dashboard as browsers, Prometheus and programs see it: real HTTP on port 0, and a real run directory.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the answer")]

mod run;
mod wire;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use coordinator::{Doing, Pace, Phase, Progress, Sight, StepSeconds, WorkerSight};
use dashboard::{Action, Address, AskError, Asked, Credentials, State, Status, Watched, act, status_lines};
use protocol::Token;
use recipe::{QUICKSTART, Recipe};
use serde_json::Value;

use run::{Served, TestRun, eventually};
use wire::{Events, Reply, get, send};

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_is_that_of_the_metrics_file() {
    let run = TestRun::new();
    run.write_steps(1..=300);
    let served = run.serve("127.0.0.1:0").await;
    let answer = served.get("/api/history?points=4000").await.json();
    let columns = &answer["columns"];
    assert_eq!(columns["first"].as_array().unwrap().len(), 300);
    let lines: Vec<Value> = run.metrics().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (place, line) in lines.iter().enumerate() {
        assert_eq!((&columns["first"][place], &columns["last"][place]), (&line["step"], &line["step"]));
        assert_eq!(columns["epoch"][place], line["epoch"]);
        for curve in ["loss", "collapse_level", "learning_rate", "gradient_norm", "images_per_second"] {
            for column in ["mean", "low", "high"] {
                assert_eq!(columns["curves"][curve][column][place], line[curve], "{curve} of {line}");
            }
        }
        for part in ["data", "forward", "backward", "all_reduce", "update"] {
            assert_eq!(columns["seconds"][part][place], line["seconds"][part], "{part} of {line}");
        }
    }
    let status = served.get("/api/status").await.json();
    assert_eq!(status["last_step"], lines[299]);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_opened_late_or_after_a_restart_has_the_history() {
    let run = TestRun::new();
    let served = run.serve("127.0.0.1:0").await;
    run.write_steps(1..=40);
    eventually(|| async { served.status().await.step == 40 }).await;
    let before = served.get("/api/history").await.json();
    let story = served.get("/api/story").await.json();
    served.end().await;

    let served = run.serve("127.0.0.1:0").await;
    assert_eq!(served.get("/api/history").await.json()["columns"], before["columns"]);
    assert_eq!(served.get("/api/story").await.json(), story);
    // A resume: what came after the checkpoint is written anew.
    run.rewrite_steps(1..=25);
    eventually(|| async { served.status().await.step == 25 }).await;
    run.write_steps(26..=30);
    eventually(|| async { served.status().await.step == 30 }).await;
    let again = served.get("/api/history").await.json();
    assert_eq!(again["columns"]["last"].as_array().unwrap().len(), 30);
    assert_ne!(again["life"], before["life"]);
    // A page that was away meanwhile has steps up to 25 of before: by this it knows that they are others now.
    let mut events = Events::open(served.address, "/api/events?after=25").await;
    assert_eq!(events.until("hello", |_| true).await["life"], again["life"]);
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_runs_are_thinned_to_what_was_asked_for_and_are_exact_near_by() {
    let run = TestRun::new();
    run.write_steps(1..=50_000);
    let served = run.serve("127.0.0.1:0").await;
    for points in [1, 2, 100, 500] {
        let answer = served.get(&format!("/api/history?points={points}")).await.json();
        let columns = &answer["columns"];
        let first = columns["first"].as_array().unwrap();
        assert!(first.len() <= points && first.len() > points / 2, "{points}");
        let (low, high) = (&columns["curves"]["loss"]["low"], &columns["curves"]["loss"]["high"]);
        let all = |values: &Value| values.as_array().unwrap().iter().map(number).collect::<Vec<f64>>();
        let expected: Vec<f64> = (1..=50_000).map(|step| run::step(step).loss).collect();
        assert_eq!(
            all(low).into_iter().fold(f64::INFINITY, f64::min),
            expected.iter().copied().fold(f64::INFINITY, f64::min)
        );
        assert_eq!(
            all(high).into_iter().fold(f64::NEG_INFINITY, f64::max),
            expected.iter().copied().fold(f64::NEG_INFINITY, f64::max)
        );
    }
    let near = served.get("/api/history?from=31000&to=31399&points=400").await.json();
    let steps = near["columns"]["first"].as_array().unwrap();
    assert_eq!((steps.len(), &steps[0], &steps[399]), (400, &Value::from(31_000), &Value::from(31_399)));
    assert_eq!(number(&near["columns"]["curves"]["loss"]["mean"][7]), run::step(31_007).loss);
    for bad in ["from=x", "points=-1", "to=1e9"] {
        assert_eq!(served.get(&format!("/api/history?{bad}")).await.status, 400, "{bad}");
    }
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_told_what_comes_until_the_end() {
    let run = TestRun::new();
    run.write_steps(1..=10);
    let served = run.serve("127.0.0.1:0").await;
    let mut events = Events::open(served.address, "/api/events?after=8").await;
    events.until("hello", |_| true).await;
    let steps = events.until("steps", |_| true).await;
    assert_eq!(steps["first"], serde_json::json!([9, 10]));
    assert_eq!(number(&steps["curves"]["loss"]["mean"][1]), run::step(10).loss);
    run.write_steps(11..=12);
    let steps = events.until("steps", |_| true).await;
    assert_eq!(steps["first"], serde_json::json!([11, 12]));
    run.record(r#"{"event":"checkpoint","generation":1,"checkpoint":"step-000012","step":12}"#);
    let story = events.until("story", |story| story["moments"].to_string().contains("step-000012")).await;
    assert_eq!(story["moments"].as_array().unwrap().last().unwrap()["event"], "saved");
    // More than are told one by one.
    run.write_steps(13..=2000);
    events.until("again", |_| true).await;
    served.observer.hear(&Progress::Seen(sight(2000)));
    let status = events.until("status", |status| status["workers"] != serde_json::json!([])).await;
    assert_eq!((&status["state"], &status["workers"][0]["worker"]), (&"training".into(), &1.into()));
    run.record(r#"{"event":"ended","outcome":"stopped","step":2000}"#);
    let ending = tokio::spawn(served.end());
    let status = events.until("status", |status| status["state"] == "stopped").await;
    assert_eq!(status["workers"], serde_json::json!([]), "they would be late for ever");
    events.until("end", |_| true).await;
    ending.await.unwrap();
}

fn sight(step: u64) -> Sight {
    let seconds =
        StepSeconds { data: 0.01, forward: 0.1, backward: 0.1, all_reduce: 0.02, update: 0.01, step: 0.25 };
    let worker = WorkerSight {
        worker: 1,
        rank: Some(0),
        description: "a \"host\", process 7".to_string(),
        first_shard: 0,
        shard_count: 2,
        doing: Doing::Training,
        silent_ms: 300,
        pace: Some(Pace { step, seconds }),
    };
    Sight { phase: Phase::Training, generation: 1, step, workers: vec![worker] }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_pages_and_other_names_get_nothing() {
    let run = TestRun::new();
    let mut served = run.serve("127.0.0.1:0").await;
    served.observer.hear(&Progress::Seen(sight(0)));
    let page = served.get("/").await;
    let secret = page.text.split("name=\"secret\" content=\"").nth(1).unwrap().split('"').next().unwrap();
    let host = served.address.to_string();
    let origin = format!("http://{host}");
    // A name that points here, as a page elsewhere may make its own do.
    for path in
        ["/", "/api/status", "/api/events", "/metrics", "/dashboard.js", "/report", "/views.png?epoch=0"]
    {
        let reply = send(served.address, "GET", path, &[("host", "evil.example")], "").await;
        assert_eq!(reply.status, 421, "{path}");
        assert!(!reply.text.contains(secret));
    }
    for probe in ["/healthz", "/readyz"] {
        assert_eq!(
            send(served.address, "GET", probe, &[("host", "10.1.2.3:80")], "").await.status,
            200,
            "{probe}"
        );
    }
    let stop = r#"{"action":"stop"}"#;
    let host = ("host", host.as_str());
    for (headers, body, status) in [
        (vec![host], stop, 403),
        (vec![host, ("x-simsiam-secret", "0")], stop, 403),
        (vec![host, ("x-simsiam-secret", secret), ("origin", "http://evil.example")], stop, 403),
        (vec![host, ("x-simsiam-secret", secret), ("sec-fetch-site", "cross-site")], stop, 403),
        (vec![("host", "evil.example"), ("x-simsiam-secret", secret)], stop, 421),
        (vec![host, ("x-simsiam-secret", secret)], r#"{"action":"explode"}"#, 400),
        (vec![host, ("x-simsiam-secret", secret)], "", 400),
        (vec![host, ("x-simsiam-secret", secret)], &"x".repeat(10_000), 400),
    ] {
        let reply = send(served.address, "POST", "/api/actions", &headers, body).await;
        assert_eq!(reply.status, status, "{headers:?} {}", reply.text);
    }
    assert!(served.actions.try_recv().is_err(), "none of these was an action");
    let get = send(served.address, "GET", "/api/actions", &[host, ("x-simsiam-secret", secret)], "").await;
    assert_eq!(get.status, 404);
    assert_eq!(send(served.address, "POST", "/api/status", &[host], "").await.status, 405);

    // The page itself, once: a second stop would end the run without saving.
    let own =
        [host, ("x-simsiam-secret", secret), ("origin", origin.as_str()), ("sec-fetch-site", "same-origin")];
    for (action, status) in [("continue", 409), ("pause", 202), ("save", 202), ("continue", 202)] {
        let body = format!("{{\"action\":\"{action}\"}}");
        let reply = send(served.address, "POST", "/api/actions", &own, &body).await;
        assert_eq!(reply.status, status, "{action} {}", reply.text);
    }
    for (body, status) in [
        (r#"{"action":"drain","worker":1}"#, 202),
        (r#"{"action":"drain","worker":99}"#, 409),
        (r#"{"action":"drain"}"#, 400),
    ] {
        let reply = send(served.address, "POST", "/api/actions", &own, body).await;
        assert_eq!(reply.status, status, "{body} {}", reply.text);
    }
    assert_eq!(served.actions.recv().await, Some(Action::Pause));
    assert_eq!(served.actions.recv().await, Some(Action::Save));
    assert_eq!(served.actions.recv().await, Some(Action::Continue));
    assert_eq!(served.actions.recv().await, Some(Action::Drain { worker: 1 }));
    assert_eq!(send(served.address, "POST", "/api/actions", &own, stop).await.status, 202);
    assert_eq!(served.actions.recv().await, Some(Action::Stop));
    assert_eq!(send(served.address, "POST", "/api/actions", &own, stop).await.status, 409);
    assert!(served.actions.try_recv().is_err());
    assert!(served.status().await.actions.is_empty());
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_others_reach_it_the_token_is_asked_for() {
    let run = TestRun::new();
    run.write_steps(1..=5);
    let served = run.serve("0.0.0.0:0").await;
    let near = served.near();
    let bearer = format!("Bearer {}", run::TOKEN);
    for path in [
        "/",
        "/api/status",
        "/api/history",
        "/api/story",
        "/api/events",
        "/metrics",
        "/dashboard.js",
        "/report",
        "/views.png?epoch=0",
        "/evaluations/knn.jpg",
    ] {
        let reply = get(near, path).await;
        assert_eq!(reply.status, 401, "{path}");
        assert!(!reply.text.contains("quickstart"), "{path}: {}", reply.text);
        let wrong = send(near, "GET", path, &[("authorization", "Bearer 0123")], "").await;
        assert_eq!(wrong.status, 401, "{path}");
    }
    for path in ["/", "/api/status", "/metrics"] {
        let reply = send(near, "GET", path, &[("authorization", &bearer)], "").await;
        assert_eq!(reply.status, 200, "{path}");
    }
    assert_eq!(get(near, "/healthz").await.status, 200);
    // A browser signs in once.
    let form = send(near, "POST", "/sign-in", &[], "token=0123456789abcdef0123456789abcdee").await;
    assert_eq!((form.status, form.header("set-cookie")), (401, None));
    let form = send(near, "POST", "/sign-in", &[], &format!("token={}", run::TOKEN)).await;
    assert_eq!(form.status, 303);
    let cookie = form.header("set-cookie").unwrap().split(';').next().unwrap().to_string();
    assert!(!cookie.contains(run::TOKEN));
    let page = send(near, "GET", "/", &[("cookie", &cookie)], "").await;
    assert!(page.status == 200 && page.text.contains("quickstart") && !page.text.contains(run::TOKEN));
    // The cookie alone does not act.
    let stop = send(near, "POST", "/api/actions", &[("cookie", &cookie)], r#"{"action":"stop"}"#).await;
    assert_eq!(stop.status, 403);

    let whom = Address::new(&format!("http://{near}"));
    let shown = |token| Credentials { token: Some(token), insecure_network: false };
    let (own, other) = (shown(Token::parse(run::TOKEN).unwrap()), shown(Token::random().unwrap()));
    let look = |whom: Address, shown| blocking(move || Watched::at(whom, shown).look());
    let (status, asked) = look(whom.clone(), own).await.unwrap();
    assert_eq!((status.step, asked), (5, Asked::Coordinator(whom.clone())));
    for shown in [other, Credentials::default()] {
        let refused = look(whom.clone(), shown).await;
        assert!(matches!(refused, Err(AskError::Refused { .. })), "{refused:?}");
    }
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_comes_from_the_coordinator_or_from_the_files() {
    let run = TestRun::new();
    run.write_steps(1..=64);
    let read = || {
        let folder = run.path().to_path_buf();
        async { blocking(move || look(&folder)).await.unwrap() }
    };
    let (status, asked) = read().await;
    assert_eq!((status.state, status.step, status.total_steps), (State::Unattended, 64, Some(480)));
    assert_eq!(asked, Asked::Files(run.path().to_path_buf()));

    let served = run.serve("127.0.0.1:0").await;
    served.observer.hear(&Progress::Seen(sight(64)));
    let (status, asked) = read().await;
    assert_eq!((status.state, status.workers.len()), (State::Training, 1));
    assert_eq!(asked, Asked::Coordinator(Address::of_run(run.path()).unwrap()));
    let lines = status_lines(&status).join("\n");
    for phrase in [
        "run quickstart: training, step 64 of 480 (13 %)",
        "left, until about ",
        "Healthy",
        "shards 0 to 1",
        "256 images/s, ",
        "of the peak)",
        "all-reduce 8 %",
    ] {
        assert!(lines.contains(phrase), "{lines}\nlacks {phrase:?}");
    }

    served.end().await;
    assert!(!run.path().join("dashboard.url").exists());
    assert_eq!(read().await.1, Asked::Files(run.path().to_path_buf()));
    let nowhere = || look(Path::new("/nowhere"));
    assert!(blocking(nowhere).await.unwrap_err().to_string().contains("recipe.toml"));
}

/// However long the run is: its coordinator has read all of it already.
#[tokio::test(flavor = "multi_thread")]
async fn files_are_read_only_where_no_coordinator_answers_and_only_once() {
    let run = TestRun::new();
    run.write_steps(1..=300);
    let served = run.serve("127.0.0.1:0").await;
    eventually(|| async { served.status().await.step == 300 }).await;
    let aside = run.path().join("aside");
    // Whoever looks by the folder finds nothing to read in it.
    let recipe = run.path().join("recipe.toml");
    std::fs::rename(&recipe, &aside).unwrap();
    let mut watched = Watched::of_run(run.path(), Credentials::default());
    let (asked, mut watched) = blocking(move || (watched.look(), watched)).await;
    assert_eq!(asked.unwrap().0.step, 300);
    std::fs::rename(&aside, &recipe).unwrap();
    served.end().await;
    let mut read = |points| {
        let (status, asked) = watched.look().unwrap();
        (status.step, watched.curves(&asked, points).unwrap().loss.len())
    };
    assert_eq!(read(1000), (300, 300));
    // What was read is known, whatever has become of it.
    let file = std::fs::File::options().write(true).open(run.path().join("metrics.jsonl")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[b' '; 100], 0).unwrap();
    run.write_steps(301..=310);
    assert_eq!(read(1000), (310, 310));
}

/// A coordinator that was killed leaves the address of its dashboard behind.
#[tokio::test(flavor = "multi_thread")]
async fn another_run_at_the_address_of_a_killed_one_is_left_alone() {
    let (run, killed) = (TestRun::new(), TestRun::new());
    let mut served = run.serve("127.0.0.1:0").await;
    std::fs::copy(run.path().join("dashboard.url"), killed.path().join("dashboard.url")).unwrap();
    let whom = |run: &TestRun| Address::of_run(run.path()).unwrap();
    let ask_stop = |whom| blocking(move || act(&whom, &Credentials::default(), Action::Stop));
    let refused = ask_stop(whom(&killed)).await;
    assert!(matches!(refused, Err(AskError::AnotherRun { .. })), "{refused:?}");
    assert!(served.actions.try_recv().is_err(), "nothing was asked of the other run");
    let folder = killed.path().to_path_buf();
    let (status, asked) = blocking(move || look(&folder)).await.unwrap();
    assert_eq!((status.step, asked), (0, Asked::Files(killed.path().to_path_buf())));
    ask_stop(whom(&run)).await.unwrap();
    assert_eq!(served.actions.recv().await, Some(Action::Stop));
    served.end().await;
}

/// What somebody may have written into the folder of a run is not shown the token.
#[test]
fn the_token_does_not_go_where_a_file_says() {
    let run = TestRun::new();
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::fs::write(run.path().join("dashboard.url"), format!("http://127.0.0.1:{port}@0.0.0.0:{port}"))
        .unwrap();
    let shown = Credentials { token: Some(Token::random().unwrap()), insecure_network: false };
    let refused = Watched::of_run(run.path(), shown.clone()).look();
    assert!(matches!(refused, Err(AskError::Overheard { .. })), "{refused:?}");
    let refused = act(&Address::of_run(run.path()).unwrap(), &shown, Action::Stop);
    assert!(matches!(refused, Err(AskError::Overheard { .. })), "{refused:?}");
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "nobody came");
}

/// A look at the run in `folder`.
fn look(folder: &Path) -> Result<(Status, Asked), AskError> {
    Watched::of_run(folder, Credentials::default()).look()
}

/// Lets what waits for answers wait beside the server.
async fn blocking<T: Send + 'static>(ask: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(ask).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_reads_what_the_run_is() {
    let run = TestRun::new();
    run.write_steps(1..=30);
    run.write(r#"{"evaluation":"knn","step":20,"figures":{"top1_k20_t0.07":0.25},"card":"a.json"}"#);
    let served = run.serve("127.0.0.1:0").await;
    served.observer.hear(&Progress::Seen(sight(30)));
    // It is answered once those were read which another coordinator has counted.
    assert!(served.get("/metrics").await.text.contains("\nsimsiam_steps_total 0\n"));
    run.write_steps(31..=33);
    eventually(|| async { served.status().await.last_step.is_some_and(|last| last.step == 33) }).await;
    let reply = served.get("/metrics").await;
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let samples = samples(&reply);
    let sample = |name: &str| {
        let found = samples.iter().find(|(other, _)| other == name);
        found.unwrap_or_else(|| panic!("no {name} in {samples:#?}")).1
    };
    let last = run::step(33);
    let flops = Recipe::from_toml(QUICKSTART, &[]).unwrap().flops_per_image();
    for (name, expected) in [
        ("simsiam_step", 33.0),
        ("simsiam_steps_total", 3.0),
        ("simsiam_images_total", 3.0 * 128.0),
        ("simsiam_steps_planned", 480.0),
        ("simsiam_loss", last.loss),
        ("simsiam_gradient_norm", last.gradient_norm),
        ("simsiam_run_state{state=\"training\"}", 1.0),
        ("simsiam_run_state{state=\"failed\"}", 0.0),
        ("simsiam_worker_shards{worker=\"1\"}", 2.0),
        ("simsiam_worker_step_seconds{worker=\"1\"}", 0.25),
        ("simsiam_worker_model_flops_per_second{worker=\"1\"}", 256.0 * flops),
        ("simsiam_worker_peak_ratio{worker=\"1\"}", 256.0 * flops / 1e12),
        ("simsiam_step_duration_seconds_count", 3.0),
        ("simsiam_step_duration_seconds_bucket{le=\"+Inf\"}", 3.0),
        ("simsiam_evaluation_accuracy_ratio{evaluation=\"knn\",figure=\"top1_k20_t0.07\"}", 0.25),
    ] {
        assert_eq!(sample(name), expected, "{name}");
    }
    let found = sample("simsiam_model_flops_per_second") / sample("simsiam_images_per_second");
    assert!((found / flops - 1.0).abs() < 1e-9, "{found} for an image instead of {flops}");
    // Whoever is alone sends nothing.
    assert!(!reply.text.contains("simsiam_worker_step_sent_bytes{"));
    assert!(sample("simsiam_worker_heartbeat_age_seconds{worker=\"1\"}") >= 0.3);
    // A rollback: the run goes back, what was counted does not.
    run.rewrite_steps(1..=20);
    served.observer.hear(&Progress::Seen(sight(20)));
    eventually(|| async { served.get("/metrics").await.text.contains("\nsimsiam_step 20\n") }).await;
    assert!(served.get("/metrics").await.text.contains("\nsimsiam_steps_total 3\n"));
    served.end().await;
}

/// The samples of a text, each of a family that was announced, none twice.
fn samples(reply: &Reply) -> Vec<(String, f64)> {
    let mut families = BTreeSet::new();
    let mut samples: Vec<(String, f64)> = Vec::new();
    for line in reply.text.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(["gauge", "counter", "histogram"].contains(&kind), "{line}");
            assert!(families.insert(name.to_string()), "{line} is there twice");
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let bare = name.split('{').next().unwrap();
            let suffixes = ["", "_bucket", "_sum", "_count"];
            let is_announced = suffixes
                .iter()
                .any(|suffix| bare.strip_suffix(suffix).is_some_and(|family| families.contains(family)));
            assert!(is_announced, "{line} is of no family");
            assert!(samples.iter().all(|(other, _)| other != name), "{line} is there twice");
            samples.push((name.to_string(), value.parse().unwrap()));
        }
    }
    samples
}

/// A picture of this kind, or a sentence.
async fn expect_picture(served: &Served, path: &str, kind: &str, (status, text): (u16, &str)) {
    let reply = served.get(path).await;
    assert!(reply.status == status && reply.text.contains(text), "{path}: {}", reply.text);
    assert_eq!(reply.header("content-type").unwrap() == kind, status == 200, "{path}");
}

#[tokio::test(flavor = "multi_thread")]
async fn views_are_those_of_the_epoch_that_is_asked_for() {
    let run = TestRun::new();
    let served = run.serve("127.0.0.1:0").await;
    assert!(served.get("/").await.text.contains("id=\"views\""));
    for (query, status, text) in [
        ("?epoch=7", 200, "views of 7"),
        ("?epoch=30", 500, "cannot be drawn"),
        ("?epoch=-1", 400, "expected a whole number"),
        ("", 400, "expected a whole number"),
    ] {
        expect_picture(&served, &format!("/views.png{query}"), "image/png", (status, text)).await;
    }
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_of_cards_are_shown_and_no_other_file() {
    let run = TestRun::new();
    let folder = run.path().join("evaluations");
    std::fs::create_dir(&folder).unwrap();
    let card = r#"{"weights": {"step": 5}, "data": {"name": "a"}, "measurement": {"evaluation": "knn"}}"#;
    for (name, content) in [("knn.jpg", "neighbours"), ("knn.json", card), ("other.jpg", "another")] {
        std::fs::write(folder.join(name), content).unwrap();
    }
    let served = run.serve("127.0.0.1:0").await;
    // Once the folder was read.
    let story = served.get("/api/story").await;
    assert!(story.text.contains(r#""picture":"knn.jpg""#), "{}", story.text);
    for (name, status, text) in [
        ("knn.jpg", 200, "neighbours"),
        ("other.jpg", 404, "no result card"),
        ("knn.json", 404, "no result card"),
        ("../recipe.toml", 404, "no result card"),
        ("%2e%2e/recipe.toml", 404, "no result card"),
        ("", 404, "no result card"),
    ] {
        expect_picture(&served, &format!("/evaluations/{name}"), "image/jpeg", (status, text)).await;
    }
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_one_and_loads_nothing_from_elsewhere() {
    let run = TestRun::new();
    let served = run.serve("127.0.0.1:0").await;
    for path in ["/", "/style.css", "/dashboard.js"] {
        let reply = served.get(path).await;
        assert_eq!(reply.status, 200, "{path}");
        assert!(reply.header("content-security-policy").unwrap().starts_with("default-src 'none'"), "{path}");
        let elsewhere = reply.text.replace("http://www.w3.org/2000/svg", "");
        assert!(!elsewhere.contains("http://") && !elsewhere.contains("https://"), "{path}");
    }
    assert_eq!(served.get("/report").await.status, 404);
    std::fs::write(run.path().join("report.html"), "<p>pictures</p>").unwrap();
    let report = served.get("/report").await;
    assert_eq!(report.text, "<p>pictures</p>");
    assert!(report.header("content-security-policy").unwrap().starts_with("sandbox allow-scripts"));
    eventually(|| async { served.status().await.has_report }).await;
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_means_that_workers_train_or_all_is_done() {
    let run = TestRun::new();
    let served = run.serve("127.0.0.1:0").await;
    assert_eq!(served.get("/readyz").await.status, 503);
    assert_eq!(served.get("/healthz").await.status, 200);
    served.observer.hear(&Progress::Seen(sight(0)));
    assert_eq!(served.get("/readyz").await.status, 200);
    served.observer.hear(&Progress::Seen(Sight { phase: Phase::Regrouping, ..sight(1) }));
    assert_eq!(served.get("/readyz").await.status, 503);
    let hash = "0".repeat(64);
    run.record(&format!(r#"{{"event":"ended","outcome":"completed","step":480,"state_hash":"{hash}"}}"#));
    eventually(|| async { served.get("/readyz").await.status == 200 }).await;
    served.end().await;
}

/// A whole run with workers that only pretend, in which everything comes through the control loop itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_seen_and_stopped_from_the_page() {
    let run = TestRun::new();
    let cluster = run.lead(2).await;
    let mut workers = cluster.train(2).await;
    for step in 1..=3 {
        for worker in &mut workers {
            worker.step_done(1, step, 0.5 * step as f64).await;
        }
    }
    let is_seen = |status: &Status| {
        status.step == 3
            && status.workers.len() == 2
            && status.workers.iter().all(|worker| worker.pace.is_some())
    };
    eventually(|| async { is_seen(&cluster.served.status().await) }).await;
    let status = cluster.served.status().await;
    assert_eq!((status.state, status.generation, status.workers_expected), (State::Training, 1, 2));
    let shards: Vec<_> =
        status.workers.iter().map(|worker| (worker.first_shard, worker.shard_count)).collect();
    assert_eq!(shards, [(0, 2), (2, 2)]);
    assert!(status.workers.iter().all(|worker| worker.doing == Doing::Training && worker.silent_ms < 20_000));
    assert_eq!(status.last_step.as_ref().map(|last| last.seconds.step), Some(1.5));
    let sent: Vec<_> =
        status.rates.iter().map(|(worker, rates)| (*worker, rates.sent_bytes_per_step)).collect();
    assert_eq!(sent, [(1, Some(8e6)), (2, Some(8e6))]);

    let token = format!("Bearer {}", run::TOKEN);
    let headers = [("authorization", token.as_str())];
    let body = r#"{"action":"stop"}"#;
    let stop = send(cluster.served.address, "POST", "/api/actions", &headers, body).await;
    assert_eq!(stop.status, 202);
    for worker in &mut workers {
        worker.is_stopped_after(3).await;
    }
    let outcome = tokio::time::timeout(Duration::from_secs(30), cluster.outcome).await.unwrap().unwrap();
    assert_eq!(outcome, coordinator::Outcome::Stopped { step: 3 });
    eventually(|| async { cluster.served.status().await.state == State::Stopped }).await;
    cluster.served.end().await;
}
