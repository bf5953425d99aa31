//! This machine's network interfaces and their addresses.

use std::io;
use std::net::IpAddr;

use if_addrs::get_if_addrs;

/// An address, and the interface that bears it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) ip: IpAddr,
}

/// All addresses of this machine that others may be told, in the system's order. One that means something only
/// together with a link is none of them: others cannot use it as they are told it.
///
/// # Errors
/// Those of the system.
pub(crate) fn interfaces() -> io::Result<Vec<Interface>> {
    let all = get_if_addrs()?.into_iter().filter(|interface| !interface.is_link_local());
    Ok(all.map(|interface| Interface { ip: interface.ip(), name: interface.name }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn every_machine_has_an_address_for_itself() {
        let found = interfaces().unwrap();
        assert!(found.iter().any(|interface| interface.ip == Ipv4Addr::LOCALHOST), "{found:?}");
    }
}
