//! How simulated workers sum: each sends its part of every step to all others of its generation, over connections of
//! its own. As in the real all-reduce, whoever has the sum knows that all others have come to this step, and not that
//! they have the sum too.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use coordinator::Lease;
use protocol::v1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, spawn_local};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use turmoil::net::{TcpListener, TcpStream};

use crate::state::State;

const PORT: u16 = 9000;

/// How long one attempt to connect may take.
const ATTEMPT: Duration = Duration::from_secs(2);

/// How long the slowest may take for a step.
const STEP_LIMIT: Duration = Duration::from_secs(20);

/// Why a worker leaves a generation.
#[derive(Debug)]
pub(crate) enum Left {
    /// It was told to.
    Ordered,
    /// Another worker is gone, or late.
    Lost(String),
}

/// Becomes true when the generation is over.
pub(crate) type Interrupt = watch::Receiver<bool>;

/// Waits for `work` until the generation is over.
pub(crate) async fn unless_over<T>(
    interrupt: &Interrupt,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, Left> {
    let mut interrupt = interrupt.clone();
    tokio::select! {
        biased;
        _ = interrupt.wait_for(|is_over| *is_over) => Err(Left::Ordered),
        outcome = work => outcome.map_err(|error| Left::Lost(error.to_string())),
    }
}

/// A connection whose other end has said who it is.
struct Arrival {
    generation: u64,
    rank: u32,
    stream: TcpStream,
    was_dialled_here: bool,
}

/// Where others connect to, for as long as a worker lives.
pub(crate) struct Peers {
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    arrived: mpsc::UnboundedSender<Arrival>,
    /// Of generations that this worker does not know of yet.
    early: Vec<Arrival>,
    /// Ends with it.
    _listening: JoinSet<()>,
}

/// The others of one generation, connected.
pub(crate) struct Group {
    others: BTreeMap<u32, TcpStream>,
    pub(crate) lease: Lease,
}

impl Peers {
    pub(crate) async fn listen() -> io::Result<Peers> {
        let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
        let (arrived, arrivals) = mpsc::unbounded_channel();
        let told = arrived.clone();
        let mut listening = JoinSet::new();
        listening.spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let told = told.clone();
                spawn_local(async move {
                    if let Ok(Ok(arrival)) = timeout(ATTEMPT, greeted(stream)).await {
                        // The worker that listened may have ended.
                        let _ = told.send(arrival);
                    }
                });
            }
        });
        Ok(Peers { arrivals, arrived, early: Vec::new(), _listening: listening })
    }

    /// Connects to all others of a generation.
    pub(crate) async fn assemble(
        &mut self,
        order: &v1::Assemble,
        interrupt: &Interrupt,
    ) -> Result<Group, Left> {
        let deadline = Instant::now() + Duration::from_millis(order.deadline_ms);
        let own = &order.members[order.rank as usize];
        let lease = Lease { first_shard: own.first_shard, shard_count: own.shard_count };
        let mut dialling = JoinSet::new();
        for (rank, member) in (0..order.rank).zip(&order.members) {
            let (arrived, address) = (self.arrived.clone(), member.collective_address.clone());
            let (generation, own_rank) = (order.generation, order.rank);
            dialling.spawn_local(async move {
                let stream = dial(&address, generation, own_rank).await;
                let _ = arrived.send(Arrival { generation, rank, stream, was_dialled_here: true });
            });
        }
        let mut others = BTreeMap::new();
        for early in std::mem::take(&mut self.early) {
            let _ = self.arrived.send(early);
        }
        while others.len() + 1 < order.members.len() {
            let arrival = async {
                let arrival = timeout_at(deadline, self.arrivals.recv()).await?;
                Ok(arrival.expect("this end holds a sender"))
            };
            let mut arrival = unless_over(interrupt, arrival).await?;
            if arrival.generation > order.generation {
                self.early.push(arrival);
            } else if arrival.generation == order.generation
                && (arrival.was_dialled_here || arrival.stream.write_all(&[1]).await.is_ok())
            {
                others.insert(arrival.rank, arrival.stream);
            }
        }
        Ok(Group { others, lease })
    }
}

async fn greeted(mut stream: TcpStream) -> io::Result<Arrival> {
    let generation = stream.read_u64().await?;
    let rank = stream.read_u32().await?;
    Ok(Arrival { generation, rank, stream, was_dialled_here: false })
}

/// Tries until the other one takes the connection.
async fn dial(address: &str, generation: u64, rank: u32) -> TcpStream {
    loop {
        let attempt = async {
            let mut stream = TcpStream::connect((address, PORT)).await?;
            stream.write_u64(generation).await?;
            stream.write_u32(rank).await?;
            stream.read_u8().await?;
            io::Result::Ok(stream)
        };
        if let Ok(Ok(stream)) = timeout(ATTEMPT, attempt).await {
            return stream;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

impl Group {
    /// The sum of all parts of the step after `state`, and whether anyone was asked to stop. An error ends the group: its
    /// connections are to be closed.
    pub(crate) async fn fold(
        &mut self,
        state: &State,
        stopping: bool,
        interrupt: &Interrupt,
    ) -> Result<(u64, bool), Left> {
        let own = state.sum(self.lease);
        let folding = async {
            for stream in self.others.values_mut() {
                stream.write_all(&frame(state.step, own, stopping)).await?;
            }
            let (mut sum, mut stop) = (own, stopping);
            for stream in self.others.values_mut() {
                let mut bytes = [0; FRAME_LEN];
                stream.read_exact(&mut bytes).await?;
                let (step, part, stopping) = read_frame(&bytes);
                assert_eq!(step, state.step, "workers of a generation are at the same step");
                (sum, stop) = (sum.wrapping_add(part), stop | stopping);
            }
            io::Result::Ok((sum, stop))
        };
        unless_over(interrupt, async { timeout(STEP_LIMIT, folding).await? }).await
    }
}

const FRAME_LEN: usize = 17;

fn frame(step: u64, part: u64, stopping: bool) -> [u8; FRAME_LEN] {
    let mut bytes = [u8::from(stopping); FRAME_LEN];
    bytes[..8].copy_from_slice(&step.to_le_bytes());
    bytes[8..16].copy_from_slice(&part.to_le_bytes());
    bytes
}

fn read_frame(bytes: &[u8; FRAME_LEN]) -> (u64, u64, bool) {
    let number = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().unwrap());
    (number(0), number(8), bytes[16] != 0)
}
