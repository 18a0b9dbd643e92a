//! Freed memory goes back to the system.
#![expect(unsafe_code, reason = "std has no way to ask the allocator for this")]

/// Gives memory that the program has freed back to the system, where the allocator would keep it for later. Worth its
/// few milliseconds after something large and rare, such as writing or reading a whole table.
pub fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers, and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
