//! One socket to a peer and how far the two streams of frames on it have come.

use super::frame::{Frame, HEADER_LEN};
use crate::checksum::Checksum;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::TcpStream;

/// Chunks of our slice that a peer may be ahead of the slowest one, on each lane. One is being received while another is
/// folded; more would only fill the cache.
pub(super) const WINDOW_CHUNKS: usize = 2;

/// Which chunks of every slice a connection carries: every `count`-th, from chunk `place` on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lane {
    pub(super) place: usize,
    /// Connections to this peer.
    pub(super) count: usize,
}

impl Lane {
    pub(super) fn carries(self, chunk: usize) -> bool {
        chunk % self.count == self.place
    }

    /// How many of the chunks before `end` this lane carries.
    pub(super) fn chunks_before(self, end: usize) -> usize {
        end.saturating_sub(self.place).div_ceil(self.count)
    }

    /// The chunk that this lane carries after `earlier` others of the same slice.
    pub(super) fn chunk_after(self, earlier: usize) -> usize {
        self.place + earlier * self.count
    }
}

/// A connection to a peer.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) rank: usize,
    pub(super) lane: Lane,
    pub(super) stream: TcpStream,
    /// Subtree sums that this peer sends of every chunk of our slice.
    pub(super) nodes: usize,
    pub(super) outgoing: Outgoing,
    /// The payload of the frame being sent, where that is rounded.
    pub(super) rounded: Vec<u16>,
    pub(super) incoming: Incoming,
}

/// The frames to a peer on one lane.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// The frame being sent, with its header.
    pub(super) frame: Option<(Frame, [u8; HEADER_LEN])>,
    /// Bytes of it that are sent, header included.
    sent: usize,
    /// Frames begun in this fold: of our sums, and of the folded chunks of our slice.
    pub(super) scattered: usize,
    pub(super) gathered: usize,
    /// The socket takes no more for now.
    pub(super) full: bool,
}

/// The frames from a peer on one lane.
#[derive(Debug)]
pub(super) struct Incoming {
    /// The next frame's header; it is read along with the payload before it.
    pub(super) header: [u8; HEADER_LEN],
    pub(super) header_filled: usize,
    /// The frame whose payload is being read, and the checksum announced for it.
    pub(super) frame: Option<(Frame, u32)>,
    /// Bytes of its payload that are read, and their checksum so far.
    pub(super) filled: usize,
    pub(super) checksum: Checksum,
    /// Where the payload comes to, if it is rounded.
    pub(super) rounded: Vec<u16>,
    /// Whole frames received in this fold: of the peer's sums, and of its folded slice.
    pub(super) scattered: usize,
    pub(super) gathered: usize,
    /// The socket may have something for us.
    pub(super) ready: bool,
    /// The peer's sums of `WINDOW_CHUNKS` of the lane's chunks of our slice: for each chunk, one part of each node.
    pub(super) window: Vec<f32>,
}

/// What a read or write came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// The frame is done.
    Whole,
    /// The socket has nothing more, or takes nothing more, for now.
    Pending,
}

impl Connection {
    pub(super) fn new(rank: usize, lane: Lane, stream: TcpStream, nodes: usize, chunk_len: usize) -> Self {
        let incoming = Incoming {
            header: [0; HEADER_LEN],
            header_filled: 0,
            frame: None,
            filled: 0,
            checksum: Checksum::default(),
            rounded: Vec::new(),
            scattered: 0,
            gathered: 0,
            ready: false,
            window: vec![0.0; WINDOW_CHUNKS * nodes * chunk_len],
        };
        Self { rank, lane, stream, nodes, outgoing: Outgoing::default(), rounded: Vec::new(), incoming }
    }

    /// Counts from zero again. A header that came early, of the next fold's first frame, is kept.
    pub(super) fn begin_fold(&mut self) {
        self.outgoing = Outgoing::default();
        self.incoming.scattered = 0;
        self.incoming.gathered = 0;
        self.incoming.ready = true;
    }
}

impl Outgoing {
    /// Sends what the socket takes of the current frame, whose payload is given.
    pub(super) fn send(&mut self, stream: &mut TcpStream, payload: &[u8]) -> io::Result<Moved> {
        let Some((_, header)) = &self.frame else { return Ok(Moved::Whole) };
        let total = HEADER_LEN + payload.len();
        while self.sent < total {
            let sent = self.sent;
            let parts = [
                IoSlice::new(&header[sent.min(HEADER_LEN)..]),
                IoSlice::new(&payload[sent.saturating_sub(HEADER_LEN)..]),
            ];
            match stream.write_vectored(&parts) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.full = true;
                    return Ok(Moved::Pending);
                }
                Err(error) => return Err(error),
            }
        }
        self.frame = None;
        self.sent = 0;
        Ok(Moved::Whole)
    }
}

impl Incoming {
    /// Reads the next header, as far as it has come.
    pub(super) fn read_header(&mut self, stream: &mut TcpStream) -> io::Result<Moved> {
        while self.header_filled < HEADER_LEN {
            let filled = self.header_filled;
            match retried(|| stream.read(&mut self.header[filled..]))? {
                Some(count) => self.header_filled += count,
                None => return Ok(Moved::Pending),
            }
        }
        Ok(Moved::Whole)
    }
}

/// Reads into `payload` from `*filled` on, and the header after it; adds what came to `checksum`.
pub(super) fn read_payload(
    stream: &mut TcpStream,
    payload: &mut [u8],
    (filled, checksum): (&mut usize, &mut Checksum),
    (header, header_filled): (&mut [u8; HEADER_LEN], &mut usize),
) -> io::Result<Moved> {
    while *filled < payload.len() {
        let missing = payload.len() - *filled;
        let read = || {
            let mut parts = [IoSliceMut::new(&mut payload[*filled..]), IoSliceMut::new(&mut header[..])];
            stream.read_vectored(&mut parts)
        };
        let Some(count) = retried(read)? else { return Ok(Moved::Pending) };
        let came = count.min(missing);
        checksum.add(&payload[*filled..*filled + came]);
        *filled += came;
        *header_filled = count - came;
    }
    Ok(Moved::Whole)
}

/// Reads until something comes (`Some`) or nothing is there (`None`); the end of the stream is an error, since
/// it is only read while the peer still owes something.
fn retried(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match read() {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "end of stream")),
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_goes_by_one_lane_and_each_lane_counts_its_own() {
        for count in 1..=5 {
            let lanes: Vec<Lane> = (0..count).map(|place| Lane { place, count }).collect();
            for chunk in 0..40 {
                let carriers: Vec<&Lane> = lanes.iter().filter(|lane| lane.carries(chunk)).collect();
                assert_eq!(carriers.len(), 1, "chunk {chunk} of {count} lanes");
                assert_eq!(carriers[0].chunk_after(carriers[0].chunks_before(chunk)), chunk);
            }
            for (lane, end) in lanes.iter().flat_map(|lane| (0..40).map(move |end| (lane, end))) {
                let carried = (0..end).filter(|chunk| lane.carries(*chunk)).count();
                assert_eq!(lane.chunks_before(end), carried, "{lane:?} before chunk {end}");
            }
        }
    }
}
