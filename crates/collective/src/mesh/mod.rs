//! The workers of one generation, connected each to each: they have proven who they are, and a connection that ends
//! tells that its worker has.

mod connect;
mod handshake;
#[cfg(test)]
mod tests;

use crate::interrupt::INTERRUPT_TICK;
use crate::{CollectiveError, Group, Key, Limits};
pub(crate) use handshake::field;
#[cfg(test)]
pub(crate) use handshake::{GREETING_LEN, PROOF_LEN};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

/// That a peer has closed its side; systems without the first flag tell once both sides are closed.
#[cfg(target_os = "linux")]
pub(crate) const BROKEN_OFF: PollFlags = PollFlags::RDHUP;
#[cfg(not(target_os = "linux"))]
pub(crate) const BROKEN_OFF: PollFlags = PollFlags::HUP;

/// How many connections two workers have: the lanes that a fold over TCP goes by. At least one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lanes {
    pub(crate) within_host: u8,
    pub(crate) between_hosts: u8,
}

/// Connections of a worker to others by which it fills its link, whatever one of them may carry.
const FILLING: usize = 32;

impl Lanes {
    /// Those of a group of `world` workers. Clouds cap what one connection carries (AWS: 5 Gbit/s), and a lost packet
    /// halves the window of one of them only. Within a host there is neither, and every connection more costs system
    /// calls; and where there are many hosts, one to each is enough together, and a process may not open any number.
    pub(crate) fn of(world: usize) -> Self {
        Self { within_host: 1, between_hosts: (FILLING / world).clamp(1, 4) as u8 }
    }

    fn most(self) -> u8 {
        self.within_host.max(self.between_hosts)
    }
}

/// Another worker, and the connections to it, which never block.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) rank: usize,
    /// The first, over which all is said but a fold.
    pub(crate) stream: TcpStream,
    /// The others, in the order of their lanes.
    pub(crate) further: Vec<TcpStream>,
}

/// All other workers of a generation.
#[derive(Debug)]
pub(crate) struct Mesh {
    group: Group,
    limits: Limits,
    until: Instant,
    /// In rank order, without this worker.
    pub(crate) peers: Vec<Peer>,
}

impl Mesh {
    /// Connects to all others of `group`, as [`assemble`](crate::assemble) says. Of two workers, the lower rank's `lanes`
    /// hold for both.
    pub(crate) fn connect(
        listener: &TcpListener,
        key: &Key,
        group: &Group,
        addresses: &[String],
        limits: Limits,
        lanes: Lanes,
    ) -> Result<Self, CollectiveError> {
        let world = group.world();
        if addresses.len() != world {
            return Err(CollectiveError::Addresses { expected: world, found: addresses.len() });
        }
        let until = Instant::now() + limits.connect_deadline;
        let connections = connect::connect_all(listener, key, group, addresses, limits, lanes, until)?;
        let peer = |(rank, streams): (usize, Vec<TcpStream>)| {
            let mut streams = streams.into_iter();
            streams.next().map(|stream| Peer { rank, stream, further: streams.collect() })
        };
        let peers = connections.into_iter().enumerate().filter_map(peer).collect();
        Ok(Self { group: group.clone(), limits, until, peers })
    }

    /// Closes all but the first connection to each peer, for a group that does not fold over TCP.
    pub(crate) fn close_further(&mut self) {
        for peer in &mut self.peers {
            peer.further.clear();
        }
    }

    /// Fails once the generation is interrupted or the time for its assembly is over, which `rank` is then to blame for.
    pub(crate) fn check(&self, rank: usize) -> Result<(), CollectiveError> {
        self.group.check_interrupt()?;
        if Instant::now() < self.until {
            return Ok(());
        }
        let limit_ms = self.limits.connect_deadline.as_millis() as u64;
        Err(CollectiveError::Deadline { rank, what: "the assembly of the group", limit_ms })
    }

    /// Waits until all of `bytes` have come from the peer at `place`.
    pub(crate) fn receive(&mut self, place: usize, bytes: &mut [u8]) -> Result<(), CollectiveError> {
        let mut filled = 0;
        loop {
            filled += self.peers[place].read_some(&mut bytes[filled..])?;
            if filled == bytes.len() {
                return Ok(());
            }
            self.check(self.peers[place].rank)?;
            wait_for(&mut [PollFd::new(&self.peers[place].stream, PollFlags::IN)])?;
        }
    }
}

impl Peer {
    /// Reads what has come so far, at most what `bytes` hold.
    pub(crate) fn read_some(&mut self, bytes: &mut [u8]) -> Result<usize, CollectiveError> {
        match self.stream.read(bytes) {
            Ok(0) if !bytes.is_empty() => Err(lost(self.rank, &io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => Ok(count),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(0)
            }
            Err(error) => Err(lost(self.rank, &error)),
        }
    }

    /// Says a few words, which always fit the send buffer of a connection on which little else was said.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), CollectiveError> {
        self.stream.write_all(bytes).map_err(|error| lost(self.rank, &error))
    }
}

/// Waits until there is something to do at one of `places`, at most a tick.
pub(crate) fn wait_for(places: &mut [PollFd]) -> Result<(), CollectiveError> {
    let timeout = Timespec::try_from(INTERRUPT_TICK).expect("a tick is a small time");
    match poll(places, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(CollectiveError::Socket { what: "wait for peers", source: error.into() }),
    }
}

/// That a peer's connection has ended.
pub(crate) fn lost(rank: usize, error: &io::Error) -> CollectiveError {
    CollectiveError::PeerLost { rank, reason: error.to_string() }
}
