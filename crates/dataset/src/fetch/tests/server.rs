//! A real HTTP server on this machine, as badly behaved as its script says.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// How one connection is answered.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    /// The archive or the asked part of it, but at most so many bytes before the connection is closed.
    Part(usize),
    /// As `Part`, but the connection then stays open, in silence.
    Stall(usize),
    /// The whole archive, whatever was asked, but at most so many bytes.
    Whole(usize),
    /// These bytes, then at most so many of the archive.
    Raw(String, usize),
}

pub(super) const ALL: usize = usize::MAX;

/// A head of these lines, then at most so many bytes of the archive.
pub(super) fn headed(lines: &str, at_most: usize) -> Reply {
    Reply::Raw(head(lines), at_most)
}

/// A head of these lines, and no body.
pub(super) fn status(lines: &str) -> Reply {
    headed(&format!("{lines}\nContent-Length: 0"), 0)
}

fn head(lines: &str) -> String {
    // Each connection serves one request, and says so, or the client might try to use it again.
    format!("HTTP/1.1 {lines}\nConnection: close\n\n").replace('\n', "\r\n")
}

pub(super) struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers the first connection with the first of `script`, and those after the last with the last.
    pub(super) fn start(content: Vec<u8>, script: Vec<Reply>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let stopping = Arc::new(AtomicBool::new(false));
        let (record, stop) = (Arc::clone(&asked), Arc::clone(&stopping));
        let thread = thread::spawn(move || {
            let mut silent = Vec::new();
            for turn in 0.. {
                let (stream, _) = listener.accept().unwrap();
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let reply = &script[usize::min(turn, script.len() - 1)];
                // The client may hang up at any moment, which is what some tests are about.
                if let Ok(request) = read_request(&stream) {
                    let first_byte = first_byte(&request);
                    record.lock().unwrap().push(request);
                    let _ = answer(&stream, reply, &content, first_byte);
                }
                if matches!(reply, Reply::Stall(_)) {
                    silent.push(stream);
                }
            }
        });
        Server { address, asked, stopping, thread: Some(thread) }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/set.tar.gz", self.address)
    }

    /// Each request so far: `set` if it was for the whole archive, `set 5` if from byte 5 on.
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes the thread, which then sees that it is to stop.
        if TcpStream::connect(self.address).is_ok() {
            self.thread.take().map(JoinHandle::join);
        }
    }
}

fn read_request(stream: &TcpStream) -> std::io::Result<String> {
    let mut request = String::new();
    for line in BufReader::new(stream).lines() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some(path) = line.strip_prefix("GET /") {
            request.push_str(path.trim_end_matches(".tar.gz HTTP/1.1"));
        }
        if let Some(range) = line.to_lowercase().strip_prefix("range: bytes=") {
            request.push_str(&format!(" {}", range.trim_end_matches('-')));
        }
    }
    Ok(request)
}

fn first_byte(request: &str) -> Option<usize> {
    request.split_once(' ')?.1.parse().ok()
}

fn answer(
    mut stream: &TcpStream,
    reply: &Reply,
    content: &[u8],
    first_byte: Option<usize>,
) -> std::io::Result<()> {
    let total = content.len();
    let (head, body, at_most) = match (reply, first_byte) {
        (Reply::Raw(head, at_most), _) => (head.clone(), content, *at_most),
        (Reply::Part(at_most) | Reply::Stall(at_most), Some(first)) => {
            let range = format!("Content-Range: bytes {first}-{}/{total}", total - 1);
            let lines = format!("206 Partial Content\n{range}\nContent-Length: {}", total - first);
            (head(&lines), &content[first..], *at_most)
        }
        (Reply::Part(at_most) | Reply::Stall(at_most) | Reply::Whole(at_most), _) => {
            (head(&format!("200 OK\nContent-Length: {total}")), content, *at_most)
        }
    };
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body[..usize::min(at_most, body.len())])
}
