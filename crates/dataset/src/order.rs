//! The order in which a shard's images are learnt from.

use recipe::{Draws, Purpose};

use crate::manifest::Manifest;

/// Blocks whose images are mixed with each other. With blocks of 4 MiB a worker holds 32 MiB for each shard,
/// and mixes over a thousand images of 96x96 pixels. As every block is already a random draw from the whole
/// data, and another eight meet in each epoch, nothing is gained by more.
pub const WINDOW_BLOCKS: usize = 8;

/// The local indexes of a shard in the order of one epoch: a function of seed, epoch and shard alone.
///
/// The shard's blocks are put into random order and taken in windows of [`WINDOW_BLOCKS`]; all images of a
/// window are shuffled together. So a worker needs one window of blocks at a time, and begins before all of
/// its images have arrived.
pub fn epoch_order(seed: u64, epoch: u64, shard: u32, manifest: &Manifest) -> Vec<u32> {
    let mut draws = Draws::new(seed, Purpose::Order, epoch, u64::from(shard), 0);
    let mut blocks: Vec<u32> = (0..manifest.blocks_per_shard()).collect();
    draws.shuffle(&mut blocks);
    let mut order = Vec::with_capacity(manifest.images_per_shard as usize);
    for window in blocks.chunks(WINDOW_BLOCKS) {
        let start = order.len();
        order.extend(window.iter().flat_map(|block| manifest.images_of_block(*block)));
        draws.shuffle(&mut order[start..]);
    }
    order
}

/// The blocks that an order needs, in the order of their first use.
pub fn blocks_in_order(order: &[u32], manifest: &Manifest) -> Vec<u32> {
    let mut seen = vec![false; manifest.blocks_per_shard() as usize];
    let blocks = order.iter().map(|local_index| manifest.block_of(*local_index));
    blocks.filter(|block| !std::mem::replace(&mut seen[*block as usize], true)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::numbers;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn an_order_is_a_permutation_within_windows(
            (seed, epoch) in (0u64..9, 0u64..9),
            per_shard in 1u32..3_000,
            per_block in 1u32..200,
        ) {
            let manifest = numbers(2, per_shard, per_block);
            let order = epoch_order(seed, epoch, 1, &manifest);
            let blocks = blocks_in_order(&order, &manifest);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert!(sorted.into_iter().eq(0..per_shard), "each image once");
            prop_assert_eq!(blocks.len() as u32, manifest.blocks_per_shard());

            let mut rest = order.as_slice();
            for window in blocks.chunks(WINDOW_BLOCKS) {
                let images = window.iter().map(|block| manifest.images_of_block(*block).len()).sum();
                let (now, later) = rest.split_at(images);
                let used: BTreeSet<u32> = now.iter().map(|index| manifest.block_of(*index)).collect();
                prop_assert_eq!(used, window.iter().copied().collect());
                rest = later;
            }
            prop_assert!(rest.is_empty());
        }
    }

    #[test]
    fn an_order_depends_on_seed_and_epoch_and_shard() {
        let manifest = numbers(4, 1000, 10);
        let base = epoch_order(1, 2, 3, &manifest);
        assert_eq!(base, epoch_order(1, 2, 3, &manifest));
        for (seed, epoch, shard) in [(0, 2, 3), (1, 3, 3), (1, 2, 2)] {
            let other = epoch_order(seed, epoch, shard, &manifest);
            assert_ne!(base, other, "seed {seed}, epoch {epoch}, shard {shard}");
            assert_ne!(blocks_in_order(&base, &manifest), blocks_in_order(&other, &manifest));
        }
    }

    /// The numbers themselves: a change here changes every run.
    #[test]
    fn the_order_is_pinned() {
        assert_eq!(epoch_order(7, 1, 2, &numbers(4, 12, 1)), PINNED);
    }

    const PINNED: [u32; 12] = [5, 0, 8, 11, 7, 4, 3, 2, 9, 10, 1, 6];
}
