//! One fold: our sums to the ranks that fold them, theirs to us, and the folded slices to everybody.
//!
//! One thread serves all sockets. A chunk of our slice is folded as soon as it has come from every peer, and
//! sent on while the next one comes. A peer may run [`WINDOW_CHUNKS`] chunks ahead of the slowest; beyond that
//! its socket is left unread. This cannot lock up: the slowest peer's socket is always read, and folded chunks
//! go straight to their place.

use super::connection::{Connection, Moved, WINDOW_CHUNKS, read_payload};
use super::frame::{self, Frame, Kind, Stamp};
use crate::checksum;
use crate::interrupt::INTERRUPT_TICK;
use crate::layout::Layout;
use crate::mesh::{BROKEN_OFF, lost};
use crate::tree::TreeFold;
use crate::{CollectiveError, Group, SubtreeSums};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

/// The state of one fold.
pub(super) struct Exchange<'a> {
    pub(super) group: &'a Group,
    pub(super) layout: &'a Layout,
    pub(super) tree: &'a mut TreeFold,
    pub(super) connections: &'a mut [Connection],
    /// Checksums of the folded chunks of our slice, computed once for all peers.
    pub(super) checksums: &'a mut Vec<u32>,
    pub(super) step: u64,
    pub(super) sums: &'a SubtreeSums,
    pub(super) folded: &'a mut [f32],
    pub(super) limit: Duration,
}

impl Exchange<'_> {
    /// Runs the fold to its end.
    pub(super) fn run(mut self) -> Result<(), CollectiveError> {
        let until = Instant::now() + self.limit;
        let _folding = self.group.standstill().fold();
        self.checksums.clear();
        for connection in &mut *self.connections {
            connection.begin_fold();
        }
        loop {
            let mut more_to_send = false;
            for peer in 0..self.connections.len() {
                more_to_send |= self.send_one(peer)?;
            }
            for peer in 0..self.connections.len() {
                self.receive_one(peer)?;
            }
            while self.fold_next_chunk() {
                more_to_send = true;
            }
            if self.is_finished() {
                return Ok(());
            }
            self.wait(until, more_to_send)?;
        }
    }

    /// Chunks of our slice that are folded.
    fn folded_chunks(&self) -> usize {
        self.checksums.len()
    }

    fn is_finished(&self) -> bool {
        self.folded_chunks() == self.layout.chunks(self.group.rank())
            && (0..self.connections.len()).all(|peer| self.has_sent_all(peer) && self.has_received_all(peer))
    }

    fn has_sent_all(&self, peer: usize) -> bool {
        let Connection { rank, outgoing, .. } = &self.connections[peer];
        outgoing.frame.is_none()
            && outgoing.scattered == self.layout.chunks(*rank) * self.sums.nodes().len()
            && outgoing.gathered == self.layout.chunks(self.group.rank())
    }

    fn has_received_all(&self, peer: usize) -> bool {
        let Connection { rank, nodes, incoming, .. } = &self.connections[peer];
        incoming.scattered == self.layout.chunks(self.group.rank()) * nodes
            && incoming.gathered == self.layout.chunks(*rank)
    }

    /// Sends at most one frame's worth to a peer; says whether there may be another to send at once.
    fn send_one(&mut self, peer: usize) -> Result<bool, CollectiveError> {
        if self.connections[peer].outgoing.full {
            return Ok(false);
        }
        if self.connections[peer].outgoing.frame.is_none() {
            let Some((frame, checksum)) = self.next_frame(peer) else { return Ok(false) };
            let stamp = self.stamp(self.group.rank());
            let header = frame.encode(stamp, checksum);
            self.connections[peer].outgoing.frame = Some((frame, header));
        }
        let connection = &mut self.connections[peer];
        let Some((frame, _)) = &connection.outgoing.frame else { return Ok(false) };
        let payload = match frame.kind {
            Kind::Scatter => &self.sums.node_sum(frame.node)[frame.range.clone()],
            Kind::Gather => &self.folded[frame.range.clone()],
        };
        match connection.send(bytemuck::cast_slice(payload)) {
            Ok(moved) => Ok(moved == Moved::Whole),
            Err(error) => Err(lost(connection.rank, &error)),
        }
    }

    /// The next frame for a peer with its checksum: what is folded first, for it is still in the cache.
    fn next_frame(&mut self, peer: usize) -> Option<(Frame, u32)> {
        let Connection { rank, outgoing, .. } = &mut self.connections[peer];
        if outgoing.gathered < self.checksums.len() {
            let chunk = outgoing.gathered;
            outgoing.gathered += 1;
            let range = self.layout.chunk(self.group.rank(), chunk);
            return Some((Frame { kind: Kind::Gather, node: 0, chunk, range }, self.checksums[chunk]));
        }
        let nodes = self.sums.nodes().len();
        if outgoing.scattered == self.layout.chunks(*rank) * nodes {
            return None;
        }
        let (chunk, node) = (outgoing.scattered / nodes, outgoing.scattered % nodes);
        outgoing.scattered += 1;
        let range = self.layout.chunk(*rank, chunk);
        let checksum = checksum_of(&self.sums.node_sum(node)[range.clone()]);
        Some((Frame { kind: Kind::Scatter, node, chunk, range }, checksum))
    }

    fn stamp(&self, sender: usize) -> Stamp {
        Stamp { sender, generation: self.group.generation(), step: self.step }
    }

    /// Receives at most one frame from a peer, so that folding follows close behind.
    fn receive_one(&mut self, peer: usize) -> Result<(), CollectiveError> {
        if !std::mem::take(&mut self.connections[peer].incoming.ready) {
            return Ok(());
        }
        self.open_frame(peer)?;
        if !self.wants_input(peer) {
            return Ok(());
        }
        let Connection { rank, stream, nodes, incoming, .. } = &mut self.connections[peer];
        let Some((frame, announced)) = &incoming.frame else { return Ok(()) };
        let payload = match frame.kind {
            Kind::Scatter => {
                let place = window_range(self.layout, *nodes, frame.chunk, frame.node, 0..frame.range.len());
                &mut incoming.window[place]
            }
            Kind::Gather => &mut self.folded[frame.range.clone()],
        };
        let progress = (&mut incoming.filled, &mut incoming.checksum);
        let next = (&mut incoming.header, &mut incoming.header_filled);
        match read_payload(stream, bytemuck::cast_slice_mut(payload), progress, next) {
            Ok(Moved::Pending) => return Ok(()),
            Ok(Moved::Whole) if incoming.checksum != *announced => {
                return Err(CollectiveError::Corrupt { rank: *rank });
            }
            Ok(Moved::Whole) => {}
            Err(error) => return Err(lost(*rank, &error)),
        }
        match frame.kind {
            Kind::Scatter => incoming.scattered += 1,
            Kind::Gather => incoming.gathered += 1,
        }
        incoming.frame = None;
        Ok(())
    }

    /// Reads and checks the next header, unless a frame is open or this fold has all of them.
    fn open_frame(&mut self, peer: usize) -> Result<(), CollectiveError> {
        if self.connections[peer].incoming.frame.is_some() || self.has_received_all(peer) {
            return Ok(());
        }
        let Connection { rank, stream, nodes, incoming, .. } = &mut self.connections[peer];
        match incoming.read_header(stream) {
            Ok(Moved::Whole) => incoming.header_filled = 0,
            Ok(Moved::Pending) => return Ok(()),
            Err(error) => return Err(lost(*rank, &error)),
        }
        let own = self.group.rank();
        let kind = frame::kind(&incoming.header).ok_or(CollectiveError::Corrupt { rank: *rank })?;
        let (of, chunk, node) = match kind {
            Kind::Scatter => (own, incoming.scattered / *nodes, incoming.scattered % *nodes),
            Kind::Gather => (*rank, incoming.gathered, 0),
        };
        if chunk >= self.layout.chunks(of) {
            let (expected, found) = (self.layout.chunks(of) as u64, chunk as u64 + 1);
            return Err(CollectiveError::Protocol {
                rank: *rank,
                field: "number of chunks",
                expected,
                found,
            });
        }
        let frame = Frame { kind, node, chunk, range: self.layout.chunk(of, chunk) };
        let stamp = Stamp { sender: *rank, generation: self.group.generation(), step: self.step };
        let announced = frame::check(&incoming.header, &frame, stamp)?;
        incoming.frame = Some((frame, announced));
        incoming.filled = 0;
        incoming.checksum = 0;
        Ok(())
    }

    /// Whether a peer owes us something that there is room for.
    fn wants_input(&self, peer: usize) -> bool {
        match &self.connections[peer].incoming.frame {
            Some((Frame { kind: Kind::Scatter, chunk, .. }, _)) => {
                *chunk < self.folded_chunks() + WINDOW_CHUNKS
            }
            Some(_) => true,
            None => !self.has_received_all(peer),
        }
    }

    /// Folds the next chunk of our slice, if every peer's part of it is here.
    fn fold_next_chunk(&mut self) -> bool {
        let chunk = self.folded_chunks();
        let rank = self.group.rank();
        let arrived = |peer: &Connection| peer.incoming.scattered >= (chunk + 1) * peer.nodes;
        if chunk == self.layout.chunks(rank) || !self.connections.iter().all(arrived) {
            return false;
        }
        let range = self.layout.chunk(rank, chunk);
        let out = &mut self.folded[range.clone()];
        self.tree.fold(out, |source, part| {
            if source.rank == rank {
                return &self.sums.node_sum(source.position)
                    [range.start + part.start..range.start + part.end];
            }
            // The connections are in rank order without our own.
            let peer = &self.connections[source.rank - usize::from(source.rank > rank)];
            &peer.incoming.window[window_range(self.layout, peer.nodes, chunk, source.position, part)]
        });
        self.checksums.push(checksum_of(out));
        true
    }

    /// Waits until a socket can go on, at most a tick; not at all if there is `more_to_send`.
    fn wait(&mut self, until: Instant, more_to_send: bool) -> Result<(), CollectiveError> {
        self.group.check_interrupt()?;
        let now = Instant::now();
        if now >= until {
            let limit_ms = self.limit.as_millis() as u64;
            return Err(CollectiveError::Deadline { rank: self.latest_peer(), what: "the fold", limit_ms });
        }
        let timeout = if more_to_send { Duration::ZERO } else { INTERRUPT_TICK.min(until - now) };
        let timeout = Timespec::try_from(timeout).expect("a tick is a small time");
        let mut waiting = Vec::with_capacity(self.connections.len());
        let mut polled = Vec::with_capacity(self.connections.len());
        for peer in 0..self.connections.len() {
            // A peer that is done with us may go: only those that are still needed are watched.
            if self.has_sent_all(peer) && self.has_received_all(peer) {
                continue;
            }
            let mut flags = BROKEN_OFF;
            flags.set(PollFlags::IN, self.wants_input(peer));
            flags.set(PollFlags::OUT, self.connections[peer].outgoing.full);
            waiting.push((peer, flags));
            polled.push(PollFd::new(&self.connections[peer].stream, flags));
        }
        match poll(&mut polled, Some(&timeout)) {
            Ok(0) if !more_to_send => {}
            Ok(_) => self.group.standstill().moved(),
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => {
                return Err(CollectiveError::Socket { what: "wait for peers", source: error.into() });
            }
        }
        let events: Vec<PollFlags> = polled.iter().map(PollFd::revents).collect();
        for ((peer, flags), events) in waiting.into_iter().zip(events) {
            let gone = events.intersects(PollFlags::HUP | PollFlags::ERR | BROKEN_OFF);
            let readable = flags.contains(PollFlags::IN);
            let connection = &mut self.connections[peer];
            if gone && !readable {
                return Err(lost(connection.rank, &io::ErrorKind::ConnectionReset.into()));
            }
            connection.incoming.ready = gone || events.contains(PollFlags::IN);
            connection.outgoing.full &= !events.contains(PollFlags::OUT);
        }
        Ok(())
    }

    /// The rank that has brought least of what it owes: first of its sums, then of its folded slice.
    fn latest_peer(&self) -> usize {
        let unfinished = |peer: &usize| !(self.has_sent_all(*peer) && self.has_received_all(*peer));
        let brought = |peer: &usize| {
            let Connection { nodes, incoming, .. } = &self.connections[*peer];
            (self.has_received_all(*peer), incoming.scattered / nodes, incoming.gathered)
        };
        let peers = 0..self.connections.len();
        peers
            .filter(unfinished)
            .min_by_key(brought)
            .map_or(self.group.rank(), |peer| self.connections[peer].rank)
    }
}

/// Where in a peer's window the floats `part` of one node's part of a chunk lie.
fn window_range(
    layout: &Layout,
    nodes: usize,
    chunk: usize,
    node: usize,
    part: Range<usize>,
) -> Range<usize> {
    let start = (chunk % WINDOW_CHUNKS * nodes + node) * layout.chunk_len();
    start + part.start..start + part.end
}

fn checksum_of(floats: &[f32]) -> u32 {
    checksum::extend(0, bytemuck::cast_slice(floats))
}
