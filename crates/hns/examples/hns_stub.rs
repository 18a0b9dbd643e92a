//! HNS in memory behind the C interface, as `computenetwork.dll` and `vmcompute.dll` for tests of the whole program where there is
//! no HNS, such as under wine. It refuses what [`fakes::hns::FakeHns`] refuses.
//!
//! | variable | what is there |
//! |---|---|
//! | `HNS_STUB_STATE` | knobs and objects as JSON; without the file HNS is away |
//! | `HNS_STUB_JOURNAL` | gets a line for each call that was tried and writes, with the number of open handles |
//! | `HNS_STUB_EVENT` | a file with the number of a notification, which is told and then deleted |
#![cfg(windows)]
#![expect(unsafe_code, reason = "the interface is C")]
#![expect(clippy::undocumented_unsafe_blocks, reason = "Windows' documents say what each call may assume")]

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fakes::hns::{FakeHns, Knobs, Objects};
use hcn::{Call, Code, Guid, Hcn, HcnError, Kind, VERSION_PATH};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use windows_sys::Win32::System::Com::CoTaskMemAlloc;
use windows_sys::core::{GUID, HRESULT, PCWSTR, PWSTR};

#[derive(Serialize, Deserialize)]
struct Saved {
    knobs: Knobs,
    objects: Objects,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn file(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from)
}

/// Does something to the saved HNS. The two libraries, and whoever runs the test, take turns by a lock on a file beside it.
fn with_saved<T>(call: Call, work: impl FnOnce(&mut FakeHns) -> Result<T, HcnError>) -> Result<T, HcnError> {
    let away = |_| HcnError::new(call, Code::SERVICE_NOT_ACTIVE);
    let path = file("HNS_STUB_STATE").ok_or_else(|| HcnError::new(call, Code::SERVICE_NOT_ACTIVE))?;
    let turn = File::create(path.with_extension("lock")).map_err(away)?;
    turn.lock().map_err(away)?;
    let text = std::fs::read(&path).map_err(away)?;
    let Saved { knobs, objects } =
        serde_json::from_slice(&text).map_err(|error| HcnError::unreadable(call, &error))?;
    let mut hns = FakeHns::with(knobs.clone(), objects);
    let result = work(&mut hns);
    if call.writes() {
        note(call, result.as_ref().err());
        let saved = Saved { knobs, objects: hns.objects() };
        save(&path, &saved).map_err(away)?;
    }
    result
}

fn save(path: &Path, saved: &Saved) -> std::io::Result<()> {
    let fresh = path.with_extension("fresh");
    std::fs::write(&fresh, serde_json::to_vec(saved)?)?;
    std::fs::rename(fresh, path)
}

fn note(call: Call, error: Option<&HcnError>) {
    let Some(path) = file("HNS_STUB_JOURNAL") else { return };
    let handles = lock(&HANDLES).1.len();
    let outcome = error.map_or_else(String::new, |error| format!(" {}", error.code));
    let journal = OpenOptions::new().append(true).create(true).open(path);
    drop(journal.and_then(|mut journal| writeln!(journal, "{handles} {call}{outcome}")));
}

/// The last number that was given out, and what those stand for that are in use.
type Numbered<T> = Mutex<(usize, BTreeMap<usize, T>)>;

/// Open objects by the number that stands for a handle.
static HANDLES: Numbered<(Kind, Guid)> = Mutex::new((0, BTreeMap::new()));

fn new_handle(kind: Kind, id: Guid) -> *mut c_void {
    let (last, open) = &mut *lock(&HANDLES);
    *last += 1;
    open.insert(*last, (kind, id));
    ptr::without_provenance_mut(*last)
}

fn opened(call: impl FnOnce(Guid) -> Call, kind: Kind, handle: *const c_void) -> Result<Guid, HcnError> {
    let found = lock(&HANDLES).1.get(&handle.addr()).copied();
    match found {
        Some((of, id)) if of == kind => Ok(id),
        _ => Err(HcnError::new(call(Guid::from_u128(0)), Code(0x8007_0006))),
    }
}

fn close(kind: Kind, handle: *const c_void) -> HRESULT {
    let closed = lock(&HANDLES).1.remove(&handle.addr());
    if closed.is_some_and(|(of, _)| of == kind) { 0 } else { Code(0x8007_0006).0.cast_signed() }
}

/// A text for the program, which frees it.
fn give(text: &str, place: *mut PWSTR) {
    if place.is_null() {
        return;
    }
    let units: Vec<u16> = text.encode_utf16().chain([0]).collect();
    unsafe {
        let memory: *mut u16 = CoTaskMemAlloc(size_of_val(&*units)).cast();
        ptr::copy_nonoverlapping(units.as_ptr(), memory, units.len());
        place.write(memory);
    }
}

fn take(text: PCWSTR) -> String {
    let mut length = 0;
    unsafe {
        while text.add(length).read() != 0 {
            length += 1;
        }
        String::from_utf16_lossy(std::slice::from_raw_parts(text, length))
    }
}

fn parse(call: Call, text: PCWSTR) -> Result<Value, HcnError> {
    serde_json::from_str(&take(text)).map_err(|error| HcnError {
        call,
        code: Code::INVALID_ARGUMENT,
        text: error.to_string(),
    })
}

fn guid(id: *const GUID) -> Guid {
    let GUID { data1, data2, data3, data4 } = unsafe { id.read() };
    let high = u64::from(data1) << 32 | u64::from(data2) << 16 | u64::from(data3);
    Guid::from_u128(u128::from(high) << 64 | u128::from(u64::from_be_bytes(data4)))
}

/// What a call returns. Every other failure is told by the document alone, as some calls of HNS do.
fn answer(result: Result<(), HcnError>, error_place: *mut PWSTR) -> HRESULT {
    static FAILURES: AtomicUsize = AtomicUsize::new(0);
    let Err(error) = result else { return 0 };
    let document = json!({ "Success": false, "Error": error.text, "ErrorCode": error.code.0 });
    give(&document.to_string(), error_place);
    if FAILURES.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) { error.code.0.cast_signed() } else { 0 }
}

fn enumerate(kind: Kind, place: *mut PWSTR) -> Result<(), HcnError> {
    let call = Call::Ids(kind);
    let ids = with_saved(call, |hns| hns.ids(kind))?;
    let text = serde_json::to_string(&ids).map_err(|error| HcnError::unreadable(call, &error))?;
    give(&text, place);
    Ok(())
}

fn open(kind: Kind, id: Guid, place: *mut *mut c_void) -> Result<(), HcnError> {
    with_saved(Call::Query(kind, id), |hns| hns.query(kind, id))?;
    unsafe { place.write(new_handle(kind, id)) };
    Ok(())
}

fn query(kind: Kind, handle: *const c_void, place: *mut PWSTR) -> Result<(), HcnError> {
    let id = opened(|id| Call::Query(kind, id), kind, handle)?;
    let found = with_saved(Call::Query(kind, id), |hns| hns.query(kind, id))?;
    give(&found.to_string(), place);
    Ok(())
}

fn create(
    kind: Kind,
    network: Option<*const c_void>,
    id: Guid,
    settings: PCWSTR,
    place: *mut *mut c_void,
) -> Result<(), HcnError> {
    let call = Call::Create(kind);
    let network = network.map(|handle| opened(|_| call, Kind::Network, handle)).transpose()?;
    let settings = parse(call, settings)?;
    let id = (id.to_u128() != 0).then_some(id);
    let (made, _) = with_saved(call, |hns| hns.create(kind, network, id, &settings))?;
    unsafe { place.write(new_handle(kind, made)) };
    Ok(())
}

fn modify(kind: Kind, handle: *const c_void, settings: PCWSTR) -> Result<(), HcnError> {
    let id = opened(|id| Call::Modify(kind, id), kind, handle)?;
    let call = Call::Modify(kind, id);
    let settings = parse(call, settings)?;
    with_saved(call, |hns| hns.modify(kind, id, &settings))
}

/// What each kind has, under its names.
macro_rules! kind {
    ($kind:ident: $enumerate:ident $open:ident $query:ident $modify:ident $delete:ident $close:ident) => {
        #[unsafe(no_mangle)]
        extern "system" fn $enumerate(_query: PCWSTR, found: *mut PWSTR, error: *mut PWSTR) -> HRESULT {
            answer(enumerate(Kind::$kind, found), error)
        }
        #[unsafe(no_mangle)]
        extern "system" fn $open(id: *const GUID, handle: *mut *mut c_void, error: *mut PWSTR) -> HRESULT {
            answer(open(Kind::$kind, guid(id), handle), error)
        }
        #[unsafe(no_mangle)]
        extern "system" fn $query(
            handle: *const c_void,
            _query: PCWSTR,
            found: *mut PWSTR,
            error: *mut PWSTR,
        ) -> HRESULT {
            answer(query(Kind::$kind, handle, found), error)
        }
        #[unsafe(no_mangle)]
        extern "system" fn $modify(handle: *const c_void, settings: PCWSTR, error: *mut PWSTR) -> HRESULT {
            answer(modify(Kind::$kind, handle, settings), error)
        }
        #[unsafe(no_mangle)]
        extern "system" fn $delete(id: *const GUID, error: *mut PWSTR) -> HRESULT {
            let id = guid(id);
            answer(with_saved(Call::Delete(Kind::$kind, id), |hns| hns.delete(Kind::$kind, id)), error)
        }
        #[unsafe(no_mangle)]
        extern "system" fn $close(handle: *const c_void) -> HRESULT {
            close(Kind::$kind, handle)
        }
    };
}

kind!(Network: HcnEnumerateNetworks HcnOpenNetwork HcnQueryNetworkProperties HcnModifyNetwork HcnDeleteNetwork HcnCloseNetwork);
kind!(Endpoint: HcnEnumerateEndpoints HcnOpenEndpoint HcnQueryEndpointProperties HcnModifyEndpoint HcnDeleteEndpoint HcnCloseEndpoint);
kind!(LoadBalancer: HcnEnumerateLoadBalancers HcnOpenLoadBalancer HcnQueryLoadBalancerProperties HcnModifyLoadBalancer HcnDeleteLoadBalancer HcnCloseLoadBalancer);

#[unsafe(no_mangle)]
extern "system" fn HcnCreateNetwork(
    id: *const GUID,
    settings: PCWSTR,
    handle: *mut *mut c_void,
    error: *mut PWSTR,
) -> HRESULT {
    answer(create(Kind::Network, None, guid(id), settings, handle), error)
}

#[unsafe(no_mangle)]
extern "system" fn HcnCreateEndpoint(
    network: *const c_void,
    id: *const GUID,
    settings: PCWSTR,
    handle: *mut *mut c_void,
    error: *mut PWSTR,
) -> HRESULT {
    answer(create(Kind::Endpoint, Some(network), guid(id), settings, handle), error)
}

#[unsafe(no_mangle)]
extern "system" fn HcnCreateLoadBalancer(
    id: *const GUID,
    settings: PCWSTR,
    handle: *mut *mut c_void,
    error: *mut PWSTR,
) -> HRESULT {
    answer(create(Kind::LoadBalancer, None, guid(id), settings, handle), error)
}

/// The older interface knows the version alone.
#[unsafe(no_mangle)]
extern "system" fn HNSCall(method: PCWSTR, path: PCWSTR, _body: PCWSTR, response: *mut PWSTR) -> HRESULT {
    let is_known = take(method) == "GET" && take(path) == VERSION_PATH;
    let document = match with_saved(Call::Version, FakeHns::version) {
        Ok(version) if is_known => json!({ "Success": true, "Output": version }),
        Ok(_) => json!({ "Success": false, "Error": "there is nothing at this path" }),
        Err(error) => return error.code.0.cast_signed(),
    };
    give(&document.to_string(), response);
    0
}

type Callback = unsafe extern "system" fn(u32, *const c_void, HRESULT, PCWSTR);

/// Callbacks by number, each with its context as a number.
static CALLBACKS: Numbered<(Callback, usize)> = Mutex::new((0, BTreeMap::new()));

#[unsafe(no_mangle)]
extern "system" fn HcnRegisterServiceCallback(
    callback: Callback,
    context: *const c_void,
    handle: *mut *mut c_void,
) -> HRESULT {
    let (last, callbacks) = &mut *lock(&CALLBACKS);
    *last += 1;
    callbacks.insert(*last, (callback, context.addr()));
    if *last == 1 {
        drop(std::thread::spawn(tell_events));
    }
    unsafe { handle.write(ptr::without_provenance_mut(*last)) };
    0
}

#[unsafe(no_mangle)]
extern "system" fn HcnUnregisterServiceCallback(handle: *const c_void) -> HRESULT {
    lock(&CALLBACKS).1.remove(&handle.addr());
    0
}

/// Tells what the test wants to be told, on a thread of its own.
fn tell_events() {
    let Some(path) = file("HNS_STUB_EVENT") else { return };
    loop {
        std::thread::sleep(Duration::from_millis(50));
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let Ok(kind) = text.trim().parse() else { continue };
        let callbacks: Vec<_> = lock(&CALLBACKS).1.values().copied().collect();
        for (callback, context) in callbacks {
            let data: Vec<u16> = "{}".encode_utf16().chain([0]).collect();
            unsafe { callback(kind, ptr::without_provenance(context), 0, data.as_ptr()) };
        }
        drop(std::fs::remove_file(&path));
    }
}
