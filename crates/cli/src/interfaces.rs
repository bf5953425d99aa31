//! This machine's network interfaces and their addresses, asked of the Linux kernel (rtnetlink).

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, recv, send, socket};

/// The request for all addresses, and the kinds of message of its answer (linux/rtnetlink.h, linux/netlink.h).
const RTM_GETADDR: u16 = 22;
const RTM_NEWADDR: u16 = 20;
const NLMSG_DONE: u16 = 3;
const REQUEST_ALL: u16 = 0x301;
/// Attributes of an address: its own, and that of the machine where it has a peer's too (linux/if_addr.h).
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// An address of this scope means something only together with a link, and others cannot use it as they are told it.
const SCOPE_LINK: u8 = 253;

const MESSAGE_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const ATTRIBUTE_HEADER: usize = 4;

/// An address, and the interface that bears it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) ip: IpAddr,
}

/// All addresses of this machine that others may be told, in the kernel's order.
///
/// # Errors
/// Those of the system.
pub(crate) fn interfaces() -> io::Result<Vec<Interface>> {
    // Protocol 0 of netlink is that of routes and addresses.
    let kernel = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    let mut request = Vec::with_capacity(MESSAGE_HEADER + ADDRESS_HEADER);
    request.extend(((MESSAGE_HEADER + ADDRESS_HEADER) as u32).to_ne_bytes());
    request.extend(RTM_GETADDR.to_ne_bytes());
    request.extend(REQUEST_ALL.to_ne_bytes());
    request.resize(MESSAGE_HEADER + ADDRESS_HEADER, 0);
    send(&kernel, &request, SendFlags::empty())?;
    let mut found = Vec::new();
    // The kernel sends no larger packet.
    let mut packet = vec![0; 32 << 10];
    loop {
        let (_, length) = recv(&kernel, packet.as_mut_slice(), RecvFlags::empty())?;
        let mut rest = &packet[..length];
        while let Some((kind, body, after)) = message(rest) {
            match kind {
                RTM_NEWADDR => found.extend(address(body)),
                NLMSG_DONE => return Ok(found.into_iter().filter_map(named).collect()),
                _ => {}
            }
            rest = after;
        }
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The first message: its kind, its body, and what follows it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(MESSAGE_HEADER..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The interface's number and its address, if others can use it.
fn address(body: &[u8]) -> Option<(u32, IpAddr)> {
    let scope = *body.get(3)?;
    let index = u32::from_ne_bytes(*body.get(4..)?.first_chunk()?);
    let mut rest = body.get(ADDRESS_HEADER..)?;
    let (mut own, mut shared) = (None, None);
    while let Some(length) = rest.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes) as usize) {
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        let value = rest.get(ATTRIBUTE_HEADER..length)?; // none if it is shorter than its header
        match kind {
            IFA_LOCAL => own = ip(value),
            IFA_ADDRESS => shared = ip(value),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    (scope != SCOPE_LINK).then_some((index, own.or(shared)?))
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    let four = || <[u8; 4]>::try_from(value).ok().map(|octets| Ipv4Addr::from(octets).into());
    let sixteen = || <[u8; 16]>::try_from(value).ok().map(|octets| Ipv6Addr::from(octets).into());
    four().or_else(sixteen)
}

fn named((index, ip): (u32, IpAddr)) -> Option<Interface> {
    fs::read_dir("/sys/class/net").ok()?.flatten().find_map(|entry| {
        let text = fs::read_to_string(entry.path().join("ifindex")).ok()?;
        let name = entry.file_name().into_string().ok()?;
        (text.trim().parse() == Ok(index)).then_some(Interface { name, ip })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_an_address_for_itself() {
        let found = interfaces().unwrap();
        let expected = Interface { name: "lo".to_string(), ip: Ipv4Addr::LOCALHOST.into() };
        assert!(found.contains(&expected), "{found:?}");
    }

    #[test]
    fn what_is_cut_short_is_no_address() {
        let mut body = vec![2, 24, 0, 0];
        body.extend(7_u32.to_ne_bytes());
        body.extend(8_u16.to_ne_bytes());
        body.extend(IFA_LOCAL.to_ne_bytes());
        body.extend([192, 0, 2, 7]);
        assert_eq!(address(&body), Some((7, Ipv4Addr::new(192, 0, 2, 7).into())));
        for length in 0..body.len() {
            assert_eq!(address(&body[..length]), None, "{length}");
        }
        body[3] = SCOPE_LINK;
        assert_eq!(address(&body), None);
    }
}
