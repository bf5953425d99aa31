//! Images: where they are, how they are dealt to shards and blocks, and how two views are made of each.
//!
//! [`Images`] opens a data set of any format as memory-mapped records of one size. The coordinator deals
//! them to shards and blocks with [`Deal`] and tells workers of them in a [`Manifest`]. A worker gets the
//! images of its shards from a [`BlockStore`], in the order of [`epoch_order`], and makes two [`views`] of
//! each. [`fetch`] downloads the public data sets.
//!
//! This crate never knows a tensor, a worker or gRPC: blocks from elsewhere come through
//! [`FetchBlock`]. Start with [`Images::open`] and [`Deal`].

pub mod aside;
pub mod fetch;
pub mod views;

mod cache;
mod cifar10;
mod deal;
mod decode;
mod drawing;
mod error;
mod folder;
mod geometry;
mod images;
mod manifest;
mod order;
mod pack;
mod pictures;
mod record_file;
mod seal;
mod stl10;
mod store;
mod synthetic;

pub use cache::BlockCache;
pub use deal::Deal;
pub use error::DatasetError;
pub use geometry::{Geometry, PixelLayout};
pub use images::{Images, Progress, Split};
pub use manifest::Manifest;
pub use order::{WINDOW_BLOCKS, blocks_in_order, epoch_order};
pub use pictures::Pictures;
pub use seal::ContentHash;
pub use stl10::ADVICE as STL10_ADVICE;
pub use store::{Block, BlockStore, FetchBlock, Image};
