//! Freed memory goes back to the system.
#![cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "std has no way to ask the allocator for this"))]

/// What is larger gets memory of its own from the system, which goes back as soon as it is freed.
#[cfg(target_env = "gnu")]
const LARGE_BYTES: libc::c_int = 256 * 1024;

/// Has all threads share one heap. The allocator would give each thread its own, and memory that one thread has freed would
/// be of no use to the others; the few threads of this program do not compete for it. To be called before the second thread.
///
/// Large values stay out of it: left to itself, the allocator puts them there too once it has seen one freed (`mallopt(3)`, the
/// dynamic threshold), and what a table took while it was read or written stays between what lives long.
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers. If it is refused, memory is only used less well.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
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
