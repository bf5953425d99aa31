//! The fold between processes: first connected, then through the best medium that all of them share.

use crate::mesh::Mesh;
use crate::{Collective, CollectiveError, Group, Key, Limits, agreement, shared_memory, tcp};
use std::net::TcpListener;

#[cfg(test)]
mod tests;

/// What a worker wants its floats to go through. The workers of a group need not want the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Medium {
    /// Memory if all workers of the generation can share it, TCP if not.
    #[default]
    Auto,
    /// Memory only; if one of the workers cannot, there is no collective.
    SharedMemory,
    /// TCP, even within a host.
    Tcp,
}

/// Connects the workers of `group`, of which rank `r` listens at `addresses[r]` ("host:port") and this one at
/// `listener`. Connections that belong to no worker of this generation, or to none that knows the run's `key`, are
/// refused and logged. What is sent over those that stay is neither encrypted nor signed.
///
/// Then the workers agree, the same on every rank, to fold through memory if all can share it and no one wants
/// [`Medium::Tcp`], and over their connections otherwise.
///
/// The listener is set non-blocking, and can serve one generation after another.
///
/// # Errors
/// [`CollectiveError::Deadline`] names a rank that did not come in time, [`CollectiveError::Superseded`] means
/// that a peer is already in a newer generation, [`CollectiveError::Protocol`] that a peer of this one runs
/// another program or recipe, [`CollectiveError::NoSharedMemory`] that a worker wants nothing else and another has none.
pub fn assemble(
    listener: &TcpListener,
    key: &Key,
    group: Group,
    addresses: &[String],
    limits: Limits,
    medium: Medium,
) -> Result<Collective, CollectiveError> {
    let mut mesh = Mesh::connect(listener, key, &group, addresses, limits)?;
    Ok(match agreement::agree(&mut mesh, key, &group, limits.bucket_len, medium)? {
        Some(segment) => shared_memory::collective(segment, mesh, group, limits),
        None => tcp::collective(mesh, group, limits, tcp::CHUNK_LEN),
    })
}
