//! Between real processes, of which one is killed.

use crate::testing::{SHARDS, fold_and_compare, group, key, limits, listen, push_all, run_ranks};
use crate::{Collective, CollectiveError, Group, Medium, assemble};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const WORLD: usize = 3;

/// Names the rank of a process that a test has started.
const RANK_VARIABLE: &str = "COLLECTIVE_TEST_RANK";

/// Comes before what a rank says, amid what the tests' program says.
const MARK: &str = "this rank listens at ";

fn join(listener: &TcpListener, rank: usize, addresses: &[String]) -> Collective {
    let group = group(3, rank, WORLD, SHARDS);
    let collective =
        assemble(listener, &key(), group, addresses, limits(100_003), Medium::SharedMemory).unwrap();
    assert_eq!(collective.medium(), "shared memory");
    collective
}

/// The rank of another process: only if it was started as one.
#[test]
fn rank_of_another_process() {
    let Ok(rank) = std::env::var(RANK_VARIABLE) else { return };
    let (listener, address) = listen();
    println!("\n{MARK}{address}");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let addresses: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let mut collective = join(&listener, rank.parse().unwrap(), &addresses);
    // Only the mappings hold the memory, and so it ends with them: it has neither a name nor a descriptor.
    let unnamed = "/memfd:collective (deleted)";
    assert!(!shared_mappings().is_empty());
    assert!(shared_mappings().iter().all(|name| name == unnamed), "{:?}", shared_mappings());
    let open: Vec<_> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .flat_map(|entry| fs::read_link(entry.path()))
        .collect();
    assert!(!open.iter().any(|file| file == Path::new(unnamed)), "{open:?}");
    push_all(collective.sums(), 7);
    let error = (0..).find_map(|step| collective.fold(step).err()).unwrap();
    assert!(matches!(error, CollectiveError::PeerLost { .. }), "{error}");
    drop(collective);
    assert!(shared_mappings().is_empty(), "{:?}", shared_mappings());
}

/// What this process shares with others of its memory.
fn shared_mappings() -> Vec<String> {
    // Addresses, rights (the last of which tells whether it is shared), offset, device, inode, and then the name.
    let mappings = fs::read_to_string("/proc/self/maps").unwrap();
    let is_shared = |line: &&str| line.split(' ').nth(1).unwrap().ends_with('s');
    let name = |line: &str| line.splitn(6, ' ').nth(5).unwrap_or_default().trim().to_owned();
    mappings.lines().filter(is_shared).map(name).collect()
}

/// The process of a rank, what it says, and where it listens.
fn start_rank(rank: usize) -> (Child, BufReader<ChildStdout>, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "shared_memory::tests::rank_of_another_process", "--nocapture"])
        .env(RANK_VARIABLE, rank.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let lines = output.by_ref().lines().map(Result::unwrap);
    let address = lines.filter_map(|line| line.strip_prefix(MARK).map(str::to_owned)).next();
    (child, output, address.unwrap())
}

#[test]
fn a_killed_process_is_missed_at_once_and_leaves_nothing() {
    let (listener, address) = listen();
    let (mut children, mut outputs, mut addresses) = (Vec::new(), Vec::new(), vec![address]);
    for rank in 1..WORLD {
        let (child, output, address) = start_rank(rank);
        children.push(child);
        outputs.push(output);
        addresses.push(address);
    }
    for child in &mut children {
        writeln!(child.stdin.take().unwrap(), "{}", addresses.join(" ")).unwrap();
    }
    let mut collective = join(&listener, 0, &addresses);
    push_all(collective.sums(), 7);
    for step in 0..100 {
        collective.fold(step).unwrap();
    }
    let killed = Pid::from_child(&children[1]);
    kill_process(killed, Signal::KILL).unwrap();
    let died = Instant::now();
    // It may have given its sums for the next fold already.
    let error = (100..103).find_map(|step| collective.fold(step).err()).unwrap();
    assert!(matches!(error, CollectiveError::PeerLost { .. }), "{error}");
    assert!(died.elapsed() < Duration::from_secs(2), "it was missed after {:?}", died.elapsed());
    assert!(!children[1].wait().unwrap().success());
    assert!(children[0].wait().unwrap().success(), "the other rank has missed it too");
}

/// Gives this thread a network namespace of its own.
fn leave_network() -> rustix::io::Result<()> {
    // SAFETY: only unsharing descriptors is unsafe, and these stay shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
}

/// As between containers that reach each other only by their addresses. Needs the right to make a network namespace.
#[test]
fn a_network_of_its_own_is_reached_over_tcp() {
    if thread::spawn(leave_network).join().unwrap() == Err(Errno::PERM) {
        eprintln!("not tested: this user may not make a network namespace");
        return;
    }
    let assemble = |listener: &_, group: Group, addresses: &_| {
        if group.rank() == 0 {
            // Its listener stays in the old one, where rank 1 dials it; its offer is made in the new one.
            leave_network().unwrap();
        }
        assemble(listener, &key(), group, addresses, limits(1000), Medium::Auto).unwrap()
    };
    let media = run_ranks(2, assemble, |_, mut collective| {
        fold_and_compare(&mut collective, 0);
        collective.medium()
    });
    assert_eq!(media, ["TCP"; 2]);
}

#[test]
fn one_generation_after_another() {
    let (listeners, addresses): (Vec<_>, Vec<_>) = (0..2).map(|_| listen()).unzip();
    thread::scope(|scope| {
        for (rank, listener) in listeners.iter().enumerate() {
            let addresses = &addresses;
            scope.spawn(move || {
                for generation in 1..20 {
                    let group = group(generation, rank, 2, SHARDS);
                    let mut collective =
                        assemble(listener, &key(), group, addresses, limits(1000), Medium::SharedMemory)
                            .unwrap();
                    for step in 0..3 {
                        fold_and_compare(&mut collective, step);
                    }
                }
            });
        }
    });
}
