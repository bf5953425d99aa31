//! The fold over TCP, between processes and machines: reduce-scatter, then all-gather, over a full mesh.
//!
//! The bucket is cut into one slice for each rank. Every rank sends each slice of its sums to that slice's
//! rank, which folds it in tree order and sends the result to all. One fold is told in `exchange.rs`, what goes over
//! the wire in `frame.rs`.
//!
//! Slices are sent in chunks. Where two ranks have several connections, each is a lane, and the chunks of every slice are
//! dealt to the lanes in turn. Chunks of the bucket's first [`rounded_len`](Limits::rounded_len) floats go as bf16 both
//! ways, and are added up in `f32`.

mod connection;
mod exchange;
mod frame;
mod rounding;
#[cfg(test)]
mod tests;

use crate::engine::Engine;
use crate::layout::Layout;
use crate::mesh::{Lanes, Mesh, Peer};
use crate::tree::TreeFold;
use crate::{Collective, CollectiveError, Group, Limits, SubtreeSums};
use connection::{Connection, Lane};
use exchange::Exchange;
use std::iter;
use std::net::Shutdown;

/// Floats in a chunk (512 KiB). Measured with 4 processes and 75 MB: 128 KiB costs a tenth more for its system
/// calls and wake-ups, 1 MiB gains nothing.
const CHUNK_LEN: usize = 128 * 1024;

/// Floats in a chunk of a small bucket (64 KiB), whose slices are cut finer to have a chunk for each lane.
const SHORT_CHUNK_LEN: usize = 16 * 1024;

/// Chunks of a slice must be countable in the 16 bits that a header has for them.
const CHUNKS_MAX: usize = 1 << 16;

/// One worker's connections to all others of its generation.
#[derive(Debug)]
struct TcpCollective {
    group: Group,
    limits: Limits,
    layout: Layout,
    tree: TreeFold,
    /// In the order of the peers' ranks, and then of the lanes.
    connections: Vec<Connection>,
    checksums: Vec<u32>,
    folded: Vec<f32>,
    rounded: Vec<u16>,
}

/// Floats in a chunk of a group of `world` workers, whichever of them share a host: all must cut alike.
pub(crate) fn chunk_len(bucket_len: usize, world: usize) -> usize {
    let lanes = usize::from(Lanes::of(world).between_hosts);
    bucket_len.div_ceil(world * lanes).clamp(SHORT_CHUNK_LEN, CHUNK_LEN)
}

/// The fold over the connections of `mesh`, in chunks of `chunk_len` floats or of more where there would be too many;
/// it must be the same on every rank.
pub(crate) fn collective(mesh: Mesh, group: Group, limits: Limits, chunk_len: usize) -> Collective {
    let chunk_len = chunk_len.max(limits.bucket_len.div_ceil(CHUNKS_MAX));
    let layout = Layout::new(limits.bucket_len, group.world(), chunk_len).rounding(limits.rounded_len);
    let mut connections = Vec::new();
    for Peer { rank, stream, further } in mesh.peers {
        let nodes = SubtreeSums::node_count(&group.leases()[rank]);
        let count = 1 + further.len();
        for (place, stream) in iter::once(stream).chain(further).enumerate() {
            let lane = Lane { place, count };
            connections.push(Connection::new(rank, lane, stream, nodes, layout.chunk_len()));
        }
    }
    let tree = TreeFold::new(group.leases());
    let engine = TcpCollective {
        group: group.clone(),
        limits,
        tree,
        connections,
        checksums: Vec::new(),
        folded: vec![0.0; limits.bucket_len],
        rounded: vec![0; layout.rounded_in_slice(group.rank())],
        layout,
    };
    Collective::new(group, limits.bucket_len, Box::new(engine))
}

impl Engine for TcpCollective {
    fn medium(&self) -> &'static str {
        "TCP"
    }

    fn fold(&mut self, step: u64, sums: &SubtreeSums) -> Result<(), CollectiveError> {
        let exchange = Exchange {
            group: &self.group,
            layout: &self.layout,
            tree: &mut self.tree,
            connections: &mut self.connections,
            checksums: &mut self.checksums,
            step,
            sums,
            folded: &mut self.folded,
            rounded: &mut self.rounded,
            limit: self.limits.step_deadline,
        };
        exchange.run()
    }

    fn folded<'a>(&'a self, _sums: &'a SubtreeSums) -> &'a [f32] {
        &self.folded
    }

    fn leave(&mut self) {
        for connection in &self.connections {
            // An error here means that the connection has ended already.
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
    }
}
