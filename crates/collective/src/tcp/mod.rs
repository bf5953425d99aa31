//! The fold over TCP, between processes and machines: a full mesh, reduce-scatter, then all-gather.
//!
//! The bucket is cut into one slice for each rank. Every rank sends each slice of its sums to that slice's
//! rank, which folds it in tree order and sends the result to all. [`assemble`] makes the mesh; one fold is
//! told in `exchange.rs`, what goes over the wire in `frame.rs` and `handshake.rs`.

mod assemble;
mod connection;
mod exchange;
mod frame;
mod handshake;
#[cfg(test)]
mod tests;

use crate::layout::Layout;
use crate::tree::TreeFold;
use crate::{Collective, CollectiveError, Group, Key, Limits, SubtreeSums, check_arguments};
use connection::Connection;
use exchange::Exchange;
use std::net::{Shutdown, TcpListener};

/// Floats in a chunk (512 KiB). Measured with 4 processes and 75 MB: 128 KiB costs a tenth more for its system
/// calls and wake-ups, 1 MiB gains nothing.
const CHUNK_LEN: usize = 128 * 1024;

/// Chunks of a slice must be countable in the 16 bits that a header has for them.
const CHUNKS_MAX: usize = 1 << 16;

/// One worker's connections to all others of its generation.
#[derive(Debug)]
pub struct TcpCollective {
    group: Group,
    limits: Limits,
    layout: Layout,
    tree: TreeFold,
    /// The peers in rank order, without this worker.
    connections: Vec<Connection>,
    checksums: Vec<u32>,
    poisoned: bool,
}

/// Connects the workers of `group`, of which rank `r` listens at `addresses[r]` ("host:port") and this one at
/// `listener`. Connections that belong to no worker of this generation, or to none that knows the run's `key`, are
/// refused and logged. What is sent over those that stay is neither encrypted nor signed.
///
/// The listener is set non-blocking, and can serve one generation after another.
///
/// # Errors
/// [`CollectiveError::Deadline`] names a rank that did not come in time, [`CollectiveError::Superseded`] means
/// that a peer is already in a newer generation, [`CollectiveError::Protocol`] that a peer of this one runs
/// another program or recipe.
pub fn assemble(
    listener: &TcpListener,
    key: &Key,
    group: Group,
    addresses: &[String],
    limits: Limits,
) -> Result<TcpCollective, CollectiveError> {
    assemble_with_chunks(listener, key, group, addresses, limits, CHUNK_LEN)
}

/// The assembly for any length of chunks, so that tests see many of them; it must be the same on every rank.
fn assemble_with_chunks(
    listener: &TcpListener,
    key: &Key,
    group: Group,
    addresses: &[String],
    limits: Limits,
    chunk_len: usize,
) -> Result<TcpCollective, CollectiveError> {
    let world = group.world();
    if addresses.len() != world {
        return Err(CollectiveError::Addresses { expected: world, found: addresses.len() });
    }
    let chunk_len = chunk_len.max(limits.bucket_len.div_ceil(CHUNKS_MAX));
    let layout = Layout::new(limits.bucket_len, world, chunk_len);
    let streams = assemble::connect_all(listener, key, &group, addresses, limits)?;
    let connect = |(rank, stream): (usize, Option<_>)| {
        let nodes = SubtreeSums::node_count(&group.leases()[rank]);
        stream.map(|stream| Connection::new(rank, stream, nodes, layout.chunk_len()))
    };
    let connections = streams.into_iter().enumerate().filter_map(connect).collect();
    let tree = TreeFold::new(group.leases());
    Ok(TcpCollective { group, limits, layout, tree, connections, checksums: Vec::new(), poisoned: false })
}

impl Collective for TcpCollective {
    fn fold(&mut self, step: u64, sums: &SubtreeSums, folded: &mut [f32]) -> Result<(), CollectiveError> {
        if self.poisoned {
            return Err(CollectiveError::Poisoned);
        }
        let outcome = check_arguments(&self.group, &self.limits, sums, folded)
            .and_then(|()| self.fold_with_peers(step, sums, folded));
        if outcome.is_err() {
            self.poison();
        }
        outcome
    }
}

impl TcpCollective {
    fn fold_with_peers(
        &mut self,
        step: u64,
        sums: &SubtreeSums,
        folded: &mut [f32],
    ) -> Result<(), CollectiveError> {
        if self.connections.is_empty() {
            folded.copy_from_slice(sums.node_sum(0));
            return Ok(());
        }
        let exchange = Exchange {
            group: &self.group,
            layout: &self.layout,
            tree: &mut self.tree,
            connections: &mut self.connections,
            checksums: &mut self.checksums,
            step,
            sums,
            folded,
            limit: self.limits.step_deadline,
        };
        exchange.run()
    }

    /// Ends all connections, so that the peers stop waiting at once.
    fn poison(&mut self) {
        self.poisoned = true;
        for connection in &self.connections {
            // An error here means that the connection has ended already.
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
    }
}
