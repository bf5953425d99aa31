//! HTTP by hand, so that tests can say anything.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

/// Longer than a machine with far too much to do takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: String,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        serde_json::from_str(&self.text).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.headers.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> Reply {
    send(address, "GET", path, &[], "").await
}

/// Sends a request; the address is its host unless `headers` have one.
pub(crate) async fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Reply {
    let request = request(address, method, path, headers, body);
    let exchange = move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, text) = answer.split_once("\r\n\r\n").unwrap();
        let (first, headers) = head.split_once("\r\n").unwrap();
        let status = first.split(' ').nth(1).unwrap().parse().unwrap();
        Reply { status, headers: headers.to_string(), text: text.to_string() }
    };
    spawn_blocking(exchange).await.unwrap()
}

fn request(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let mut lines = vec![format!("{method} {path} HTTP/1.1"), "connection: close".to_string()];
    if headers.iter().all(|(name, _)| *name != "host") {
        lines.push(format!("host: {address}"));
    }
    lines.push(format!("content-length: {}", body.len()));
    lines.extend(headers.iter().map(|(name, value)| format!("{name}: {value}")));
    format!("{}\r\n\r\n{body}", lines.join("\r\n"))
}

/// Server-sent events, as they come.
pub(crate) struct Events(mpsc::UnboundedReceiver<(String, Value)>);

impl Events {
    pub(crate) async fn open(address: SocketAddr, path: &str) -> Events {
        let request = request(address, "GET", path, &[("accept", "text/event-stream")], "");
        let (sender, receiver) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut text = String::new();
            let mut bytes = [0; 65_536];
            let mut waiting = Vec::new();
            // What a test asks for is ASCII, in which no character is cut in two.
            while let Ok(count @ 1..) = stream.read(&mut bytes) {
                waiting.extend_from_slice(&bytes[..count]);
                let whole = String::from_utf8_lossy(&waiting).into_owned();
                waiting.clear();
                text += &whole;
                while let Some((event, rest)) = next(&text) {
                    if sender.send(event).is_err() {
                        return;
                    }
                    text = rest;
                }
            }
        });
        Events(receiver)
    }

    /// The next event of this name that is as wanted.
    pub(crate) async fn until(&mut self, name: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = tokio::time::timeout(left, self.0.recv()).await;
            let (found, data) =
                event.unwrap_or_else(|_| panic!("no {name} came")).expect("the stream has ended");
            if found == name && is_wanted(&data) {
                return data;
            }
        }
    }
}

/// The first whole event of `text`, and what follows it.
fn next(text: &str) -> Option<((String, Value), String)> {
    let begin = text.find("event: ")?;
    let end = begin + text[begin..].find("\n\n")?;
    let event = &text[begin..end];
    // The sizes of chunks stand between events, and where an event was cut in two, in its middle.
    let name = event.strip_prefix("event: ")?.lines().next()?.trim().to_string();
    let data = event.split("data: ").nth(1)?;
    let data = serde_json::from_str(data).unwrap_or(Value::Null);
    Some(((name, data), text[end + 2..].to_string()))
}
