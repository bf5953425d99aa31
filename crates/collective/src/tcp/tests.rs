//! What only the fold over TCP has: chunks on their way, and what may happen to them there.

use super::*;
use crate::agreement::VOTE_LEN;
use crate::gpus::CARD_BYTES;
use crate::mesh::{GREETING_LEN, PROOF_LEN};
use crate::testing::{SHARDS, fold_and_compare, fold_error, group, key, limits, listen, run_ranks};
use crate::{CollectiveError, Interrupt, Medium, Standstill, assemble};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn every_world_and_length_of_chunks_folds_to_the_same_bits() {
    for world in [2, 3, 4, 8] {
        for (len, chunk_len) in
            [(1, CHUNK_LEN), (15, 16), (16, 16), (17, 5), (1000, 16), (100_003, 1000), (100_003, CHUNK_LEN)]
        {
            let assemble = |listener: &_, group: Group, addresses: &_| {
                let mesh = Mesh::connect(listener, &key(), &group, addresses, limits(len)).unwrap();
                collective(mesh, group, limits(len), chunk_len)
            };
            run_ranks(world, assemble, |_, mut collective| {
                for step in 0..3 {
                    fold_and_compare(&mut collective, step);
                }
            });
        }
    }
}

/// What a proxy does to the bytes on their way to the dialled side, after this many of them.
#[derive(Clone, Copy)]
enum Mischief {
    Flip(usize),
    Cut(usize),
    Swallow(usize),
}

/// Stands between two workers, passes everything on, and does one mischief.
fn proxy(target: String, mischief: Mischief) -> String {
    let (listener, address) = listen();
    thread::spawn(move || {
        let (inner, _) = listener.accept().unwrap();
        let outer = TcpStream::connect(target).unwrap();
        let (mut back_in, mut back_out) = (outer.try_clone().unwrap(), inner.try_clone().unwrap());
        thread::spawn(move || {
            let _ = std::io::copy(&mut back_in, &mut back_out);
            let _ = back_out.shutdown(Shutdown::Both);
        });
        let _ = forward(inner, &outer, mischief);
        let _ = outer.shutdown(Shutdown::Both);
    });
    address
}

fn forward(mut from: TcpStream, mut to: &TcpStream, mischief: Mischief) -> std::io::Result<()> {
    let mut bytes = [0; 4096];
    let mut passed = 0;
    loop {
        let count = from.read(&mut bytes)?;
        let (place, is_cut) = match mischief {
            // Whoever sends notices nothing.
            Mischief::Swallow(place) if passed + count > place => continue,
            Mischief::Flip(place) | Mischief::Swallow(place) => (place, false),
            Mischief::Cut(place) => (place, true),
        };
        if (passed..passed + count).contains(&place) && !matches!(mischief, Mischief::Swallow(_)) {
            bytes[place - passed] ^= 0x40;
            if is_cut {
                to.write_all(&bytes[..place - passed])?;
                return from.shutdown(Shutdown::Both);
            }
        }
        if count == 0 {
            return Ok(());
        }
        to.write_all(&bytes[..count])?;
        passed += count;
    }
}

/// The error that rank 0 sees when rank 1 reaches it through a mischievous proxy.
fn error_through(mischief: Mischief) -> CollectiveError {
    let (listeners, mut addresses): (Vec<_>, Vec<_>) = (0..2).map(|_| listen()).unzip();
    addresses[0] = proxy(addresses[0].clone(), mischief);
    thread::scope(|scope| {
        let fold = |rank: usize| {
            let group = group(3, rank, 2, SHARDS);
            fold_error(
                &mut assemble(&listeners[rank], &key(), group, &addresses, limits(100_003), Medium::Tcp)
                    .unwrap(),
                0,
            )
        };
        let other = scope.spawn(move || fold(1));
        let error = fold(0);
        other.join().unwrap();
        error
    })
}

#[test]
fn a_changed_byte_is_corrupt_and_a_cut_wire_a_lost_peer() {
    let first_frame = GREETING_LEN + PROOF_LEN + CARD_BYTES + VOTE_LEN;
    for place in [first_frame, first_frame + frame::HEADER_LEN, first_frame + 100_000] {
        let error = error_through(Mischief::Flip(place));
        assert!(matches!(error, CollectiveError::Corrupt { rank: 1 }), "byte {place}: {error}");
    }
    let error = error_through(Mischief::Flip(first_frame + 25));
    let named = matches!(error, CollectiveError::Protocol { rank: 1, field: "bytes in the chunk", .. });
    assert!(named, "{error}");
    for place in [first_frame, first_frame + 7, first_frame + 100_000] {
        let error = error_through(Mischief::Cut(place));
        assert!(matches!(error, CollectiveError::PeerLost { rank: 1, .. }), "cut at {place}: {error}");
    }
}

#[test]
fn ranks_between_which_bytes_vanish_all_stand_still() {
    let (listeners, mut addresses): (Vec<_>, Vec<_>) = (0..2).map(|_| listen()).unzip();
    let first_frame = GREETING_LEN + PROOF_LEN + CARD_BYTES + VOTE_LEN;
    addresses[0] = proxy(addresses[0].clone(), Mischief::Swallow(first_frame + 10_000));
    let standstills = [Standstill::default(), Standstill::default()];
    let interrupt = Interrupt::default();
    thread::scope(|scope| {
        for rank in 0..2 {
            let (listener, addresses, interrupt) = (&listeners[rank], &addresses, interrupt.clone());
            let standstill = standstills[rank].clone();
            scope.spawn(move || {
                let group =
                    group(3, rank, 2, SHARDS).interrupted_by(interrupt).observed_by(standstill.clone());
                let assembled = assemble(listener, &key(), group, addresses, limits(100_003), Medium::Tcp);
                let error = fold_error(&mut assembled.unwrap(), 0);
                // The one that is interrupted first takes the other with it.
                let is_over =
                    matches!(error, CollectiveError::Interrupted { .. } | CollectiveError::PeerLost { .. });
                assert!(is_over, "{error}");
                assert_eq!(standstill.lasts(), Duration::ZERO, "outside of a fold");
            });
        }
        let limit = Duration::from_millis(300);
        while !standstills.iter().all(|standstill| standstill.lasts() > limit) {
            thread::sleep(Duration::from_millis(10));
        }
        interrupt.raise();
    });
}

/// In a network namespace of its own, whose only network drops every packet while one rank waits for the other. To see
/// it, as root: `unshare --net cargo test --release -p collective --lib -- --ignored silent`
#[test]
#[ignore = "needs a network namespace of its own, and takes a quarter of a minute"]
fn a_peer_behind_a_silent_network_is_noticed() {
    let run = |command: &str| {
        let mut words = command.split(' ');
        let status = std::process::Command::new(words.next().unwrap()).args(words).status().unwrap();
        assert!(status.success(), "{command}");
    };
    run("ip link set lo up");
    let limits = Limits { step_deadline: Duration::from_secs(120), ..limits(1000) };
    let has_noticed = std::sync::Barrier::new(2);
    let assemble = |listener: &_, group: Group, addresses: &_| {
        let mesh = Mesh::connect(listener, &key(), &group, addresses, limits).unwrap();
        collective(mesh, group, limits, 100)
    };
    run_ranks(2, assemble, |rank, mut collective| {
        fold_and_compare(&mut collective, 1);
        if rank == 1 {
            // It computes, and the other one has sent its part meanwhile.
            thread::sleep(Duration::from_secs(1));
            run("iptables -A INPUT -i lo -j DROP");
            has_noticed.wait();
            return;
        }
        let begin = Instant::now();
        let error = fold_error(&mut collective, 2);
        has_noticed.wait();
        assert!(matches!(error, CollectiveError::PeerLost { rank: 1, .. }), "{error}");
        let waited = begin.elapsed();
        assert!(waited < Duration::from_secs(30), "{waited:?}");
        eprintln!("noticed after {:.1} s", waited.as_secs_f64());
    });
}
