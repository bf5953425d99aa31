//! Where images that were drawn, packed or fetched are kept between runs.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result};
use dataset::BlockCache;

/// The cache of this machine.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CacheArguments {
    /// Folder for images that were drawn, packed or fetched [default: simsiam in the user's cache folder]
    #[arg(long, value_name = "FOLDER", env = "SIMSIAM_CACHE_DIR")]
    cache_dir: Option<PathBuf>,
    /// How much of fetched images is kept, in GiB
    #[arg(long, value_name = "GIB", default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    cache_limit_gib: u64,
}

impl CacheArguments {
    /// The folder: as given, or by the XDG rules, or in the present folder where there is no home.
    pub(crate) fn folder(&self) -> PathBuf {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        self.cache_dir.clone().unwrap_or_else(|| {
            absolute("XDG_CACHE_HOME")
                .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
                .unwrap_or_else(|| PathBuf::from(".cache"))
                .join("simsiam")
        })
    }

    /// The part of it that holds fetched blocks.
    pub(crate) fn blocks(&self) -> Result<BlockCache> {
        let folder = self.folder().join("blocks");
        BlockCache::open(&folder, self.cache_limit_gib << 30)
            .context("open the cache; choose another --cache-dir")
    }

    /// The same, as arguments for another process.
    pub(crate) fn to_arguments(&self) -> Vec<OsString> {
        let limit = format!("--cache-limit-gib={}", self.cache_limit_gib);
        vec!["--cache-dir".into(), self.folder().into_os_string(), limit.into()]
    }
}
