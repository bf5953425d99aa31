//! Devices: which one was asked for, and why one cannot be used.
//!
//! burn panics where a GPU's driver or compiler is missing, in the middle of the first step. Here all of it is looked
//! for before anything starts.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use burn::tensor::Device;
use pulp::Arch;

use crate::kernels;

/// What `--device` takes: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceName {
    /// GPUs where there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// GPUs, one for each process.
    Cuda,
    /// This GPU, whoever else uses it.
    CudaIndex(usize),
}

/// Why a device cannot be used, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Not the name of a device.
    #[error("expected auto, cpu, cuda or cuda:N, such as cuda:0, found {0:?}")]
    Name(String),
    /// The program has no code for GPUs.
    #[error(
        "this program was built for the CPU alone; build it with `cargo build --release --features cuda`, or use \
         --device cpu"
    )]
    NotBuilt,
    /// `libcuda` cannot be loaded.
    #[error(
        "found no NVIDIA driver (libcuda.so); install it, or give the container its GPUs (`docker run --gpus all`), or \
         use --device cpu"
    )]
    NoDriver,
    /// The driver is older than what the program was built for.
    #[error("the NVIDIA driver offers CUDA {found}, expected {expected} or later; update the driver")]
    OldDriver {
        /// As `13.0`.
        found: String,
        /// As `13.0`.
        expected: String,
    },
    /// The driver itself fails.
    #[error("the NVIDIA driver does not answer: {0}; `nvidia-smi` should list the GPUs")]
    Driver(String),
    /// Fewer GPUs than that.
    #[error(
        "asked for {asked}, found {found} GPUs; CUDA_VISIBLE_DEVICES hides those that it does not name, and several \
         processes share one if each is given it by its number, as in --device cuda:0"
    )]
    TooFew {
        /// What was asked for.
        asked: String,
        /// How many there are.
        found: usize,
    },
    /// NVRTC cannot be loaded.
    #[error(
        "found no NVRTC (libnvrtc.so), which compiles the kernels for the GPU; install the CUDA toolkit {0} or its \
         package cuda-nvrtc, and name its folder in LD_LIBRARY_PATH"
    )]
    NoCompiler(String),
    /// NVRTC needs headers.
    #[error(
        "found no CUDA headers at {0}, which NVRTC needs; install the toolkit's package cuda-cudart-dev, or set \
         CUDA_PATH to the folder that holds `include`"
    )]
    NoHeaders(PathBuf),
}

impl FromStr for DeviceName {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<DeviceName, DeviceError> {
        match text {
            "auto" => Ok(DeviceName::Auto),
            "cpu" => Ok(DeviceName::Cpu),
            "cuda" => Ok(DeviceName::Cuda),
            _ => {
                let index = text.strip_prefix("cuda:").and_then(|index| index.parse().ok());
                index.map(DeviceName::CudaIndex).ok_or_else(|| DeviceError::Name(text.to_string()))
            }
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceName::Auto => formatter.write_str("auto"),
            DeviceName::Cpu => formatter.write_str("cpu"),
            DeviceName::Cuda => formatter.write_str("cuda"),
            DeviceName::CudaIndex(index) => write!(formatter, "cuda:{index}"),
        }
    }
}

impl DeviceName {
    /// The device, ready to be used. Kernels that are compiled for a GPU are kept below `cache_dir`, for every
    /// process and every later start.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub fn open(self, cache_dir: &Path) -> Result<Device, DeviceError> {
        match self.resolve(gpu_count)? {
            Some(index) => open_gpu(index, cache_dir),
            None => Ok(Device::flex()),
        }
    }

    /// What each of `count` processes of one machine is told, so that each has a GPU of its own unless one GPU was
    /// asked for by its number.
    ///
    /// # Errors
    /// [`DeviceError::TooFew`], and those of [`open`](Self::open).
    pub fn share_out(self, count: usize) -> Result<Vec<DeviceName>, DeviceError> {
        self.share_out_of(count, gpu_count)
    }

    fn share_out_of(
        self,
        count: usize,
        gpu_count: impl FnOnce() -> Result<usize, DeviceError>,
    ) -> Result<Vec<DeviceName>, DeviceError> {
        let mut found = 0;
        let gpu_count = || gpu_count().inspect(|count| found = *count);
        if self.resolve(gpu_count)?.is_none() {
            return Ok(vec![DeviceName::Cpu; count]);
        }
        if let DeviceName::CudaIndex(_) = self {
            return Ok(vec![self; count]);
        }
        if found < count {
            return Err(DeviceError::TooFew { asked: format!("a GPU for each of {count} workers"), found });
        }
        Ok((0..count).map(DeviceName::CudaIndex).collect())
    }

    /// The number of the GPU that is meant; `None` for the CPU.
    fn resolve(
        self,
        gpu_count: impl FnOnce() -> Result<usize, DeviceError>,
    ) -> Result<Option<usize>, DeviceError> {
        match self {
            DeviceName::Cpu => Ok(None),
            DeviceName::Auto => match gpu_count() {
                Err(DeviceError::NotBuilt | DeviceError::NoDriver) | Ok(0) => Ok(None),
                // There are GPUs, or should be: training on the CPU instead would be a bad surprise.
                Err(error) => Err(error),
                Ok(_) => Ok(Some(0)),
            },
            DeviceName::Cuda | DeviceName::CudaIndex(_) => {
                let index = if let DeviceName::CudaIndex(index) = self { index } else { 0 };
                let found = gpu_count()?;
                if index >= found {
                    return Err(DeviceError::TooFew { asked: self.to_string(), found });
                }
                Ok(Some(index))
            }
        }
    }
}

#[cfg(feature = "cuda")]
use cuda::{gpu_count, gpu_identity, open_gpu};

#[cfg(not(feature = "cuda"))]
fn gpu_count() -> Result<usize, DeviceError> {
    Err(DeviceError::NotBuilt)
}

#[cfg(not(feature = "cuda"))]
fn open_gpu(_index: usize, _cache_dir: &Path) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt)
}

/// A GPU's number among those that this process sees, and its UUID; `None` for the CPU.
pub fn gpu(device: &Device) -> Option<(usize, [u8; 16])> {
    if kernels::is_flex(device) { None } else { gpu_identity(device) }
}

#[cfg(not(feature = "cuda"))]
fn gpu_identity(_device: &Device) -> Option<(usize, [u8; 16])> {
    None
}

/// What a device computes with, in a few words, such as `cpu x86-64 AVX-512`. Where they differ, so do roundings: sums
/// are made in the order that suits the width of the processor's vectors.
pub fn arithmetic(device: &Device) -> String {
    if kernels::is_flex(device) {
        return format!("cpu {}", instruction_set(Arch::new()));
    }
    gpu_arithmetic()
}

#[cfg(target_arch = "x86_64")]
fn instruction_set(arch: Arch) -> &'static str {
    match arch {
        Arch::V4(_) => "x86-64 AVX-512",
        Arch::V3(_) => "x86-64 AVX2",
        _ => "x86-64 without AVX2",
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn instruction_set(_arch: Arch) -> &'static str {
    std::env::consts::ARCH
}

/// GPUs of one kind; a process sees them in one machine, where they are alike.
#[cfg(feature = "cuda")]
fn gpu_arithmetic() -> String {
    cuda::compute_capability()
        .map_or_else(|| "cuda".to_string(), |(major, minor)| format!("cuda {major}.{minor}"))
}

#[cfg(not(feature = "cuda"))]
fn gpu_arithmetic() -> String {
    "gpu".to_string()
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::path::{Path, PathBuf};

    use burn::backend::DispatchDevice;
    use burn::tensor::Device;
    use cubecl::config::cache::CacheConfig;
    use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
    use cubecl::cuda::install;
    use cudarc::driver::result::device;
    use cudarc::driver::{result, sys};

    use super::DeviceError;

    /// GPUs that the driver shows to this process.
    pub(super) fn gpu_count() -> Result<usize, DeviceError> {
        // SAFETY: it only tries to load the library, whose initialisers NVIDIA's own programs run as well.
        if !unsafe { sys::is_culib_present() } {
            return Err(DeviceError::NoDriver);
        }
        let failed = |error: result::DriverError| DeviceError::Driver(error.to_string());
        result::init().map_err(failed)?;
        let mut found = 0;
        // SAFETY: the version is written to an integer that outlives the call.
        unsafe { sys::cuDriverGetVersion(&raw mut found) }.result().map_err(failed)?;
        if found < sys::CUDA_VERSION as i32 {
            let expected = version(sys::CUDA_VERSION as i32);
            return Err(DeviceError::OldDriver { found: version(found), expected });
        }
        let count = device::get_count().map_err(failed)?;
        Ok(usize::try_from(count).unwrap_or_default())
    }

    pub(super) fn open_gpu(index: usize, cache_dir: &Path) -> Result<Device, DeviceError> {
        // SAFETY: as for the driver.
        if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
            return Err(DeviceError::NoCompiler(version(sys::CUDA_VERSION as i32)));
        }
        let headers =
            install::cuda_path().unwrap_or_else(|| PathBuf::from("/usr/local/cuda")).join("include");
        if !headers.join("cuda_fp16.h").is_file() {
            return Err(DeviceError::NoHeaders(headers));
        }
        keep_kernels(cache_dir);
        Ok(Device::cuda(index))
    }

    pub(super) fn gpu_identity(device: &Device) -> Option<(usize, [u8; 16])> {
        let index = match device.as_dispatch() {
            DispatchDevice::Cube(cubecl::Device::Cuda(gpu)) => gpu.index,
            _ => return None,
        };
        let gpu = device::get(i32::try_from(index).ok()?).ok()?;
        let uuid = device::get_uuid(gpu).ok()?;
        Some((index, uuid.bytes.map(|byte| byte as u8)))
    }

    /// Of the first GPU.
    pub(super) fn compute_capability() -> Option<(i32, i32)> {
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        let gpu = device::get(0).ok()?;
        // SAFETY: `gpu` is a device that the driver has just named.
        let ask = |what| unsafe { device::get_attribute(gpu, what) }.ok();
        Some((ask(MAJOR)?, ask(MINOR)?))
    }

    /// Compiled kernels are kept on disk: compiling them takes seconds.
    fn keep_kernels(cache_dir: &Path) {
        // cubecl's own variables, such as CUBECL_DEBUG_LOG, keep their meaning.
        let mut config = CubeClRuntimeConfig::default().override_from_env();
        config.compilation.cache = true;
        config.environment.path = CacheConfig::Directory(cache_dir.join("kernels"));
        // Another device of this process may have set the same before.
        CubeClRuntimeConfig::try_set(config);
    }

    /// As people write it: 13000 is 13.0.
    fn version(number: i32) -> String {
        format!("{}.{}", number / 1000, number % 1000 / 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in ["auto", "cpu", "cuda", "cuda:0", "cuda:17"] {
            assert_eq!(name.parse::<DeviceName>().unwrap().to_string(), name);
        }
        for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "cuda0"] {
            assert_eq!(name.parse::<DeviceName>(), Err(DeviceError::Name(name.to_string())));
        }
    }

    #[test]
    fn workers_get_a_gpu_each_or_an_answer() {
        use DeviceName::{Auto, Cpu, Cuda, CudaIndex};
        let first = |count: usize| (0..count).map(CudaIndex).collect::<Vec<_>>();
        for (name, workers, gpus, expected) in [
            (Auto, 2, Ok(4), Some(first(2))),
            (Auto, 4, Ok(4), Some(first(4))),
            (Auto, 4, Ok(1), None),
            (Auto, 2, Ok(0), Some(vec![Cpu; 2])),
            (Auto, 2, Err(DeviceError::NotBuilt), Some(vec![Cpu; 2])),
            (Auto, 2, Err(DeviceError::NoDriver), Some(vec![Cpu; 2])),
            // A machine with a GPU that cannot be used is not one without.
            (Auto, 2, Err(DeviceError::Driver("in use".into())), None),
            (Cpu, 3, Ok(4), Some(vec![Cpu; 3])),
            (Cuda, 2, Ok(2), Some(first(2))),
            (Cuda, 3, Ok(2), None),
            (Cuda, 1, Ok(0), None),
            (Cuda, 1, Err(DeviceError::NoDriver), None),
            (CudaIndex(1), 3, Ok(2), Some(vec![CudaIndex(1); 3])),
            (CudaIndex(1), 3, Ok(1), None),
            (CudaIndex(0), 1, Err(DeviceError::NotBuilt), None),
        ] {
            let found = name.share_out_of(workers, || gpus.clone());
            assert_eq!(found.clone().ok(), expected, "{name}, {workers} workers, {gpus:?} GPUs: {found:?}");
        }
        let error = Cuda.share_out_of(3, || Ok(2)).unwrap_err().to_string();
        assert!(error.contains("each of 3 workers") && error.contains("found 2 GPUs"), "{error}");
    }

    #[test]
    fn the_processor_is_told_by_what_changes_its_bits() {
        let told = arithmetic(&Device::flex());
        assert!(told.starts_with("cpu ") && told.len() > 4, "{told}");
        assert_eq!(told, arithmetic(&Device::flex().autodiff()));
    }

    #[test]
    fn a_gpu_that_is_not_there_is_answered_with_what_to_do() {
        let folder = std::env::temp_dir();
        assert!(DeviceName::Cpu.open(&folder).is_ok());
        // No machine has as many.
        let error = DeviceName::CudaIndex(99_999).open(&folder).unwrap_err().to_string();
        assert!(error.contains("--device") || error.contains("driver"), "{error}");
    }
}
