//! How this worker's gradients reach the others.

use std::net::{TcpListener, ToSocketAddrs};

use collective::loopback::Hub;
use collective::{Assembled, Collective, CollectiveError, Gpu, Group, Key, Limits, Medium};

use crate::WorkerError;

/// How this worker's gradients reach the others.
pub enum Transport {
    /// Between processes, on one machine or many.
    Processes {
        /// Where the others connect to.
        listener: TcpListener,
        /// The same as they see it, `HOST:PORT`.
        address: String,
        /// What the gradients are to go through once they are connected.
        medium: Medium,
    },
    /// Memory between threads of one process.
    Loopback(Hub),
}

impl Transport {
    /// Listens on `address`, `HOST:PORT`; port 0 takes a free one.
    ///
    /// # Errors
    /// [`WorkerError::Listen`].
    pub fn listen(address: &str, medium: Medium) -> Result<Transport, WorkerError> {
        let failed = |source| WorkerError::Listen { address: address.to_string(), source };
        let addresses: Vec<_> = address.to_socket_addrs().map_err(failed)?.collect();
        let listener = TcpListener::bind(addresses.as_slice()).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?.to_string();
        Ok(Transport::Processes { listener, address, medium })
    }

    /// The same, told to the others as `host`, and as `port` where that is forwarded to the one listened on.
    #[must_use]
    pub fn advertised_as(mut self, host: &str, port: Option<u16>) -> Transport {
        if let Transport::Processes { address, .. } = &mut self {
            let listened = address.rsplit_once(':').map_or("", |(_, port)| port);
            let port = port.map_or_else(|| listened.to_string(), |port| port.to_string());
            *address = match host.contains(':') {
                true => format!("[{host}]:{port}"),
                false => format!("{host}:{port}"),
            };
        }
        self
    }

    /// Hangs up on those who have connected and wait to be heard: the coordinator, which has looked whether this worker can
    /// be reached. Whoever trains hears nobody, and the queue has room for some hundred of its looks. A peer that is
    /// among them dials again.
    ///
    /// # Errors
    /// The system's, which the next assembly meets too.
    pub(crate) fn hang_up(&self) -> std::io::Result<()> {
        if let Transport::Processes { listener, .. } = self {
            listener.set_nonblocking(true)?;
            while listener.accept().is_ok() {}
        }
        Ok(())
    }

    /// What the other workers are told.
    pub(crate) fn address(&self) -> String {
        match self {
            Transport::Processes { address, .. } => address.clone(),
            Transport::Loopback(_) => "loopback".to_string(),
        }
    }

    /// Connects to the group's other members, who know `key` and whose addresses are in order of rank. The buckets lie
    /// on `gpu`, if there is one.
    pub(crate) fn assemble(
        &self,
        key: &Key,
        group: Group,
        addresses: &[String],
        limits: Limits,
        gpu: Option<Gpu>,
    ) -> Result<Assembled, CollectiveError> {
        match self {
            Transport::Processes { listener, medium, .. } => {
                collective::assemble_with_gpu(listener, key, group, addresses, limits, *medium, gpu)
            }
            Transport::Loopback(hub) => hub.assemble(group, limits).map(Assembled::Hosts),
        }
    }

    /// The same for numbers that lie in the host's memory, whatever the buckets lie in.
    pub(crate) fn assemble_on_hosts(
        &self,
        key: &Key,
        group: Group,
        addresses: &[String],
        limits: Limits,
    ) -> Result<Collective, CollectiveError> {
        match self {
            Transport::Processes { listener, medium, .. } => {
                let medium = if *medium == Medium::Nccl { Medium::Auto } else { *medium };
                collective::assemble(listener, key, group, addresses, limits, medium)
            }
            Transport::Loopback(hub) => hub.assemble(group, limits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::net::TcpStream;

    #[test]
    fn others_are_told_what_was_advertised() {
        for (host, forwarded, told) in [
            ("192.0.2.7", None, "192.0.2.7:PORT"),
            ("node-3", Some(7071), "node-3:7071"),
            ("2001:db8::7", None, "[2001:db8::7]:PORT"),
        ] {
            let transport = Transport::listen("127.0.0.1:0", Medium::Auto).unwrap();
            let address = transport.address();
            let port = address.strip_prefix("127.0.0.1:").unwrap();
            assert_eq!(transport.advertised_as(host, forwarded).address(), told.replace("PORT", port));
        }
    }

    #[test]
    fn who_only_looked_is_forgotten() {
        let transport = Transport::listen("127.0.0.1:0", Medium::Auto).unwrap();
        drop(TcpStream::connect(transport.address()).unwrap());
        transport.hang_up().unwrap();
        let Transport::Processes { listener, .. } = &transport else { panic!("not a socket") };
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}
