//! One fold: our sums to the ranks that fold them, theirs to us, and the folded slices to everybody.
//!
//! One thread serves all sockets. A chunk of our slice is folded as soon as it has come from every peer, and
//! sent on while the next one comes. On each of its lanes a peer may run [`WINDOW_CHUNKS`] of the lane's chunks ahead of
//! the slowest; beyond that the lane's socket is left unread.
//!
//! This cannot lock up. A lane brings its chunks in order, so one that is left unread has already brought the chunk that is
//! folded next, or never carries it: every lane that this chunk is still to come by is read. Folded chunks go straight to
//! their place. And nobody holds its sums back: they wait for room on their own lane, and for nothing else.

use super::connection::{Connection, Moved, WINDOW_CHUNKS, read_payload};
use super::frame::{self, Frame, Kind, Stamp};
use super::rounding;
use crate::checksum::{self, Checksum};
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
    /// In the order of the peers' ranks, and then of the lanes.
    pub(super) connections: &'a mut [Connection],
    /// Checksums of the folded chunks of our slice, computed once for all peers.
    pub(super) checksums: &'a mut Vec<u32>,
    pub(super) step: u64,
    pub(super) sums: &'a SubtreeSums,
    pub(super) folded: &'a mut [f32],
    /// Our slice of it as it is sent, as far as it is rounded.
    pub(super) rounded: &'a mut [u16],
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
            for index in 0..self.connections.len() {
                more_to_send |= self.send_one(index)?;
            }
            for index in 0..self.connections.len() {
                self.receive_one(index)?;
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
            && (0..self.connections.len()).all(|index| self.is_done(index))
    }

    /// Whether this fold needs a connection no more.
    fn is_done(&self, index: usize) -> bool {
        self.has_sent_all(index) && self.has_received_all(index)
    }

    fn has_sent_all(&self, index: usize) -> bool {
        let Connection { rank, lane, outgoing, .. } = &self.connections[index];
        outgoing.frame.is_none()
            && outgoing.scattered == lane.chunks_before(self.layout.chunks(*rank)) * self.sums.nodes().len()
            && outgoing.gathered == lane.chunks_before(self.layout.chunks(self.group.rank()))
    }

    fn has_received_all(&self, index: usize) -> bool {
        let Connection { rank, lane, nodes, incoming, .. } = &self.connections[index];
        incoming.scattered == lane.chunks_before(self.layout.chunks(self.group.rank())) * nodes
            && incoming.gathered == lane.chunks_before(self.layout.chunks(*rank))
    }

    /// Sends at most one frame's worth over a connection; says whether there may be another to send at once.
    fn send_one(&mut self, index: usize) -> Result<bool, CollectiveError> {
        if self.connections[index].outgoing.full {
            return Ok(false);
        }
        if self.connections[index].outgoing.frame.is_none() {
            let Some((frame, checksum)) = self.next_frame(index) else { return Ok(false) };
            let stamp = self.stamp(self.group.rank());
            let header = frame.encode(stamp, checksum);
            self.connections[index].outgoing.frame = Some((frame, header));
        }
        let Connection { rank, stream, outgoing, rounded, .. } = &mut self.connections[index];
        let Some((frame, _)) = &outgoing.frame else { return Ok(false) };
        let range = frame.range.clone();
        let payload: &[u8] = match (frame.kind, frame.is_rounded) {
            (Kind::Scatter, false) => bytemuck::cast_slice(&self.sums.node_sum(frame.node)[range]),
            (Kind::Scatter, true) => bytemuck::cast_slice(rounded),
            (Kind::Gather, false) => bytemuck::cast_slice(&self.folded[range]),
            (Kind::Gather, true) => {
                let place = self.layout.within_slice(self.group.rank(), &range);
                bytemuck::cast_slice(&self.rounded[place])
            }
        };
        match outgoing.send(stream, payload) {
            Ok(moved) => Ok(moved == Moved::Whole),
            Err(error) => Err(lost(*rank, &error)),
        }
    }

    /// The next frame for a connection with its checksum: what is folded first, for it is still in the cache.
    fn next_frame(&mut self, index: usize) -> Option<(Frame, u32)> {
        let Connection { rank, lane, outgoing, rounded, .. } = &mut self.connections[index];
        if outgoing.gathered < lane.chunks_before(self.checksums.len()) {
            let chunk = lane.chunk_after(outgoing.gathered);
            outgoing.gathered += 1;
            let frame = Frame::of(self.layout, self.group.rank(), Kind::Gather, 0, chunk);
            return Some((frame, self.checksums[chunk]));
        }
        let nodes = self.sums.nodes().len();
        if outgoing.scattered == lane.chunks_before(self.layout.chunks(*rank)) * nodes {
            return None;
        }
        let (chunk, node) = (lane.chunk_after(outgoing.scattered / nodes), outgoing.scattered % nodes);
        outgoing.scattered += 1;
        let frame = Frame::of(self.layout, *rank, Kind::Scatter, node, chunk);
        let part = &self.sums.node_sum(node)[frame.range.clone()];
        if !frame.is_rounded {
            return Some((frame, checksum_of(part)));
        }
        rounded.resize(part.len(), 0);
        rounding::round(part, rounded);
        Some((frame, checksum_of(rounded)))
    }

    fn stamp(&self, sender: usize) -> Stamp {
        Stamp { sender, generation: self.group.generation(), step: self.step }
    }

    /// Receives at most one frame over a connection, so that folding follows close behind.
    fn receive_one(&mut self, index: usize) -> Result<(), CollectiveError> {
        if !std::mem::take(&mut self.connections[index].incoming.ready) {
            return Ok(());
        }
        self.open_frame(index)?;
        if !self.wants_input(index) {
            return Ok(());
        }
        let Connection { rank, lane, stream, nodes, incoming, .. } = &mut self.connections[index];
        let Some((frame, announced)) = &incoming.frame else { return Ok(()) };
        let place = match frame.kind {
            Kind::Scatter => {
                let turn = lane.chunks_before(frame.chunk);
                let place = window_range(self.layout, *nodes, turn, frame.node, 0..frame.range.len());
                &mut incoming.window[place]
            }
            Kind::Gather => &mut self.folded[frame.range.clone()],
        };
        let payload = match frame.is_rounded {
            true => {
                incoming.rounded.resize(frame.range.len(), 0);
                bytemuck::cast_slice_mut(&mut incoming.rounded)
            }
            false => bytemuck::cast_slice_mut(place),
        };
        let progress = (&mut incoming.filled, &mut incoming.checksum);
        let next = (&mut incoming.header, &mut incoming.header_filled);
        match read_payload(stream, payload, progress, next) {
            Ok(Moved::Pending) => return Ok(()),
            Ok(Moved::Whole) if incoming.checksum.value() != *announced => {
                return Err(CollectiveError::Corrupt { rank: *rank });
            }
            Ok(Moved::Whole) => {}
            Err(error) => return Err(lost(*rank, &error)),
        }
        if frame.is_rounded {
            rounding::widen(&incoming.rounded, place);
        }
        match frame.kind {
            Kind::Scatter => incoming.scattered += 1,
            Kind::Gather => incoming.gathered += 1,
        }
        incoming.frame = None;
        Ok(())
    }

    /// Reads and checks the next header, unless a frame is open or this fold has all of them.
    fn open_frame(&mut self, index: usize) -> Result<(), CollectiveError> {
        if self.connections[index].incoming.frame.is_some() || self.has_received_all(index) {
            return Ok(());
        }
        let Connection { rank, lane, stream, nodes, incoming, .. } = &mut self.connections[index];
        match incoming.read_header(stream) {
            Ok(Moved::Whole) => incoming.header_filled = 0,
            Ok(Moved::Pending) => return Ok(()),
            Err(error) => return Err(lost(*rank, &error)),
        }
        let own = self.group.rank();
        let kind = frame::kind(&incoming.header).ok_or(CollectiveError::Corrupt { rank: *rank })?;
        let (of, earlier, node) = match kind {
            Kind::Scatter => (own, incoming.scattered / *nodes, incoming.scattered % *nodes),
            Kind::Gather => (*rank, incoming.gathered, 0),
        };
        let chunk = lane.chunk_after(earlier);
        if chunk >= self.layout.chunks(of) {
            let (expected, found) = (self.layout.chunks(of) as u64, chunk as u64 + 1);
            return Err(CollectiveError::Protocol {
                rank: *rank,
                field: "number of chunks",
                expected,
                found,
            });
        }
        let frame = Frame::of(self.layout, of, kind, node, chunk);
        let stamp = Stamp { sender: *rank, generation: self.group.generation(), step: self.step };
        let announced = frame::check(&incoming.header, &frame, stamp)?;
        incoming.frame = Some((frame, announced));
        incoming.filled = 0;
        incoming.checksum = Checksum::default();
        Ok(())
    }

    /// Whether a connection owes us something that there is room for.
    fn wants_input(&self, index: usize) -> bool {
        let Connection { lane, incoming, .. } = &self.connections[index];
        match &incoming.frame {
            Some((Frame { kind: Kind::Scatter, chunk, .. }, _)) => {
                lane.chunks_before(*chunk) < lane.chunks_before(self.folded_chunks()) + WINDOW_CHUNKS
            }
            Some(_) => true,
            None => !self.has_received_all(index),
        }
    }

    /// Folds the next chunk of our slice, if every peer's part of it is here.
    fn fold_next_chunk(&mut self) -> bool {
        let chunk = self.folded_chunks();
        let rank = self.group.rank();
        let carriers = self.connections.iter().filter(|connection| connection.lane.carries(chunk));
        let has_arrived = |Connection { lane, nodes, incoming, .. }: &Connection| {
            incoming.scattered >= lane.chunks_before(chunk + 1) * nodes
        };
        if chunk == self.layout.chunks(rank) || !carriers.clone().all(has_arrived) {
            return false;
        }
        // In rank order without our own.
        let carriers: Vec<&Connection> = carriers.collect();
        let range = self.layout.chunk(rank, chunk);
        let out = &mut self.folded[range.clone()];
        self.tree.fold(out, |source, part| {
            if source.rank == rank {
                return &self.sums.node_sum(source.position)
                    [range.start + part.start..range.start + part.end];
            }
            let Connection { lane, nodes, incoming, .. } =
                carriers[source.rank - usize::from(source.rank > rank)];
            let turn = lane.chunks_before(chunk);
            &incoming.window[window_range(self.layout, *nodes, turn, source.position, part)]
        });
        let checksum = match self.layout.is_rounded(&range) {
            true => {
                let rounded = &mut self.rounded[self.layout.within_slice(rank, &range)];
                // Everybody goes on with what the others get, or replicas would part.
                rounding::round(out, rounded);
                rounding::widen(rounded, out);
                checksum_of(rounded)
            }
            false => checksum_of(out),
        };
        self.checksums.push(checksum);
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
        for index in 0..self.connections.len() {
            // A peer that is done with us may go: only what is still needed is watched.
            if self.is_done(index) {
                continue;
            }
            let mut flags = BROKEN_OFF;
            flags.set(PollFlags::IN, self.wants_input(index));
            flags.set(PollFlags::OUT, self.connections[index].outgoing.full);
            waiting.push((index, flags));
            polled.push(PollFd::new(&self.connections[index].stream, flags));
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
        for ((index, flags), events) in waiting.into_iter().zip(events) {
            let gone = events.intersects(PollFlags::HUP | PollFlags::ERR | BROKEN_OFF);
            let readable = flags.contains(PollFlags::IN);
            let connection = &mut self.connections[index];
            if gone && !readable {
                return Err(lost(connection.rank, &io::ErrorKind::ConnectionReset.into()));
            }
            connection.incoming.ready = gone || events.contains(PollFlags::IN);
            connection.outgoing.full &= !events.contains(PollFlags::OUT);
        }
        Ok(())
    }

    /// The rank one of whose lanes has brought least of what it owes: first of its sums, then of its folded slice.
    fn latest_peer(&self) -> usize {
        let own_chunks = self.layout.chunks(self.group.rank());
        let brought = |index: &usize| {
            let Connection { lane, nodes, incoming, .. } = &self.connections[*index];
            // By the chunk that comes next, for lanes carry more of a slice the fewer they are.
            let scattered = lane.chunk_after(incoming.scattered / nodes).min(own_chunks);
            (self.has_received_all(*index), scattered, lane.chunk_after(incoming.gathered))
        };
        (0..self.connections.len())
            .filter(|index| !self.is_done(*index))
            .min_by_key(brought)
            .map_or(self.group.rank(), |index| self.connections[index].rank)
    }
}

/// Where in a lane's window the floats `part` of one node's part of a chunk lie, the `turn`-th of the lane's in its slice.
fn window_range(layout: &Layout, nodes: usize, turn: usize, node: usize, part: Range<usize>) -> Range<usize> {
    let start = (turn % WINDOW_CHUNKS * nodes + node) * layout.chunk_len();
    start + part.start..start + part.end
}

fn checksum_of<T: bytemuck::NoUninit>(numbers: &[T]) -> u32 {
    checksum::of(bytemuck::cast_slice(numbers))
}
