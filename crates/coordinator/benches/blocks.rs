//! Blocks of images over gRPC on loopback, as workers without files of their own get them: GB/s of one connection, and of
//! four at once. `cargo bench --workspace --bench blocks`
//!
//! What is asked of the images, a copy from mapped files, is here a copy from memory; both sides share this process, so
//! that each has one of two cores.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the answer")]

use std::sync::Arc;
use std::time::Instant;

#[path = "../tests/fake/mod.rs"]
mod fake;

use coordinator::Blocks;
use fake::{Cluster, FakeWorker, create};

/// Of the size that blocks of large data sets have.
const BLOCK_BYTES: usize = 4 << 20;

/// In one request, and so many requests one after the other.
const BLOCKS: u32 = 32;
const REQUESTS: u32 = 8;

struct SameBlock(Vec<u8>);

impl Blocks for SameBlock {
    fn block(&self, _shard: u32, _block: u32) -> Result<Vec<u8>, String> {
        Ok(self.0.clone())
    }
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("the system has room for some threads");
    runtime.block_on(async {
        let folder = tempfile::tempdir().expect("there is a place for temporary files");
        let blocks = Arc::new(SameBlock(vec![7; BLOCK_BYTES]));
        let cluster = Cluster::start_serving(create(folder.path()), 4, blocks, |_| {}).await;
        let mut workers = cluster.workers(4).await;
        for connections in [1, 1, 4] {
            let begin = Instant::now();
            let mut tasks = Vec::new();
            for mut worker in workers.drain(..connections).collect::<Vec<_>>() {
                tasks.push(tokio::spawn(async move {
                    for _ in 0..REQUESTS {
                        receive(&mut worker).await;
                    }
                    worker
                }));
            }
            for task in tasks {
                workers.push(task.await.expect("a worker receives what it asked for"));
            }
            let bytes = connections * (BLOCKS * REQUESTS) as usize * BLOCK_BYTES;
            let rate = bytes as f64 / begin.elapsed().as_secs_f64() / 1e9;
            println!("{connections} connections  {BLOCK_BYTES} bytes a block  {rate:5.2} GB/s");
        }
    });
}

/// Reads the blocks of one request and leaves them.
async fn receive(worker: &mut FakeWorker) {
    let mut parts = worker.stream_blocks(0, (0..BLOCKS).collect()).await.expect("the worker has joined");
    let mut bytes = 0;
    while let Some(part) = parts.message().await.expect("the coordinator sends all of it") {
        bytes += part.data.len();
    }
    assert_eq!(bytes, BLOCKS as usize * BLOCK_BYTES);
}
