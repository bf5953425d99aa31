//! Weights that are read where they lie, in the state of a run, in place of a copy for each step.

use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use super::buffer::Buffer;

/// A stretch of numbers that others read as well.
pub(super) struct Borrowed {
    values: Arc<[f32]>,
    range: Range<usize>,
    /// The same numbers for this one alone, should it change them.
    own: Option<Buffer>,
}

impl Borrowed {
    pub(super) fn new(values: &Arc<[f32]>, range: Range<usize>) -> Borrowed {
        Borrowed { values: Arc::clone(values), range, own: None }
    }
}

impl Deref for Borrowed {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.own.as_deref().unwrap_or_else(|| &self.values[self.range.clone()])
    }
}

impl DerefMut for Borrowed {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.own.get_or_insert_with(|| {
            let mut own = Buffer::new(self.range.len());
            own.copy_from_slice(&self.values[self.range.clone()]);
            own
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_changed_is_its_own() {
        let values: Arc<[f32]> = (0..100).map(|number| number as f32).collect();
        let mut borrowed = Borrowed::new(&values, 10..20);
        assert_eq!((&*borrowed, borrowed.as_ptr()), (&values[10..20], values[10..].as_ptr()), "no copy");
        borrowed[3] = -1.0;
        assert_eq!(borrowed[2..5], [12.0, -1.0, 14.0]);
        assert_eq!(values[13], 13.0);
        drop(borrowed);
        assert_eq!(Arc::strong_count(&values), 1);
    }
}
