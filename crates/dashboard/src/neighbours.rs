//! Which user of this machine is at the other end of a loopback connection, asked of the kernel's table.
//!
//! Loopback keeps other machines out, not other users of this one. Where there is no such table (other systems than
//! Linux), or it does not even have this process's own socket, nobody can be told from the own user.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use crate::access::Neighbour;

/// Columns of the table: `sl local_address rem_address st tx:rx tr:when retrnsmt uid …`.
const LOCAL: usize = 1;
const REMOTE: usize = 2;
const STATE: usize = 3;
const USER: usize = 7;

/// Of a socket that was closed, the table does not know the user any more.
const ESTABLISHED: &str = "01";
const LISTENING: &str = "0A";

/// Who is at `peer`, connected to `own`, where this process listens.
pub(crate) fn of(peer: SocketAddr, own: SocketAddr) -> Neighbour {
    let table = match own.ip() {
        IpAddr::V4(_) => "/proc/net/tcp",
        IpAddr::V6(_) => "/proc/net/tcp6",
    };
    let expected = rustix::process::geteuid().as_raw();
    match fs::read_to_string(table) {
        Ok(table) => judge(&table, peer, own, expected),
        Err(_) => Neighbour::Own,
    }
}

fn judge(table: &str, peer: SocketAddr, own: SocketAddr, expected: u32) -> Neighbour {
    let (peer, own) = (as_in_table(peer), as_in_table(own));
    let rows = || table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<&str>>());
    let is_listening =
        |row: &Vec<&str>| row.get(LOCAL) == Some(&own.as_str()) && row.get(STATE) == Some(&LISTENING);
    if !rows().any(|row| is_listening(&row)) {
        return Neighbour::Own;
    }
    let user = rows().find_map(|row| {
        let is_theirs = row.get(LOCAL) == Some(&peer.as_str()) && row.get(REMOTE) == Some(&own.as_str());
        let user = row.get(USER).filter(|_| is_theirs && row[STATE] == ESTABLISHED)?;
        user.parse::<u32>().ok()
    });
    match user {
        // Root reads everything anyway.
        Some(user) if user == expected || user == 0 => Neighbour::Own,
        // Who has closed its end already cannot be told, and does not wait for an answer.
        user => Neighbour::Other { found: user.unwrap_or(u32::MAX), expected },
    }
}

/// As the kernel prints it: each 32 bits of the address as a number of this machine, then the port.
fn as_in_table(address: SocketAddr) -> String {
    let word = |bytes: &[u8]| {
        let bytes: [u8; 4] = bytes.try_into().expect("chunks of four bytes");
        format!("{:08X}", u32::from_ne_bytes(bytes))
    };
    let ip = match address.ip() {
        IpAddr::V4(ip) => word(&ip.octets()),
        IpAddr::V6(ip) => ip.octets().chunks(4).map(word).collect(),
    };
    format!("{ip}:{:04X}", address.port())
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
";

    #[test]
    #[cfg(target_endian = "little")]
    fn the_table_tells_users_apart() {
        let own: SocketAddr = "127.0.0.1:7080".parse().unwrap();
        let other = |found| Neighbour::Other { found, expected: 1000 };
        for (port, expected) in [
            (40_000, other(1001)),
            (40_001, Neighbour::Own),
            // Closed already, and so nobody's.
            (40_002, other(u32::MAX)),
            (40_003, Neighbour::Own),
            (40_004, other(u32::MAX)),
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
        for host in ["127.0.0.1:0", "[::1]:0"] {
            // A machine may have no IPv6.
            let Ok(listener) = TcpListener::bind(host) else { continue };
            let own = listener.local_addr().unwrap();
            let client = TcpStream::connect(own).unwrap();
            assert_eq!(of(client.local_addr().unwrap(), own), Neighbour::Own, "{host}");
            drop(listener.accept().unwrap());
        }
    }
}
