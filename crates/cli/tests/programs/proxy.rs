//! A proxy that does to connections what networks do to them, at points that a test chooses.
//!
//! It needs nothing of this repository. Tests of the programs and of the coordinator alone share it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

/// How often a waiting thread looks whether something was done to its connection.
const LOOK: Duration = Duration::from_millis(10);

/// What happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Each chunk is held back for a while.
    Delay(Duration),
    /// Nothing arrives any more, in both directions, and nobody is told.
    Blackhole,
    /// Both ends are told at once that the connection is gone.
    Reset,
    /// The receiving end is told that no more will come; the other direction stays.
    HalfClose,
    /// One bit of one byte is another one.
    Corrupt,
    /// A chunk arrives twice.
    Duplicate,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From who has connected.
    Up,
    /// To who has connected.
    Down,
}

/// What is to happen once, at a point that does not depend on time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// On which connection, counted from 0; on whichever comes there first if `None`.
    pub(crate) connection: Option<usize>,
    pub(crate) way: Way,
    /// With the byte that comes after so many.
    pub(crate) after_bytes: usize,
    pub(crate) fault: Fault,
}

#[derive(Default)]
struct Shared {
    plans: Mutex<Vec<Plan>>,
    connections: Mutex<Vec<Weak<Connection>>>,
    accepted: AtomicUsize,
    happened: AtomicUsize,
}

/// Listens on this machine and passes everything on; ends with its process.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// In front of `target`, `HOST:PORT`, where somebody listens by the time of the first connection.
    pub(crate) fn to(target: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy { address: listener.local_addr().unwrap(), shared: Arc::default() };
        let (target, shared) = (target.to_owned(), Arc::clone(&proxy.shared));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
                // Whoever is refused there is refused here, a little later.
                if let Ok(server) = TcpStream::connect(&target) {
                    Connection::begin(number, client, server, &shared);
                }
            }
        });
        proxy
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Something is to happen later.
    pub(crate) fn plan(&self, plan: Plan) {
        self.shared.plans.lock().unwrap().push(plan);
    }

    /// Something happens now, to all connections there are: with their next chunk where it is a chunk's fate.
    pub(crate) fn strike(&self, fault: Fault) {
        let connections = std::mem::take(&mut *self.shared.connections.lock().unwrap());
        for connection in connections.iter().filter_map(Weak::upgrade) {
            connection.suffer(Way::Up, fault);
            connection.suffer(Way::Down, fault);
            self.shared.happened.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Connections that were made so far.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Faults that have happened so far.
    pub(crate) fn happened(&self) -> usize {
        self.shared.happened.load(Ordering::SeqCst)
    }
}

struct Connection {
    number: usize,
    client: TcpStream,
    server: TcpStream,
    is_over: AtomicBool,
    is_hole: AtomicBool,
    /// Of each way, what is done to chunks from now on.
    delay: [Mutex<Duration>; 2],
    /// Of each way, what is done to the next chunk.
    next: [Mutex<Option<Fault>>; 2],
}

impl Connection {
    fn begin(number: usize, client: TcpStream, server: TcpStream, shared: &Arc<Shared>) {
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(LOOK)).unwrap();
        }
        let connection = Arc::new(Connection {
            number,
            client,
            server,
            is_over: AtomicBool::new(false),
            is_hole: AtomicBool::new(false),
            delay: Default::default(),
            next: Default::default(),
        });
        shared.connections.lock().unwrap().push(Arc::downgrade(&connection));
        for way in [Way::Up, Way::Down] {
            let (connection, shared) = (Arc::clone(&connection), Arc::clone(shared));
            thread::spawn(move || {
                // Who has gone is not told what did not reach it.
                let _ = connection.pump(way, &shared);
                connection.close_for(way);
            });
        }
    }

    fn ends(&self, way: Way) -> (&TcpStream, &TcpStream) {
        match way {
            Way::Up => (&self.client, &self.server),
            Way::Down => (&self.server, &self.client),
        }
    }

    /// What comes from one end goes to the other, until no more comes.
    fn pump(&self, way: Way, shared: &Shared) -> io::Result<()> {
        let (mut from, mut to) = self.ends(way);
        let mut buffer = [0; 16 << 10];
        let mut passed = 0;
        while !self.is_over.load(Ordering::SeqCst) {
            if self.is_hole.load(Ordering::SeqCst) {
                thread::sleep(LOOK);
                continue;
            }
            let length = match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => length,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    continue;
                }
                Err(error) => return Err(error),
            };
            let planned = shared.due(self.number, way, passed, length);
            if let Some((_, fault)) = planned {
                self.suffer(way, fault);
            }
            let chunk = &mut buffer[..length];
            match self.next[way as usize].lock().unwrap().take() {
                Some(Fault::Corrupt) => chunk[planned.map_or(0, |(place, _)| place)] ^= 0x10,
                Some(Fault::Duplicate) => to.write_all(chunk)?,
                Some(Fault::HalfClose) => return Ok(()),
                _ => {}
            }
            let delay = *self.delay[way as usize].lock().unwrap();
            thread::sleep(delay);
            if !self.is_over.load(Ordering::SeqCst) && !self.is_hole.load(Ordering::SeqCst) {
                to.write_all(chunk)?;
            }
            passed += length;
        }
        Ok(())
    }

    fn suffer(&self, way: Way, fault: Fault) {
        match fault {
            Fault::Delay(delay) => *self.delay[way as usize].lock().unwrap() = delay,
            Fault::Blackhole => self.is_hole.store(true, Ordering::SeqCst),
            Fault::Reset => {
                for stream in [&self.client, &self.server] {
                    // Closed so, what is under way is forgotten, and the other end is told by a reset.
                    let _ = set_socket_linger(stream, Some(Duration::ZERO));
                }
                self.is_over.store(true, Ordering::SeqCst);
            }
            Fault::HalfClose | Fault::Corrupt | Fault::Duplicate => {
                *self.next[way as usize].lock().unwrap() = Some(fault);
            }
        }
    }

    /// No more comes this way. The sockets are closed once both ways have ended.
    fn close_for(&self, way: Way) {
        if !self.is_over.load(Ordering::SeqCst) {
            let _ = self.ends(way).1.shutdown(Shutdown::Write);
        }
    }
}

impl Shared {
    /// The fault that is planned for one of the next `length` bytes, and for which.
    fn due(&self, connection: usize, way: Way, passed: usize, length: usize) -> Option<(usize, Fault)> {
        let mut plans = self.plans.lock().unwrap();
        let index = plans.iter().position(|plan| {
            plan.connection.is_none_or(|planned| planned == connection)
                && plan.way == way
                && (passed..passed + length).contains(&plan.after_bytes)
        })?;
        let plan = plans.swap_remove(index);
        self.happened.fetch_add(1, Ordering::SeqCst);
        Some((plan.after_bytes - passed, plan.fault))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says back whatever it hears, until no more comes.
    fn echo() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let mut back = stream.try_clone().unwrap();
                    let _ = io::copy(&mut stream, &mut back);
                    let _ = back.shutdown(Shutdown::Write);
                });
            }
        });
        address
    }

    fn connect(proxy: &Proxy) -> TcpStream {
        let stream = TcpStream::connect(proxy.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn said_back(stream: &mut TcpStream, words: &[u8]) -> Vec<u8> {
        stream.write_all(words).unwrap();
        let mut answer = vec![0; words.len()];
        stream.read_exact(&mut answer).unwrap();
        answer
    }

    fn plan(way: Way, after_bytes: usize, fault: Fault) -> Plan {
        Plan { connection: None, way, after_bytes, fault }
    }

    #[test]
    fn bytes_are_changed_and_repeated_where_it_was_planned() {
        let proxy = Proxy::to(&echo());
        proxy.plan(Plan { connection: Some(1), ..plan(Way::Up, 7, Fault::Corrupt) });
        let (mut first, mut second) = (connect(&proxy), connect(&proxy));
        assert_eq!(said_back(&mut first, b"0123456789"), b"0123456789");
        assert_eq!(said_back(&mut second, b"01234"), b"01234");
        assert_eq!(said_back(&mut second, b"56789"), b"56\x2789");
        assert_eq!((proxy.accepted(), proxy.happened()), (2, 1));
        proxy.plan(plan(Way::Down, 10, Fault::Duplicate));
        second.write_all(b"abc").unwrap();
        let mut answer = [0; 6];
        second.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"abcabc");
    }

    #[test]
    fn connections_end_as_networks_end_them() {
        let proxy = Proxy::to(&echo());
        let mut reset = connect(&proxy);
        said_back(&mut reset, b"here");
        proxy.strike(Fault::Reset);
        assert_eq!(reset.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);

        proxy.plan(plan(Way::Down, 4, Fault::HalfClose));
        let mut half = connect(&proxy);
        said_back(&mut half, b"here");
        half.write_all(b"more").unwrap();
        assert_eq!(half.read(&mut [0; 8]).unwrap(), 0);
        half.write_all(b"and it still hears").unwrap();

        let mut late = connect(&proxy);
        said_back(&mut late, b"here");
        proxy.strike(Fault::Blackhole);
        late.write_all(b"lost").unwrap();
        late.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(late.read(&mut [0; 8]).is_err(), "nothing comes, not even an end");
        // The next one is not touched.
        assert_eq!(said_back(&mut connect(&proxy), b"here"), b"here");
        proxy.strike(Fault::Delay(Duration::from_millis(50)));
    }
}
