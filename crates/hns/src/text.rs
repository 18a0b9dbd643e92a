//! Texts on both sides of the interface: UTF-16 that ends with 0.
#![expect(unsafe_code, reason = "what HNS returns is a pointer")]

use std::ptr;

use windows_sys::Win32::System::Com::CoTaskMemFree;
use windows_sys::core::{PCWSTR, PWSTR};

/// A text for HNS, which reads it during the call.
pub(crate) struct Argument(Vec<u16>);

impl Argument {
    /// JSON has no character 0, so nothing is cut.
    pub(crate) fn new(text: &str) -> Self {
        Self(text.encode_utf16().chain([0]).collect())
    }

    pub(crate) fn as_ptr(&self) -> PCWSTR {
        self.0.as_ptr()
    }
}

/// Where HNS puts a text, which is ours from then on.
pub(crate) struct Returned(PWSTR);

impl Returned {
    pub(crate) fn none() -> Self {
        Self(ptr::null_mut())
    }

    /// For the call.
    pub(crate) fn place(&mut self) -> *mut PWSTR {
        &raw mut self.0
    }

    /// What came, if anything did. What is no UTF-16 is replaced, as Windows' own functions do.
    pub(crate) fn text(&self) -> Option<String> {
        if self.0.is_null() {
            return None;
        }
        let mut length = 0;
        // SAFETY: HNS returns texts that end with 0, so there is another unit after each that is not 0.
        while unsafe { self.0.add(length).read() } != 0 {
            length += 1;
        }
        // SAFETY: these units were read just now, and nobody else has the text.
        let units = unsafe { std::slice::from_raw_parts(self.0, length) };
        Some(String::from_utf16_lossy(units))
    }
}

impl Drop for Returned {
    fn drop(&mut self) {
        // SAFETY: HNS allocates by COM, and gives the text to who calls; null is allowed.
        unsafe { CoTaskMemFree(self.0.cast()) }
    }
}
