//! Generates the messages, the client and the server from `/proto`, with a protobuf compiler written in Rust.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    // Asked for when this runs: a folder that was moved or copied keeps what was compiled in its old place.
    let proto = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let descriptors = protox::compile(["simsiam/v1/coordinator.proto"], [&proto])?;
    println!("cargo:rerun-if-changed={}", proto.display());
    // `Bytes` instead of `Vec<u8>`: a part of a block is a view of the block, not a copy.
    tonic_prost_build::configure().bytes(".").emit_rerun_if_changed(false).compile_fds(descriptors)?;
    Ok(())
}
