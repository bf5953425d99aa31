//! Memory for activations, gradients and weights that is used again.
//!
//! A step needs the same hundreds of MiB as the step before. Fresh from the system, every page of them would
//! cost a fault and a clearing. So buffers are cut from areas that are never given back. Neighbours that are free are
//! joined again: what activations leave behind serves for gradients, whatever their sizes, and the areas fill up to about
//! the most that is in use at once.

use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::slice;
use std::sync::{Mutex, MutexGuard, PoisonError};

use memmap2::{MmapOptions, MmapRaw};
use range_alloc::RangeAllocator;

/// Numbers in a cache line: buffers start on one, which keeps vectors from straddling two of them.
const LINE: usize = 16;

/// Lines in an area: 1 GiB, of which the system spends what has been written to.
const AREA_LINES: usize = 1 << 24;

/// `length` numbers that start on a cache line. They hold whatever their last user left.
pub(crate) struct Buffer {
    first: NonNull<f32>,
    length: usize,
    place: Place,
}

// SAFETY: a buffer owns its numbers, as a `Vec` does: nobody else has a pointer to them.
unsafe impl Send for Buffer {}
// SAFETY: as above; a shared borrow only reads.
unsafe impl Sync for Buffer {}

impl Buffer {
    pub(crate) fn new(length: usize) -> Buffer {
        let (first, place) = pool().take(length.div_ceil(LINE).max(1));
        let mut buffer = Buffer { first, length, place };
        if cfg!(test) {
            // So that tests see what nobody wrote.
            buffer.fill(f32::NAN);
        }
        buffer
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: the pool gave this place to this buffer alone, until it is dropped, and never unmaps it. There are
        // `length` numbers in it: zeros of the system's, or what earlier users wrote.
        unsafe { slice::from_raw_parts(self.first.as_ptr(), self.length) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as for reading, and this borrow of the buffer is the only one.
        unsafe { slice::from_raw_parts_mut(self.first.as_ptr(), self.length) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        pool().give_back(&self.place);
    }
}

/// Some lines of an area.
#[derive(Debug)]
struct Place {
    area: usize,
    lines: Range<usize>,
}

/// Zeros from the system, of which some lines are in use.
struct Area {
    memory: MmapRaw,
    lines: RangeAllocator<usize>,
}

/// All areas there are.
struct Pool {
    areas: Vec<Area>,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { areas: Vec::new() });

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// So many lines of the smallest gap that has them, in the first area that has one.
    ///
    /// # Panics
    /// If the system has no memory left.
    fn take(&mut self, count: usize) -> (NonNull<f32>, Place) {
        let mut areas = self.areas.iter_mut().enumerate();
        let found =
            areas.find_map(|(area, Area { lines, .. })| Some((area, lines.allocate_range(count).ok()?)));
        let (area, lines) = found.unwrap_or_else(|| {
            let mut area = Area::with_room(count, map);
            let lines = area.lines.allocate_range(count).expect("the area was made for it");
            self.areas.push(area);
            (self.areas.len() - 1, lines)
        });
        (self.areas[area].line(lines.start), Place { area, lines })
    }

    fn give_back(&mut self, place: &Place) {
        self.areas[place.area].lines.free_range(place.lines.clone());
    }
}

impl Area {
    /// An area with room for `count` lines. Where the system does not map a whole one, as where `ulimit -v` is set, it is
    /// as much of one as can be had.
    ///
    /// # Panics
    /// If the system has no memory for `count` lines.
    fn with_room(count: usize, map: impl Fn(usize) -> io::Result<MmapRaw>) -> Area {
        let mut lines = count.max(AREA_LINES);
        loop {
            match map(lines) {
                Ok(memory) => return Area { memory, lines: RangeAllocator::new(0..lines) },
                Err(_) if lines > count => lines = (lines / 2).max(count),
                Err(error) => panic!("no memory for {} bytes of numbers: {error}", bytes(lines)),
            }
        }
    }

    fn line(&self, number: usize) -> NonNull<f32> {
        let first = NonNull::new(self.memory.as_mut_ptr()).expect("mapped memory is somewhere");
        // SAFETY: the line is one of the area's, so it lies within the mapping.
        let line = unsafe { first.cast::<f32>().add(number * LINE) };
        debug_assert!(line.addr().get().is_multiple_of(64), "mappings start on pages");
        line
    }
}

fn bytes(lines: usize) -> usize {
    lines * LINE * size_of::<f32>()
}

/// Zeros from the system. They are not even promised before they are used: an area is larger than some machines' memory.
fn map(lines: usize) -> io::Result<MmapRaw> {
    Ok(MmapOptions::new().len(bytes(lines)).no_reserve_swap().map_anon()?.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is taken and dropped, on two threads: each buffer keeps what was written into it.
        #[test]
        fn no_two_buffers_share_a_number(lengths in prop::collection::vec((0usize..5000, any::<bool>()), 1..60)) {
            let work = |thread: f32| {
                let mut kept: Vec<(f32, Buffer)> = Vec::new();
                for (number, &(length, drops)) in lengths.iter().enumerate() {
                    if drops && !kept.is_empty() {
                        kept.swap_remove(length % kept.len());
                    }
                    let mark = thread + number as f32;
                    let mut buffer = Buffer::new(length);
                    buffer.fill(mark);
                    kept.push((mark, buffer));
                }
                for (mark, buffer) in kept {
                    assert!(buffer.as_ptr().addr().is_multiple_of(64) && buffer.iter().all(|value| *value == mark));
                }
            };
            std::thread::scope(|scope| {
                scope.spawn(|| work(0.0));
                work(1000.0);
            });
        }
    }

    #[test]
    fn an_area_is_as_large_as_the_system_lets_it_be() {
        for (most, count, expected) in [
            (AREA_LINES, 1, AREA_LINES),
            (AREA_LINES - 1, 1, AREA_LINES / 2),
            (AREA_LINES / 8, 1, AREA_LINES / 8),
            (AREA_LINES / 4, AREA_LINES / 4 - 1, AREA_LINES / 4),
            (AREA_LINES / 3, AREA_LINES / 3, AREA_LINES / 3),
            (1, 1, 1),
            (usize::MAX, AREA_LINES + 1, AREA_LINES + 1),
        ] {
            let limited = |lines| {
                if lines > most { Err(io::ErrorKind::OutOfMemory.into()) } else { map(lines) }
            };
            let found = Area::with_room(count, limited).memory.len();
            assert_eq!(found, bytes(expected), "{count} lines where {most} can be had");
        }
    }

    #[test]
    #[should_panic = "no memory for 64 bytes"]
    fn without_any_memory_it_is_said_how_much_was_asked_for() {
        Area::with_room(1, |_| Err(io::ErrorKind::OutOfMemory.into()));
    }

    #[test]
    fn what_neighbours_leave_serves_a_larger_one() {
        let mut pool = Pool { areas: Vec::new() };
        let whole = AREA_LINES / 4;
        let mut places: Vec<(NonNull<f32>, Place)> = (0..4).map(|_| pool.take(whole)).collect();
        let last = places.pop().unwrap();
        let (first, _) = places[0];
        for (_, place) in &places {
            pool.give_back(place);
        }
        let (larger, place) = pool.take(3 * whole);
        assert_eq!((larger, place.area), (first, 0));
        // There is no gap left, so another area is made; a longer one where it must be.
        assert_eq!(pool.take(1).1.area, 1);
        assert_eq!(pool.take(AREA_LINES + 1).1.lines, 0..AREA_LINES + 1);
        pool.give_back(&last.1);
        // The smallest gap that fits.
        assert_eq!(pool.take(whole).1.area, 0);
    }
}
