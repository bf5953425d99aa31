//! Whether a worker is where it says it is: asked before it takes part, and when its connection has ended.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
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
    match timeout(ANSWER_LIMIT, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", ANSWER_LIMIT.as_secs())),
    }
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
