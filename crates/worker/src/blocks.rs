//! Blocks of images from the coordinator, for the shards that this worker leases.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use dataset::{FetchBlock, Manifest};
use protocol::v1;

use crate::link::Link;

/// How long one block may take beyond its bytes.
const BLOCK_LIMIT: Duration = Duration::from_secs(60);

/// The slowest that a block's bytes may come: two blocks at once to each of two workers by a megabit a second.
const SLOWEST_BYTES_PER_SECOND: u64 = 32 * 1024;

/// Fetches blocks over gRPC. The caller verifies their hashes.
pub(crate) struct RemoteBlocks {
    pub(crate) link: Link,
    pub(crate) manifest: Arc<Manifest>,
}

impl FetchBlock for RemoteBlocks {
    fn fetch(&self, shard: u32, block: u32) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
        let bytes = self.manifest.block_bytes(block);
        let limit = BLOCK_LIMIT + Duration::from_secs(bytes as u64 / SLOWEST_BYTES_PER_SECOND);
        let received = self.link.fetch(limit, || receive(self.link.clone(), shard, block, bytes));
        // What a person reads is the sentence, without the code and the headers around it.
        received.map_err(|status| status.message().into())
    }
}

async fn receive(link: Link, shard: u32, block: u32, bytes: usize) -> Result<Vec<u8>, tonic::Status> {
    let request = v1::FetchBlocksRequest {
        worker_id: link.worker.0,
        run_id: link.run_id.clone(),
        shard,
        blocks: vec![block],
    };
    let mut parts = link.line.client().fetch_blocks(request).await?.into_inner();
    let mut content = Vec::with_capacity(bytes);
    while let Some(part) = parts.message().await? {
        content.extend_from_slice(&part.data);
        // Refused before more is held than a block can have.
        if content.len() > bytes || part.block != block {
            return Err(tonic::Status::data_loss(format!(
                "expected {bytes} bytes of block {block}, found {} of block {}",
                content.len(),
                part.block
            )));
        }
    }
    Ok(content)
}
