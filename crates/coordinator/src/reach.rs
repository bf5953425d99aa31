//! Whether a worker is where it says it is: asked before it takes part, and when its connection has ended.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Longer than a connection takes on any network that one would train across, and shorter than a person's patience.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Connects to the address that a worker gave for the others, and hangs up. The coordinator stands for the other
/// workers here: one that they could not reach would otherwise cost them generation after generation.
///
/// # Errors
/// A sentence for the worker whose address nobody answers at, because it is another interface's, say, or lies behind
/// an address translation.
pub(crate) async fn check(address: &str, worker: Option<SocketAddr>) -> Result<(), String> {
    let comes_from = worker.map_or_else(|| "this process".to_string(), |worker| worker.ip().to_string());
    let advice =
        "give the worker --advertise with the address or the network interface at which the others reach it";
    let Some(host) = host(address) else { return Ok(()) };
    if host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()) {
        return match worker {
            Some(worker) if !worker.ip().to_canonical().is_loopback() => Err(format!(
                "this worker comes from {comes_from}, but says that others reach it at {address}, which is every \
                 machine's address for itself: start it with --listen 0.0.0.0:0, or {advice}"
            )),
            _ => Ok(()),
        };
    }
    let Err(problem) = answers(address).await else { return Ok(()) };
    Err(format!(
        "this worker, which comes from {comes_from}, says that others reach it at {address}, but the coordinator does \
         not ({problem}): {advice}, and see that no firewall or address translation lies between"
    ))
}

/// Whether anyone takes a connection at an address that a worker gave; a worker within this process is there.
///
/// # Errors
/// What happened instead.
pub(crate) async fn answers(address: &str) -> Result<(), String> {
    if host(address).is_none() {
        return Ok(());
    }
    let dial = async { dial(lookup_host(address).await?).await };
    match timeout(ANSWER_LIMIT, dial).await {
        Ok(dialled) => dialled.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", ANSWER_LIMIT.as_secs())),
    }
}

/// Dials all addresses of a name at once, until one answers: the others may swallow what they are sent.
async fn dial(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<()> {
    let mut dials: JoinSet<io::Result<TcpStream>> = addresses.map(TcpStream::connect).collect();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the address does not resolve");
    while let Some(dialled) = dials.join_next().await {
        match dialled.unwrap_or_else(|error| Err(error.into())) {
            Ok(_) => return Ok(()),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// The host of `HOST:PORT`; `None` for a worker within this process, which has no address.
fn host(address: &str) -> Option<&str> {
    let (host, _) = address.rsplit_once(':')?;
    Some(host.trim_start_matches('[').trim_end_matches(']'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn one_address_of_a_name_that_answers_is_enough() {
        let local = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (full, here) = (local(), local());
        let [silent, here] = [&full, &here].map(|listener| listener.local_addr().unwrap());
        // Once its queue is full, what is sent to it is swallowed.
        let wait = Duration::from_millis(50);
        let queue: Vec<_> =
            std::iter::from_fn(|| std::net::TcpStream::connect_timeout(&silent, wait).ok()).collect();
        let refused = SocketAddr::from(([127, 0, 0, 1], 1));
        for addresses in [vec![here], vec![silent, here], vec![refused, silent, here, silent]] {
            let answer = timeout(ANSWER_LIMIT, dial(addresses.clone().into_iter())).await;
            assert!(matches!(answer, Ok(Ok(()))), "{addresses:?}: {answer:?}");
        }
        for (addresses, expected) in
            [(vec![], io::ErrorKind::NotFound), (vec![refused], io::ErrorKind::ConnectionRefused)]
        {
            assert_eq!(dial(addresses.into_iter()).await.unwrap_err().kind(), expected);
        }
        drop(queue);
    }

    #[tokio::test]
    async fn only_a_worker_that_can_be_reached_takes_part() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let here = "127.0.0.1:4000";
        let elsewhere = "192.0.2.7:4000";
        for (address, worker, problem) in [
            ("loopback".to_string(), None, None),
            // On this machine, an address of this machine's needs no proof.
            ("127.0.0.1:1".to_string(), Some(here), None),
            ("[::1]:1".to_string(), Some("[::ffff:127.0.0.1]:4000"), None),
            (format!("localhost:{port}"), Some(elsewhere), None),
            ("127.0.0.1:1".to_string(), Some(elsewhere), Some("every machine's address for itself")),
            ("[::1]:1".to_string(), Some(elsewhere), Some("--listen 0.0.0.0:0")),
            ("localhost:1".to_string(), Some(elsewhere), Some("refused")),
            ("no-such-host.invalid:1".to_string(), Some(elsewhere), Some("--advertise")),
            ("host:no port".to_string(), Some(elsewhere), Some("192.0.2.7")),
        ] {
            let worker = worker.map(|worker| worker.parse().unwrap());
            match (check(&address, worker).await, problem) {
                (Ok(()), None) => {}
                (Err(sentence), Some(problem)) => {
                    assert!(sentence.contains(problem) && sentence.contains(&address), "{sentence}");
                }
                (result, _) => panic!("{address} from {worker:?}: {result:?}, expected {problem:?}"),
            }
        }
    }
}
