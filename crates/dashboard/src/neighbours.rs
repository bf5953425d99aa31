//! Which user of this machine is at the other end of a loopback connection, asked of the kernel's tables.
//!
//! Loopback keeps other machines out, not other users of this one. Where there are no such tables (other systems
//! than Linux), or they do not even have this process's own socket, nobody can be told from the own user.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use crate::access::Neighbour;

/// One for each kind of socket. A client's may be of the other kind than the server's: one of IPv6 reaches 127.0.0.1 as
/// ::ffff:127.0.0.1.
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];

/// Columns of a table: `sl local_address rem_address st tx:rx tr:when retrnsmt uid …`.
const LOCAL: usize = 1;
const REMOTE: usize = 2;
const STATE: usize = 3;
const USER: usize = 7;

/// Of a socket that was closed, a table does not know the user any more.
const ESTABLISHED: &str = "01";
const LISTENING: &str = "0A";

/// Who is at `peer`, connected to `own`, where this process listens.
pub(crate) fn of(peer: SocketAddr, own: SocketAddr) -> Neighbour {
    let tables = TABLES.map(|table| fs::read_to_string(table).unwrap_or_default());
    judge(&tables.concat(), peer, own, rustix::process::geteuid().as_raw())
}

/// Of the rows of all tables.
fn judge(tables: &str, peer: SocketAddr, own: SocketAddr, expected: u32) -> Neighbour {
    let (peer, own) = (as_in_tables(peer), as_in_tables(own));
    let rows = || tables.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<&str>>());
    let has = |row: &[&str], column: usize, address: &[String]| {
        row.get(column).is_some_and(|found| address.iter().any(|form| form == found))
    };
    let is_listening = |row: &[&str]| has(row, LOCAL, &own) && row.get(STATE) == Some(&LISTENING);
    if !rows().any(|row| is_listening(&row)) {
        return Neighbour::Own;
    }
    let user = rows().find_map(|row| {
        let is_theirs = has(&row, LOCAL, &peer) && has(&row, REMOTE, &own);
        let user = row.get(USER).filter(|_| is_theirs && row[STATE] == ESTABLISHED)?;
        user.parse::<u32>().ok()
    });
    match user {
        // Root reads everything anyway.
        Some(user) if user == expected || user == 0 => Neighbour::Own,
        // Who has closed its end already cannot be told, and does not wait for an answer.
        found => Neighbour::Other { found, expected },
    }
}

/// As the kernel prints it, each 32 bits of the address as a number of this machine, then the port: an IPv4 address also as
/// sockets of IPv6 have it.
fn as_in_tables(address: SocketAddr) -> Vec<String> {
    let word = |bytes: &[u8]| {
        let bytes: [u8; 4] = bytes.try_into().expect("chunks of four bytes");
        format!("{:08X}", u32::from_ne_bytes(bytes))
    };
    let words = |bytes: &[u8]| bytes.chunks(4).map(word).collect::<String>();
    let forms = match address.ip() {
        IpAddr::V4(ip) => vec![words(&ip.octets()), words(&ip.to_ipv6_mapped().octets())],
        IpAddr::V6(ip) => vec![words(&ip.octets())],
    };
    forms.into_iter().map(|ip| format!("{ip}:{:04X}", address.port())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1BA8 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1
   1: 0100007F:1BA8 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  1000        0 2 1
   2: 0100007F:9C40 0100007F:1BA8 01 00000000:00000000 00:00000000 00000000  1001        0 3 1
   3: 0100007F:9C41 0100007F:1BA8 01 00000000:00000000 00:00000000 00000000  1000        0 4 1
   4: 0100007F:9C42 0100007F:1BA8 06 00000000:00000000 00:00000000 00000000     0        0 0 3
   5: 0100007F:9C43 0100007F:1BA8 01 00000000:00000000 00:00000000 00000000     0        0 5 1
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0000000000000000FFFF00000100007F:9C45 0000000000000000FFFF00000100007F:1BA8 01 00000000:00000000 00:00000000 00000000  1000        0 6 1
   1: 0000000000000000FFFF00000100007F:9C46 0000000000000000FFFF00000100007F:1BA8 01 00000000:00000000 00:00000000 00000000  1001        0 7 1
";

    #[test]
    #[cfg(target_endian = "little")]
    fn the_tables_tell_users_apart() {
        let own: SocketAddr = "127.0.0.1:7080".parse().unwrap();
        let other = |found| Neighbour::Other { found, expected: 1000 };
        for (port, expected) in [
            (40_000, other(Some(1001))),
            (40_001, Neighbour::Own),
            // Closed already, and so nobody's.
            (40_002, other(None)),
            (40_003, Neighbour::Own),
            (40_004, other(None)),
            (40_005, Neighbour::Own),
            (40_006, other(Some(1001))),
        ] {
            let peer = SocketAddr::new(own.ip(), port);
            assert_eq!(judge(TABLE, peer, own, 1000), expected, "{port}");
        }
        let elsewhere = "127.0.0.1:7081".parse().unwrap();
        assert_eq!(judge(TABLE, "127.0.0.1:40000".parse().unwrap(), elsewhere, 1000), Neighbour::Own);
        for damaged in ["", "\n\n", "a b c", &TABLE[..300]] {
            judge(damaged, "127.0.0.1:40000".parse().unwrap(), own, 1000);
        }
    }

    #[test]
    fn the_own_user_is_known() {
        for (host, reached_as) in
            [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("127.0.0.1", "::ffff:127.0.0.1")]
        {
            // A machine may have no IPv6.
            let Ok(listener) = TcpListener::bind((host, 0)) else { continue };
            let own = listener.local_addr().unwrap();
            let Ok(_client) = TcpStream::connect((reached_as, own.port())) else { continue };
            let (_stream, peer) = listener.accept().unwrap();
            assert_eq!(of(peer, own), Neighbour::Own, "{reached_as}");
        }
    }
}
