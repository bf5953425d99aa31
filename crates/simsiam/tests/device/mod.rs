//! The device that the tests of this crate run on.

use simsiam::{Device, DeviceName};

/// The CPU, or what `SIMSIAM_DEVICE` names: what is promised holds on every device.
pub(crate) fn device() -> Device {
    let name: DeviceName =
        std::env::var("SIMSIAM_DEVICE").map_or(DeviceName::Cpu, |name| name.parse().unwrap());
    name.open(&std::env::temp_dir()).unwrap()
}
