//! The functions of HNS, found while the program runs, so that it starts where Windows does not have them, and says what is missing.
#![expect(unsafe_code, reason = "a function of a library is an address")]

use std::ffi::{CStr, c_void};
use std::io;
use std::sync::OnceLock;

use hcn::Kind;
use windows_sys::Win32::Foundation::HMODULE;
use windows_sys::Win32::System::HostComputeNetwork::HCN_NOTIFICATION_CALLBACK;
use windows_sys::Win32::System::LibraryLoader::{
    GetProcAddress, LOAD_LIBRARY_SEARCH_APPLICATION_DIR, LOAD_LIBRARY_SEARCH_SYSTEM32, LoadLibraryExW,
};
use windows_sys::core::{GUID, HRESULT, PCWSTR, PWSTR};

use crate::handle::Close;
use crate::text::Argument;

/// HNS can't be called on this host.
#[derive(Debug, thiserror::Error)]
pub enum MissingError {
    /// Windows has no such library, or can't load it.
    #[error(
        "{library} can't be loaded: mode kernelspace needs Windows Server 2019 or newer with the feature Containers"
    )]
    Library {
        /// Its file.
        library: &'static str,
        /// Windows' words.
        #[source]
        source: io::Error,
    },
    /// The library is of another Windows than this program is for.
    #[error("{library} has no {function}: mode kernelspace needs Windows Server 2019 or newer")]
    Function {
        /// Its file.
        library: &'static str,
        /// What it lacks.
        function: String,
        /// Windows' words.
        #[source]
        source: io::Error,
    },
}

/// The functions of both libraries. They stay loaded until the process ends.
pub(crate) struct Library {
    /// `HNSCall` of `vmcompute.dll`, the older interface: method, path, body, and where the answer goes, which is freed by
    /// `CoTaskMemFree`.
    pub(crate) hns_call: unsafe extern "system" fn(PCWSTR, PCWSTR, PCWSTR, *mut PWSTR) -> HRESULT,
    network: Calls,
    endpoint: Calls,
    load_balancer: Calls,
    pub(crate) create_network: Create,
    pub(crate) create_endpoint: unsafe extern "system" fn(
        *const c_void,
        *const GUID,
        PCWSTR,
        *mut *mut c_void,
        *mut PWSTR,
    ) -> HRESULT,
    pub(crate) create_load_balancer: Create,
    pub(crate) register_callback:
        unsafe extern "system" fn(HCN_NOTIFICATION_CALLBACK, *const c_void, *mut *mut c_void) -> HRESULT,
    pub(crate) unregister_callback: unsafe extern "system" fn(*const c_void) -> HRESULT,
}

type Create = unsafe extern "system" fn(*const GUID, PCWSTR, *mut *mut c_void, *mut PWSTR) -> HRESULT;

/// Functions of `computenetwork.dll` for one kind of object. They differ in their names alone, except that an endpoint is made
/// on a network.
pub(crate) struct Calls {
    pub(crate) enumerate: unsafe extern "system" fn(PCWSTR, *mut PWSTR, *mut PWSTR) -> HRESULT,
    pub(crate) open: unsafe extern "system" fn(*const GUID, *mut *mut c_void, *mut PWSTR) -> HRESULT,
    pub(crate) query: unsafe extern "system" fn(*const c_void, PCWSTR, *mut PWSTR, *mut PWSTR) -> HRESULT,
    pub(crate) modify: unsafe extern "system" fn(*const c_void, PCWSTR, *mut PWSTR) -> HRESULT,
    pub(crate) delete: unsafe extern "system" fn(*const GUID, *mut PWSTR) -> HRESULT,
    pub(crate) close: Close,
}

impl Library {
    /// Those of this host. What is missing is looked for again at the next call.
    ///
    /// # Errors
    /// The first library or function that is missing.
    pub(crate) fn get() -> Result<&'static Self, MissingError> {
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        if let Some(library) = LIBRARY.get() {
            return Ok(library);
        }
        let found = Self::load()?;
        Ok(LIBRARY.get_or_init(|| found))
    }

    /// Those for a kind.
    pub(crate) fn of(&self, kind: Kind) -> &Calls {
        match kind {
            Kind::Network => &self.network,
            Kind::Endpoint => &self.endpoint,
            Kind::LoadBalancer => &self.load_balancer,
        }
    }

    fn load() -> Result<Self, MissingError> {
        let compute = Module::load("vmcompute.dll")?;
        let network = Module::load("computenetwork.dll")?;
        // SAFETY: the types of these functions are those of Microsoft's headers `computenetwork.h` and, for `HNSCall`, of hcsshim,
        // which has it from Microsoft (`internal/hns`).
        unsafe {
            Ok(Self {
                hns_call: compute.function(c"HNSCall")?,
                network: Calls {
                    enumerate: network.function(c"HcnEnumerateNetworks")?,
                    open: network.function(c"HcnOpenNetwork")?,
                    query: network.function(c"HcnQueryNetworkProperties")?,
                    modify: network.function(c"HcnModifyNetwork")?,
                    delete: network.function(c"HcnDeleteNetwork")?,
                    close: network.function(c"HcnCloseNetwork")?,
                },
                endpoint: Calls {
                    enumerate: network.function(c"HcnEnumerateEndpoints")?,
                    open: network.function(c"HcnOpenEndpoint")?,
                    query: network.function(c"HcnQueryEndpointProperties")?,
                    modify: network.function(c"HcnModifyEndpoint")?,
                    delete: network.function(c"HcnDeleteEndpoint")?,
                    close: network.function(c"HcnCloseEndpoint")?,
                },
                load_balancer: Calls {
                    enumerate: network.function(c"HcnEnumerateLoadBalancers")?,
                    open: network.function(c"HcnOpenLoadBalancer")?,
                    query: network.function(c"HcnQueryLoadBalancerProperties")?,
                    modify: network.function(c"HcnModifyLoadBalancer")?,
                    delete: network.function(c"HcnDeleteLoadBalancer")?,
                    close: network.function(c"HcnCloseLoadBalancer")?,
                },
                create_network: network.function(c"HcnCreateNetwork")?,
                create_endpoint: network.function(c"HcnCreateEndpoint")?,
                create_load_balancer: network.function(c"HcnCreateLoadBalancer")?,
                register_callback: network.function(c"HcnRegisterServiceCallback")?,
                unregister_callback: network.function(c"HcnUnregisterServiceCallback")?,
            })
        }
    }
}

/// A library that is loaded, for good.
struct Module {
    name: &'static str,
    handle: HMODULE,
}

impl Module {
    /// Looks beside the program and in Windows' own folder, and nowhere else.
    fn load(name: &'static str) -> Result<Self, MissingError> {
        let file = Argument::new(name);
        let places = LOAD_LIBRARY_SEARCH_APPLICATION_DIR | LOAD_LIBRARY_SEARCH_SYSTEM32;
        // SAFETY: a text that lives until it returns. What these libraries do when they are loaded is Windows' own.
        let handle = unsafe { LoadLibraryExW(file.as_ptr(), std::ptr::null_mut(), places) };
        if handle.is_null() {
            return Err(MissingError::Library { library: name, source: io::Error::last_os_error() });
        }
        Ok(Self { name, handle })
    }

    /// A function by its name.
    ///
    /// # Safety
    /// `T` is the type of a pointer to that function.
    unsafe fn function<T: Copy>(&self, name: &CStr) -> Result<T, MissingError> {
        const { assert!(size_of::<T>() == size_of::<usize>(), "a pointer to a function") };
        // SAFETY: a loaded library, and a text that ends with 0.
        let address = unsafe { GetProcAddress(self.handle, name.as_ptr().cast()) };
        let Some(address) = address else {
            let function = name.to_string_lossy().into_owned();
            return Err(MissingError::Function {
                library: self.name,
                function,
                source: io::Error::last_os_error(),
            });
        };
        // SAFETY: both are pointers to functions, of the size that was asserted; whoever calls this vouches for the type.
        Ok(unsafe { std::mem::transmute_copy(&address) })
    }
}
