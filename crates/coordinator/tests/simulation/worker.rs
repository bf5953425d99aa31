//! A worker that trains a number: what crate `worker` says, does and waits for, without burn and without threads.
//!
//! One task follows the coordinator, or looks for it; another one trains. The real ones are `control.rs` and
//! `training_thread.rs`.

use std::time::Duration;

use protocol::v1::order::Order;
use protocol::{Client, PROTOCOL_VERSION, v1};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::dice::Dice;
use crate::history::History;
use crate::link::{ABSENCE_LIMIT, Attendance, Link, Publisher};
use crate::network;
use crate::peers::{Group, Interrupt, Left, Peers, unless_over};
use crate::reports::Reports;
use crate::state::{State, TOTAL_STEPS};

pub(crate) const VERSION: &str = "1.2.3";

const CONNECT_LIMIT: Duration = Duration::from_secs(60);
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
const LAST_WORD_LIMIT: Duration = Duration::from_secs(5);
const GRACE: Duration = Duration::from_secs(2);

/// Takes part in a run, from the join to the dismissal; `Err` is the sentence that the process ends with.
pub(crate) async fn run(name: &str, mut dice: Dice, history: History) -> Result<(), String> {
    let peers = Peers::listen().await.map_err(|error| error.to_string())?;
    let mut client = network::client();
    let request = v1::JoinRequest {
        protocol_version: PROTOCOL_VERSION,
        program_version: VERSION.to_string(),
        // Without a port it is not an address that the coordinator could try.
        collective_address: name.to_string(),
        description: name.to_string(),
        incarnation: dice.bits(),
        outlives_coordinator: true,
        ..v1::JoinRequest::default()
    };
    let joined = join(&mut client, &request, &mut dice).await?;
    let request = v1::JoinRequest { worker_id: joined.worker_id, run_id: joined.run_id.clone(), ..request };
    let reports = Reports::new(&joined);
    let attendance = watch::Sender::new(None);
    let link = Link {
        client: client.clone(),
        worker_id: joined.worker_id,
        run_id: joined.run_id,
        attendance: attendance.subscribe(),
    };
    let (commands, commanded) = mpsc::unbounded_channel();
    let training = Training {
        commands: commanded,
        peers,
        reports: reports.clone(),
        publisher: Publisher::new(link),
        dice: dice.split(),
        history,
        generation: 0,
        state: None,
        stopping: false,
    };
    let end = spawn_local(training.run());
    let present = Present { generation: 0, over: watch::Sender::new(false) };
    let control =
        Control { client, request, reports, attendance, times_found: 0, commands, end, present, dice };
    control.run(joined.committed_step).await
}

async fn join(
    client: &mut Client,
    request: &v1::JoinRequest,
    dice: &mut Dice,
) -> Result<v1::JoinReply, String> {
    let deadline = Instant::now() + CONNECT_LIMIT;
    loop {
        let problem = match timeout(ANSWER_LIMIT, client.join(request.clone())).await {
            Ok(Ok(reply)) => return Ok(reply.into_inner()),
            Ok(Err(status)) if is_final(&status) => return Err(format!("refused: {}", status.message())),
            Ok(Err(status)) => status.to_string(),
            Err(_) => "no answer".to_string(),
        };
        if Instant::now() > deadline {
            return Err(problem);
        }
        sleep(dice.millis(50..1000)).await;
    }
}

fn is_final(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::FailedPrecondition
            | Code::InvalidArgument
            | Code::Unauthenticated
            | Code::PermissionDenied
            | Code::Unimplemented
    )
}

async fn attend(
    client: &mut Client,
    reports: &Reports,
    committed_step: u64,
) -> Result<Streaming<v1::Order>, Status> {
    let stream = ReceiverStream::new(reports.attend(committed_step));
    Ok(client.attend(stream).await?.into_inner())
}

/// The half that follows the coordinator.
struct Control {
    client: Client,
    request: v1::JoinRequest,
    reports: Reports,
    attendance: watch::Sender<Attendance>,
    times_found: u64,
    commands: mpsc::UnboundedSender<Command>,
    end: JoinHandle<Result<(), String>>,
    present: Present,
    dice: Dice,
}

enum Parting {
    Ended(Result<(), String>),
    Lost,
}

impl Drop for Control {
    /// A process takes its training with it.
    fn drop(&mut self) {
        self.end.abort();
    }
}

impl Control {
    async fn run(mut self, committed_step: u64) -> Result<(), String> {
        let attending = attend(&mut self.client, &self.reports, committed_step);
        let mut parting = match timeout(ANSWER_LIMIT, attending).await {
            Ok(Ok(orders)) => self.follow(orders).await,
            Ok(Err(status)) if is_final(&status) => Parting::Ended(Err(status.message().to_string())),
            Ok(Err(_)) | Err(_) => Parting::Lost,
        };
        loop {
            if let Parting::Ended(outcome) = parting {
                return outcome;
            }
            let orders = self.find_again().await?;
            parting = self.follow(orders).await;
        }
    }

    async fn follow(&mut self, mut orders: Streaming<v1::Order>) -> Parting {
        self.times_found += 1;
        self.attendance.send_replace(Some(self.times_found));
        let mut heartbeat = interval(HEARTBEAT_INTERVAL);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failure: Option<(String, Instant)> = None;
        loop {
            let last_word = failure.as_ref().map_or(Instant::now() + CONNECT_LIMIT, |(_, until)| *until);
            tokio::select! {
                biased;
                order = orders.message() => match order {
                    Ok(Some(v1::Order { order: Some(Order::Dismiss(dismissal)), .. })) => {
                        return Parting::Ended(match failure {
                            Some((error, _)) => Err(error),
                            None => self.dismissed(dismissal.failure).await,
                        });
                    }
                    Ok(Some(order)) => self.pass_on(order.order.unwrap()),
                    Ok(None) | Err(_) => return match failure {
                        Some((error, _)) => Parting::Ended(Err(error)),
                        None => Parting::Lost,
                    },
                },
                _ = heartbeat.tick() => self.reports.heartbeat(self.present.generation),
                ended = &mut self.end, if failure.is_none() => match ended.unwrap() {
                    Ok(()) => return Parting::Ended(Ok(())),
                    Err(error) => failure = Some((error, Instant::now() + LAST_WORD_LIMIT)),
                },
                () = sleep_until(last_word) => if let Some((error, _)) = failure {
                    return Parting::Ended(Err(error));
                },
            }
        }
    }

    async fn find_again(&mut self) -> Result<Streaming<v1::Order>, String> {
        self.reports.detach();
        self.attendance.send_replace(None);
        let deadline = Instant::now() + ABSENCE_LIMIT;
        loop {
            tokio::select! {
                biased;
                ended = &mut self.end => return Err(ended.unwrap().err().unwrap_or_default()),
                () = sleep(self.dice.millis(50..1000)) => {}
            }
            let (client, reports) = (&mut self.client, &self.reports);
            let attempt = async {
                let joined = client.join(self.request.clone()).await?.into_inner();
                attend(client, reports, joined.committed_step).await
            };
            match timeout(ANSWER_LIMIT, attempt).await {
                Ok(Ok(orders)) => return Ok(orders),
                Ok(Err(status)) if is_final(&status) => {
                    self.abandon().await;
                    return Err(format!("refused: {}", status.message()));
                }
                Ok(Err(_)) | Err(_) if Instant::now() < deadline => {}
                Ok(Err(_)) | Err(_) => {
                    self.abandon().await;
                    return Err("the coordinator did not come back".to_string());
                }
            }
        }
    }

    fn pass_on(&mut self, order: Order) {
        if let Order::Leave(_) = order {
            self.reports.leaving();
            let _ = self.commands.send(Command::Stop);
            return;
        }
        if let Some(command) = self.present.command(order) {
            if let Command::Assemble(assemble, _) = &command {
                self.reports.ordered_into(assemble.generation);
            }
            // The task that has ended has reported why.
            let _ = self.commands.send(command);
        }
    }

    async fn dismissed(&mut self, failure: String) -> Result<(), String> {
        self.abandon().await;
        if failure.is_empty() { Ok(()) } else { Err(format!("dismissed: {failure}")) }
    }

    async fn abandon(&mut self) {
        self.present.over.send_replace(true);
        let _ = self.commands.send(Command::Dismiss);
        let _ = timeout(GRACE, &mut self.end).await;
    }
}

/// The generation that this worker was last ordered into, and the word that ends its waiting there.
struct Present {
    generation: u64,
    over: watch::Sender<bool>,
}

impl Present {
    fn command(&mut self, order: Order) -> Option<Command> {
        Some(match order {
            Order::Assemble(assemble) => {
                self.over.send_replace(true);
                *self = Present { generation: assemble.generation, over: watch::Sender::new(false) };
                Command::Assemble(assemble, self.over.subscribe())
            }
            Order::Start(v1::Start { generation }) => Command::Start(generation),
            Order::Stop(v1::Stop { generation, .. }) if generation == self.generation => Command::Stop,
            Order::Halt(v1::Halt { generation, .. }) if generation == self.generation => {
                self.over.send_replace(true);
                Command::Halt(generation)
            }
            Order::Save(v1::Save { generation }) if generation == self.generation => Command::Save,
            Order::Stop(_) | Order::Halt(_) | Order::Save(_) => return None,
            Order::Dismiss(_) => Command::Dismiss,
            Order::Leave(_) => return None,
        })
    }
}

enum Command {
    Assemble(v1::Assemble, Interrupt),
    Start(u64),
    Halt(u64),
    Save,
    Stop,
    Dismiss,
}

/// The half that trains.
struct Training {
    commands: mpsc::UnboundedReceiver<Command>,
    peers: Peers,
    reports: Reports,
    publisher: Publisher,
    dice: Dice,
    history: History,
    generation: u64,
    state: Option<State>,
    stopping: bool,
}

/// A generation that is assembled.
struct Session {
    group: Group,
    interrupt: Interrupt,
    publishes: bool,
}

/// How a generation ends for a worker.
enum End {
    Left(Left),
    /// It cannot go on.
    Failed(String),
}

impl From<Left> for End {
    fn from(left: Left) -> End {
        End::Left(left)
    }
}

impl Training {
    async fn run(mut self) -> Result<(), String> {
        let outcome = self.work().await;
        if let Err(reason) = &outcome {
            self.reports.failed(self.generation, reason);
        }
        outcome
    }

    async fn work(&mut self) -> Result<(), String> {
        let mut assembled = None;
        while let Some(command) = self.commands.recv().await {
            match command {
                Command::Assemble(order, interrupt) => {
                    drop(assembled.take());
                    self.generation = order.generation;
                    self.publisher.enter(order.generation, order.checkpoint_step);
                    match self.assemble(&order, interrupt).await {
                        Ok(session) => assembled = Some(session),
                        Err(end) => self.leave(end)?,
                    }
                }
                Command::Start(generation) => {
                    let Some(session) = assembled.take().filter(|_| generation == self.generation) else {
                        return Err(format!("a start of generation {generation}, which is not assembled"));
                    };
                    self.reports.starting(generation);
                    match self.train(session).await {
                        Ok(()) => self.reports.finished(generation, &self.state.expect("it was trained")),
                        Err(end) => self.leave(end)?,
                    }
                }
                Command::Halt(generation) => {
                    assembled = None;
                    self.reports.halted(generation, self.state.as_ref(), "");
                }
                Command::Save => {
                    let state = self.state.ok_or("a save of a state that this worker lacks")?;
                    let attendance = *self.publisher.link.attendance.borrow();
                    match self.publisher.publish_last(state).await {
                        Err(_) if *self.publisher.link.attendance.borrow() != attendance => {}
                        Err(status) => self.reports.unsaved(self.generation, &status.to_string()),
                        Ok(_) => {}
                    }
                }
                Command::Stop => self.stopping = true,
                Command::Dismiss => return Ok(()),
            }
        }
        Ok(())
    }

    fn leave(&mut self, end: End) -> Result<(), String> {
        let reason = match end {
            End::Left(Left::Ordered) => String::new(),
            End::Left(Left::Lost(reason)) => format!("a peer was lost: {reason}"),
            End::Failed(reason) => return Err(reason),
        };
        self.reports.halted(self.generation, self.state.as_ref(), &reason);
        Ok(())
    }

    async fn assemble(&mut self, order: &v1::Assemble, interrupt: Interrupt) -> Result<Session, End> {
        let state = match (self.state.take(), order.checkpoint.as_str()) {
            (Some(state), _) if state.step == order.step => state,
            (_, "") => State::initial(),
            (_, name) => {
                let limit = Duration::from_millis(order.deadline_ms);
                let fetched = self.publisher.link.fetch(name, limit).await;
                fetched.map_err(|status| End::Failed(format!("fetch {name}: {status}")))?
            }
        };
        if state.step != order.step {
            return Err(End::Failed("an order that cannot be used".to_string()));
        }
        self.state = Some(state);
        let group = self.peers.assemble(order, &interrupt).await?;
        self.reports.assembled(order.generation, &state);
        Ok(Session { group, interrupt, publishes: order.publishes })
    }

    /// One step after the other, as in `train.rs`.
    async fn train(&mut self, mut session: Session) -> Result<(), End> {
        let mut state = self.state.expect("who is assembled holds a state");
        let mut stop = false;
        while state.step < TOTAL_STEPS && !stop {
            let mut is_save_ordered = false;
            match self.commands.try_recv() {
                Ok(Command::Stop) => self.stopping = true,
                Ok(Command::Halt(_)) => return Err(Left::Ordered.into()),
                Ok(Command::Dismiss) => return Err(End::Failed("dismissed while it trains".to_string())),
                Ok(Command::Save) => is_save_ordered = true,
                Ok(Command::Assemble(..) | Command::Start(_)) => {
                    return Err(End::Failed(
                        "an order that cannot be used while this one trains".to_string(),
                    ));
                }
                Err(mpsc::error::TryRecvError::Empty) => {}
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    return Err(End::Failed("no orders".to_string()));
                }
            }
            let computing = self.dice.millis(20..120);
            unless_over(&session.interrupt, async {
                sleep(computing).await;
                Ok(())
            })
            .await?;
            let sum;
            (sum, stop) = session.group.fold(&state, self.stopping, &session.interrupt).await?;
            state = state.next(sum);
            self.state = Some(state);
            self.history.commit(self.reports.worker_id, self.generation, state);
            self.reports.step_done(self.generation, &state);
            if session.publishes {
                self.publisher.publish_if_due(state, is_save_ordered).await;
            }
        }
        if session.publishes {
            let published = self.publisher.publish_last(state).await;
            published.map_err(|status| End::Failed(format!("publish the last checkpoint: {status}")))?;
        }
        Ok(())
    }
}
