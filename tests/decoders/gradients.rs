//! What workers read of each other.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::Range;
use std::thread;
use std::time::Duration;

use collective::{Collective, CollectiveError, Group, Key, Limits, Medium, assemble};

use super::control::Named;

/// As in `control.rs`.
pub(crate) const DECODERS: &[Named] = &[("gradients", gradients, 30), ("stranger", stranger, 60)];

/// What one worker sends to another, changed on its way: the sum is the right one, or there is none. The input is a list of
/// changes, each of a place (two bytes) and of what the byte there is combined with.
fn gradients(bytes: &[u8]) -> bool {
    let changes: Vec<(usize, u8)> = changes(bytes).collect();
    let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (listeners, through) = ([listen(), listen()], listen());
    let target = listeners[0].local_addr().unwrap();
    let addresses = [&through, &listeners[1]].map(|listener| listener.local_addr().unwrap().to_string());
    thread::scope(|scope| {
        scope.spawn(|| {
            let Ok((from, _)) = through.accept() else { return };
            let Ok(to) = TcpStream::connect(target) else { return };
            let (mut back_from, mut back_to) = (to.try_clone().unwrap(), from.try_clone().unwrap());
            let back = thread::spawn(move || pass(&mut back_from, &mut back_to, &[]));
            pass(&mut &from, &mut &to, &changes);
            // Ends the other way, too.
            let _ = to.shutdown(Shutdown::Both);
            let _ = back.join();
        });
        let ranks = [0, 1].map(|rank| {
            let (listener, addresses) = (&listeners[rank], &addresses);
            scope.spawn(move || fold(rank, listener, addresses, Duration::from_millis(100)))
        });
        let mut are_summed = true;
        for rank in ranks {
            let sum = rank.join().unwrap().ok();
            are_summed &= sum.is_some();
            assert!(sum.is_none_or(|sum| is_right(&sum)));
        }
        // The proxy ends with the connection that it waits for, also if nobody came.
        let _ = TcpStream::connect(through.local_addr().unwrap());
        are_summed
    })
}

/// A list of changes: each of a place, and of what the byte there is combined with.
pub(crate) fn changes(bytes: &[u8]) -> impl Iterator<Item = (usize, u8)> {
    let change = |change: &[u8]| (usize::from(u16::from_le_bytes([change[0], change[1]])), change[2]);
    bytes.chunks_exact(3).take(32).map(change)
}

/// What somebody says who is no worker, to one that waits for another: the two find each other all the same.
fn stranger(bytes: &[u8]) -> bool {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses = listeners.each_ref().map(|listener| listener.local_addr().unwrap().to_string());
    let mut stranger = TcpStream::connect(&addresses[0]).unwrap();
    // It stays until the sum is there, whatever becomes of what it says.
    let _ = stranger.write_all(bytes);
    thread::scope(|scope| {
        let ranks = [0, 1].map(|rank| {
            let (listener, addresses) = (&listeners[rank], &addresses);
            scope.spawn(move || fold(rank, listener, addresses, Duration::from_secs(20)))
        });
        for rank in ranks {
            assert!(is_right(&rank.join().unwrap().unwrap()));
        }
    });
    // Whether it was answered, before it was left alone.
    stranger.read(&mut [0]).is_ok_and(|count| count > 0)
}

fn is_right(sum: &[f32]) -> bool {
    sum.iter().zip(0u8..).all(|(sum, place)| *sum == 3.0 * f32::from(place))
}

/// Floats in each worker's bucket.
const LEN: usize = 64;

fn fold(
    rank: usize,
    listener: &TcpListener,
    addresses: &[String],
    limit: Duration,
) -> Result<Vec<f32>, CollectiveError> {
    let leases: Vec<Range<u32>> = vec![0..1, 1..2];
    let group = Group::new([1; 16], 1, rank, leases, 2).unwrap();
    let limits = Limits { bucket_len: LEN, rounded_len: 0, connect_deadline: limit, step_deadline: limit };
    let key = Key::new([2; 32]);
    let mut collective: Collective = assemble(listener, &key, group, addresses, limits, Medium::Tcp)?;
    let sums = collective.sums();
    sums.clear();
    while let Some(shard) = sums.next_shard() {
        for (place, float) in (0u8..).zip(sums.next_bucket()) {
            *float = f32::from(place) * (shard + 1) as f32;
        }
        sums.commit();
    }
    collective.fold(1).map(<[f32]>::to_vec)
}

/// Passes bytes on, with `changes` of some, until either side ends.
fn pass(from: &mut impl Read, to: &mut impl Write, changes: &[(usize, u8)]) {
    let (mut passed, mut buffer) = (0, [0; 4096]);
    while let Ok(count) = from.read(&mut buffer) {
        for (place, change) in changes {
            if (passed..passed + count).contains(place) {
                buffer[place - passed] ^= change;
            }
        }
        passed += count;
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
}
