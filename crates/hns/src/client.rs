//! Calls of HNS.
#![expect(unsafe_code, reason = "the interface is C")]

use std::fmt;

use hcn::{Call, Code, Event, Guid, Hcn, HcnError, Kind, Query, VERSION_PATH, Version};
use serde_json::Value;
use windows_sys::core::{GUID, HRESULT, PWSTR};

use crate::events::Subscription;
use crate::handle::Handle;
use crate::library::{Calls, Library, MissingError};
use crate::text::{Argument, Returned};

/// The host's HNS. It has no connection that could break: each call finds the service anew.
#[derive(Clone, Copy)]
pub struct Hns(&'static Library);

impl Hns {
    /// Loads Windows' libraries, which say nothing of whether the service is there.
    ///
    /// # Errors
    /// What is missing of them.
    pub fn load() -> Result<Self, MissingError> {
        Library::get().map(Self)
    }

    /// Has `listener` called for each notification, on a thread of HNS'. It should not wait: others may come on the same thread.
    ///
    /// # Errors
    /// HNS' code: it is away, or refuses.
    pub fn subscribe(self, listener: impl Fn(Event) + Send + Sync + 'static) -> Result<Subscription, Code> {
        Subscription::begin(self.0, listener)
    }

    fn of(self, kind: Kind) -> &'static Calls {
        self.0.of(kind)
    }
}

impl fmt::Debug for Hns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hns")
    }
}

impl Hcn for Hns {
    fn version(&mut self) -> Result<Version, HcnError> {
        let (method, path, body) = (Argument::new("GET"), Argument::new(VERSION_PATH), Argument::new(""));
        let mut answer = Returned::none();
        // SAFETY: three texts that live until it returns, and a place for the answer.
        let result =
            unsafe { (self.0.hns_call)(method.as_ptr(), path.as_ptr(), body.as_ptr(), answer.place()) };
        hcn::check(Call::Version, code(result), None)?;
        let answer = answer.text().unwrap_or_default();
        Version::from_answer(&answer).map_err(|error| HcnError::unreadable(Call::Version, &error))
    }

    fn ids(&mut self, kind: Kind) -> Result<Vec<Guid>, HcnError> {
        let call = Call::Ids(kind);
        let query = argument(&Query::all(), call)?;
        let found = ask(call, |ids, error| {
            // SAFETY: a text that lives until it returns, and places for two texts.
            unsafe { (self.of(kind).enumerate)(query.as_ptr(), ids, error) }
        })?;
        // Where there is nothing, some versions say nothing.
        if found.is_empty() {
            return Ok(Vec::new());
        }
        serde_json::from_str(&found).map_err(|error| HcnError::unreadable(call, &error))
    }

    fn query(&mut self, kind: Kind, id: Guid) -> Result<Value, HcnError> {
        let call = Call::Query(kind, id);
        let calls = self.of(kind);
        read(call, calls, &open(call, calls, id)?)
    }

    fn create(
        &mut self,
        kind: Kind,
        network: Option<Guid>,
        id: Option<Guid>,
        settings: &Value,
    ) -> Result<(Guid, Value), HcnError> {
        let call = Call::Create(kind);
        let made = self.make(call, kind, network, id, settings)?;
        let properties = read(call, self.of(kind), &made)?;
        let id = properties.get("ID").cloned().unwrap_or_default();
        let id = serde_json::from_value(id).map_err(|error| HcnError::unreadable(call, &error))?;
        Ok((id, properties))
    }

    fn modify(&mut self, kind: Kind, id: Guid, settings: &Value) -> Result<(), HcnError> {
        let call = Call::Modify(kind, id);
        let calls = self.of(kind);
        let (object, settings) = (open(call, calls, id)?, argument(settings, call)?);
        tell(call, |error| {
            // SAFETY: an open object of this kind, a text that lives until it returns, and a place for another.
            unsafe { (calls.modify)(object.raw(), settings.as_ptr(), error) }
        })
    }

    fn delete(&mut self, kind: Kind, id: Guid) -> Result<(), HcnError> {
        let id_there = guid(id);
        tell(Call::Delete(kind, id), |error| {
            // SAFETY: an id that lives until it returns, and a place for a text.
            unsafe { (self.of(kind).delete)(&raw const id_there, error) }
        })
    }
}

impl Hns {
    fn make(
        self,
        call: Call,
        kind: Kind,
        network: Option<Guid>,
        id: Option<Guid>,
        settings: &Value,
    ) -> Result<Handle, HcnError> {
        // Without a proposal it is all zeros, as Microsoft's own library has it; HNS chooses one then.
        let id = guid(id.unwrap_or(Guid::from_u128(0)));
        let text = argument(settings, call)?;
        let networks = self.of(Kind::Network);
        let network = match (kind, network) {
            (Kind::Endpoint, Some(network)) => open(call, networks, network)?,
            (Kind::Endpoint, None) => return Err(HcnError::new(call, Code::INVALID_ARGUMENT)),
            _ => Handle::none(networks.close),
        };
        let mut made = Handle::none(self.of(kind).close);
        let place = made.place();
        tell(call, |error| {
            let (id, settings) = (&raw const id, text.as_ptr());
            // SAFETY: an open network where one is wanted; an id and a text that live until it returns; places for a handle and a text.
            unsafe {
                match kind {
                    Kind::Network => (self.0.create_network)(id, settings, place, error),
                    Kind::Endpoint => (self.0.create_endpoint)(network.raw(), id, settings, place, error),
                    Kind::LoadBalancer => (self.0.create_load_balancer)(id, settings, place, error),
                }
            }
        })?;
        Ok(made)
    }
}

fn open(call: Call, calls: &Calls, id: Guid) -> Result<Handle, HcnError> {
    let id = guid(id);
    let mut handle = Handle::none(calls.close);
    let place = handle.place();
    tell(call, |error| {
        // SAFETY: an id that lives until it returns, and places for a handle and a text.
        unsafe { (calls.open)(&raw const id, place, error) }
    })?;
    Ok(handle)
}

fn read(call: Call, calls: &Calls, object: &Handle) -> Result<Value, HcnError> {
    let query = argument(&Query::all(), call)?;
    let properties = ask(call, |properties, error| {
        // SAFETY: an open object of this kind, a text that lives until it returns, and places for two others.
        unsafe { (calls.query)(object.raw(), query.as_ptr(), properties, error) }
    })?;
    serde_json::from_str(&properties).map_err(|error| HcnError::unreadable(call, &error))
}

/// Makes a call that answers nothing but how it went.
fn tell(call: Call, make: impl FnOnce(*mut PWSTR) -> HRESULT) -> Result<(), HcnError> {
    ask(call, |_unused, error| make(error)).map(drop)
}

/// Makes a call that answers a text.
fn ask(call: Call, make: impl FnOnce(*mut PWSTR, *mut PWSTR) -> HRESULT) -> Result<String, HcnError> {
    let (mut answer, mut error) = (Returned::none(), Returned::none());
    let result = make(answer.place(), error.place());
    hcn::check(call, code(result), error.text().as_deref())?;
    Ok(answer.text().unwrap_or_default())
}

fn argument(document: &impl serde::Serialize, call: Call) -> Result<Argument, HcnError> {
    let text = serde_json::to_string(document).map_err(|error| HcnError::unreadable(call, &error))?;
    Ok(Argument::new(&text))
}

fn code(result: HRESULT) -> Code {
    Code(result.cast_unsigned())
}

fn guid(id: Guid) -> GUID {
    GUID::from_u128(id.to_u128())
}
