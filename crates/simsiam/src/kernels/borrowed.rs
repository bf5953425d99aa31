//! Weights that burn reads where they lie, in the state of a run, in place of a copy for each step.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::slice;
use std::sync::Arc;

use burn::tensor::{Bytes, DType, TensorData};
use burn_std::{AccessError, AccessPolicy, AllocationController, AllocationProperty};

use super::buffer::Buffer;

/// A stretch of numbers that others read as well.
struct Borrowed {
    values: Arc<[f32]>,
    range: Range<usize>,
    /// The same numbers for burn alone, should it want to change them.
    own: Option<Buffer>,
}

/// These of the numbers, without a copy.
pub(crate) fn borrowed(values: &Arc<[f32]>, range: Range<usize>) -> TensorData {
    let length = range.len();
    let lender = Borrowed { values: Arc::clone(values), range, own: None };
    // SAFETY: the controller keeps `length` numbers alive, all initialised.
    let bytes = unsafe { Bytes::from_controller(Box::new(lender), length * size_of::<f32>()) };
    TensorData::from_bytes(bytes, [length], DType::F32)
}

impl AllocationController for Borrowed {
    fn alloc_align(&self) -> usize {
        align_of::<f32>()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Native
    }

    fn memory(&self, _: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let values = self.own.as_deref().unwrap_or_else(|| &self.values[self.range.clone()]);
        let bytes: &[u8] = bytemuck::cast_slice(values);
        // SAFETY: `MaybeUninit<u8>` has the layout of `u8`, and a shared borrow writes nothing.
        Ok(unsafe { slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) })
    }

    unsafe fn memory_mut(&mut self, _: AccessPolicy) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        let own = self.own.get_or_insert_with(|| {
            let mut own = Buffer::new(self.range.len());
            own.copy_from_slice(&self.values[self.range.clone()]);
            own
        });
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(own);
        // SAFETY: `MaybeUninit<u8>` has the layout of `u8`; the caller writes initialised bytes only.
        Ok(unsafe { slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_burn_changes_is_its_own() {
        let values: Arc<[f32]> = (0..100).map(|number| number as f32).collect();
        let mut data = borrowed(&values, 10..20);
        assert_eq!(data.as_slice::<f32>().unwrap(), &values[10..20]);
        assert_eq!(data.as_slice::<f32>().unwrap().as_ptr(), values[10..].as_ptr(), "no copy");
        data.as_mut_slice::<f32>().unwrap()[3] = -1.0;
        assert_eq!(data.as_slice::<f32>().unwrap()[2..5], [12.0, -1.0, 14.0]);
        assert_eq!(values[13], 13.0);
        drop(data);
        assert_eq!(Arc::strong_count(&values), 1);
    }
}
