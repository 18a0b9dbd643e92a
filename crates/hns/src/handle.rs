//! Open objects.
#![expect(unsafe_code, reason = "a handle is a pointer that has to be closed")]

use std::ffi::c_void;
use std::ptr;

use windows_sys::core::HRESULT;

/// `HcnClose…` of a kind.
pub(crate) type Close = unsafe extern "system" fn(*const c_void) -> HRESULT;

/// An open object, or the place for one; closed when this is dropped.
pub(crate) struct Handle {
    raw: *mut c_void,
    close: Close,
}

impl Handle {
    pub(crate) fn none(close: Close) -> Self {
        Self { raw: ptr::null_mut(), close }
    }

    /// For the call that opens it.
    pub(crate) fn place(&mut self) -> *mut *mut c_void {
        &raw mut self.raw
    }

    /// For calls about the object.
    pub(crate) fn raw(&self) -> *const c_void {
        self.raw
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: HNS gave it, for the kind that `close` is of, and it is closed once. That this fails helps nobody to know.
            let _result = unsafe { (self.close)(self.raw) };
        }
    }
}
