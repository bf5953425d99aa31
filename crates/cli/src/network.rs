//! Which addresses may be listened on.

use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::{Context, Result, bail};

use crate::security::Security;

/// The addresses that `text` (`HOST:PORT`) names. Others than this machine's own are refused unless `security` keeps
/// strangers out.
pub(crate) fn listen_addresses(text: &str, security: &Security) -> Result<Vec<SocketAddr>> {
    let addresses: Vec<SocketAddr> = text
        .to_socket_addrs()
        .with_context(|| format!("--listen {text}: expected HOST:PORT, such as 127.0.0.1:7070"))?
        .collect();
    if let Some(open) = addresses.iter().find(|address| !address.ip().is_loopback()) {
        security.allow_others(open.ip()).with_context(|| format!("--listen {text}"))?;
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
        let closed = Security::for_tests(false);
        let open = Security::for_tests(true);
        for (text, security, problem) in [
            ("127.0.0.1:0", &closed, None),
            ("[::1]:7070", &closed, None),
            ("localhost:7070", &closed, None),
            ("0.0.0.0:7070", &closed, Some("--insecure-network")),
            ("192.0.2.7:7070", &closed, Some("--insecure-network")),
            ("192.0.2.7:7070", &open, None),
            ("127.0.0.1", &closed, Some("HOST:PORT")),
            ("", &open, Some("HOST:PORT")),
        ] {
            match (listen_addresses(text, security), problem) {
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
