//! What only the fold over TCP has: chunks on their way, and what may happen to them there.

use super::*;
use crate::agreement::VOTE_LEN;
use crate::gpus::CARD_BYTES;
use crate::mesh::{GREETING_LEN, PROOF_LEN};
use crate::testing::{
    SHARDS, assert_same_bits, bucket, fold_and_compare, fold_error, group, key, limits, listen, push_all,
    reference, run_ranks,
};
use crate::{CollectiveError, Interrupt, Medium, Node, Standstill, assemble};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// A mesh of workers that have so many connections to each other within this host.
fn connect(listener: &TcpListener, group: &Group, addresses: &[String], limits: Limits, lanes: u8) -> Mesh {
    let lanes = Lanes { within_host: lanes, ..Lanes::of(group.world()) };
    Mesh::connect(listener, &key(), group, addresses, limits, lanes).unwrap()
}

/// Runs `world` ranks that fold a few steps, in chunks of `chunk_len` floats on so many lanes.
fn fold_on_lanes(world: usize, lanes: u8, len: usize, chunk_len: usize) {
    let assemble = |listener: &_, group: Group, addresses: &_| {
        let mesh = connect(listener, &group, addresses, limits(len), lanes);
        assert!(mesh.peers.iter().all(|peer| 1 + peer.further.len() == usize::from(lanes)));
        collective(mesh, group, limits(len), chunk_len)
    };
    run_ranks(world, assemble, |_, mut collective| {
        for step in 0..3 {
            fold_and_compare(&mut collective, step);
        }
    });
}

#[test]
fn every_world_length_of_chunks_and_number_of_lanes_folds_to_the_same_bits() {
    for world in [2, 3, 4, 8] {
        for lanes in 1..=4 {
            for (len, chunk_len) in [(1, CHUNK_LEN), (15, 16), (16, 16), (17, 5), (1000, 16), (20_003, 100)] {
                fold_on_lanes(world, lanes, len, chunk_len);
            }
        }
        for (len, chunk_len) in [(100_003, 1000), (100_003, CHUNK_LEN)] {
            fold_on_lanes(world, 1, len, chunk_len);
        }
    }
}

#[test]
fn small_buckets_are_cut_finer_for_every_lane_to_have_a_chunk() {
    for (bucket_len, world, expected) in [
        (1, 2, SHORT_CHUNK_LEN),
        (8 * SHORT_CHUNK_LEN, 2, SHORT_CHUNK_LEN),
        (350_000, 2, 43_750),
        (20_000_000, 2, CHUNK_LEN),
        (20_000_000, 64, CHUNK_LEN),
    ] {
        assert_eq!(chunk_len(bucket_len, world), expected, "{bucket_len} floats, {world} workers");
    }
}

/// Folds in chunks of `chunk_len` floats, of which those in the first `rounded_len` are sent as bf16.
fn check_rounded(world: usize, lanes: u8, len: usize, rounded_len: usize, chunk_len: usize) {
    let limits = Limits { rounded_len, ..limits(len) };
    let assemble = |listener: &_, group: Group, addresses: &_| {
        collective(connect(listener, &group, addresses, limits, lanes), group, limits, chunk_len)
    };
    for seed in 0..2 {
        let sums = run_ranks(world, assemble, |_, mut collective| {
            push_all(collective.sums(), seed);
            collective.fold(seed).unwrap().to_vec()
        });
        sums.iter().for_each(|sum| assert_same_bits(sum, &sums[0]));
        let exact = reference(seed, Node { level: SHARDS.ilog2(), index: 0 }, len);
        let shards: Vec<Vec<f32>> = (0..SHARDS).map(|shard| bucket(seed, shard, len)).collect();
        let layout = Layout::new(len, world, chunk_len).rounding(rounded_len);
        for (rank, chunk) in (0..world).flat_map(|rank| (0..layout.chunks(rank)).map(move |at| (rank, at))) {
            let range = layout.chunk(rank, chunk);
            if !layout.is_rounded(&range) {
                assert_same_bits(&sums[0][range.clone()], &exact[range]);
                continue;
            }
            for place in range {
                let (found, exact) = (sums[0][place], exact[place]);
                assert_eq!(found.to_bits() as u16, 0, "float {place}: {found} is no bf16");
                // Each part, and the sum, is off by half a unit of its eighth bit at most.
                let largest = exact.abs() + shards.iter().map(|bucket| bucket[place].abs()).sum::<f32>();
                let error = (found - exact).abs();
                assert!(error <= largest / 256.0, "float {place}: {found} is far from {exact}");
            }
        }
    }
}

#[test]
fn rounded_floats_have_the_same_sum_everywhere_and_the_others_their_own() {
    for world in [2, 3, 4] {
        for lanes in [1, 3] {
            for (len, rounded_len) in [(17, 17), (1000, 0), (1000, 500), (20_003, 15_011), (20_003, 20_003)] {
                check_rounded(world, lanes, len, rounded_len, 100);
            }
        }
    }
}

#[test]
fn ranks_that_round_otherwise_are_told_so() {
    let assemble = |listener: &_, group: Group, addresses: &_| {
        let limits = Limits { rounded_len: 500 * group.rank(), ..limits(1000) };
        collective(connect(listener, &group, addresses, limits, 1), group, limits, 100)
    };
    let errors = run_ranks(2, assemble, |_, mut collective| fold_error(&mut collective, 0));
    let is_named = |error: &CollectiveError| {
        matches!(error, CollectiveError::Protocol { field: "bytes in the chunk", .. })
    };
    assert!(errors.iter().any(is_named), "{errors:?}");
}

#[test]
fn lanes_whose_buffers_are_full_do_not_hold_each_other_up() {
    // More than the sockets of all lanes hold, so that every kind of waiting happens.
    let len = 1_500_000;
    for lanes in [2, 4] {
        let assemble = |listener: &_, group: Group, addresses: &_| {
            let mesh = connect(listener, &group, addresses, limits(len), lanes);
            collective(mesh, group, limits(len), 20_000)
        };
        run_ranks(4, assemble, |rank, mut collective| {
            push_all(collective.sums(), rank as u64);
            let first = collective.fold(0).unwrap().to_vec();
            for step in 1..10 {
                assert_same_bits(collective.fold(step).unwrap(), &first);
            }
        });
    }
}

/// The system gives 127.0.0.2 to nobody elsewhere.
#[cfg(target_os = "linux")]
#[test]
fn ranks_have_as_many_lanes_as_the_hosts_between_them_ask_for() {
    let hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.2"];
    // Of two ranks, the lower one is dialled, from 127.0.0.1.
    let lanes = |rank: usize, other: usize| match hosts[rank.min(other)] {
        "127.0.0.1" => 1,
        _ => usize::from(Lanes::of(hosts.len()).between_hosts),
    };
    let assemble = |listener: &_, group: Group, addresses: &_| {
        let mesh = connect(listener, &group, addresses, limits(20_003), 1);
        for peer in &mesh.peers {
            assert_eq!(1 + peer.further.len(), lanes(group.rank(), peer.rank), "{group:?}, {peer:?}");
        }
        collective(mesh, group, limits(20_003), 100)
    };
    crate::testing::run_ranks_at(&hosts, assemble, |_, mut collective| {
        for step in 0..3 {
            fold_and_compare(&mut collective, step);
        }
    });
}

#[test]
fn a_peer_that_closes_one_of_its_connections_is_lost_at_once() {
    const CONNECTIONS: usize = 3;
    for closed in 0..CONNECTIONS {
        let assemble = |listener: &_, group: Group, addresses: &_| {
            let mesh = connect(listener, &group, addresses, limits(20_003), CONNECTIONS as u8);
            if group.rank() == 1 {
                let Peer { stream, further, .. } = &mesh.peers[0];
                let mut streams = iter::once(stream).chain(further);
                streams.nth(closed).unwrap().shutdown(Shutdown::Both).unwrap();
            }
            collective(mesh, group, limits(20_003), 100)
        };
        let has_noticed = Barrier::new(2);
        let outcomes = run_ranks(2, assemble, |rank, mut collective| {
            let begin = Instant::now();
            let error = (rank == 0).then(|| fold_error(&mut collective, 0));
            let elapsed = begin.elapsed();
            // Rank 1 holds its other connections open so long.
            has_noticed.wait();
            error.map(|error| (error, elapsed))
        });
        let (error, elapsed) = outcomes.into_iter().flatten().next().unwrap();
        let is_named = matches!(error, CollectiveError::PeerLost { rank: 1, .. });
        assert!(is_named, "connection {closed} closed: {error}");
        assert!(elapsed < Duration::from_secs(5), "connection {closed} closed: an error took {elapsed:?}");
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
    // In the header's seal, step and length, and in the payload.
    let header = [0, 16, 25].map(|place| first_frame + place);
    for place in header.into_iter().chain([first_frame + frame::HEADER_LEN, first_frame + 100_000]) {
        let error = error_through(Mischief::Flip(place));
        assert!(matches!(error, CollectiveError::Corrupt { rank: 1 }), "byte {place}: {error}");
    }
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
    let has_noticed = Barrier::new(2);
    let assemble = |listener: &_, group: Group, addresses: &_| {
        let mesh = connect(listener, &group, addresses, limits, 1);
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
