//! The calls of each kind of object. They differ in their names alone, except that an endpoint is made on a network.

use std::ffi::c_void;

use hcn::Kind;
use windows_sys::Win32::System::HostComputeNetwork as api;
use windows_sys::core::{GUID, HRESULT, PCWSTR, PWSTR};

use crate::handle::Close;

/// Functions of `computenetwork.dll` for one kind.
pub(crate) struct Calls {
    pub(crate) enumerate: unsafe extern "system" fn(PCWSTR, *mut PWSTR, *mut PWSTR) -> HRESULT,
    pub(crate) open: unsafe extern "system" fn(*const GUID, *mut *mut c_void, *mut PWSTR) -> HRESULT,
    pub(crate) query: unsafe extern "system" fn(*const c_void, PCWSTR, *mut PWSTR, *mut PWSTR) -> HRESULT,
    pub(crate) modify: unsafe extern "system" fn(*const c_void, PCWSTR, *mut PWSTR) -> HRESULT,
    pub(crate) delete: unsafe extern "system" fn(*const GUID, *mut PWSTR) -> HRESULT,
    pub(crate) close: Close,
}

/// Those of a kind.
pub(crate) fn of(kind: Kind) -> &'static Calls {
    match kind {
        Kind::Network => &NETWORK,
        Kind::Endpoint => &ENDPOINT,
        Kind::LoadBalancer => &LOAD_BALANCER,
    }
}

static NETWORK: Calls = Calls {
    enumerate: api::HcnEnumerateNetworks,
    open: api::HcnOpenNetwork,
    query: api::HcnQueryNetworkProperties,
    modify: api::HcnModifyNetwork,
    delete: api::HcnDeleteNetwork,
    close: api::HcnCloseNetwork,
};

static ENDPOINT: Calls = Calls {
    enumerate: api::HcnEnumerateEndpoints,
    open: api::HcnOpenEndpoint,
    query: api::HcnQueryEndpointProperties,
    modify: api::HcnModifyEndpoint,
    delete: api::HcnDeleteEndpoint,
    close: api::HcnCloseEndpoint,
};

static LOAD_BALANCER: Calls = Calls {
    enumerate: api::HcnEnumerateLoadBalancers,
    open: api::HcnOpenLoadBalancer,
    query: api::HcnQueryLoadBalancerProperties,
    modify: api::HcnModifyLoadBalancer,
    delete: api::HcnDeleteLoadBalancer,
    close: api::HcnCloseLoadBalancer,
};
