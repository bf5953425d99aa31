//! Numbers of ours as burn's memory.

use std::mem::MaybeUninit;
use std::ops::DerefMut;
use std::slice;

use burn::tensor::Bytes;
use burn_std::{AccessError, AccessPolicy, AllocationController, AllocationProperty};

/// Without a copy: burn reads and writes what `numbers` gives it, and drops it at the end.
pub(super) fn into_bytes<T>(numbers: T) -> Bytes
where
    T: DerefMut<Target = [f32]> + Send + Sync + 'static,
{
    let length = numbers.len() * size_of::<f32>();
    // SAFETY: the controller owns `length` bytes, all initialised, for as long as it lives.
    unsafe { Bytes::from_controller(Box::new(Controller(numbers)), length) }
}

struct Controller<T>(T);

impl<T: DerefMut<Target = [f32]> + Send + Sync> AllocationController for Controller<T> {
    fn alloc_align(&self) -> usize {
        // What the numbers need; burn makes copies with it, and a cache line's alignment is beyond its limit.
        align_of::<f32>()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Native
    }

    fn memory(&self, _: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let bytes: &[u8] = bytemuck::cast_slice(&self.0);
        // SAFETY: `MaybeUninit<u8>` has the layout of `u8`, and a shared borrow writes nothing.
        Ok(unsafe { slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) })
    }

    unsafe fn memory_mut(&mut self, _: AccessPolicy) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.0);
        // SAFETY: `MaybeUninit<u8>` has the layout of `u8`; the caller writes initialised bytes only.
        Ok(unsafe { slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burn_reads_writes_and_copies_them() {
        let mut bytes = into_bytes(vec![1.5_f32; 1234].into_boxed_slice());
        bytes[..4].copy_from_slice(&2.5_f32.to_ne_bytes());
        let copy = bytes.clone();
        drop(bytes);
        let values: &[f32] = bytemuck::cast_slice(&copy);
        assert!(values.len() == 1234 && values[0] == 2.5 && values[1..].iter().all(|&value| value == 1.5));
    }
}
