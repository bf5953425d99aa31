//! The whole collective between processes, through each medium: on threads of this one, which share nothing but the
//! list of their addresses.

use super::*;
use crate::Interrupt;
use crate::testing::{
    SHARDS, assert_same_bits, fold_and_compare, fold_error, group, key, leases, limits, listen, push_all,
    run_ranks,
};
use proptest::prelude::*;
use std::thread;
use std::time::{Duration, Instant};

const MEDIA: [(Medium, &str); 2] = [(Medium::SharedMemory, "shared memory"), (Medium::Tcp, "TCP")];

/// Lets `world` ranks fold through one medium.
fn run<T: Send>(
    world: usize,
    limits: Limits,
    medium: Medium,
    rank_main: impl Fn(usize, Collective) -> T + Sync,
) -> Vec<T> {
    let assemble = |listener: &_, group, addresses: &_| {
        assemble(listener, &key(), group, addresses, limits, medium).unwrap()
    };
    run_ranks(world, assemble, rank_main)
}

#[test]
fn every_world_and_size_folds_to_the_same_bits() {
    for (medium, name) in MEDIA {
        for world in [1, 2, 3, 4, 8] {
            for len in [1, 15, 16, 17, 1000, 32_768, 100_003, 600_000] {
                run(world, limits(len), medium, |_, mut collective| {
                    assert_eq!(collective.medium(), if world == 1 { "nothing" } else { name });
                    for step in 0..3 {
                        fold_and_compare(&mut collective, step);
                    }
                });
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_partition_folds_to_the_same_bits(
        depth in 0_u32..=4,
        cuts in proptest::collection::vec(any::<bool>(), 17),
        len in 1_usize..70_000,
    ) {
        let leases = leases(1 << depth, &cuts);
        for (medium, _) in MEDIA {
            let assemble = |listener: &_, dealt: Group, addresses: &_| {
                let group = Group::new([7; 16], 3, dealt.rank(), leases.clone(), 1 << depth).unwrap();
                assemble(listener, &key(), group, addresses, limits(len), medium).unwrap()
            };
            let world = leases.len();
            if world > SHARDS as usize {
                continue; // more ranks than `run_ranks` deals shards to
            }
            run_ranks(world, assemble, |_, mut collective| {
                for step in 0..2 {
                    fold_and_compare(&mut collective, step);
                }
            });
        }
    }
}

/// The system gives 127.0.0.2 to nobody elsewhere.
#[cfg(target_os = "linux")]
#[test]
fn workers_with_several_connections_fold_through_each_medium() {
    let hosts = ["127.0.0.2", "127.0.0.2", "127.0.0.1"];
    for (medium, name) in MEDIA {
        let assemble = |listener: &_, group: Group, addresses: &_| {
            assemble(listener, &key(), group, addresses, limits(600_000), medium).unwrap()
        };
        crate::testing::run_ranks_at(&hosts, assemble, |_, mut collective| {
            assert_eq!(collective.medium(), name);
            for step in 0..3 {
                fold_and_compare(&mut collective, step);
            }
        });
    }
}

#[test]
fn many_steps_in_a_row_stay_in_step() {
    for (medium, _) in MEDIA {
        // More than the socket buffers hold, so that every kind of waiting happens.
        let len = 1_500_000;
        run(4, limits(len), medium, |rank, mut collective| {
            push_all(collective.sums(), rank as u64);
            let first = collective.fold(0).unwrap().to_vec();
            for step in 1..20 {
                assert_same_bits(collective.fold(step).unwrap(), &first);
            }
        });
        run(3, limits(64), medium, |_, mut collective| {
            for step in 0..500 {
                fold_and_compare(&mut collective, step);
            }
        });
    }
}

#[test]
fn a_rank_may_leave_as_soon_as_it_has_folded() {
    for (medium, _) in MEDIA {
        for _ in 0..50 {
            run(4, limits(40_000), medium, |_, mut collective| {
                fold_and_compare(&mut collective, 0);
                drop(collective);
            });
        }
    }
}

#[test]
fn a_dropped_peer_fails_the_others_at_once() {
    for (medium, _) in MEDIA {
        let outcomes = run(4, limits(100_003), medium, |rank, mut collective| {
            fold_and_compare(&mut collective, 0);
            let started = Instant::now();
            (rank != 2).then(|| (fold_error(&mut collective, 1), started.elapsed()))
        });
        assert!(outcomes[2].is_none());
        for (error, elapsed) in outcomes.into_iter().flatten() {
            assert!(matches!(error, CollectiveError::PeerLost { .. }), "{error}");
            assert!(elapsed < Duration::from_secs(5), "an error took {elapsed:?}");
        }
    }
}

#[test]
fn a_stalled_peer_is_late_and_named() {
    for (medium, _) in MEDIA {
        let short = Limits { step_deadline: Duration::from_millis(150), ..limits(100_003) };
        let given_up = std::sync::Barrier::new(3);
        let outcomes = run(3, short, medium, |rank, mut collective| {
            // Rank 1 holds its sockets open, without folding, until both others have given up.
            let error = (rank != 1).then(|| fold_error(&mut collective, 0));
            given_up.wait();
            error
        });
        let late = |error: &CollectiveError| {
            matches!(error, CollectiveError::Deadline { rank: 1, limit_ms: 150, .. })
        };
        assert!(outcomes.iter().flatten().any(late), "{outcomes:?}");
    }
}

#[test]
fn steps_that_differ_are_named() {
    for (medium, _) in MEDIA {
        let errors = run(2, limits(1000), medium, |rank, mut collective| {
            fold_error(&mut collective, 10 + rank as u64)
        });
        let named = |error: &CollectiveError| {
            matches!(
                error,
                CollectiveError::Protocol { field: "step", expected: 10 | 11, found: 10 | 11, .. }
            )
        };
        assert!(errors.iter().any(named), "{errors:?}");
    }
}

#[test]
fn a_fold_needs_complete_sums() {
    for (medium, _) in MEDIA {
        let errors = run(2, limits(1000), medium, |rank, mut collective| {
            if rank == 1 {
                return fold_error(&mut collective, 0);
            }
            collective.sums().next_bucket().fill(1.0);
            collective.sums().commit();
            collective.fold(0).unwrap_err()
        });
        assert!(matches!(errors[0], CollectiveError::IncompleteSums { shard: 1 }), "{}", errors[0]);
        assert!(matches!(errors[1], CollectiveError::PeerLost { rank: 0, .. }), "{}", errors[1]);
    }
}

#[test]
fn an_interrupt_ends_assembly_and_fold() {
    for (medium, _) in MEDIA {
        let (listeners, addresses): (Vec<_>, Vec<_>) = (0..2).map(|_| listen()).unzip();
        let started = Instant::now();
        let interrupted = &std::sync::Barrier::new(2);
        thread::scope(|scope| {
            for (rank, listener) in listeners.iter().enumerate() {
                let addresses = &addresses;
                scope.spawn(move || {
                    let interrupt = Interrupt::default();
                    let join = |generation| {
                        let group = group(generation, rank, 2, SHARDS).interrupted_by(interrupt.clone());
                        assemble(listener, &key(), group, addresses, limits(100), medium)
                    };
                    let mut collective = join(1).unwrap();
                    // Nobody comes to the fold, and then nobody to the assembly.
                    if rank == 1 {
                        interrupted.wait();
                        push_all(collective.sums(), 0);
                        // In memory, the sums of who was interrupted are all that was missing.
                        let error = (0..2).find_map(|step| collective.fold(step).err()).unwrap();
                        assert!(matches!(error, CollectiveError::PeerLost { rank: 0, .. }), "{error}");
                        return;
                    }
                    thread::scope(|scope| {
                        let waiting = scope.spawn(|| fold_error(&mut collective, 0));
                        interrupt.raise();
                        let error = waiting.join().unwrap();
                        assert!(matches!(error, CollectiveError::Interrupted { generation: 1 }), "{error}");
                    });
                    interrupted.wait();
                    let error = join(2).unwrap_err();
                    assert!(matches!(error, CollectiveError::Interrupted { generation: 2 }), "{error}");
                });
            }
        });
        assert!(started.elapsed() < Duration::from_secs(5), "no deadline was waited for");
    }
}

#[test]
fn all_ranks_agree_whatever_each_wants() {
    use Medium::{Auto, Nccl, SharedMemory, Tcp};
    for (wanted, expected) in [
        ([Auto, Auto, Auto], Ok("shared memory")),
        ([SharedMemory, Auto, SharedMemory], Ok("shared memory")),
        ([Tcp, Auto, Auto], Ok("TCP")),
        ([Auto, Auto, Tcp], Ok("TCP")),
        ([Tcp, Auto, SharedMemory], Err(0)),
        ([SharedMemory, Tcp, Auto], Err(1)),
        ([Auto, SharedMemory, Tcp], Err(2)),
        // None of them has a GPU.
        ([Auto, Nccl, Auto], Err(0)),
    ] {
        let assemble = |listener: &_, group: Group, addresses: &_| {
            let medium = wanted[group.rank()];
            assemble(listener, &key(), group, addresses, limits(1000), medium)
        };
        let folds = |_, assembled: Result<Collective, CollectiveError>| match assembled {
            Ok(mut collective) => {
                fold_and_compare(&mut collective, 0);
                Ok(collective.medium())
            }
            Err(CollectiveError::NoSharedMemory { rank } | CollectiveError::NoGpu { rank }) => Err(rank),
            Err(error) => panic!("{wanted:?}: {error}"),
        };
        assert_eq!(run_ranks(3, assemble, folds), [expected; 3], "{wanted:?}");
    }
}
