//! An array map in this process's memory.
#![expect(unsafe_code, reason = "memory that is shared with programs in the kernel")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

/// The words of an array map that was made to be mapped. A store is seen by the next program that runs, and never in part.
#[derive(Debug)]
pub(crate) struct Mapped {
    words: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: the memory belongs to nobody else in this process, and is touched by atomic operations only.
unsafe impl Send for Mapped {}

impl Mapped {
    /// Maps an array of so many words in all.
    pub(crate) fn new(map: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let bytes = len * 8;
        if bytes == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; it refuses more than the map has.
        let address =
            unsafe { libc::mmap(ptr::null_mut(), bytes, protection, libc::MAP_SHARED, map.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let words = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { words, len })
    }

    fn word(&self, index: usize) -> Option<&AtomicU64> {
        // SAFETY: the index is within the mapping, which is aligned to pages and lives as long as `self`; zeros are valid, and so
        // is whatever programs write.
        (index < self.len).then(|| unsafe { self.words.add(index).as_ref() })
    }

    /// Stores a word, visible after all stores before it; false if there is no such word.
    pub(crate) fn store(&self, index: usize, value: u64) -> bool {
        self.word(index).map(|word| word.store(value, Ordering::Release)).is_some()
    }

    /// Adds to a word that programs add to, too.
    pub(crate) fn add(&self, index: usize, value: u64) {
        if let Some(word) = self.word(index) {
            word.fetch_add(value, Ordering::Relaxed);
        }
    }

    /// The word as it is now; 0 if there is no such word.
    pub(crate) fn load(&self, index: usize) -> u64 {
        self.word(index).map_or(0, |word| word.load(Ordering::Acquire))
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this size, and nothing refers to it any more.
        unsafe { libc::munmap(self.words.as_ptr().cast(), self.len * 8) };
    }
}
