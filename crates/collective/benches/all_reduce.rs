//! The fold between processes of this host: median time by size, for 2 and 4 processes with one shard each, through
//! shared memory and over TCP. Runs itself once for each rank. The lines compare with what Gloo's all-reduce takes on
//! the same sizes.
//!
//! Before each fold every rank writes its bucket anew, as a training step does, and afterwards it reads the sum; only
//! the fold is timed.

use collective::{Collective, Group, Key, Limits, Medium};
use std::error::Error;
use std::hint::black_box;
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

    let mut barrier = assemble(&listener, &addresses, rank, 1, 16, Medium::Tcp)?;
    write_bucket(&mut barrier, 0);
    // The first meeting ends the assembly for all, so that nobody's next generation comes in its way.
    barrier.fold(0)?;
    let mut barrier_step = 1;
    let cases =
        [Medium::SharedMemory, Medium::Tcp].into_iter().flat_map(|medium| SIZES.map(|size| (medium, size)));
    for (generation, (medium, size)) in (2..).zip(cases) {
        let len = size / size_of::<f32>();
        let mut collective = assemble(&listener, &addresses, rank, generation, len, medium)?;
        let mut times = Vec::new();
        for step in 0..FOLDS {
            write_bucket(&mut collective, step);
            barrier.fold(barrier_step)?;
            barrier_step += 1;
            let start = Instant::now();
            let folded = collective.fold(step)?;
            times.push(start.elapsed());
            black_box(folded.iter().sum::<f32>());
        }
        let mut times = times.split_off(WARM_UP_FOLDS);
        times.sort();
        if rank == 0 {
            let median = times[times.len() / 2].as_secs_f64();
            let (megabytes, rate) = (size as f64 / 1e6, size as f64 / median / 1e9);
            let (medium, median) = (collective.medium(), median * 1e3);
            println!(
                "{medium:13}  world {world} {megabytes:8.3} MB  median {median:7.3} ms  {rate:5.2} GB/s"
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
    medium: Medium,
) -> Result<Collective, Box<dyn Error>> {
    let world = addresses.len() as u32;
    let leases = (0..world).map(|shard| shard..shard + 1).collect();
    let group = Group::new([1; 16], generation, rank, leases, world)?;
    let deadline = Duration::from_secs(30);
    let limits = Limits { bucket_len, rounded_len: 0, connect_deadline: deadline, step_deadline: deadline };
    Ok(collective::assemble(listener, &Key::new([1; 32]), group, addresses, limits, medium)?)
}

/// Pushes the bucket of this rank's only shard.
fn write_bucket(collective: &mut Collective, step: u64) {
    let sums = collective.sums();
    sums.clear();
    for (place, float) in sums.next_bucket().iter_mut().enumerate() {
        *float = (place % 1000) as f32 + step as f32;
    }
    sums.commit();
}
