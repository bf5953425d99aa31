//! Blocks of images from the coordinator, for the shards that this worker leases.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use dataset::{FetchBlock, Manifest};
use protocol::v1;

use crate::link::Link;

/// How long one block may take: 4 MiB arrive in it even at a megabit a second.
const BLOCK_LIMIT: Duration = Duration::from_secs(60);

/// Fetches blocks over gRPC. The caller verifies their hashes.
pub(crate) struct RemoteBlocks {
    pub(crate) link: Link,
    pub(crate) manifest: Arc<Manifest>,
}

impl FetchBlock for RemoteBlocks {
    fn fetch(&self, shard: u32, block: u32) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
        let bytes = self.manifest.block_bytes(block);
        Ok(self.link.call(BLOCK_LIMIT, || receive(self.link.clone(), shard, block, bytes))?)
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
