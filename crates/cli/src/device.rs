//! `--device`: what a process computes on.

use std::ffi::OsString;
use std::path::Path;

use anyhow::Result;
use simsiam::{Device, DeviceName};

/// The device of a worker or of an evaluation.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DeviceArguments {
    /// What to compute on: cpu, cuda (a GPU for each worker), cuda:N (this GPU, shared if need be), or auto (GPUs where
    /// there are any)
    #[arg(long, value_name = "DEVICE", default_value = "auto", env = "SIMSIAM_DEVICE")]
    device: DeviceName,
}

impl DeviceArguments {
    /// The device, ready to be used, with what is compiled for it kept below `cache_dir`.
    pub(crate) fn open(&self, cache_dir: &Path) -> Result<Device> {
        let device = self.device.open(cache_dir)?;
        tracing::debug!("computing on {device:?}");
        Ok(device)
    }

    /// This argument for another process.
    pub(crate) fn to_argument(&self) -> OsString {
        format!("--device={}", self.device).into()
    }

    /// What each of `count` workers of this machine computes on.
    pub(crate) fn of_workers(&self, count: u32) -> Result<Vec<DeviceName>> {
        Ok(self.device.share_out(count as usize)?)
    }
}
