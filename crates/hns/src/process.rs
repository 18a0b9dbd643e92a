//! What Windows tells of this process, and what it can be told.
#![expect(unsafe_code, reason = "no safe library has these")]

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use windows_sys::Win32::Foundation::FILETIME;
use windows_sys::Win32::System::ProcessStatus::{K32GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS};
use windows_sys::Win32::System::Threading::{
    GetCurrentProcess, GetProcessHandleCount, GetProcessTimes, SetPriorityClass,
};
use windows_sys::core::BOOL;

pub use windows_sys::Win32::System::Threading::{
    ABOVE_NORMAL_PRIORITY_CLASS, BELOW_NORMAL_PRIORITY_CLASS, HIGH_PRIORITY_CLASS, IDLE_PRIORITY_CLASS,
    NORMAL_PRIORITY_CLASS, REALTIME_PRIORITY_CLASS,
};

/// This process at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Time of all threads, in the kernel and outside.
    pub processor_time: Duration,
    /// Memory in use.
    pub working_set_bytes: u64,
    /// Memory that is committed to the process.
    pub committed_bytes: u64,
    /// Open handles of all kinds.
    pub handles: u32,
    /// When it was started.
    pub started: SystemTime,
}

/// Reads them.
///
/// # Errors
/// The system refuses.
pub fn figures() -> io::Result<Figures> {
    let mut times = [FILETIME::default(); 4];
    let [created, ended, kernel, user] = &mut times;
    let (created, ended, kernel, user) =
        (&raw mut *created, &raw mut *ended, &raw mut *kernel, &raw mut *user);
    // SAFETY: the handle of this process is always valid, and there are places for four times.
    check(unsafe { GetProcessTimes(GetCurrentProcess(), created, ended, kernel, user) })?;
    let mut handles = 0;
    // SAFETY: as above, with a place for a number.
    check(unsafe { GetProcessHandleCount(GetCurrentProcess(), &raw mut handles) })?;
    let memory = memory()?;
    let [created, _, kernel, user] = times.map(ticks);
    Ok(Figures {
        processor_time: duration(kernel) + duration(user),
        working_set_bytes: memory.WorkingSetSize as u64,
        committed_bytes: memory.PagefileUsage as u64,
        handles,
        started: UNIX_EPOCH + duration(created).saturating_sub(UNIX_AFTER_WINDOWS),
    })
}

fn memory() -> io::Result<PROCESS_MEMORY_COUNTERS> {
    let mut memory = PROCESS_MEMORY_COUNTERS::default();
    let size = u32::try_from(size_of::<PROCESS_MEMORY_COUNTERS>()).map_err(io::Error::other)?;
    // SAFETY: the handle of this process is always valid, and the place is as large as is said.
    check(unsafe { K32GetProcessMemoryInfo(GetCurrentProcess(), &raw mut memory, size) })?;
    Ok(memory)
}

/// Sets the priority class: one of the constants here.
///
/// # Errors
/// The system refuses.
pub fn set_priority_class(class: u32) -> io::Result<()> {
    // SAFETY: the handle of this process is always valid; any number is refused that is no class.
    check(unsafe { SetPriorityClass(GetCurrentProcess(), class) })
}

/// From the beginning of Windows' time, 1601, to that of Unix'.
const UNIX_AFTER_WINDOWS: Duration = Duration::from_hours(3_234_576);

/// Units of 100 ns.
fn ticks(time: FILETIME) -> u64 {
    u64::from(time.dwHighDateTime) << 32 | u64::from(time.dwLowDateTime)
}

fn duration(ticks: u64) -> Duration {
    const PER_SECOND: u64 = 10_000_000;
    let nanos = ticks % PER_SECOND * 100;
    Duration::new(ticks / PER_SECOND, u32::try_from(nanos).unwrap_or_default())
}

fn check(result: BOOL) -> io::Result<()> {
    if result == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
