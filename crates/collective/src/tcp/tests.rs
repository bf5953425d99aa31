//! The whole collective over real sockets of this host, with peers and strangers that misbehave.

use super::*;
use crate::testing::{assert_same_bits, group, key, limits, reference, sums};
use crate::{CollectiveError, Interrupt, Node};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

const SHARDS: u32 = 8;

fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// Runs every rank of a new group on a thread of its own; each gets its collective and a bucket to fold into.
fn run_ranks<T: Send>(
    world: usize,
    limits: Limits,
    chunk_len: usize,
    rank_main: impl Fn(usize, Result<TcpCollective, CollectiveError>) -> T + Sync,
) -> Vec<T> {
    let (listeners, addresses): (Vec<_>, Vec<_>) = (0..world).map(|_| listen()).unzip();
    thread::scope(|scope| {
        let ranks = listeners.iter().enumerate().map(|(rank, listener)| {
            let (addresses, rank_main) = (&addresses, &rank_main);
            scope.spawn(move || {
                let group = group(3, rank, world, SHARDS);
                rank_main(rank, assemble_with_chunks(listener, &key(), group, addresses, limits, chunk_len))
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Folds one step and compares with the plain sum of the tree.
fn fold_and_compare(collective: &mut TcpCollective, step: u64, len: usize) {
    let sums = sums(step, collective.group.lease(), len);
    let mut folded = vec![f32::NAN; len];
    collective.fold(step, &sums, &mut folded).unwrap();
    assert_same_bits(&folded, &reference(step, Node { level: SHARDS.ilog2(), index: 0 }, len));
}

fn fold_error(collective: &mut TcpCollective, step: u64) -> CollectiveError {
    let len = collective.limits.bucket_len;
    let sums = sums(step, collective.group.lease(), len);
    let mut folded = vec![0.0; len];
    let error = collective.fold(step, &sums, &mut folded).unwrap_err();
    let again = collective.fold(step, &sums, &mut folded).unwrap_err();
    assert!(matches!(again, CollectiveError::Poisoned), "{again}");
    error
}

#[test]
fn every_world_and_size_folds_to_the_same_bits() {
    for world in [1, 2, 3, 4, 8] {
        for (len, chunk_len) in
            [(1, CHUNK_LEN), (15, 16), (16, 16), (17, 5), (1000, 16), (100_003, 1000), (100_003, CHUNK_LEN)]
        {
            run_ranks(world, limits(len), chunk_len, |_, collective| {
                let mut collective = collective.unwrap();
                for step in 0..3 {
                    fold_and_compare(&mut collective, step, len);
                }
            });
        }
    }
}

#[test]
fn many_steps_in_a_row_stay_in_step() {
    // More than the socket buffers hold, so that every kind of waiting happens.
    let len = 1_500_000;
    run_ranks(4, limits(len), CHUNK_LEN, |rank, collective| {
        let mut collective = collective.unwrap();
        let sums = sums(rank as u64, collective.group.lease(), len);
        let mut folded = [vec![0.0; len], vec![0.0; len]];
        for step in 0..20 {
            collective.fold(step, &sums, &mut folded[step as usize % 2]).unwrap();
        }
        assert_same_bits(&folded[0], &folded[1]);
    });
    run_ranks(3, limits(64), 16, |_, collective| {
        let mut collective = collective.unwrap();
        for step in 0..500 {
            fold_and_compare(&mut collective, step, 64);
        }
    });
}

#[test]
fn a_dropped_peer_fails_the_others_at_once() {
    let outcomes = run_ranks(4, limits(100_003), CHUNK_LEN, |rank, collective| {
        let mut collective = collective.unwrap();
        fold_and_compare(&mut collective, 0, 100_003);
        let started = Instant::now();
        (rank != 2).then(|| (fold_error(&mut collective, 1), started.elapsed()))
    });
    assert!(outcomes[2].is_none());
    for (error, elapsed) in outcomes.into_iter().flatten() {
        assert!(matches!(error, CollectiveError::PeerLost { .. }), "{error}");
        assert!(elapsed < Duration::from_secs(5), "an error took {elapsed:?}");
    }
}

#[test]
fn a_stalled_peer_is_late_and_named() {
    let short = Limits { step_deadline: Duration::from_millis(150), ..limits(100_003) };
    let given_up = std::sync::Barrier::new(3);
    let outcomes = run_ranks(3, short, CHUNK_LEN, |rank, collective| {
        let mut collective = collective.unwrap();
        // Rank 1 holds its sockets open, without folding, until both others have given up.
        let error = (rank != 1).then(|| fold_error(&mut collective, 0));
        given_up.wait();
        error
    });
    let late =
        |error: &CollectiveError| matches!(error, CollectiveError::Deadline { rank: 1, limit_ms: 150, .. });
    assert!(outcomes.iter().flatten().any(late), "{outcomes:?}");
}

#[test]
fn steps_that_differ_are_named() {
    let errors = run_ranks(2, limits(1000), CHUNK_LEN, |rank, collective| {
        fold_error(&mut collective.unwrap(), 10 + rank as u64)
    });
    let named = |error: &CollectiveError| {
        matches!(error, CollectiveError::Protocol { field: "step", expected: 10 | 11, found: 10 | 11, .. })
    };
    assert!(errors.iter().any(named), "{errors:?}");
}

#[test]
fn bucket_lengths_that_differ_are_named_on_both_sides() {
    let (listeners, addresses): (Vec<_>, Vec<_>) = (0..2).map(|_| listen()).unzip();
    let errors: Vec<_> = thread::scope(|scope| {
        let assemble = |rank: usize| {
            assemble(&listeners[rank], &key(), group(3, rank, 2, SHARDS), &addresses, limits(100 + rank))
                .unwrap_err()
        };
        let ranks: Vec<_> = (0..2).map(|rank| scope.spawn(move || assemble(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    let expected = |rank: usize, found, expected| CollectiveError::Protocol {
        rank,
        field: "bucket length",
        expected,
        found,
    };
    assert_eq!(errors[0].to_string(), expected(1, 101, 100).to_string());
    assert_eq!(errors[1].to_string(), expected(0, 100, 101).to_string());
}

/// What a proxy does to the bytes on their way to the dialled side, after this many of them.
#[derive(Clone, Copy)]
enum Mischief {
    Flip(usize),
    Cut(usize),
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
            Mischief::Flip(place) => (place, false),
            Mischief::Cut(place) => (place, true),
        };
        if (passed..passed + count).contains(&place) {
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
                &mut assemble(&listeners[rank], &key(), group, &addresses, limits(100_003)).unwrap(),
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
    let first_frame = handshake::GREETING_LEN + handshake::PROOF_LEN;
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
fn strangers_and_stale_generations_do_not_disturb_the_assembly() {
    let (listeners, addresses): (Vec<_>, Vec<_>) = (0..2).map(|_| listen()).unzip();
    // All of these wait in the backlog before the first worker looks.
    let mut strangers: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(&addresses[0]).unwrap()).collect();
    strangers[0]
        .write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: a scanner of ports\r\n\r\n")
        .unwrap();
    let stale = handshake::Hello::new(&group(2, 1, 2, SHARDS), &limits(1000));
    strangers[1].write_all(&stale.greeting().unwrap()).unwrap();
    // Greets like the peer it claims to be, and is gone before the answer.
    let gone = handshake::Hello::new(&group(3, 1, 2, SHARDS), &limits(1000));
    let mut dialler = strangers.pop().unwrap();
    dialler.write_all(&gone.greeting().unwrap()).unwrap();
    drop(dialler);
    // strangers[2] says nothing at all.
    thread::scope(|scope| {
        for (rank, listener) in listeners.iter().enumerate() {
            let addresses = &addresses;
            scope.spawn(move || {
                let started = Instant::now();
                let mut collective =
                    assemble(listener, &key(), group(3, rank, 2, SHARDS), addresses, limits(1000)).unwrap();
                assert!(started.elapsed() < Duration::from_secs(1), "the mute stranger was waited for");
                fold_and_compare(&mut collective, 0, 1000);
            });
        }
    });
    let mut answer = Vec::new();
    strangers[1].read_to_end(&mut answer).unwrap();
    assert_eq!(
        answer.len(),
        handshake::GREETING_LEN + handshake::PROOF_LEN,
        "the stale one is told who answers"
    );
    let nothing = strangers[0].read(&mut [0; 8]);
    assert!(!matches!(nothing, Ok(1..)), "a stranger is told nothing");
}

/// A rank of generation 3, greeted with `hello`: whether it was answered, and by whom.
fn greet(address: &str, hello: &handshake::Hello) -> (TcpStream, handshake::Greeting, Vec<u8>) {
    let mut stream = TcpStream::connect(address).unwrap();
    let greeting = hello.greeting().unwrap();
    stream.write_all(&greeting).unwrap();
    let mut answer = vec![0; handshake::GREETING_LEN + handshake::PROOF_LEN];
    stream.read_exact(&mut answer).unwrap();
    (stream, greeting, answer)
}

#[test]
fn who_does_not_know_the_key_moves_nothing() {
    // What a greeting may claim that would have consequences, if it were believed.
    let claims = [
        handshake::Hello::new(&group(3, 1, 2, SHARDS), &limits(1000)), // to be the peer
        handshake::Hello::new(&group(9, 1, 2, SHARDS), &limits(1000)), // that there is a newer generation
        handshake::Hello::new(&group(3, 1, 2, SHARDS), &limits(999)),  // that nobody can go on
    ];
    let (listeners, addresses): (Vec<_>, Vec<_>) = (0..2).map(|_| listen()).unzip();
    let (listeners, addresses) = (&listeners, &addresses);
    thread::scope(|scope| {
        let join = move |rank: usize| {
            assemble(&listeners[rank], &key(), group(3, rank, 2, SHARDS), addresses, limits(1000)).unwrap()
        };
        let waiting = scope.spawn(move || join(0));
        for claim in &claims {
            let (mut stranger, greeting, answer) = greet(&addresses[0], claim);
            let dialled = answer.first_chunk().unwrap();
            let greetings = handshake::Greetings { dialling: &greeting, dialled };
            // The proof of another key, and the answer's own proof sent back.
            let wrong = greetings.proof(&Key::new([0; 32]), handshake::Side::Dialling);
            stranger.write_all(&wrong).unwrap();
            assert!(!matches!(stranger.read(&mut [0; 8]), Ok(1..)), "refused");
            let (mut mirror, _, answer) = greet(&addresses[0], claim);
            mirror.write_all(&answer[handshake::GREETING_LEN..]).unwrap();
            assert!(!matches!(mirror.read(&mut [0; 8]), Ok(1..)), "refused");
        }
        let mut peer = join(1);
        let mut first = waiting.join().unwrap();
        scope.spawn(move || fold_and_compare(&mut peer, 0, 1000));
        fold_and_compare(&mut first, 0, 1000);
    });
}

#[test]
fn a_stranger_at_a_peers_address_is_not_believed() {
    let short = Limits { connect_deadline: Duration::from_millis(300), ..limits(1000) };
    let (ours, address) = listen();
    let (theirs, stranger) = listen();
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = theirs.accept().unwrap();
            let mut greeting = [0; handshake::GREETING_LEN];
            stream.read_exact(&mut greeting).unwrap();
            // A newer generation, said by someone who does not know the key.
            let claim = handshake::Hello::new(&group(9, 0, 2, SHARDS), &short).greeting().unwrap();
            let greetings = handshake::Greetings { dialling: &greeting, dialled: &claim };
            let proof = greetings.proof(&Key::new([0; 32]), handshake::Side::Dialled);
            stream.write_all(&[&claim[..], &proof[..]].concat()).unwrap();
            assert!(!matches!(stream.read(&mut [0; 8]), Ok(1..)), "it gets no proof");
        });
        let error = assemble(&ours, &key(), group(3, 1, 2, SHARDS), &[stranger, address], short).unwrap_err();
        assert!(matches!(error, CollectiveError::Deadline { rank: 0, .. }), "{error}");
    });
}

#[test]
fn strangers_do_not_disturb_a_generation_at_work() {
    let (listeners, addresses): (Vec<_>, Vec<_>) = (0..2).map(|_| listen()).unzip();
    let (listeners, addresses) = (&listeners, &addresses);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut seen = 0;
            let claim = handshake::Hello::new(&group(4, 1, 2, SHARDS), &limits(1000));
            while !is_over.load(std::sync::atomic::Ordering::Acquire) || seen == 0 {
                for address in addresses {
                    // While nobody accepts, a backlog that is full takes no more of them.
                    let (address, patience) = (address.parse().unwrap(), Duration::from_millis(50));
                    let Ok(mut stranger) = TcpStream::connect_timeout(&address, patience) else { continue };
                    let garbage = [&claim.greeting().unwrap()[..], &[0x5a; 4096]].concat();
                    // It may have been refused by now.
                    let _ = stranger.write_all(&garbage);
                }
                seen += 1;
                thread::sleep(Duration::from_millis(1)); // leaves the processor to the ranks
            }
        });
        let ranks = [0, 1].map(|rank| {
            scope.spawn(move || {
                // They come while it assembles, while it folds, and before it assembles again.
                for generation in [3, 4] {
                    let group = group(generation, rank, 2, SHARDS);
                    let mut collective =
                        assemble(&listeners[rank], &key(), group, addresses, limits(1000)).unwrap();
                    for step in 0..100 {
                        fold_and_compare(&mut collective, step, 1000);
                    }
                }
            })
        });
        for rank in ranks {
            rank.join().unwrap();
        }
        is_over.store(true, std::sync::atomic::Ordering::Release);
    });
}

#[test]
fn a_newer_generation_ends_an_older_assembly() {
    for stale_rank in 0..2 {
        let (listeners, addresses): (Vec<_>, Vec<_>) = (0..2).map(|_| listen()).unzip();
        let (listeners, addresses) = (&listeners, &addresses);
        thread::scope(|scope| {
            for (rank, listener) in listeners.iter().enumerate() {
                scope.spawn(move || {
                    let join = |generation| {
                        assemble(listener, &key(), group(generation, rank, 2, SHARDS), addresses, limits(50))
                    };
                    if rank == stale_rank {
                        let error = join(6).unwrap_err();
                        assert!(
                            matches!(error, CollectiveError::Superseded { ours: 6, theirs: 7 }),
                            "{error}"
                        );
                    }
                    fold_and_compare(&mut join(7).unwrap(), 0, 50);
                });
            }
        });
    }
}

#[test]
fn an_absent_peer_is_named_by_those_above_and_below() {
    let short = Limits { connect_deadline: Duration::from_millis(100), ..limits(10) };
    let (listeners, addresses): (Vec<_>, Vec<_>) = (0..2).map(|_| listen()).unzip();
    for (rank, listener) in listeners.iter().enumerate() {
        let error = assemble(listener, &key(), group(1, rank, 2, SHARDS), &addresses, short).unwrap_err();
        let absent = 1 - rank;
        assert!(matches!(error, CollectiveError::Deadline { rank, .. } if rank == absent), "{error}");
    }
}

#[test]
fn an_interrupt_ends_assembly_and_fold() {
    let (listeners, addresses): (Vec<_>, Vec<_>) = (0..2).map(|_| listen()).unzip();
    let started = Instant::now();
    thread::scope(|scope| {
        for (rank, listener) in listeners.iter().enumerate() {
            let addresses = &addresses;
            scope.spawn(move || {
                let interrupt = Interrupt::default();
                let member =
                    |generation| group(generation, rank, 2, SHARDS).interrupted_by(interrupt.clone());
                let mut collective = assemble(listener, &key(), member(1), addresses, limits(100)).unwrap();
                // Nobody comes to the fold, and then nobody to the assembly.
                if rank == 0 {
                    thread::scope(|scope| {
                        let waiting = scope.spawn(|| fold_error(&mut collective, 0));
                        interrupt.raise();
                        let error = waiting.join().unwrap();
                        assert!(matches!(error, CollectiveError::Interrupted { generation: 1 }), "{error}");
                    });
                    let error = assemble(listener, &key(), member(2), addresses, limits(100)).unwrap_err();
                    assert!(matches!(error, CollectiveError::Interrupted { generation: 2 }), "{error}");
                } else {
                    let error = fold_error(&mut collective, 0);
                    assert!(matches!(error, CollectiveError::PeerLost { rank: 0, .. }), "{error}");
                }
            });
        }
    });
    assert!(started.elapsed() < Duration::from_secs(5), "no deadline was waited for");
}
