//! The fold over TCP between processes of this host: median time by size, for 2 and 4 processes with one shard
//! each. Runs itself once for each rank. The lines compare with what Gloo's all-reduce takes on the same sizes.

use collective::{Collective, Group, Key, Limits, SubtreeSums, tcp};
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Bytes in a bucket; the last is about ResNet-18's gradients and what rides along.
const SIZES: [usize; 4] = [65_536, 1 << 20, 8 << 20, 75_000_000];

/// Folds of each size, of which the first are left out: they meet cold caches and small socket buffers.
const FOLDS: u64 = 12;
const WARM_UP_FOLDS: usize = 2;

/// Names the rank and world of a process that this program has started.
const ROLE_VARIABLE: &str = "ALL_REDUCE_BENCH_ROLE";

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::var(ROLE_VARIABLE) {
        Ok(role) => {
            let (rank, world) = role.split_once('/').ok_or("a role is rank/world")?;
            run_rank(rank.parse()?, world.parse()?)
        }
        Err(_) => [2, 4].into_iter().try_for_each(run_world),
    }
}

/// Starts `world` processes, tells each the addresses of all, and waits for them.
fn run_world(world: usize) -> Result<(), Box<dyn Error>> {
    let mut ranks = (0..world).map(|rank| start_rank(rank, world)).collect::<Result<Vec<_>, _>>()?;
    let mut addresses = Vec::new();
    for (_, _, output) in &mut ranks {
        let mut address = String::new();
        output.read_line(&mut address)?;
        addresses.push(address.trim().to_owned());
    }
    for (_, input, _) in &mut ranks {
        writeln!(input, "{}", addresses.join(" "))?;
    }
    for (mut child, _, output) in ranks {
        for line in output.lines() {
            println!("{}", line?);
        }
        if !child.wait()?.success() {
            return Err("a rank failed".into());
        }
    }
    Ok(())
}

fn start_rank(
    rank: usize,
    world: usize,
) -> Result<(Child, ChildStdin, BufReader<ChildStdout>), Box<dyn Error>> {
    let mut child = Command::new(std::env::current_exe()?)
        .env(ROLE_VARIABLE, format!("{rank}/{world}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let input = child.stdin.take().ok_or("no pipe to the rank")?;
    let output = child.stdout.take().ok_or("no pipe from the rank")?;
    Ok((child, input, BufReader::new(output)))
}

fn run_rank(rank: usize, world: usize) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let addresses: Vec<String> = line.split_whitespace().map(str::to_owned).collect();

    let mut barrier = assemble(&listener, &addresses, rank, 1, 16)?;
    let barrier_sums = sums_of_one_shard(rank, 16);
    // The first meeting ends the assembly for all, so that nobody's next generation comes in its way.
    barrier.fold(0, &barrier_sums, &mut [0.0; 16])?;
    let mut barrier_step = 1;
    for (generation, size) in (2..).zip(SIZES) {
        let len = size / size_of::<f32>();
        let mut collective = assemble(&listener, &addresses, rank, generation, len)?;
        let sums = sums_of_one_shard(rank, len);
        let mut folded = vec![0.0; len];
        let mut times = Vec::new();
        for step in 0..FOLDS {
            barrier.fold(barrier_step, &barrier_sums, &mut [0.0; 16])?;
            barrier_step += 1;
            let start = Instant::now();
            collective.fold(step, &sums, &mut folded)?;
            times.push(start.elapsed());
        }
        let mut times = times.split_off(WARM_UP_FOLDS);
        times.sort();
        if rank == 0 {
            let median = times[times.len() / 2].as_secs_f64();
            let (megabytes, rate) = (size as f64 / 1e6, size as f64 / median / 1e9);
            println!(
                "tcp  world {world} {megabytes:8.3} MB  median {:7.2} ms  {rate:5.2} GB/s",
                median * 1e3
            );
        }
    }
    Ok(())
}

fn assemble(
    listener: &TcpListener,
    addresses: &[String],
    rank: usize,
    generation: u64,
    bucket_len: usize,
) -> Result<tcp::TcpCollective, Box<dyn Error>> {
    let world = addresses.len() as u32;
    let leases = (0..world).map(|shard| shard..shard + 1).collect();
    let group = Group::new([1; 16], generation, rank, leases, world)?;
    let deadline = Duration::from_secs(30);
    let limits = Limits { bucket_len, connect_deadline: deadline, step_deadline: deadline };
    Ok(tcp::assemble(listener, &Key::new([1; 32]), group, addresses, limits)?)
}

fn sums_of_one_shard(rank: usize, len: usize) -> SubtreeSums {
    let shard = rank as u32;
    let mut sums = SubtreeSums::new(shard..shard + 1, len);
    for (place, float) in sums.next_bucket().iter_mut().enumerate() {
        *float = (place % 1000) as f32 + rank as f32;
    }
    sums.commit();
    sums
}
