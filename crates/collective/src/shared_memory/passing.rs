//! How a segment gets from rank 0 to the others: over a Unix socket with a random name in the abstract namespace.
//!
//! A connection to that name can only be made within the host, in the same network namespace; the descriptor of the
//! segment can only go over such a connection; and what it stands for is the same memory on both sides. So whoever
//! has the segment shares the host's memory: there is nothing else to find out. Neither the socket nor the segment has
//! a file, so nothing stays behind, whoever is killed when.
//!
//! Any process of the host may see the name and connect. Before it is given anything it must prove that it knows the run's
//! key, for this name, generation and rank; and the segment comes with a proof in return. Whoever connects and says nothing
//! may be pushed out by others, a rank that has only just connected too: it asks again.

use super::segment::Segment;
use crate::mesh::field;
use crate::{Group, Key};
use rustix::event::{PollFd, PollFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};
use tracing::warn;

/// Bytes of the random part of a socket's name.
pub(crate) const NAME_LEN: usize = 16;

/// Bytes of what is said to get the segment: a rank and its proof.
const REQUEST_LEN: usize = 4 + blake3::OUT_LEN;

/// How long rank 0 may take to answer. It does nothing else meanwhile.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// How long to wait before rank 0 is asked once more.
const PAUSE: Duration = Duration::from_millis(5);

/// Strangers that may be connected at the same time, beyond the peers.
const STRANGERS_AT_ONCE: usize = 16;

/// Who proves; the proofs of the two sides differ.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum Side {
    Giving = 1,
    Taking = 2,
}

/// A segment that rank 0 hands out.
pub(crate) struct Offer {
    key: Key,
    group: Group,
    name: [u8; NAME_LEN],
    listener: UnixListener,
    callers: Vec<UnixStream>,
    segment: Segment,
    descriptor: OwnedFd,
}

impl Offer {
    /// Makes the segment of `group`, and listens for its ranks. An error is the reason why this cannot be.
    pub(crate) fn make(key: &Key, group: &Group, bucket_len: usize) -> Result<Self, String> {
        let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        let mut name = [0; NAME_LEN];
        getrandom::fill(&mut name).map_err(|error| format!("draw a name: {error}"))?;
        let address = address(&name).map_err(failed("name a Unix socket"))?;
        let listener = UnixListener::bind_addr(&address).map_err(failed("listen at a Unix socket"))?;
        listener.set_nonblocking(true).map_err(failed("set a Unix socket non-blocking"))?;
        let (segment, descriptor) =
            Segment::create(group, bucket_len).map_err(failed("make shared memory"))?;
        let (key, group, callers) = (key.clone(), group.clone(), Vec::new());
        Ok(Self { key, group, name, listener, callers, segment, descriptor })
    }

    /// What the others need to come for it.
    pub(crate) fn name(&self) -> [u8; NAME_LEN] {
        self.name
    }

    /// Where something may happen that [`hand_out`](Self::hand_out) is to be called for.
    pub(crate) fn places(&self) -> impl Iterator<Item = PollFd<'_>> {
        let listener = PollFd::new(&self.listener, PollFlags::IN);
        std::iter::once(listener).chain(self.callers.iter().map(|caller| PollFd::new(caller, PollFlags::IN)))
    }

    /// Serves those who have come. Whoever fails or is refused has no memory, and will say so.
    pub(crate) fn hand_out(&mut self) {
        let places = self.group.world() + STRANGERS_AT_ONCE;
        // One more than there are places for: before somebody is dropped, all are heard.
        while self.callers.len() <= places
            && let Ok((caller, _)) = self.listener.accept()
        {
            if caller.set_nonblocking(true).is_ok() {
                self.callers.push(caller);
            }
        }
        let mut callers = std::mem::take(&mut self.callers);
        callers.retain_mut(|caller| {
            let mut request = [0; REQUEST_LEN];
            // It is said in one piece, so it comes in one piece.
            match caller.read(&mut request) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Ok(REQUEST_LEN) => self.answer(caller, &request),
                _ => warn!("refused a connection for shared memory: it broke off"),
            }
            false
        });
        // None of those who are left has said anything.
        if callers.len() > places {
            callers.remove(0);
        }
        self.callers = callers;
    }

    fn answer(&self, caller: &UnixStream, request: &[u8; REQUEST_LEN]) {
        let rank = u32::from_le_bytes(field(request, 0));
        let proof = |side| proof(&self.key, side, &self.name, &self.group, rank);
        // Hashes are compared in a time that does not depend on where they differ.
        if proof(Side::Taking) != blake3::Hash::from_bytes(field(request, 4)) {
            warn!("refused a connection for shared memory: it does not know the secret of this run");
            return;
        }
        let descriptors = [self.descriptor.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let words = proof(Side::Giving);
        let sent = sendmsg(caller, &[IoSlice::new(words.as_bytes())], &mut control, SendFlags::NOSIGNAL);
        if let Err(error) = sent {
            warn!(rank, %error, "shared memory could not be handed to a peer");
        }
    }

    /// The segment, once all have it or have said that they do not.
    pub(crate) fn into_segment(self) -> Segment {
        self.segment
    }
}

impl Segment {
    /// Takes the segment that rank 0 of `group` offers as `name`. An error is the reason why this cannot be.
    pub(crate) fn take(
        name: &[u8; NAME_LEN],
        key: &Key,
        group: &Group,
        bucket_len: usize,
    ) -> Result<Self, String> {
        let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        let rank = group.rank() as u32;
        let proof = |side| proof(key, side, name, group, rank);
        let address = address(name).map_err(failed("name a Unix socket"))?;
        let request = request(key, name, group);
        let until = Instant::now() + ANSWER_LIMIT;
        let (words, descriptor) = loop {
            match ask(&address, &request, until) {
                Ok(answer) => break answer,
                Err((_, error)) if is_pushed_out(&error) && Instant::now() < until => thread::sleep(PAUSE),
                Err((what, error)) => return Err(failed(what)(error)),
            }
        };
        if proof(Side::Giving) != blake3::Hash::from_bytes(words) {
            return Err("who answers for rank 0 does not know the secret of this run".to_string());
        }
        let descriptor = descriptor.ok_or("rank 0 answered without memory")?;
        Segment::open(&descriptor, group, bucket_len).map_err(failed("open the memory of rank 0"))
    }
}

/// A proof, and the descriptor that came with it.
type Answer = ([u8; blake3::OUT_LEN], Option<OwnedFd>);

/// Asks rank 0 once, and waits for its answer. An error comes with what was tried.
fn ask(address: &SocketAddr, request: &[u8], until: Instant) -> Result<Answer, (&'static str, io::Error)> {
    let failed = |what: &'static str| move |error: io::Error| (what, error);
    let mut stream = UnixStream::connect_addr(address).map_err(failed("reach rank 0 within this host"))?;
    let left = until.saturating_duration_since(Instant::now()).max(PAUSE);
    stream.set_read_timeout(Some(left)).map_err(failed("limit the wait for rank 0"))?;
    stream.write_all(request).map_err(failed("ask rank 0 for its memory"))?;
    receive(&stream).map_err(failed("wait for the memory of rank 0"))
}

/// Whether rank 0 has closed a connection, as it does where too many are open.
fn is_pushed_out(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Waits for what rank 0 says.
fn receive(stream: &UnixStream) -> io::Result<Answer> {
    let mut words = [0; blake3::OUT_LEN];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(stream, &mut [IoSliceMut::new(&mut words)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptor = descriptors.next().and_then(|mut descriptors| descriptors.next());
    match received.bytes == words.len() {
        true => Ok((words, descriptor)),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// What this rank of `group` says to get the segment.
fn request(key: &Key, name: &[u8; NAME_LEN], group: &Group) -> Vec<u8> {
    let rank = group.rank() as u32;
    [&rank.to_le_bytes()[..], proof(key, Side::Taking, name, group, rank).as_bytes()].concat()
}

/// What shows that `side` knows the key, for this offer and this rank only.
fn proof(key: &Key, side: Side, name: &[u8; NAME_LEN], group: &Group, rank: u32) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(key.bytes());
    hasher.update(b"collective: shared memory").update(&[side as u8]).update(name).update(&group.run());
    hasher.update(&group.generation().to_le_bytes()).update(&rank.to_le_bytes()).finalize()
}

fn address(name: &[u8; NAME_LEN]) -> io::Result<SocketAddr> {
    let words: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    SocketAddr::from_abstract_name(format!("collective-{words}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared_memory::handover::Phase;
    use crate::testing::{group, key};

    /// Hands out until `taking` has an answer.
    fn serve<T: Send>(offer: &mut Offer, taking: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let taking = scope.spawn(taking);
            while !taking.is_finished() {
                offer.hand_out();
                thread::yield_now();
            }
            taking.join().unwrap()
        })
    }

    #[test]
    fn only_who_knows_the_key_of_this_generation_gets_the_memory() {
        let group = |generation, rank| group(generation, rank, 2, 8);
        let mut offer = Offer::make(&key(), &group(3, 0), 1000).unwrap();
        let name = offer.name();
        // They stay connected and say nothing, or something else.
        let mute = UnixStream::connect_addr(&address(&name).unwrap()).unwrap();
        let mut loud = UnixStream::connect_addr(&address(&name).unwrap()).unwrap();
        loud.write_all(&[0; 100]).unwrap();
        for (name, key, group, reason) in [
            (name, Key::new([0; 32]), group(3, 1), "wait for the memory"),
            (name, key(), group(4, 1), "wait for the memory"),
            ([0; NAME_LEN], key(), group(3, 1), "reach rank 0 within this host"),
        ] {
            let error = serve(&mut offer, || Segment::take(&name, &key, &group, 1000).unwrap_err());
            assert!(error.starts_with(reason), "{error}");
        }
        let segment = serve(&mut offer, || Segment::take(&name, &key(), &group(3, 1), 1000).unwrap());
        drop((mute, loud));
        // It is the same memory.
        segment.header().handover.leave(1);
        let phase = offer.into_segment().header().handover.look(|_| false);
        assert_eq!(phase, Phase::Abandoned { rank: 1 });
    }

    #[test]
    fn strangers_in_a_flood_do_not_push_out_who_asks() {
        let group = |rank| group(3, rank, 2, 8);
        let mut offer = Offer::make(&key(), &group(0), 1000).unwrap();
        let place = address(&offer.name()).unwrap();
        let mute = || UnixStream::connect_addr(&place).unwrap();
        let mut peer = mute();
        let request = request(&key(), &offer.name(), &group(1));
        peer.write_all(&request).unwrap();
        // More than may be connected at the same time, behind it and all unheard.
        let strangers: Vec<_> = (0..40).map(|_| mute()).collect();
        offer.hand_out();
        let (_, descriptor) = receive(&peer).unwrap();
        assert!(descriptor.is_some());
        drop(strangers);
    }

    #[test]
    fn who_is_pushed_out_before_it_is_heard_asks_again() {
        let group = |rank| group(3, rank, 2, 8);
        let mut offer = Offer::make(&key(), &group(0), 1000).unwrap();
        let name = offer.name();
        thread::scope(|scope| {
            let taking = scope.spawn(move || Segment::take(&name, &key(), &group(1), 1000).map(|_| ()));
            offer.listener.set_nonblocking(false).unwrap();
            drop(offer.listener.accept().unwrap());
            offer.listener.set_nonblocking(true).unwrap();
            serve(&mut offer, || taking.join().unwrap()).unwrap();
        });
    }

    #[test]
    fn who_answers_for_rank_0_must_know_the_key() {
        let group = group(3, 1, 2, 8);
        let name = [0xee; NAME_LEN];
        let listener = UnixListener::bind_addr(&address(&name).unwrap()).unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; REQUEST_LEN];
                stream.read_exact(&mut request).unwrap();
                // Its own proof, sent back.
                stream.write_all(&request[4..]).unwrap();
            });
            let error = Segment::take(&name, &key(), &group, 1000).unwrap_err();
            assert_eq!(error, "who answers for rank 0 does not know the secret of this run");
        });
    }
}
