//! Which addresses may be listened on.

use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::{Context, Result, bail};

/// The addresses that `text` (`HOST:PORT`) names. Others than this machine's own are refused unless the
/// person takes the risk: nothing authenticates who connects.
pub(crate) fn listen_addresses(text: &str, insecure_network: bool) -> Result<Vec<SocketAddr>> {
    let addresses: Vec<SocketAddr> = text
        .to_socket_addrs()
        .with_context(|| format!("--listen {text}: expected HOST:PORT, such as 127.0.0.1:7070"))?
        .collect();
    if let Some(open) = addresses.iter().find(|address| !address.ip().is_loopback())
        && !insecure_network
    {
        bail!(
            "--listen {text}: {} can be reached from other machines, and whoever reaches it can take part in the \
             run; in a network where that is fine, add --insecure-network",
            open.ip()
        );
    }
    Ok(addresses)
}

/// Refuses an address that means "all of this machine's": others are told it, and cannot connect to it.
pub(crate) fn refuse_unspecified(text: &str, addresses: &[SocketAddr]) -> Result<()> {
    if addresses.iter().any(|address| address.ip().is_unspecified()) {
        bail!(
            "--listen {text}: others are told this address, so give the one at which they reach this machine"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_may_connect_unless_told_otherwise() {
        for (text, insecure_network, problem) in [
            ("127.0.0.1:0", false, None),
            ("[::1]:7070", false, None),
            ("localhost:7070", false, None),
            ("0.0.0.0:7070", false, Some("--insecure-network")),
            ("192.0.2.7:7070", false, Some("--insecure-network")),
            ("192.0.2.7:7070", true, None),
            ("127.0.0.1", false, Some("HOST:PORT")),
            ("", true, Some("HOST:PORT")),
        ] {
            match (listen_addresses(text, insecure_network), problem) {
                (Ok(addresses), None) => assert!(!addresses.is_empty(), "{text}"),
                (Err(error), Some(problem)) => {
                    let sentence = format!("{error:#}");
                    assert!(sentence.contains(problem) && sentence.contains(text), "{sentence}");
                }
                (result, _) => panic!("{text}: {result:?}, expected {problem:?}"),
            }
        }
    }
}
