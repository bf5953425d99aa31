//! The views of the coming steps, made ahead of the training thread.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use dataset::views::ViewMaker;
use dataset::{BlockStore, DatasetError, Manifest, epoch_order};
use recipe::Recipe;
use simsiam::{ViewLoader, Views};

/// One shard's part of a step's batch.
pub(crate) struct ShardBatch {
    pub(crate) step: u64,
    pub(crate) shard: u32,
    /// Two views of every image, on the device.
    pub(crate) views: Views,
}

/// The parts of all steps from `start` on, step by step and shard by shard.
pub(crate) struct Batches {
    receiver: Receiver<Result<ShardBatch, DatasetError>>,
    /// Received already, by [`Batches::wait_for_first`].
    first: Option<ShardBatch>,
}

impl Batches {
    /// Starts making the batches of `steps` for the shards of `lease`, at most one step ahead.
    pub(crate) fn start(
        recipe: &Recipe,
        store: Arc<BlockStore>,
        loader: ViewLoader,
        lease: Range<u32>,
        steps: Range<u64>,
    ) -> Self {
        store.keep_only(&lease);
        let (sender, receiver) = sync_channel(lease.len());
        let maker = Maker { recipe: recipe.clone(), store, loader, lease };
        std::thread::Builder::new()
            .name("views".into())
            .spawn(move || maker.make(steps, &sender))
            .expect("the system has room for one more thread");
        Batches { receiver, first: None }
    }

    /// Waits until the first part is made, so that images which cannot be had are found now.
    pub(crate) fn wait_for_first(&mut self) -> Result<(), DatasetError> {
        // A run that has no more steps has no first part.
        self.first = self.receiver.recv().ok().transpose()?;
        Ok(())
    }

    /// The next shard's part.
    pub(crate) fn next(&mut self) -> Result<ShardBatch, DatasetError> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        self.receiver.recv().expect("the maker ends only after the last step or an error")
    }
}

/// The images of a shard's part of a step, as places in the dealt order of all: by them their views are drawn.
pub(crate) fn images_of(recipe: &Recipe, manifest: &Manifest, step: u64, shard: u32) -> Vec<u64> {
    let steps_per_epoch = recipe.steps_per_epoch(manifest.images);
    let order = epoch_order(recipe.seed, step / steps_per_epoch, shard, manifest);
    let indexes = &order[places(recipe, step % steps_per_epoch)];
    indexes.iter().map(|index| dealt_place(manifest, shard, *index)).collect()
}

/// Where a step of an epoch finds its part in a shard's order of it.
fn places(recipe: &Recipe, step_of_epoch: u64) -> Range<usize> {
    let n = recipe.shard_batch() as usize;
    let start = step_of_epoch as usize * n;
    start..start + n
}

fn dealt_place(manifest: &Manifest, shard: u32, index: u32) -> u64 {
    u64::from(shard) * u64::from(manifest.images_per_shard) + u64::from(index)
}

struct Maker {
    recipe: Recipe,
    store: Arc<BlockStore>,
    loader: ViewLoader,
    lease: Range<u32>,
}

impl Maker {
    fn make(&self, steps: Range<u64>, sender: &SyncSender<Result<ShardBatch, DatasetError>>) {
        let views = ViewMaker::new(&self.recipe.views, self.store.manifest().geometry);
        let steps_per_epoch = self.recipe.steps_per_epoch(self.store.manifest().images);
        let mut epoch = u64::MAX;
        let mut orders = Vec::new();
        for step in steps {
            if step / steps_per_epoch != epoch {
                epoch = step / steps_per_epoch;
                orders = self.lease.clone().map(|shard| self.order(epoch, shard)).collect();
            }
            for (shard, order) in self.lease.clone().zip(&orders) {
                let indexes = &order[places(&self.recipe, step % steps_per_epoch)];
                let batch = self.render(&views, epoch, step, shard, indexes);
                let failed = batch.is_err();
                // The receiver goes when the training thread ends: nobody wants more.
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
        }
    }

    /// The order of a shard's images in an epoch, which the store is told of, so that blocks arrive ahead.
    fn order(&self, epoch: u64, shard: u32) -> Vec<u32> {
        let order = epoch_order(self.recipe.seed, epoch, shard, self.store.manifest());
        self.store.prefetch(shard, &order);
        order
    }

    fn render(
        &self,
        views: &ViewMaker,
        epoch: u64,
        step: u64,
        shard: u32,
        indexes: &[u32],
    ) -> Result<ShardBatch, DatasetError> {
        let manifest = self.store.manifest();
        let blocks: Vec<_> =
            indexes.iter().map(|index| self.store.image(shard, *index)).collect::<Result<_, _>>()?;
        let records: Vec<(u64, &[u8])> = indexes
            .iter()
            .zip(&blocks)
            .map(|(index, image)| (dealt_place(manifest, shard, *index), image.as_ref()))
            .collect();
        let half = indexes.len() * self.loader.view_floats();
        let mut values = vec![0.0; 2 * half];
        let (x1, x2) = values.split_at_mut(half);
        views.render_batch(&records, self.recipe.seed, epoch, x1, x2);
        Ok(ShardBatch { step, shard, views: self.loader.load(values) })
    }
}
