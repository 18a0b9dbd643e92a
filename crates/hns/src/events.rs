//! What HNS tells by itself, on threads of its own.
#![expect(unsafe_code, reason = "the interface is C")]

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use hcn::{Code, Event};
use windows_sys::core::{HRESULT, PCWSTR};

use crate::library::Library;

type Listener = Arc<dyn Fn(Event) + Send + Sync>;

/// Who listens, by number. HNS is given the number and no pointer: it is not documented whether a notification can still come
/// while, or after, a callback is taken back.
static LISTENERS: Mutex<Listeners> = Mutex::new(Listeners { last: 0, by_number: BTreeMap::new() });

struct Listeners {
    last: usize,
    by_number: BTreeMap<usize, Listener>,
}

/// A callback that HNS has; taken back when this is dropped.
pub struct Subscription {
    library: &'static Library,
    number: usize,
    handle: *mut c_void,
}

// SAFETY: the handle is a number to HNS, whose functions may be called from any thread.
unsafe impl Send for Subscription {}

impl Subscription {
    /// See [`Hns::subscribe`](crate::Hns::subscribe).
    pub(crate) fn begin(
        library: &'static Library,
        listener: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<Self, Code> {
        let number = add(Arc::new(listener));
        let mut subscription = Self { library, number, handle: ptr::null_mut() };
        let (context, place) = (ptr::without_provenance::<c_void>(number), &raw mut subscription.handle);
        // SAFETY: the function lives as long as the program, the context is never followed, and there is a place for the handle.
        let result = unsafe { (library.register_callback)(Some(notified), context, place) };
        let code = Code(result.cast_unsigned());
        if code.is_success() { Ok(subscription) } else { Err(code) }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: HNS gave it, and it is given back once. If the service is gone, so is the callback.
            let _result = unsafe { (self.library.unregister_callback)(self.handle) };
        }
        listeners(|listeners| listeners.by_number.remove(&self.number));
    }
}

fn add(listener: Listener) -> usize {
    listeners(|listeners| {
        listeners.last += 1;
        listeners.by_number.insert(listeners.last, listener);
        listeners.last
    })
}

fn listeners<T>(work: impl FnOnce(&mut Listeners) -> T) -> T {
    work(&mut LISTENERS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What HNS calls. The data, a JSON document about the object, is not looked at: whoever listens reads the object itself.
unsafe extern "system" fn notified(kind: u32, context: *const c_void, _status: HRESULT, _data: PCWSTR) {
    let Some(listener) = listeners(|listeners| listeners.by_number.get(&context.addr()).cloned()) else {
        return;
    };
    // A panic must not go on into foreign code.
    if catch_unwind(AssertUnwindSafe(|| listener(Event::of(kind)))).is_err() {
        tracing::warn!(kind, "a notification of HNS was not understood");
    }
}
