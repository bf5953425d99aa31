//! The fold between processes: first connected, then through the best medium that all of them share.

use crate::mesh::{Lanes, Mesh};
use crate::{Collective, CollectiveError, Gpu, Group, Key, Limits, agreement, gpus, shared_memory, tcp};
use std::net::TcpListener;

#[cfg(test)]
mod tests;

/// What a worker wants its floats to go through. The workers of a group need not want the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Medium {
    /// The GPUs if every worker of the generation has one of its own, memory if all can share it, else TCP.
    #[default]
    Auto,
    /// The GPUs only, through NCCL; if one of the workers cannot, there is no collective.
    Nccl,
    /// Memory only; if one of the workers cannot, there is no collective.
    SharedMemory,
    /// TCP, even within a host.
    Tcp,
}

/// What a generation folds through.
#[derive(Debug)]
pub enum Assembled {
    /// The hosts: in the tree's order, the same bits whoever leases what.
    Hosts(Collective),
    /// The GPUs, in NCCL's order.
    #[cfg(feature = "nccl")]
    Gpus(crate::nccl::GpuCollective),
}

/// Connects the workers of `group`, of which rank `r` listens at `addresses[r]` ("host:port") and this one at
/// `listener`. Connections that belong to no worker of this generation, or to none that knows the run's `key`, are
/// refused and logged. What is sent over those that stay is neither encrypted nor signed. Workers of different hosts, by
/// the addresses at both ends, have several connections.
///
/// Then the workers agree, the same on every rank, to fold through memory if all can share it and no one wants
/// [`Medium::Tcp`], and over their connections otherwise.
///
/// The listener is set non-blocking, and can serve one generation after another.
///
/// # Errors
/// [`CollectiveError::Deadline`] names a rank that did not come in time, [`CollectiveError::Superseded`] means
/// that a peer is already in a newer generation, [`CollectiveError::Protocol`] that a peer of this one runs
/// another program or recipe, [`CollectiveError::NoSharedMemory`] and [`CollectiveError::NoGpu`] that a worker wants
/// nothing else and another has none.
pub fn assemble(
    listener: &TcpListener,
    key: &Key,
    group: Group,
    addresses: &[String],
    limits: Limits,
    medium: Medium,
) -> Result<Collective, CollectiveError> {
    match assemble_with_gpu(listener, key, group, addresses, limits, medium, None)? {
        Assembled::Hosts(collective) => Ok(collective),
        #[cfg(feature = "nccl")]
        Assembled::Gpus(_) => unreachable!("a worker without a GPU sums on none"),
    }
}

/// The same for a worker that trains on `gpu` and leaves its buckets there: if all do, each on its own, they agree to sum
/// there.
///
/// # Errors
/// Those of [`assemble`], and [`CollectiveError::Nccl`].
pub fn assemble_with_gpu(
    listener: &TcpListener,
    key: &Key,
    group: Group,
    addresses: &[String],
    limits: Limits,
    medium: Medium,
    gpu: Option<Gpu>,
) -> Result<Assembled, CollectiveError> {
    let lanes = Lanes::of(group.world());
    let mut mesh = Mesh::connect(listener, key, &group, addresses, limits, lanes)?;
    if let Some(id) = gpus::agree(&mut mesh, &group, gpu, medium)? {
        mesh.close_further();
        return assemble_gpus(id, mesh, &group, gpu, limits);
    }
    Ok(Assembled::Hosts(match agreement::agree(&mut mesh, key, &group, limits.bucket_len, medium)? {
        Some(segment) => {
            mesh.close_further();
            shared_memory::collective(segment, mesh, group, limits)
        }
        None => {
            let chunk_len = tcp::chunk_len(limits.bucket_len, group.world());
            tcp::collective(mesh, group, limits, chunk_len)
        }
    }))
}

#[cfg(feature = "nccl")]
fn assemble_gpus(
    id: [u8; gpus::ID_BYTES],
    mesh: Mesh,
    group: &Group,
    gpu: Option<Gpu>,
    limits: Limits,
) -> Result<Assembled, CollectiveError> {
    let gpu = gpu.expect("who has no GPU is not told to sum on it");
    let gpus = crate::nccl::GpuCollective::join(crate::nccl::UniqueId(id), mesh, group, gpu, limits);
    gpus.map(Assembled::Gpus).map_err(|error| error.ending(group))
}

#[cfg(not(feature = "nccl"))]
fn assemble_gpus(
    _id: [u8; gpus::ID_BYTES],
    _mesh: Mesh,
    _group: &Group,
    _gpu: Option<Gpu>,
    _limits: Limits,
) -> Result<Assembled, CollectiveError> {
    unreachable!("a program without NCCL never says that it can sum on a GPU")
}
