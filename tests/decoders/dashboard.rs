//! What the dashboard reads: what browsers send, what lies in the folder that it shows, and what another one answers.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use dashboard::{Credentials, Dashboard, Settings, Status, Watched, Yardsticks, status_lines};
use protocol::Token;
use recipe::{QUICKSTART, Recipe};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::control::{Named, in_folder};

/// As in `control.rs`.
pub(crate) const DECODERS: &[Named] =
    &[("http", http, 60), ("shown", shown, 30), ("status", status, 400), ("card", card, 200)];

/// Of the corpus.
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A line of each file that a page shows.
const STEP: &[u8] = include_bytes!("../fuzz/corpus/metrics/real.jsonl");
const JOURNAL: &[u8] = include_bytes!("../fuzz/corpus/journal/real.jsonl");

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longer than most answers take, after which whoever asked says that it has no more to say.
const SILENCE: Duration = Duration::from_millis(5);

/// What a browser sends, to a dashboard that only this machine reaches and to one that asks for the token.
fn http(bytes: &[u8]) -> bool {
    in_folder(|folder| {
        fs::write(folder.join("metrics.jsonl"), STEP).unwrap();
        fs::write(folder.join("journal.jsonl"), JOURNAL).unwrap();
        let near = exchange(folder, "127.0.0.1:0", &[bytes], SILENCE);
        let far = exchange(folder, "0.0.0.0:0", &[bytes], SILENCE);
        // Some requests do not end, and are not answered.
        [near, far].into_iter().flatten().any(|answer| answer.starts_with(b"HTTP/1.1 2"))
    })
}

/// Steps and a journal: every page can be shown.
fn shown(bytes: &[u8]) -> bool {
    let gets = ["/", "/metrics", "/api/status", "/api/story", "/api/history?points=3"];
    let get = |path| format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let requests = gets.map(get);
    let requests: Vec<&[u8]> = requests.iter().map(String::as_bytes).collect();
    in_folder(|folder| {
        fs::write(folder.join("metrics.jsonl"), bytes).unwrap();
        fs::write(folder.join("journal.jsonl"), bytes).unwrap();
        let answers = exchange(folder, "127.0.0.1:0", &requests, PATIENCE);
        assert!(answers.iter().all(|answer| answer.starts_with(b"HTTP/1.1 200")), "not everything is shown");
        true
    })
}

/// What a dashboard of the run in `folder` answers to each request, on a connection of its own that ends after a silence.
fn exchange(folder: &Path, listen: &str, requests: &[&[u8]], silence: Duration) -> Vec<Vec<u8>> {
    // One thread, so that a panic of the server is one of this thread's.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let settings = Settings {
            folder: folder.to_owned(),
            recipe: Recipe::from_toml(QUICKSTART, &[]).unwrap(),
            run_id: [1; 16],
            total_steps: 480,
            program_version: "1".to_owned(),
            token: Token::parse(TOKEN).unwrap(),
            yardsticks: Yardsticks::default(),
            views: None,
        };
        let (actions, _asked) = mpsc::channel(1);
        let _dashboard = Dashboard::start(listener, settings, actions).unwrap();
        let mut answers = Vec::new();
        for request in requests {
            let answer = ask(([127, 0, 0, 1], port).into(), request, silence);
            answers.push(timeout(2 * PATIENCE, answer).await.expect("whoever says no more is left"));
        }
        answers
    })
}

async fn ask(address: SocketAddr, request: &[u8], silence: Duration) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // It may end while this is still being said.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    while let Ok(Ok(1..)) = timeout(silence, stream.read_buf(&mut answer)).await {}
    let _ = stream.shutdown().await;
    // Events are told to whoever stays.
    while !has_events(&answer) && matches!(stream.read_buf(&mut answer).await, Ok(1..)) {}
    assert!(!answer.starts_with(b"HTTP/1.1 500"), "{}", String::from_utf8_lossy(&answer));
    answer
}

fn has_events(answer: &[u8]) -> bool {
    answer.windows(17).any(|part| part == b"text/event-stream")
}

/// What a coordinator elsewhere answers when it is asked where its run stands.
fn status(bytes: &[u8]) -> bool {
    let Ok(status) = serde_json::from_slice::<Status>(bytes) else { return false };
    assert!(!status_lines(&status).is_empty());
    true
}

/// A result card, whoever wrote it.
fn card(bytes: &[u8]) -> bool {
    in_folder(|folder| {
        fs::write(folder.join("recipe.toml"), QUICKSTART).unwrap();
        fs::create_dir(folder.join("evaluations")).unwrap();
        fs::write(folder.join("evaluations/a.json"), bytes).unwrap();
        Watched::of_run(folder, Credentials::default()).look().is_ok()
    })
}
