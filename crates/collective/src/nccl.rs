//! Sums between GPUs through NVIDIA's own library, which finds the ways between them: NVLink, PCIe, the network.
//!
//! The library is loaded when the program runs. Nothing here blocks: every call returns at once and is then asked how
//! far it has come, so that a peer which dies ends a wait by its deadline or by the generation's interrupt
//! (NCCL's user guide, "Fault Tolerance").

use std::fmt;
use std::time::{Duration, Instant};

use cudarc::driver::result::stream::StreamKind;
use cudarc::driver::{result as cuda, sys as cuda_sys};
use cudarc::nccl::sys;

use crate::mesh::Mesh;
use crate::{CollectiveError, Gpu, Group, Interrupt, Limits};

/// By which the ranks of one communicator find each other; rank 0 makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UniqueId(pub [u8; Self::BYTES]);

/// Why NCCL could not do its part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NcclError {
    /// `libnccl` cannot be loaded.
    #[error(
        "found no NCCL (libnccl.so); install NVIDIA's package libnccl2, or name its folder in LD_LIBRARY_PATH, where a \
         link libnccl.so must point to libnccl.so.2"
    )]
    NoLibrary,
    /// The library refuses or has failed.
    #[error("NCCL failed to {what}: {problem}; NCCL_DEBUG=WARN makes it say more")]
    Failed {
        /// What was asked of it.
        what: &'static str,
        /// In its words.
        problem: String,
    },
    /// The driver has failed.
    #[error("the GPU's driver failed: {0}")]
    Driver(String),
    /// It took too long.
    #[error("NCCL did not {what} within {} s", .limit.as_secs())]
    Deadline {
        /// What was asked of it.
        what: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// The generation was ended from outside.
    #[error("interrupted while NCCL was to {what}")]
    Interrupted {
        /// What was asked of it.
        what: &'static str,
    },
}

impl NcclError {
    /// What it means for `group`, which it ends: an interrupt was ordered, and is no failure.
    pub(crate) fn ending(self, group: &Group) -> CollectiveError {
        match self {
            NcclError::Interrupted { .. } => CollectiveError::Interrupted { generation: group.generation() },
            failure => CollectiveError::Nccl { problem: failure.to_string() },
        }
    }
}

/// How long to wait, and what ends the wait before.
#[derive(Debug, Clone)]
pub struct Patience {
    /// For one call.
    pub limit: Duration,
    /// Ends it at once.
    pub interrupt: Interrupt,
}

/// Sums buckets with the other workers of one generation, each on its own GPU.
#[derive(Debug)]
pub struct GpuCollective {
    group: Group,
    communicator: Communicator,
    /// Open as long as this worker takes part.
    _connections: Mesh,
}

impl GpuCollective {
    pub(crate) fn join(
        id: UniqueId,
        mesh: Mesh,
        group: &Group,
        gpu: Gpu,
        limits: Limits,
    ) -> Result<GpuCollective, NcclError> {
        let patience = Patience { limit: limits.connect_deadline, interrupt: group.interrupt() };
        let mut communicator = Communicator::join(id, group.world(), group.rank(), gpu.index, patience)?;
        communicator.patience.limit = limits.step_deadline;
        Ok(GpuCollective { group: group.clone(), communicator, _connections: mesh })
    }

    /// Adds up the bucket of `floats` numbers at `pointer` over all ranks, in place.
    ///
    /// # Errors
    /// [`CollectiveError::Nccl`], or that the generation was interrupted.
    ///
    /// # Safety
    /// As for [`Communicator::sum`].
    pub unsafe fn sum(&mut self, pointer: u64, floats: usize) -> Result<(), CollectiveError> {
        // NCCL does not tell what is under way: until it ends, a sum stands still.
        let _folding = self.group.standstill().fold();
        // SAFETY: as the caller promises.
        unsafe { self.communicator.sum(pointer, floats) }.map_err(|error| error.ending(&self.group))
    }
}

/// One rank of a group of GPUs, each its own.
pub struct Communicator {
    handle: sys::ncclComm_t,
    stream: cuda_sys::CUstream,
    patience: Patience,
    is_broken: bool,
}

// SAFETY: a communicator may be used by any thread, by one at a time, which `&mut self` sees to.
unsafe impl Send for Communicator {}

impl UniqueId {
    /// Of an id.
    pub const BYTES: usize = 128;

    /// A new one, at this process's address.
    ///
    /// # Errors
    /// [`NcclError`].
    pub fn new() -> Result<UniqueId, NcclError> {
        look_for_library()?;
        let mut id = sys::ncclUniqueId { internal: [0; Self::BYTES] };
        // SAFETY: the id is written to memory that outlives the call.
        check("make an id", unsafe { sys::ncclGetUniqueId(&raw mut id) })?;
        Ok(UniqueId(id.internal.map(|byte| byte as u8)))
    }
}

impl Communicator {
    /// Joins the `world` ranks that know `id`, as `rank`, with this GPU.
    ///
    /// # Errors
    /// [`NcclError`]: not all came in time, or two of them with the same GPU.
    pub fn join(
        id: UniqueId,
        world: usize,
        rank: usize,
        gpu: usize,
        patience: Patience,
    ) -> Result<Communicator, NcclError> {
        look_for_library()?;
        use_gpu(gpu)?;
        let stream = cuda::stream::create(StreamKind::NonBlocking).map_err(driver)?;
        let mut communicator =
            Communicator { handle: std::ptr::null_mut(), stream, patience, is_broken: false };
        let id = sys::ncclUniqueId { internal: id.0.map(|byte| byte as std::ffi::c_char) };
        let mut config = non_blocking();
        // SAFETY: communicator and config outlive the call; of the config, NCCL reads as much as its size says.
        let begun = unsafe {
            sys::ncclCommInitRankConfig(
                &raw mut communicator.handle,
                world as i32,
                id,
                rank as i32,
                (&raw mut config).cast(),
            )
        };
        communicator.finish("join the ranks", begun)?;
        Ok(communicator)
    }

    /// Adds up the `floats` numbers at `pointer` over all ranks, in place, and waits for the sum.
    ///
    /// # Errors
    /// [`NcclError`]; the communicator is of no more use then, and what lies at `pointer` arbitrary.
    ///
    /// # Safety
    /// `pointer` is memory of this rank's GPU, `floats` numbers of `f32` long, that nothing else touches until the call
    /// returns: what was to write it is done.
    pub unsafe fn sum(&mut self, pointer: u64, floats: usize) -> Result<(), NcclError> {
        const WHAT: &str = "sum the gradients";
        let buffer = pointer as *mut std::ffi::c_void;
        // SAFETY: as the caller promises; the stream is this communicator's own.
        let begun = unsafe {
            sys::ncclAllReduce(
                buffer,
                buffer,
                floats,
                sys::ncclDataType_t::ncclFloat32,
                sys::ncclRedOp_t::ncclSum,
                self.handle,
                self.stream.cast(),
            )
        };
        self.finish(WHAT, begun)?;
        self.wait(WHAT, |communicator| {
            // SAFETY: the stream lives as long as the communicator.
            match unsafe { cuda_sys::cuStreamQuery(communicator.stream) } {
                cuda_sys::CUresult::CUDA_ERROR_NOT_READY => communicator.progress(WHAT).map(|_| false),
                status => status.result().map(|()| true).map_err(driver),
            }
        })
    }

    /// Waits for a call that has `begun`.
    fn finish(&mut self, what: &'static str, begun: sys::ncclResult_t) -> Result<(), NcclError> {
        if begun == sys::ncclResult_t::ncclSuccess {
            return Ok(());
        }
        if begun != sys::ncclResult_t::ncclInProgress {
            self.is_broken = true;
            return check(what, begun);
        }
        self.wait(what, |communicator| communicator.progress(what))
    }

    /// Asks `is_done` until it is.
    fn wait(
        &mut self,
        what: &'static str,
        is_done: impl Fn(&Self) -> Result<bool, NcclError>,
    ) -> Result<(), NcclError> {
        let Patience { limit, interrupt } = self.patience.clone();
        let begin = Instant::now();
        // Broken until it has come to an end.
        self.is_broken = true;
        while !is_done(self)? {
            if interrupt.is_raised() {
                return Err(NcclError::Interrupted { what });
            }
            let waited = begin.elapsed();
            if waited > limit {
                return Err(NcclError::Deadline { what, limit });
            }
            // What takes long is not asked often.
            if waited > Duration::from_millis(20) {
                std::thread::sleep(Duration::from_micros(200));
            } else {
                std::hint::spin_loop();
            }
        }
        self.is_broken = false;
        Ok(())
    }

    /// Whether the last call has come to an end.
    fn progress(&self, what: &'static str) -> Result<bool, NcclError> {
        let mut state = sys::ncclResult_t::ncclSuccess;
        // SAFETY: the communicator is one that NCCL made, and the state outlives the call.
        check(what, unsafe { sys::ncclCommGetAsyncError(self.handle, &raw mut state) })?;
        match state {
            sys::ncclResult_t::ncclInProgress => Ok(false),
            state => check(what, state).map(|()| true),
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // SAFETY: both were made by the libraries that they are given back to, and are used no more. A communicator
        // whose peers may be gone cannot be closed in order, only aborted.
        unsafe {
            if !self.handle.is_null() {
                let closed = match self.is_broken {
                    true => sys::ncclCommAbort(self.handle),
                    false => sys::ncclCommDestroy(self.handle),
                };
                tracing::debug!(?closed, "left NCCL's communicator");
            }
            let _ = cuda::stream::destroy(self.stream);
        }
    }
}

impl fmt::Debug for Communicator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Communicator").field("is_broken", &self.is_broken).finish_non_exhaustive()
    }
}

/// Whether this worker can take part at all.
///
/// # Errors
/// [`NcclError::NoLibrary`].
pub(crate) fn look_for_library() -> Result<(), NcclError> {
    // SAFETY: it only tries to load the library, whose initialisers NVIDIA's own programs run as well.
    if unsafe { sys::is_culib_present() } { Ok(()) } else { Err(NcclError::NoLibrary) }
}

/// Lets this thread's calls mean this GPU, in the context that all libraries of a process share.
fn use_gpu(gpu: usize) -> Result<(), NcclError> {
    cuda::init().map_err(driver)?;
    let device = cuda::device::get(gpu as i32).map_err(driver)?;
    // SAFETY: the driver has just named the device, and the context is kept until the process ends.
    unsafe { cuda::primary_ctx::retain(device).and_then(|context| cuda::ctx::set_current(context)) }
        .map_err(driver)
}

/// `ncclConfig_t` as it was in NCCL 2.17. Later ones only grew, and tell by its size what they were given.
#[repr(C)]
struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: i32,
    cga_cluster_size: i32,
    min_ctas: i32,
    max_ctas: i32,
    net_name: *const std::ffi::c_char,
    split_share: i32,
}

/// `NCCL_CONFIG_INITIALIZER` but for `blocking`.
fn non_blocking() -> Config {
    const UNDEFINED: i32 = i32::MIN;
    Config {
        size: size_of::<Config>(),
        magic: 0xcafe_beef,
        version: 21_700,
        blocking: 0,
        cga_cluster_size: UNDEFINED,
        min_ctas: UNDEFINED,
        max_ctas: UNDEFINED,
        net_name: std::ptr::null(),
        split_share: UNDEFINED,
    }
}

fn check(what: &'static str, result: sys::ncclResult_t) -> Result<(), NcclError> {
    if result == sys::ncclResult_t::ncclSuccess {
        return Ok(());
    }
    // SAFETY: NCCL gives a text that lives as long as the library.
    let text = unsafe { std::ffi::CStr::from_ptr(sys::ncclGetErrorString(result)) };
    Err(NcclError::Failed { what, problem: text.to_string_lossy().into_owned() })
}

fn driver(error: cuda::DriverError) -> NcclError {
    NcclError::Driver(error.to_string())
}

/// On a machine with a GPU, which `SIMSIAM_DEVICE=cuda` tells; elsewhere they only see that NCCL is asked for in words.
#[cfg(test)]
mod tests {
    use super::*;

    fn has_gpu() -> bool {
        std::env::var("SIMSIAM_DEVICE").is_ok_and(|device| device.starts_with("cuda"))
    }

    fn patience(limit_ms: u64) -> Patience {
        Patience { limit: Duration::from_millis(limit_ms), interrupt: Interrupt::default() }
    }

    #[test]
    fn a_library_that_is_not_there_is_answered_with_what_to_do() {
        if has_gpu() {
            return;
        }
        let error = UniqueId::new().expect_err("no machine without a GPU has one to sum with").to_string();
        assert!(error.contains("LD_LIBRARY_PATH") || error.contains("NCCL_DEBUG"), "{error}");
    }

    #[test]
    fn an_interrupt_is_told_from_a_failure() {
        let group = crate::testing::group(3, 0, 1, 1);
        let error = NcclError::Interrupted { what: "join the ranks" }.ending(&group);
        assert!(matches!(error, CollectiveError::Interrupted { generation: 3 }), "{error}");
        let error = NcclError::NoLibrary.ending(&group);
        assert!(matches!(error, CollectiveError::Nccl { .. }), "{error}");
    }

    #[test]
    fn one_rank_sums_what_it_has() {
        if !has_gpu() {
            return;
        }
        let id = UniqueId::new().unwrap();
        let mut communicator = Communicator::join(id, 1, 0, 0, patience(60_000)).unwrap();
        let numbers: Vec<f32> = (0..1000).map(|number| number as f32 / 8.0).collect();
        let mut found = vec![0.0f32; numbers.len()];
        // SAFETY: the memory is as long as the numbers, and nothing else knows of it.
        unsafe {
            let pointer = cuda::malloc_sync(4 * numbers.len()).unwrap();
            cuda::memcpy_htod_sync(pointer, &numbers).unwrap();
            for _ in 0..3 {
                communicator.sum(pointer, numbers.len()).unwrap();
            }
            cuda::memcpy_dtoh_sync(&mut found, pointer).unwrap();
            cuda::free_sync(pointer).unwrap();
        }
        assert_eq!(found, numbers);
    }

    #[test]
    fn who_waits_for_a_rank_that_never_comes_is_told_so() {
        if !has_gpu() {
            return;
        }
        let id = UniqueId::new().unwrap();
        let begin = Instant::now();
        let error = Communicator::join(id, 2, 0, 0, patience(1500)).unwrap_err();
        assert!(matches!(error, NcclError::Deadline { .. }), "{error}");
        let interrupted = patience(60_000);
        interrupted.interrupt.raise();
        let error = Communicator::join(UniqueId::new().unwrap(), 2, 0, 0, interrupted).unwrap_err();
        assert!(matches!(error, NcclError::Interrupted { .. }), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
}
