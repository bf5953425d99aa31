//! Memory for activations, gradients and weights that is used again.
//!
//! A step needs the same hundreds of MiB as the step before. Fresh from the system, every page of them would
//! cost a fault and a clearing, and would not start on a cache line.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::Bytes;
use burn_std::{AccessError, AccessPolicy, AllocationController, AllocationProperty};
use bytemuck::{Pod, Zeroable};

/// A cache line: keeps vectors from straddling two of them.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// `length` numbers that start on a cache line. They hold whatever their last user left.
pub(crate) struct Buffer {
    lines: Vec<Line>,
    length: usize,
}

impl Buffer {
    pub(crate) fn new(length: usize) -> Buffer {
        let count = length.div_ceil(16);
        let pooled = pool().take(count);
        let lines = pooled.unwrap_or_else(|| vec![Line::zeroed(); count]);
        let mut buffer = Buffer { lines, length };
        if cfg!(test) {
            // So that tests see what nobody wrote.
            buffer.fill(f32::NAN);
        }
        buffer
    }

    /// The buffer as burn's memory; it comes back to the pool when burn drops it.
    pub(crate) fn into_bytes(self) -> Bytes {
        let length = self.length * size_of::<f32>();
        // SAFETY: the controller owns at least `length` bytes, all initialised, for as long as it lives.
        unsafe { Bytes::from_controller(Box::new(self), length) }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        pool().give_back(std::mem::take(&mut self.lines));
    }
}

impl AllocationController for Buffer {
    fn alloc_align(&self) -> usize {
        // What the numbers need; burn makes copies with it, and the lines' alignment is beyond its limit.
        align_of::<f32>()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Native
    }

    fn memory(&self, _: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let bytes: &[u8] = bytemuck::cast_slice(&self.lines);
        // SAFETY: `MaybeUninit<u8>` has the layout of `u8`, and a shared borrow writes nothing.
        Ok(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) })
    }

    unsafe fn memory_mut(&mut self, _: AccessPolicy) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.lines);
        // SAFETY: `MaybeUninit<u8>` has the layout of `u8`; the caller writes initialised bytes only.
        Ok(unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len()) })
    }
}

/// Buffers that nobody uses, by their number of lines, each with the time of its return.
struct Pool {
    free: BTreeMap<usize, Vec<(u64, Vec<Line>)>>,
    /// Buffers taken so far: the pool's clock.
    taken: u64,
}

/// A buffer that found no use while this many others were taken is freed. A step takes some hundreds, so what
/// every step uses stays, and what belonged to other work goes.
const PATIENCE: u64 = 1 << 13;

static POOL: Mutex<Pool> = Mutex::new(Pool { free: BTreeMap::new(), taken: 0 });

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// The last returned buffer of `count` lines or up to an eighth more.
    fn take(&mut self, count: usize) -> Option<Vec<Line>> {
        self.taken += 1;
        if self.taken.is_multiple_of(PATIENCE) {
            self.free_the_idle();
        }
        let mut sizes = self.free.range_mut(count..=count + count / 8);
        sizes.find_map(|(_, buffers)| buffers.pop()).map(|(_, buffer)| buffer)
    }

    fn give_back(&mut self, buffer: Vec<Line>) {
        self.free.entry(buffer.len()).or_default().push((self.taken, buffer));
    }

    fn free_the_idle(&mut self) {
        for buffers in self.free.values_mut() {
            buffers.retain(|&(returned, _)| returned + PATIENCE > self.taken);
        }
        self.free.retain(|_, buffers| !buffers.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burn_reads_writes_and_copies_a_buffer() {
        let length = 16 * 1234 + 3;
        let mut buffer = Buffer::new(length);
        assert_eq!(buffer.as_ptr() as usize % 64, 0);
        buffer.fill(1.5);
        let mut bytes = buffer.into_bytes();
        bytes[..4].copy_from_slice(&2.5_f32.to_ne_bytes());
        let copy = bytes.clone();
        drop(bytes);
        let values: &[f32] = bytemuck::cast_slice(&copy);
        assert!(values.len() == length && values[0] == 2.5 && values[1..].iter().all(|&value| value == 1.5));
    }

    #[test]
    fn the_pool_gives_what_fits_and_frees_what_nobody_uses() {
        let mut pool = Pool { free: BTreeMap::new(), taken: 0 };
        pool.give_back(vec![Line::zeroed(); 100]);
        assert!(pool.take(101).is_none(), "longer than the one in stock");
        assert!(pool.take(50).is_none(), "less than eight ninths of it");
        assert_eq!(pool.take(90).map(|lines| lines.len()), Some(100));
        assert!(pool.take(90).is_none(), "it is in use");
        pool.give_back(vec![Line::zeroed(); 100]);
        for _ in 0..2 * PATIENCE {
            pool.take(7);
        }
        assert!(pool.take(100).is_none() && pool.free.is_empty());
    }
}
