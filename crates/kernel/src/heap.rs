//! Freed memory goes back to the system.
#![cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "std has no way to ask the allocator for this"))]

/// Has all threads share one heap. The allocator would give each thread its own, and memory that one thread has freed would
/// be of no use to the others; the few threads of this program do not compete for it. To be called before the second thread.
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers. If it is refused, memory is only used less well.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives memory that the program has freed back to the system, where the allocator would keep it for later. Worth its
/// few milliseconds after something large and rare, such as writing or reading a whole table.
pub fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers, and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
