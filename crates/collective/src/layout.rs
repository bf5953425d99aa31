//! How a bucket is cut: one slice for each rank to fold, and each slice into chunks to send, some of them rounded.

use std::ops::Range;

/// Slices begin at multiples of this many floats, one cache line, so that no two ranks' work shares a line.
const SLICE_ALIGNMENT: usize = 16;

/// The cut of a bucket of `bucket_len` floats between `world` ranks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    bucket_len: usize,
    slice_len: usize,
    chunk_len: usize,
    rounded_len: usize,
}

impl Layout {
    pub(crate) fn new(bucket_len: usize, world: usize, chunk_len: usize) -> Self {
        let slice_len = bucket_len.div_ceil(world).next_multiple_of(SLICE_ALIGNMENT);
        Self { bucket_len, slice_len, chunk_len, rounded_len: 0 }
    }

    /// The same where chunks that lie within the first `rounded_len` floats are sent as bf16.
    pub(crate) fn rounding(self, rounded_len: usize) -> Self {
        Self { rounded_len, ..self }
    }

    /// Whether the chunk that lies there is sent as bf16.
    pub(crate) fn is_rounded(&self, chunk: &Range<usize>) -> bool {
        chunk.end <= self.rounded_len
    }

    /// How many floats of the slice of `rank`, from its first on, may be sent as bf16.
    pub(crate) fn rounded_in_slice(&self, rank: usize) -> usize {
        let slice = self.slice(rank);
        self.rounded_len.clamp(slice.start, slice.end) - slice.start
    }

    /// The floats that `rank` folds; empty for the last ranks of a very small bucket.
    pub(crate) fn slice(&self, rank: usize) -> Range<usize> {
        let start = (rank * self.slice_len).min(self.bucket_len);
        start..(start + self.slice_len).min(self.bucket_len)
    }

    /// The chunks that the slice of `rank` is sent in.
    pub(crate) fn chunks(&self, rank: usize) -> usize {
        self.slice(rank).len().div_ceil(self.chunk_len)
    }

    /// Where in the bucket chunk `chunk` of the slice of `rank` lies; never empty for `chunk < chunks(rank)`.
    pub(crate) fn chunk(&self, rank: usize, chunk: usize) -> Range<usize> {
        let slice = self.slice(rank);
        let start = slice.start + chunk * self.chunk_len;
        start..(start + self.chunk_len).min(slice.end)
    }

    /// Where chunk `chunk` of the bucket lies in the slice of `rank`, which it is of.
    pub(crate) fn within_slice(&self, rank: usize, chunk: &Range<usize>) -> Range<usize> {
        let start = self.slice(rank).start;
        chunk.start - start..chunk.end - start
    }

    /// Floats in the longest chunk.
    pub(crate) fn chunk_len(&self) -> usize {
        self.chunk_len.min(self.slice_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_rounded_up_to_the_one_that_reaches_beyond() {
        for (rounded_len, chunks) in [(0, 0), (63, 0), (64, 1), (127, 1), (500, 7), (1000, 16), (2000, 16)] {
            let layout = Layout::new(1000, 2, 64).rounding(rounded_len);
            let of = |rank| (0..layout.chunks(rank)).map(move |chunk| layout.chunk(rank, chunk));
            let rounded: Vec<_> = of(0).chain(of(1)).filter(|chunk| layout.is_rounded(chunk)).collect();
            assert_eq!(rounded.len(), chunks, "{rounded_len}");
            let ends = [0, 1].map(|rank| layout.slice(rank).start + layout.rounded_in_slice(rank));
            assert!(rounded.iter().all(|chunk| ends.iter().any(|end| chunk.end <= *end)), "{rounded_len}");
        }
    }

    #[test]
    fn slices_and_chunks_cover_a_bucket_once_in_order() {
        for bucket_len in [1, 15, 16, 17, 1000, 100_003] {
            for world in 1..=9 {
                let layout = Layout::new(bucket_len, world, 64);
                let mut end = 0;
                for rank in 0..world {
                    assert_eq!(layout.slice(rank).start, end);
                    for chunk in 0..layout.chunks(rank) {
                        let range = layout.chunk(rank, chunk);
                        assert_eq!(range.start, end);
                        assert!(!range.is_empty() && range.len() <= layout.chunk_len());
                        end = range.end;
                    }
                    assert_eq!(layout.slice(rank).end, end);
                }
                assert_eq!(end, bucket_len);
            }
        }
    }
}
