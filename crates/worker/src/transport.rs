//! How this worker's gradients reach the others.

use std::net::{TcpListener, ToSocketAddrs};

use collective::loopback::Hub;
use collective::{Collective, CollectiveError, Group, Key, Limits, tcp};

use crate::WorkerError;

/// How this worker's gradients reach the others.
pub enum Transport {
    /// Sockets between processes, on one machine or many.
    Tcp {
        /// Where the others connect to.
        listener: TcpListener,
        /// The same as they see it, `HOST:PORT`.
        address: String,
    },
    /// Memory between threads of one process.
    Loopback(Hub),
}

impl Transport {
    /// Listens on `address`, `HOST:PORT`; port 0 takes a free one.
    ///
    /// # Errors
    /// [`WorkerError::Listen`].
    pub fn listen(address: &str) -> Result<Transport, WorkerError> {
        let failed = |source| WorkerError::Listen { address: address.to_string(), source };
        let addresses: Vec<_> = address.to_socket_addrs().map_err(failed)?.collect();
        let listener = TcpListener::bind(addresses.as_slice()).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?.to_string();
        Ok(Transport::Tcp { listener, address })
    }

    /// What the other workers are told.
    pub(crate) fn address(&self) -> String {
        match self {
            Transport::Tcp { address, .. } => address.clone(),
            Transport::Loopback(_) => "loopback".to_string(),
        }
    }

    /// Connects to the group's other members, who know `key` and whose addresses are in order of rank.
    pub(crate) fn assemble(
        &self,
        key: &Key,
        group: Group,
        addresses: &[String],
        limits: Limits,
    ) -> Result<Box<dyn Collective>, CollectiveError> {
        Ok(match self {
            Transport::Tcp { listener, .. } => {
                Box::new(tcp::assemble(listener, key, group, addresses, limits)?)
            }
            Transport::Loopback(hub) => Box::new(hub.assemble(group, limits)?),
        })
    }
}
