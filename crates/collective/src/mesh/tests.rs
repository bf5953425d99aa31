//! The assembly over real sockets of this host, with peers and strangers that misbehave.

use super::*;
use crate::testing::{SHARDS, fold_and_compare, group, key, limits, listen};
use crate::{Medium, assemble};
#[cfg(target_os = "linux")]
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

#[test]
fn bucket_lengths_that_differ_are_named_on_both_sides() {
    let (listeners, addresses): (Vec<_>, Vec<_>) = (0..2).map(|_| listen()).unzip();
    let errors: Vec<_> = thread::scope(|scope| {
        let assemble = |rank: usize| {
            assemble(
                &listeners[rank],
                &key(),
                group(3, rank, 2, SHARDS),
                &addresses,
                limits(100 + rank),
                Medium::Auto,
            )
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
                let mut collective = assemble(
                    listener,
                    &key(),
                    group(3, rank, 2, SHARDS),
                    addresses,
                    limits(1000),
                    Medium::Auto,
                )
                .unwrap();
                assert!(started.elapsed() < Duration::from_secs(1), "the mute stranger was waited for");
                fold_and_compare(&mut collective, 0);
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

/// A rank of generation 3, greeted with `hello`: over what, how, and what it answered.
fn greet(address: &str, hello: &handshake::Hello) -> (TcpStream, handshake::Greeting, Vec<u8>) {
    let (mut stream, greeting) = begin_greeting(address, hello);
    let answer = answer_to(&mut stream);
    (stream, greeting, answer)
}

fn begin_greeting(address: &str, hello: &handshake::Hello) -> (TcpStream, handshake::Greeting) {
    let mut stream = TcpStream::connect(address).unwrap();
    let greeting = hello.greeting().unwrap();
    stream.write_all(&greeting).unwrap();
    (stream, greeting)
}

fn answer_to(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = vec![0; handshake::GREETING_LEN + handshake::PROOF_LEN];
    stream.read_exact(&mut answer).unwrap();
    answer
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
            assemble(
                &listeners[rank],
                &key(),
                group(3, rank, 2, SHARDS),
                addresses,
                limits(1000),
                Medium::Auto,
            )
            .unwrap()
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
        scope.spawn(move || fold_and_compare(&mut peer, 0));
        fold_and_compare(&mut first, 0);
    });
}

/// Joins as `hello` says, as whoever knows the key may.
fn join(address: &str, hello: &handshake::Hello) -> TcpStream {
    let (mut stream, greeting, answer) = greet(address, hello);
    prove(&mut stream, &greeting, &answer);
    stream
}

/// Proves to know the key, and is welcome.
fn prove(stream: &mut TcpStream, greeting: &handshake::Greeting, answer: &[u8]) {
    let greetings = handshake::Greetings { dialling: greeting, dialled: answer.first_chunk().unwrap() };
    stream.write_all(&greetings.proof(&key(), handshake::Side::Dialling)).unwrap();
    stream.read_exact(&mut [0; handshake::WELCOME.len()]).unwrap();
}

/// What rank 0 does with who dials next, until it has seen the proof: it answers as `hello` says, and proves `knows`. Gives
/// whether a proof came.
fn answer_next(listener: &TcpListener, hello: &handshake::Hello, knows: &Key) -> (bool, TcpStream) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut greeting = [0; handshake::GREETING_LEN];
    stream.read_exact(&mut greeting).unwrap();
    let answer = hello.greeting().unwrap();
    let greetings = handshake::Greetings { dialling: &greeting, dialled: &answer };
    let proof = greetings.proof(knows, handshake::Side::Dialled);
    stream.write_all(&[&answer[..], &proof[..]].concat()).unwrap();
    let mut shown = [0; handshake::PROOF_LEN];
    (stream.read_exact(&mut shown).is_ok(), stream)
}

/// An address at which nobody answers, not even that there is nobody; for as long as what comes with it is kept.
#[cfg(target_os = "linux")]
fn silent_address() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    // Once its queue is full, the system lets those who come wait.
    let dial = |_| TcpStream::connect_timeout(&address, Duration::from_millis(50));
    let waiting: Vec<_> = (0..10).map_while(|place| dial(place).ok()).collect();
    assert!(waiting.len() < 10, "its queue is not full");
    (address, listener, waiting)
}

#[cfg(target_os = "linux")]
#[test]
fn all_addresses_of_a_name_are_dialled_within_the_time_that_is_left() {
    let (listener, _) = listen();
    let good = listener.local_addr().unwrap();
    let closed = SocketAddr::from(([127, 0, 0, 1], 0)); // a port at which nobody can listen
    let (silent, _queue, _waiting) = silent_address();
    let reach = |addresses: &[SocketAddr]| connect::reach(addresses, Instant::now() + Duration::from_secs(2));
    for addresses in [&[good][..], &[closed, good], &[silent, good], &[silent, closed, good], &[good, silent]]
    {
        let begin = Instant::now();
        assert_eq!(reach(addresses).unwrap().peer_addr().unwrap(), good, "{addresses:?}");
        assert!(begin.elapsed() < Duration::from_millis(1900), "{addresses:?}");
    }
    let begin = Instant::now();
    assert!(reach(&[silent, closed, silent]).is_err());
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    assert_eq!(reach(&[]).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn strangers_that_say_nothing_do_not_push_out_who_has_greeted() {
    let bounded = Limits { connect_deadline: Duration::from_secs(5), ..limits(1000) };
    let (listener, address) = listen();
    let addresses = [address.clone(), "nobody dials this".to_string()];
    let hello = handshake::Hello::new(&group(3, 1, 2, SHARDS), &bounded);
    let mute = || TcpStream::connect(&address).unwrap();
    // A peer that has greeted, and more strangers than are heard at a time: all wait before rank 0 looks.
    let (mut peer, greeting) = begin_greeting(&address, &hello);
    let first: Vec<_> = (0..40).map(|_| mute()).collect();
    thread::scope(|scope| {
        let lanes = Lanes::of(2);
        let waiting = scope.spawn(move || {
            Mesh::connect(&listener, &key(), &group(3, 0, 2, SHARDS), &addresses, bounded, lanes).map(|_| ())
        });
        let answer = answer_to(&mut peer);
        // Others come before its proof does, and the last of those before them is pushed out.
        let others: Vec<_> = (0..40).map(|_| mute()).collect();
        assert!(!matches!((&first[39]).read(&mut [0; 8]), Ok(1..)), "there was no place for it");
        prove(&mut peer, &greeting, &answer);
        waiting.join().unwrap().unwrap();
        drop(others);
    });
}

#[test]
fn who_is_dropped_before_it_is_welcome_dials_again() {
    let bounded = Limits { connect_deadline: Duration::from_secs(5), ..limits(1000) };
    let (listeners, addresses): (Vec<_>, Vec<_>) = (0..2).map(|_| listen()).unzip();
    let join = |rank: usize| {
        let group = group(3, rank, 2, SHARDS);
        let mut collective =
            assemble(&listeners[rank], &key(), group, &addresses, bounded, Medium::Auto).unwrap();
        fold_and_compare(&mut collective, 0);
    };
    thread::scope(|scope| {
        scope.spawn(|| join(1));
        // As where the answer was under way for so long that rank 0 had given up when the proof came.
        let hello = handshake::Hello::new(&group(3, 0, 2, SHARDS), &bounded).with_lanes(1);
        let (is_shown, dropped) = answer_next(&listeners[0], &hello, &key());
        assert!(is_shown);
        drop(dropped);
        join(0);
    });
}

#[test]
fn few_hosts_have_several_connections_to_each_and_many_have_one() {
    for (world, between_hosts) in [(1, 4), (2, 4), (8, 4), (10, 3), (16, 2), (17, 1), (512, 1), (65_536, 1)] {
        let lanes = Lanes::of(world);
        assert_eq!((lanes.within_host, lanes.between_hosts), (1, between_hosts), "{world} workers");
    }
}

#[test]
fn further_connections_are_proven_like_the_first_and_come_in_any_order() {
    let lanes = Lanes { within_host: 3, ..Lanes::of(2) };
    let (listener, address) = listen();
    let addresses = [address.clone(), "nobody dials this".to_string()];
    thread::scope(|scope| {
        let group_of = |rank| group(3, rank, 2, SHARDS);
        let waiting = scope.spawn(move || {
            Mesh::connect(&listener, &key(), &group_of(0), &addresses, limits(1000), lanes).unwrap()
        });
        let hello = handshake::Hello::new(&group_of(1), &limits(1000));
        let (mut stranger, _, answer) = greet(&address, &hello.on_lane(1));
        stranger.write_all(&answer[handshake::GREETING_LEN..]).unwrap();
        assert!(!matches!(stranger.read(&mut [0; 8]), Ok(1..)), "its proof is wrong");
        let mut beyond = TcpStream::connect(&address).unwrap();
        beyond.write_all(&hello.on_lane(3).greeting().unwrap()).unwrap();
        assert!(!matches!(beyond.read(&mut [0; 8]), Ok(1..)), "there are only three");
        let mut given_up = join(&address, &hello.on_lane(2));
        let joined = [2, 1, 0].map(|lane| {
            let mut stream = join(&address, &hello.on_lane(lane));
            stream.write_all(&[lane]).unwrap();
            stream
        });
        assert!(!matches!(given_up.read(&mut [0; 8]), Ok(1..)), "its place is taken by the later one");
        let mesh = waiting.join().unwrap();
        let Peer { rank, stream, further } = &mesh.peers[0];
        let heard = std::iter::once(stream).chain(further).map(|mut stream| {
            let mut byte = [0];
            stream.set_nonblocking(false).unwrap();
            stream.read_exact(&mut byte).unwrap();
            byte[0]
        });
        assert_eq!((*rank, heard.collect::<Vec<_>>()), (1, vec![0, 1, 2]));
        drop(joined);
    });
}

#[test]
fn a_stranger_that_answers_on_a_further_connection_is_not_believed() {
    let lanes = Lanes { within_host: 2, ..Lanes::of(2) };
    let (ours, address) = listen();
    let (theirs, peer) = listen();
    thread::scope(|scope| {
        let addresses = [peer, address];
        let waiting = scope.spawn(move || {
            Mesh::connect(&ours, &key(), &group(3, 1, 2, SHARDS), &addresses, limits(1000), lanes).unwrap()
        });
        let hello = handshake::Hello::new(&group(3, 0, 2, SHARDS), &limits(1000)).with_lanes(2);
        let welcomed = || {
            let (is_shown, mut stream) = answer_next(&theirs, &hello, &key());
            assert!(is_shown);
            stream.write_all(&handshake::WELCOME).unwrap();
            stream
        };
        let _first = welcomed();
        let (is_shown, _stranger) = answer_next(&theirs, &hello, &Key::new([0; 32]));
        assert!(!is_shown, "it gets no proof");
        let _second = welcomed();
        assert_eq!(waiting.join().unwrap().peers[0].further.len(), 1);
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
        let error =
            assemble(&ours, &key(), group(3, 1, 2, SHARDS), &[stranger, address], short, Medium::Auto)
                .unwrap_err();
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
                        assemble(&listeners[rank], &key(), group, addresses, limits(1000), Medium::Auto)
                            .unwrap();
                    for step in 0..100 {
                        fold_and_compare(&mut collective, step);
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
                        assemble(
                            listener,
                            &key(),
                            group(generation, rank, 2, SHARDS),
                            addresses,
                            limits(50),
                            Medium::Auto,
                        )
                    };
                    if rank == stale_rank {
                        let error = join(6).unwrap_err();
                        assert!(
                            matches!(error, CollectiveError::Superseded { ours: 6, theirs: 7 }),
                            "{error}"
                        );
                    }
                    fold_and_compare(&mut join(7).unwrap(), 0);
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
        let error = assemble(listener, &key(), group(1, rank, 2, SHARDS), &addresses, short, Medium::Auto)
            .unwrap_err();
        let absent = 1 - rank;
        assert!(matches!(error, CollectiveError::Deadline { rank, .. } if rank == absent), "{error}");
    }
}
