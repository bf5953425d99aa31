//! Which addresses may be listened on.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};

use anyhow::{Context, Result, bail};

use crate::security::Security;

/// The addresses that `text` (`HOST:PORT`), the value of `flag`, names. Others than this machine's own are refused unless
/// `security` keeps strangers out.
pub(crate) fn listen_addresses(flag: &str, text: &str, security: &Security) -> Result<Vec<SocketAddr>> {
    let addresses = addresses(flag, text)?;
    if let Some(open) = addresses.iter().find(|address| !address.ip().is_loopback()) {
        security.allow_others(open.ip()).with_context(|| format!("{flag} {text}"))?;
    }
    Ok(addresses)
}

/// Takes an address before there is a runtime to serve it with.
pub(crate) fn bind(address: &str) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// This machine's own name.
pub(crate) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The addresses that `text` (`HOST:PORT`), the value of `flag`, names.
pub(crate) fn addresses(flag: &str, text: &str) -> Result<Vec<SocketAddr>> {
    let found = text.to_socket_addrs();
    let found =
        found.with_context(|| format!("{flag} {text}: expected HOST:PORT, such as 127.0.0.1:7070"))?;
    Ok(found.collect())
}

/// The addresses at which a coordinator listens that others are to reach. One that means "all of this machine's" leaves
/// open what the workers of this machine tell the others, so those need `advertise`.
pub(crate) fn check_advertised(
    text: &str,
    addresses: &[SocketAddr],
    local_workers: u32,
    advertise: Option<&str>,
) -> Result<()> {
    if local_workers > 0
        && advertise.is_none()
        && addresses.iter().any(|address| address.ip().is_unspecified())
    {
        bail!(
            "--listen {text}: this machine's own workers are reached by others at one address, which this does not say; \
             add --advertise with it or with its network interface, or give --workers 0"
        );
    }
    Ok(())
}

/// The value of one of the variables by which torchrun, Slurm scripts and Kubernetes operators tell programs their
/// place; empty ones count as not set.
pub(crate) fn launcher_variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_of_this_machine_need_an_address_that_others_reach() {
        for (text, local_workers, advertise, is_refused) in [
            ("0.0.0.0:7070", 0, None, false),
            ("0.0.0.0:7070", 2, None, true),
            ("[::]:7070", 2, None, true),
            ("0.0.0.0:7070", 2, Some("eth0"), false),
            ("192.0.2.7:7070", 2, None, false),
        ] {
            let addresses = listen_addresses("--listen", text, &Security::for_tests(true)).unwrap();
            let result = check_advertised(text, &addresses, local_workers, advertise);
            assert_eq!(result.is_err(), is_refused, "{text} {local_workers} {advertise:?}: {result:?}");
        }
    }

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
            match (listen_addresses("--listen", text, security), problem) {
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
