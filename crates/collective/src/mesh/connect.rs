//! Making the full mesh: every rank dials the ranks below it and is dialled by those above.

use super::Lanes;
use super::handshake::{GREETING_LEN, Greeting, Greetings, Hello, PROOF_LEN, Side, Verdict, WELCOME};
use crate::interrupt::INTERRUPT_TICK;
use crate::{CollectiveError, Group, Key, Limits};
use rustix::event::{PollFd, PollFlags, poll};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// How long a dialler may take over its greeting: a stranger must not hold a place for ever.
const GREETING_LIMIT: Duration = Duration::from_secs(2);

/// Greetings read at the same time beyond those of all peers; a flood of strangers costs no more than this.
const STRANGERS_AT_ONCE: usize = 16;

/// After how long without an answer from its machine a peer counts as gone: as long as its coordinator waits for a sign
/// of life. A worker that only computes is not silent, for its system answers.
const SILENCE: Duration = Duration::from_secs(15);

/// Pauses between two attempts to dial grow from the first to the last of these.
const PAUSES: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(200)];

/// Why whoever does not know the key is refused.
const UNPROVEN: &str = "it does not know the secret of this run";

/// Greeting and proof lie in an array of just their length.
const WHOLE: &str = "a greeting is the first and a proof the last part of the bytes";

/// What both sides of the assembly share.
struct Assembly<'a> {
    key: &'a Key,
    group: &'a Group,
    hello: Hello,
    limits: Limits,
    lanes: Lanes,
    until: Instant,
    failed: AtomicBool,
}

/// Connects to every other rank until `until`; gives all connections to each, by lane, and none to our own rank.
pub(super) fn connect_all(
    listener: &TcpListener,
    key: &Key,
    group: &Group,
    addresses: &[String],
    limits: Limits,
    lanes: Lanes,
    until: Instant,
) -> Result<Vec<Vec<TcpStream>>, CollectiveError> {
    let hello = Hello::new(group, &limits);
    let assembly = Assembly { key, group, hello, limits, lanes, until, failed: AtomicBool::new(false) };
    let (dialled, accepted) = thread::scope(|scope| {
        let dialling = scope.spawn(|| assembly.ending_both(assembly.dial_lower_ranks(addresses)));
        let accepted = assembly.ending_both(assembly.accept_higher_ranks(listener));
        (dialling.join().expect("dialling does not panic"), accepted)
    });
    // The side that failed first says why; the other one only followed.
    let (dialled, accepted) = match (dialled, accepted) {
        (Ok(dialled), Ok(accepted)) => (dialled, accepted),
        (Err(Some(error)), _) | (_, Err(Some(error))) => return Err(error),
        (Err(None), _) | (_, Err(None)) => return Err(CollectiveError::Poisoned),
    };
    let own = std::iter::once(Vec::new());
    let streams: Vec<Vec<_>> = dialled.into_iter().chain(own).chain(accepted).collect();
    for stream in streams.iter().flatten() {
        stream.set_nodelay(true).map_err(socket("set TCP_NODELAY"))?;
        stream.set_nonblocking(true).map_err(socket("set a connection non-blocking"))?;
        notice_silence(stream).map_err(socket("set the keep-alive of a connection"))?;
        #[cfg(target_os = "linux")]
        unpace_within_host(stream);
    }
    Ok(streams)
}

/// A peer that the network no longer reaches says nothing, not even that it is gone. While this side waits for it, the
/// system asks it, and breaks the connection if no answer comes within [`SILENCE`]. There is no such limit for bytes that
/// are under way (`TCP_USER_TIMEOUT`): it would break off with a peer whose buffers are full, because it still computes.
fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_tcp_keepidle(stream, SILENCE / 3)?;
    sockopt::set_tcp_keepintvl(stream, SILENCE / 15)?;
    sockopt::set_tcp_keepcnt(stream, 10)?;
    Ok(sockopt::set_socket_keepalive(stream, true)?)
}

/// Between processes of one host there is no link to share: a congestion control that paces its packets by a
/// timer (BBR) made a fold of 75 MB take a tenth longer. Other connections keep the host's choice.
#[cfg(target_os = "linux")]
fn unpace_within_host(stream: &TcpStream) {
    // Reno is built into every Linux; where it is missing, the fold is only slower.
    if is_within_host(stream)
        && let Err(error) = rustix::net::sockopt::set_tcp_congestion(stream, "reno")
    {
        debug!(%error, "congestion control of a connection within this host is left as it is");
    }
}

/// Whether both ends have the same address, and so no link between them.
fn is_within_host(stream: &TcpStream) -> bool {
    match (stream.local_addr(), stream.peer_addr()) {
        (Ok(local), Ok(peer)) => local.ip() == peer.ip(),
        _ => false,
    }
}

/// An error of the operating system's that concerns no peer.
pub(super) fn socket(what: &'static str) -> impl Fn(io::Error) -> CollectiveError {
    move |source| CollectiveError::Socket { what, source }
}

/// `Err(None)`: the other side of the assembly has failed.
type Outcome<T> = Result<T, Option<CollectiveError>>;

/// Whom to dial, and for which of the connections to it.
#[derive(Clone, Copy)]
struct Target<'a> {
    rank: usize,
    address: &'a str,
    lane: u8,
}

/// A connection that somebody opened to us, and how far its greeting has come.
struct Caller {
    stream: TcpStream,
    /// How many connections we shall have with it, if it is a peer.
    lanes: u8,
    /// Its greeting and its proof.
    bytes: [u8; GREETING_LEN + PROOF_LEN],
    filled: usize,
    /// Once it has greeted: what we answered, and what becomes of it if its proof is good.
    answered: Option<(Greeting, Verdict)>,
    until: Instant,
}

impl Assembly<'_> {
    /// Passes an outcome on, and makes the other side stop if it is a failure.
    fn ending_both<T>(&self, outcome: Outcome<T>) -> Outcome<T> {
        self.failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
        outcome
    }

    /// Fails once the deadline for `rank` has passed or the other side has failed.
    fn check(&self, rank: usize) -> Outcome<()> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(None);
        }
        self.group.check_interrupt()?;
        if Instant::now() < self.until {
            return Ok(());
        }
        let limit_ms = self.limits.connect_deadline.as_millis() as u64;
        Err(Some(CollectiveError::Deadline { rank, what: "the assembly of the group", limit_ms }))
    }

    fn superseded(&self, theirs: u64) -> CollectiveError {
        CollectiveError::Superseded { ours: self.group.generation(), theirs }
    }

    fn dial_lower_ranks(&self, addresses: &[String]) -> Outcome<Vec<Vec<TcpStream>>> {
        addresses[..self.group.rank()]
            .iter()
            .enumerate()
            .map(|(rank, address)| self.dial_all_lanes(rank, address))
            .collect()
    }

    /// Opens the first connection to `rank`, and then as many more as it asks for.
    fn dial_all_lanes(&self, rank: usize, address: &str) -> Outcome<Vec<TcpStream>> {
        let (first, lanes) = self.dial(Target { rank, address, lane: 0 })?;
        let mut streams = vec![first];
        for lane in 1..lanes {
            let (stream, _) = self.dial(Target { rank, address, lane })?;
            streams.push(stream);
        }
        Ok(streams)
    }

    /// Dials until the target welcomes us: it may not have started yet, or still be in an older generation. Gives the
    /// number of connections that it wants, too.
    fn dial(&self, target: Target) -> Outcome<(TcpStream, u8)> {
        let Target { rank, address, lane } = target;
        let [mut pause, longest] = PAUSES;
        loop {
            self.check(rank)?;
            match self.dial_once(target)? {
                Ok(welcome) => return Ok(welcome),
                Err(reason) => debug!(rank, address, lane, %reason, "peer not reached, trying again"),
            }
            thread::sleep(pause.min(self.until.saturating_duration_since(Instant::now())));
            pause = (2 * pause).min(longest);
        }
    }

    /// One attempt; the inner error is worth another one.
    fn dial_once(&self, target: Target) -> Outcome<io::Result<(TcpStream, u8)>> {
        let attempt = || {
            let addresses: Vec<_> = target.address.to_socket_addrs()?.collect();
            let mut stream = reach(&addresses, self.until.min(Instant::now() + GREETING_LIMIT))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(INTERRUPT_TICK))?;
            let greeting = self.hello.on_lane(target.lane).greeting()?;
            stream.write_all(&greeting)?;
            Ok((stream, greeting))
        };
        let (mut stream, greeting) = match attempt() {
            Ok(greeted) => greeted,
            Err(error) => return Ok(Err(error)),
        };
        let mut bytes = [0; GREETING_LEN + PROOF_LEN];
        match self.hear(target.rank, &mut stream, &mut bytes)? {
            Ok(()) => self.conclude(target, stream, &greeting, &bytes),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Waits until `rank` has said as much as `bytes` hold. It may be busy with something else for long; the connection
    /// then waits in its backlog.
    fn hear(&self, rank: usize, stream: &mut TcpStream, bytes: &mut [u8]) -> Outcome<io::Result<()>> {
        let mut filled = 0;
        while filled < bytes.len() {
            self.check(rank)?;
            match stream.read(&mut bytes[filled..]) {
                Ok(0) => return Ok(Err(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => filled += count,
                Err(error) if is_pending(&error) => {}
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(()))
    }

    /// Judges the answer to `greeting`, shows in turn that we know the key, and waits to be welcome.
    fn conclude(
        &self,
        Target { rank, address, lane }: Target,
        mut stream: TcpStream,
        greeting: &Greeting,
        bytes: &[u8; GREETING_LEN + PROOF_LEN],
    ) -> Outcome<io::Result<(TcpStream, u8)>> {
        let (answer, proof) = (bytes.first_chunk().expect(WHOLE), *bytes.last_chunk().expect(WHOLE));
        let greetings = Greetings { dialling: greeting, dialled: answer };
        let verdict = match self.hello.judge(answer, &(rank..rank + 1), 1) {
            Verdict::Stranger(reason) => Verdict::Stranger(reason),
            _ if !greetings.are_proven(self.key, Side::Dialled, proof) => Verdict::Stranger(UNPROVEN),
            proven => proven,
        };
        if let Verdict::Stranger(reason) = verdict {
            warn!(rank, address, lane, reason, "a stranger answers at the address of a peer");
            return Ok(Err(io::Error::other(reason)));
        }
        // Also where we cannot go on together: the peer acts on our greeting only if it is proven.
        let shown = stream.write_all(&greetings.proof(self.key, Side::Dialling));
        match verdict {
            // A peer that gave us up while the proof was under way waits for another connection.
            Verdict::Peer { lanes, .. } => Ok(match shown {
                Ok(()) => self.hear(rank, &mut stream, &mut [0; WELCOME.len()])?.map(|()| (stream, lanes)),
                Err(error) => Err(error),
            }),
            Verdict::Stranger(reason) => Ok(Err(io::Error::other(reason))),
            Verdict::Stale { theirs } => {
                Ok(Err(io::Error::other(format!("it is still in generation {theirs}"))))
            }
            Verdict::Newer { theirs } => Err(Some(self.superseded(theirs))),
            Verdict::Mismatch(error) => Err(Some(error)),
        }
    }

    /// Accepts until every higher rank has come on all its lanes, which come in any order; gives them by rank and lane.
    /// Of two that claim a lane, the later stays: whoever dials anew has given up the one before.
    fn accept_higher_ranks(&self, listener: &TcpListener) -> Outcome<Vec<Vec<TcpStream>>> {
        let fatal = |what| move |source| Some(CollectiveError::Socket { what, source });
        listener.set_nonblocking(true).map_err(fatal("set the listener non-blocking"))?;
        let first = self.group.rank() + 1;
        // How many lanes a peer has is known once one of them is proven.
        let mut peers: Vec<Vec<Option<TcpStream>>> =
            (first..self.group.world()).map(|_| Vec::new()).collect();
        let mut callers: Vec<Caller> = Vec::new();
        let callers_max = peers.len() * usize::from(self.lanes.most()) + STRANGERS_AT_ONCE;
        let is_missing =
            |lanes: &Vec<Option<TcpStream>>| lanes.is_empty() || lanes.iter().any(Option::is_none);
        while let Some(missing) = peers.iter().position(is_missing) {
            self.check(first + missing)?;
            wait_for_callers(listener, &callers).map_err(fatal("wait for peers"))?;
            // One more than there are places for: before somebody is dropped, all are heard.
            while callers.len() <= callers_max
                && let Some(stream) = accept(listener).map_err(fatal("accept a connection"))?
            {
                callers.push(Caller::new(stream, self.lanes));
            }
            self.hear_callers(&mut callers, &mut peers)?;
            if callers.len() > callers_max {
                warn!("too many greetings at once, the oldest that is not answered is dropped");
                // Who is answered knows the run at least, and its proof is under way.
                let dropped = callers.iter().position(|caller| caller.answered.is_none());
                callers.remove(dropped.unwrap_or(0));
            }
        }
        Ok(peers.into_iter().map(|lanes| lanes.into_iter().flatten().collect()).collect())
    }

    /// Reads what callers have said, in the order in which they came; who has joined becomes one of the higher ranks' lanes.
    fn hear_callers(
        &self,
        callers: &mut Vec<Caller>,
        peers: &mut [Vec<Option<TcpStream>>],
    ) -> Result<(), CollectiveError> {
        let mut index = 0;
        while index < callers.len() {
            match callers[index].listen(self)? {
                Progress::Waiting => index += 1,
                Progress::Refused => drop(callers.remove(index)),
                Progress::Joined { rank, lane } => {
                    let Caller { stream, lanes, .. } = callers.remove(index);
                    let peer = &mut peers[rank - self.group.rank() - 1];
                    peer.resize_with(usize::from(lanes), || None);
                    peer[usize::from(lane)] = Some(stream);
                }
            }
        }
        Ok(())
    }
}

/// Connects at the first of the addresses of a name that answers. Each has an equal share of what is left of the time until
/// `until`: one that swallows what it is sent must not keep the others from being dialled.
pub(super) fn reach(addresses: &[SocketAddr], until: Instant) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the address does not resolve");
    for (place, address) in addresses.iter().enumerate() {
        let untried = (addresses.len() - place) as u32; // a name has few addresses
        let share = until.saturating_duration_since(Instant::now()) / untried;
        match TcpStream::connect_timeout(address, share.max(INTERRUPT_TICK)) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Waits at most a tick for something to do.
fn wait_for_callers(listener: &TcpListener, callers: &[Caller]) -> io::Result<()> {
    let mut polled = vec![PollFd::new(listener, PollFlags::IN)];
    polled.extend(callers.iter().map(|caller| PollFd::new(&caller.stream, PollFlags::IN)));
    let timeout = INTERRUPT_TICK.try_into().expect("a tick is a small time");
    match poll(&mut polled, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The next connection, if one waits; those that broke off meanwhile are passed over.
fn accept(listener: &TcpListener) -> io::Result<Option<TcpStream>> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                return Ok(Some(stream));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}

/// What has become of a caller.
enum Progress {
    Waiting,
    Refused,
    Joined { rank: usize, lane: u8 },
}

impl Caller {
    fn new(stream: TcpStream, lanes: Lanes) -> Self {
        let lanes = if is_within_host(&stream) { lanes.within_host } else { lanes.between_hosts };
        let bytes = [0; GREETING_LEN + PROOF_LEN];
        Self { stream, lanes, bytes, filled: 0, answered: None, until: Instant::now() + GREETING_LIMIT }
    }

    /// Reads what has come of the greeting and answers it. Fails only if the group cannot be assembled.
    fn listen(&mut self, assembly: &Assembly) -> Result<Progress, CollectiveError> {
        loop {
            let end = if self.answered.is_none() { GREETING_LEN } else { self.bytes.len() };
            match self.stream.read(&mut self.bytes[self.filled..end]) {
                Ok(0) => return Ok(self.refuse("it broke off its greeting")),
                Ok(count) => self.filled += count,
                Err(error) if is_pending(&error) && Instant::now() < self.until => {
                    return Ok(Progress::Waiting);
                }
                Err(error) if is_pending(&error) => return Ok(self.refuse("its greeting took too long")),
                Err(error) => return Ok(self.refuse(&error.to_string())),
            }
            if self.filled < end {
                continue;
            }
            if let Some((answer, verdict)) = self.answered.take() {
                return self.admit(assembly, &answer, verdict);
            }
            match self.answer(assembly) {
                Ok(answered) => self.answered = Some(answered),
                Err(reason) => return Ok(self.refuse(&reason)),
            }
        }
    }

    /// Judges the whole greeting, for once it is proven. Whoever knows the run is told who we are, with our proof, so
    /// that it can judge in turn. An error is the reason to refuse it.
    fn answer(&mut self, assembly: &Assembly) -> Result<(Greeting, Verdict), String> {
        let greeting = self.bytes.first_chunk().expect(WHOLE);
        let ranks = assembly.group.rank() + 1..assembly.group.world();
        let verdict = assembly.hello.judge(greeting, &ranks, self.lanes);
        if let Verdict::Stranger(reason) = verdict {
            return Err(reason.to_owned());
        }
        let hello = assembly.hello.with_lanes(self.lanes);
        let answer = hello.greeting().map_err(|error| error.to_string())?;
        let proof = Greetings { dialling: greeting, dialled: &answer }.proof(assembly.key, Side::Dialled);
        // So few bytes always fit the empty send buffer of a new connection; if not, it is of no use anyway.
        let written = self.stream.write_all(&answer).and_then(|()| self.stream.write_all(&proof));
        written.map_err(|error| error.to_string())?;
        Ok((answer, verdict))
    }

    /// Does what the greeting asks for, if its proof is good, and welcomes a peer.
    fn admit(
        &self,
        assembly: &Assembly,
        answer: &Greeting,
        verdict: Verdict,
    ) -> Result<Progress, CollectiveError> {
        let (greeting, proof) =
            (self.bytes.first_chunk().expect(WHOLE), *self.bytes.last_chunk().expect(WHOLE));
        let greetings = Greetings { dialling: greeting, dialled: answer };
        if !greetings.are_proven(assembly.key, Side::Dialling, proof) {
            return Ok(self.refuse(UNPROVEN));
        }
        match verdict {
            Verdict::Peer { rank, lane, .. } => Ok(match (&self.stream).write_all(&WELCOME) {
                Ok(()) => Progress::Joined { rank, lane },
                Err(error) => self.refuse(&error.to_string()),
            }),
            Verdict::Stranger(reason) => Ok(self.refuse(reason)),
            Verdict::Stale { theirs } => Ok(self.refuse(&format!("it is still in generation {theirs}"))),
            Verdict::Newer { theirs } => Err(assembly.superseded(theirs)),
            Verdict::Mismatch(error) => Err(error),
        }
    }

    fn refuse(&self, reason: &str) -> Progress {
        let from = self.stream.peer_addr().map_or_else(|_| "?".into(), |address| address.to_string());
        warn!(from, reason, "refused a connection");
        Progress::Refused
    }
}

fn is_pending(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}
