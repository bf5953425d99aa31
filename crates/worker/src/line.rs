//! The connection to the coordinator, which is replaced when nothing sensible comes over it any more.
//!
//! Both ends of an HTTP/2 connection keep a table of the headers that were sent, and name them by their place in it. If a
//! network changes a byte there, or sends some twice, the tables differ from then on: the connection stays, and every answer
//! on it is garbled. A new connection has new tables. What still goes on over the old one, such as the stream of orders, is
//! left to it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::{Access, Client, ConnectError, Endpoint};
use tokio::time::Instant;

/// Clones share the connection.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    endpoint: Endpoint,
    access: Access,
    client: Arc<Mutex<Client>>,
}

impl Line {
    /// Connects to the coordinator at `address`, trying again until `deadline`.
    pub(crate) async fn connect(
        address: &str,
        access: &Access,
        deadline: Instant,
    ) -> Result<Line, ConnectError> {
        let client = protocol::connect(address, access, deadline).await?;
        Ok(Line { client: Arc::new(Mutex::new(client)), ..Line::to(address, access)? })
    }

    /// The line to `address`, which dials at the first call.
    pub(crate) fn to(address: &str, access: &Access) -> Result<Line, ConnectError> {
        let endpoint = protocol::endpoint(address, access)?;
        let client = protocol::client(endpoint.connect_lazy(), access);
        Ok(Line { endpoint, access: access.clone(), client: Arc::new(Mutex::new(client)) })
    }

    /// Calls of this client go over the present connection.
    pub(crate) fn client(&self) -> Client {
        self.present().clone()
    }

    /// A new connection for the calls that come.
    pub(crate) fn redial(&self) {
        *self.present() = protocol::client(self.endpoint.connect_lazy(), &self.access);
    }

    /// A client is whole, whoever panicked beside it.
    fn present(&self) -> MutexGuard<'_, Client> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
