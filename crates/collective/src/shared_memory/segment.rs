//! The memory of one generation: where in it what lies, and the only places that lend it as floats.
//!
//! ```text
//! | header | for each rank its progress | sums of rank 0 | … | sums of the last rank | result |
//! ```

use super::handover::Handover;
use crate::{Group, SubtreeSums};
use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The segment may neither shrink, which would kill whoever touches what is gone, nor grow.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// Buckets begin at multiples of this many bytes. Huge pages gained nothing that could be measured.
const PAGE_BYTES: usize = 4096;

/// What the segment begins with. All of it is atomic, and zero at first.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Header {
    generation: AtomicU64,
    pub(super) handover: Handover<AtomicU32>,
}

/// How far one rank is, for messages and to compare steps; on cache lines of its own.
#[derive(Debug)]
#[repr(C, align(128))]
pub(super) struct Progress {
    /// Twice the folds it has begun, less one before it has done its part of the last.
    pub(super) phases: AtomicU64,
    /// The step of its last fold, and of the one before: a rank may have begun the next fold while another compares
    /// the steps of this one.
    pub(super) steps: [AtomicU64; 2],
}

/// A segment as this process sees it.
#[derive(Debug)]
pub(crate) struct Segment {
    memory: MmapRaw,
    places: Places,
    rank: usize,
}

/// Where in a segment what lies, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Places {
    world: usize,
    bucket_len: usize,
    /// Where the first sum of each rank begins, and after them the result.
    starts: Vec<usize>,
    /// From one bucket to the next.
    stride: usize,
    end: usize,
}

impl Places {
    /// `None` if the segment would be larger than memory can be.
    fn new(group: &Group, bucket_len: usize) -> Option<Self> {
        let bucket_bytes = bucket_len.checked_mul(size_of::<f32>())?;
        let stride = bucket_bytes.checked_next_multiple_of(PAGE_BYTES)?;
        let header = size_of::<Header>() + group.world() * size_of::<Progress>();
        let mut starts = vec![header.next_multiple_of(PAGE_BYTES)];
        for lease in group.leases() {
            let sums = stride.checked_mul(SubtreeSums::node_count(lease))?;
            starts.push(starts.last()?.checked_add(sums)?);
        }
        let end = starts.last()?.checked_add(stride)?;
        isize::try_from(end).ok()?;
        Some(Self { world: group.world(), bucket_len, starts, stride, end })
    }

    /// Where the floats `range` of sum `position` of `rank` lie, or those of the result if `rank` is the world's size.
    fn floats(&self, rank: usize, position: usize, range: Range<usize>) -> Range<usize> {
        assert!(range.start <= range.end && range.end <= self.bucket_len, "floats of one bucket");
        let start = self.starts[rank] + position * self.stride;
        assert!(
            start + self.stride <= self.starts.get(rank + 1).copied().unwrap_or(self.end),
            "a sum of this rank"
        );
        start + range.start * size_of::<f32>()..start + range.end * size_of::<f32>()
    }
}

impl Segment {
    /// Makes the segment of `group`, which has no name that could stay behind, and the descriptor to hand out.
    pub(super) fn create(group: &Group, bucket_len: usize) -> io::Result<(Self, OwnedFd)> {
        let places = Places::new(group, bucket_len).ok_or_else(too_large)?;
        let descriptor = memfd_create("collective", MemfdFlags::CLOEXEC.union(MemfdFlags::ALLOW_SEALING))?;
        ftruncate(&descriptor, places.end as u64)?;
        fcntl_add_seals(&descriptor, SEALS)?;
        let segment = Self::map(&descriptor, places, group.rank())?;
        segment.header().generation.store(group.generation(), Ordering::Relaxed);
        segment.populate(0..segment.places.starts[0])?;
        segment.populate(segment.places.starts[group.world()]..segment.places.end)?;
        Ok((segment, descriptor))
    }

    /// Opens the segment that a peer made, if it is what this worker would have made.
    pub(super) fn open(descriptor: &OwnedFd, group: &Group, bucket_len: usize) -> io::Result<Self> {
        let other = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_string());
        let places = Places::new(group, bucket_len).ok_or_else(too_large)?;
        if !fcntl_get_seals(descriptor)?.contains(SEALS) {
            return Err(other("the segment that came may change its size"));
        }
        if u64::try_from(fstat(descriptor)?.st_size) != Ok(places.end as u64) {
            return Err(other("the segment that came has another size"));
        }
        let segment = Self::map(descriptor, places, group.rank())?;
        match segment.header().generation.load(Ordering::Relaxed) == group.generation() {
            true => Ok(segment),
            false => Err(other("the segment that came is of another generation")),
        }
    }

    fn map(descriptor: &OwnedFd, places: Places, rank: usize) -> io::Result<Self> {
        let memory = MmapOptions::new().len(places.end).map_raw(&descriptor.as_fd())?;
        let segment = Self { memory, places, rank };
        segment.populate(segment.places.starts[rank]..segment.places.starts[rank + 1])?;
        Ok(segment)
    }

    /// Takes the memory now, when its lack is an error and not yet the end of the process, and from the node of the
    /// processor that will write it.
    fn populate(&self, bytes: Range<usize>) -> io::Result<()> {
        self.memory.advise_range(Advice::PopulateWrite, bytes.start, bytes.len())
    }

    pub(super) fn header(&self) -> &Header {
        // SAFETY: the mapping begins on a page and is longer than a header, which consists of atomics, for which any
        // bytes are valid and which other processes may change.
        unsafe { &*self.memory.as_mut_ptr().cast::<Header>() }
    }

    /// How far each rank is.
    pub(super) fn progress(&self) -> &[Progress] {
        let start = size_of::<Header>();
        // SAFETY: as for the header; its size is a multiple of its alignment, which is that of `Progress`, and the
        // first sums begin behind as many of these as there are ranks.
        unsafe {
            let first = self.memory.as_mut_ptr().add(start).cast::<Progress>();
            std::slice::from_raw_parts(first, self.places.world)
        }
    }

    /// The floats `range` of sum `position` of `rank`.
    ///
    /// # Safety
    /// Nobody writes them while they are lent: all ranks have arrived, and not all chunks are folded.
    pub(super) unsafe fn sum(&self, rank: usize, position: usize, range: Range<usize>) -> &[f32] {
        assert!(rank < self.places.world, "sums are a rank's");
        let bytes = self.places.floats(rank, position, range);
        // SAFETY: `floats` stays within the mapping, whose start and whose places are multiples of a float's size; any
        // bytes are floats; the caller sees to it that nobody writes them.
        unsafe { floats(&self.memory, bytes) }
    }

    /// The floats `range` of the result.
    ///
    /// # Safety
    /// Nobody writes them while they are lent: all chunks are folded, and this rank has not arrived again.
    pub(super) unsafe fn result(&self, range: Range<usize>) -> &[f32] {
        let bytes = self.places.floats(self.places.world, 0, range);
        // SAFETY: as for `sum`.
        unsafe { floats(&self.memory, bytes) }
    }

    /// The floats `range` of the result, to be written.
    ///
    /// # Safety
    /// Nobody else reads or writes them while they are lent: they are of a chunk that this rank has claimed and not
    /// finished.
    #[expect(
        clippy::mut_from_ref,
        reason = "who may write is settled between processes, which no borrow can tell"
    )]
    pub(super) unsafe fn result_mut(&self, range: Range<usize>) -> &mut [f32] {
        let bytes = self.places.floats(self.places.world, 0, range);
        // SAFETY: as for `sum`, and nobody reads them either.
        unsafe { floats_mut(&self.memory, bytes) }
    }
}

/// Lends bytes of a mapping.
///
/// # Safety
/// They lie within it, on multiples of a float's size, and nobody writes them meanwhile.
unsafe fn floats(memory: &MmapRaw, bytes: Range<usize>) -> &[f32] {
    // SAFETY: the caller's word.
    unsafe {
        let first = memory.as_mut_ptr().add(bytes.start).cast::<f32>();
        std::slice::from_raw_parts(first, bytes.len() / size_of::<f32>())
    }
}

/// The same to be written.
///
/// # Safety
/// And nobody reads them either.
#[expect(
    clippy::mut_from_ref,
    reason = "who may write is settled between processes, which no borrow can tell"
)]
unsafe fn floats_mut(memory: &MmapRaw, bytes: Range<usize>) -> &mut [f32] {
    // SAFETY: the caller's word.
    unsafe {
        let first = memory.as_mut_ptr().add(bytes.start).cast::<f32>();
        std::slice::from_raw_parts_mut(first, bytes.len() / size_of::<f32>())
    }
}

/// The home of one of this rank's own sums, which its peers read during a fold.
#[derive(Debug)]
pub(super) struct Home {
    segment: Arc<Segment>,
    bytes: Range<usize>,
}

impl Home {
    /// The homes of all sums of the segment's rank.
    ///
    /// # Safety
    /// They are made once for a segment, and neither read nor written during a fold or after one that failed, when
    /// peers may still read them.
    pub(super) unsafe fn all(segment: &Arc<Segment>, nodes: usize) -> Vec<Self> {
        let places = &segment.places;
        let bytes = |position| places.floats(segment.rank, position, 0..places.bucket_len);
        (0..nodes).map(|position| Self { segment: Arc::clone(segment), bytes: bytes(position) }).collect()
    }
}

impl Deref for Home {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: within the mapping, by `Places::floats`; only this rank writes its own sums, and this rank's are
        // written through their home only, which is borrowed.
        unsafe { floats(&self.segment.memory, self.bytes.clone()) }
    }
}

impl DerefMut for Home {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and outside a fold no peer reads them, as whoever made the homes has promised.
        unsafe { floats_mut(&self.segment.memory, self.bytes.clone()) }
    }
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::OutOfMemory, "the group needs more memory than there can be")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{group, leases};
    use proptest::prelude::*;
    use rustix::io::Errno;

    proptest! {
        #[test]
        fn nothing_overlaps(
            cuts in proptest::collection::vec(any::<bool>(), 17),
            bucket_len in prop_oneof![0_usize..3000, 500_000_usize..600_000],
        ) {
            let leases = leases(16, &cuts);
            let group = Group::new([0; 16], 1, 0, leases.clone(), 16).unwrap();
            let places = Places::new(&group, bucket_len).unwrap();
            let mut end = size_of::<Header>() + group.world() * size_of::<Progress>();
            let ranks = leases.iter().map(SubtreeSums::node_count).chain([1]);
            for (rank, position) in ranks.enumerate().flat_map(|(rank, nodes)| (0..nodes).map(move |node| (rank, node))) {
                let bytes = places.floats(rank, position, 0..bucket_len);
                prop_assert!(bytes.start >= end && bytes.start.is_multiple_of(PAGE_BYTES));
                prop_assert_eq!(bytes.len(), 4 * bucket_len);
                end = bytes.end;
            }
            prop_assert!(end <= places.end);
        }
    }

    #[test]
    fn a_segment_keeps_its_size_and_is_of_one_generation() {
        let (segment, descriptor) = Segment::create(&group(3, 0, 2, 8), 1000).unwrap();
        let size = segment.places.end as u64;
        for other in [0, size - 1, size + 1] {
            assert_eq!(ftruncate(&descriptor, other), Err(Errno::PERM));
        }
        Segment::open(&descriptor, &group(3, 1, 2, 8), 1000).unwrap();
        let refused = |group: &Group, bucket_len| {
            Segment::open(&descriptor, group, bucket_len).unwrap_err().to_string()
        };
        assert!(refused(&group(4, 1, 2, 8), 1000).contains("another generation"));
        assert!(refused(&group(3, 1, 2, 8), 5000).contains("another size"));
        assert!(refused(&group(3, 1, 4, 8), 1000).contains("another size"));
        assert!(refused(&group(3, 1, 2, 8), usize::MAX / 8).contains("more memory"));
        let unsealed = memfd_create("unsealed", MemfdFlags::ALLOW_SEALING).unwrap();
        let error = Segment::open(&unsealed, &group(3, 1, 2, 8), 1000).unwrap_err();
        assert!(error.to_string().contains("may change its size"));
    }
}
