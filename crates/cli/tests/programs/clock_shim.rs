//! A library that is loaded before the system's: `clock_gettime` with a time of day that a file moves. `clock.rs` makes
//! it, and says why.

use std::ffi::{c_char, c_int, c_long, c_void};

/// What the kernel fills in.
#[repr(C)]
pub struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

const CLOCK_REALTIME: c_int = 0;

#[cfg(target_arch = "x86_64")]
const CLOCK_GETTIME: c_long = 228;
#[cfg(target_arch = "aarch64")]
const CLOCK_GETTIME: c_long = 113;

/// Eight bytes: by how many seconds the time of day is ahead.
const OFFSET_FILE: &str = concat!(env!("OFFSET_FILE"), "\0");

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn read(file: c_int, bytes: *mut c_void, count: usize) -> isize;
    fn close(file: c_int) -> c_int;
}

/// As the system's.
///
/// # Safety
/// As of the system's: `time` points to a place for a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int {
    // SAFETY: what we were given is passed on.
    let outcome = unsafe { syscall(CLOCK_GETTIME, clock, time) } as c_int;
    if outcome == 0 && clock == CLOCK_REALTIME {
        // SAFETY: the kernel has just filled it in.
        unsafe { (*time).seconds += offset_s() };
    }
    outcome
}

fn offset_s() -> i64 {
    let mut bytes = [0; 8];
    // SAFETY: the path ends with a zero, and what is read fits its place.
    unsafe {
        let file = open(OFFSET_FILE.as_ptr().cast(), 0);
        if file < 0 {
            return 0;
        }
        read(file, bytes.as_mut_ptr().cast(), bytes.len());
        close(file);
    }
    i64::from_le_bytes(bytes)
}
