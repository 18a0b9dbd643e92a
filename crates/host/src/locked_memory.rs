//! How much memory this process may lock.

use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// Lifts the limit of locked memory. Linux before 5.11 counts maps and programs of `bpf(2)` against it, with whatever
/// capabilities.
///
/// # Errors
/// The hard limit is lower, and there is no `CAP_SYS_RESOURCE`; it is raised as far as it may be then.
pub fn lift_locked_memory_limit() -> Result<(), Errno> {
    setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).or_else(|errno| {
        let (_, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
        setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard)?;
        Err(errno)
    })
}
