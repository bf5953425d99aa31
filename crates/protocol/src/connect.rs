//! Reaching the coordinator: retries with growing pauses, until a deadline.

use std::error::Error;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tonic::transport::{Channel, Endpoint};

use crate::Pauses;
use crate::access::{Access, Client, ShowToken};
use crate::limits;

/// No pause is longer, so that a worker is there soon after its coordinator.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Why the coordinator was not reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address cannot be one.
    #[error("{address:?} is not an address: expected HOST:PORT, such as 127.0.0.1:7070; correct --join")]
    Address {
        /// As given.
        address: String,
    },
    /// Nobody answered before the deadline.
    #[error(
        "nobody answers at {address} ({reason}; {attempts} attempts in {waited_s:.1} s): start the coordinator, \
         or correct the address"
    )]
    Deadline {
        /// Where a coordinator was expected.
        address: String,
        /// How often it was tried.
        attempts: u32,
        /// For how long.
        waited_s: f64,
        /// What the last attempt met.
        reason: String,
    },
    /// Someone answers, but not in a way that can be trusted.
    #[error("{address} is no coordinator that can be trusted ({reason}): {mend}")]
    Untrusted {
        /// Where a coordinator was expected.
        address: String,
        /// What the TLS handshake met.
        reason: String,
        /// What to do.
        mend: &'static str,
    },
    /// The certificates given cannot be used.
    #[error("certificates for TLS: {0}; correct --tls-ca, --tls-cert and --tls-key")]
    Certificates(String),
}

/// Connects to the coordinator at `address` (`HOST:PORT`), trying again until `deadline`.
///
/// [`Pauses`] up to 2 s lie between the attempts. The client connects again by itself when its connection is lost,
/// and looks the name up anew each time.
///
/// # Errors
/// [`ConnectError::Address`], [`ConnectError::Certificates`] and [`ConnectError::Untrusted`] at once;
/// [`ConnectError::Deadline`] when nobody answered in time.
pub async fn connect(address: &str, access: &Access, deadline: Instant) -> Result<Client, ConnectError> {
    let endpoint = endpoint(address, access)?;
    let started = Instant::now();
    let mut pauses = Pauses::up_to(LONGEST_PAUSE);
    let mut reason = "no attempt was made".to_string();
    let mut attempts = 0;
    loop {
        attempts += 1;
        match timeout_at(deadline, endpoint.connect()).await {
            Ok(Ok(channel)) => return Ok(client(channel, access)),
            Ok(Err(error)) => reason = innermost(&error),
            Err(_) if attempts == 1 => reason = "no answer".to_string(),
            Err(_) => {}
        }
        if let Some(mend) = mend(&reason) {
            return Err(ConnectError::Untrusted { address: address.to_string(), reason, mend });
        }
        let pause = pauses.next_pause();
        if Instant::now() + pause >= deadline {
            let waited_s = started.elapsed().as_secs_f64();
            return Err(ConnectError::Deadline { address: address.to_string(), attempts, waited_s, reason });
        }
        sleep(pause).await;
    }
}

/// What to do about a TLS handshake that would fail again; `None` for what may pass. rustls tells these apart in a type
/// of its own, which arrives here as its words.
fn mend(reason: &str) -> Option<&'static str> {
    const NAME: &str = "its certificate is for other names than the one in --join; make one that has it \
                        (`coordinator certs`), or join by a name that it has";
    const TIME: &str = "its certificate is out of date, or the clock of this machine is wrong";
    const AUTHORITY: &str = "its certificate is not signed by the authority of --tls-ca; give the ca.pem that belongs \
                             to it";
    const PLAIN: &str =
        "it does not speak TLS; leave out --tls-ca, or give the coordinator --tls-cert and --tls-key";
    [
        ("not valid for", NAME),
        ("NotValidForName", NAME),
        ("expired", TIME),
        ("not valid yet", TIME),
        ("invalid peer certificate", AUTHORITY),
        ("InvalidContentType", PLAIN),
    ]
    .into_iter()
    .find_map(|(words, mend)| reason.contains(words).then_some(mend))
}

/// `HOST:PORT` as the place to connect to, with the limits that the server expects.
///
/// # Errors
/// [`ConnectError::Address`] and [`ConnectError::Certificates`].
pub fn endpoint(address: &str, access: &Access) -> Result<Endpoint, ConnectError> {
    let refused = || ConnectError::Address { address: address.to_string() };
    let (host, port) = address.rsplit_once(':').ok_or_else(refused)?;
    let port: u16 = port.parse().map_err(|_| refused())?;
    if host.is_empty() || port == 0 || host.contains(['/', '@', '?', '#']) {
        return Err(refused());
    }
    let scheme = if access.tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(|_| refused())?;
    let endpoint = limits::endpoint(endpoint);
    match &access.tls {
        Some(tls) => {
            endpoint.tls_config(tls.config()).map_err(|error| ConnectError::Certificates(innermost(&error)))
        }
        None => Ok(endpoint),
    }
}

/// A client on a channel to such a place. For those who connect in another way than [`connect`]: through a simulated
/// network, say.
pub fn client(channel: Channel, access: &Access) -> Client {
    limits::client(channel, ShowToken::new(&access.token))
}

/// The last cause of `error`, which is the one that says something ("Connection refused").
pub fn innermost(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Token;
    use tokio::net::TcpListener;

    fn access() -> Access {
        Access { token: Token::random().unwrap(), tls: None }
    }

    #[tokio::test]
    async fn what_is_no_address_is_refused_at_once() {
        let far = Instant::now() + Duration::from_secs(3600);
        for address in ["", "host", "host:", ":7070", "host:0", "host:99999", "host:1/x", "a b:1", "u@h:1"] {
            let error = connect(address, &access(), far).await.expect_err(address);
            assert!(matches!(error, ConnectError::Address { .. }), "{address}: {error}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_said_at_the_deadline() {
        // Bound and closed again: a port where nobody listens.
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        let error =
            connect(&address, &access(), Instant::now() + Duration::from_millis(120)).await.unwrap_err();
        let sentence = error.to_string();
        assert!(sentence.contains(&address) && sentence.contains("refused"), "{sentence}");
    }

    #[tokio::test]
    async fn a_coordinator_that_comes_late_is_reached() {
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        let client = tokio::spawn({
            let address = address.clone();
            async move { connect(&address, &access(), Instant::now() + Duration::from_secs(30)).await }
        });
        // The first attempt runs before the listener exists.
        tokio::task::yield_now().await;
        let _listener = TcpListener::bind(&address).await.unwrap();
        client.await.unwrap().unwrap();
    }
}
