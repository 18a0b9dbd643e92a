//! Programs and maps in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::ebpf::{Contents, Endpoint, Explained, FastPath, FastPathError, Renumbered, Write};
use model::{Family, FrontendAddress, FrontendKey, Protocol};

/// What is in memory instead of the kernel: shared by those who open it, as pins are.
#[derive(Debug)]
pub struct FakePrograms<F: Family>(Arc<Mutex<Shared<F>>>);

impl<F: Family> Clone for FakePrograms<F> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<F: Family> Default for FakePrograms<F> {
    fn default() -> Self {
        let shared = Shared {
            contents: None,
            translated: BTreeMap::new(),
            is_attached: false,
            is_on: false,
            calls: 0,
            fails_at: None,
            writes: 0,
        };
        Self(Arc::new(Mutex::new(shared)))
    }
}

#[derive(Debug)]
struct Shared<F: Family> {
    contents: Option<Contents<F>>,
    translated: BTreeMap<u32, u64>,
    is_attached: bool,
    is_on: bool,
    calls: usize,
    fails_at: Option<usize>,
    writes: usize,
}

impl<F: Family> Shared<F> {
    fn call(&mut self) -> Result<(), FastPathError> {
        self.calls += 1;
        if self.fails_at == Some(self.calls) {
            let source = std::io::Error::from_raw_os_error(12);
            return Err(FastPathError::Refused { action: "make", object: "a call".to_owned(), source });
        }
        Ok(())
    }
}

impl<F: Family> FakePrograms<F> {
    fn lock(&self) -> MutexGuard<'_, Shared<F>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A way to it, for one process.
    pub fn open(&self) -> Box<dyn FastPath<F>> {
        Box::new(self.clone())
    }

    /// What the maps hold.
    pub fn contents(&self) -> Option<Contents<F>> {
        self.lock().contents.clone()
    }

    /// Puts something else into the maps, as somebody else might.
    pub fn set_contents(&self, contents: Option<Contents<F>>) {
        self.lock().contents = contents;
    }

    /// Whether connections are translated.
    pub fn translates(&self) -> bool {
        let shared = self.lock();
        shared.is_on && shared.is_attached
    }

    /// Counts as if a program had chosen the first endpoint of a frontend; gives that, if there is one.
    pub fn connect(&self, key: &FrontendKey<F>) -> Option<Endpoint<F>> {
        let mut shared = self.lock();
        let contents = shared.contents.as_ref()?;
        let value = contents.frontends.get(key)?;
        let number = contents.slots.get(value.base as usize)?.endpoint;
        let endpoint = contents.choices(value).first().copied().flatten()?;
        *shared.translated.entry(number).or_default() += 1;
        Some(endpoint)
    }

    /// Takes the programs off, as somebody else might.
    pub fn detach(&self) {
        self.lock().is_attached = false;
    }

    /// The call of this number from now on fails, once; the first is 1.
    pub fn fail_at(&self, call: usize) {
        let mut shared = self.lock();
        shared.fails_at = Some(shared.calls + call);
    }

    /// Whether the call that was to fail was made.
    pub fn has_failed(&self) -> bool {
        let shared = self.lock();
        shared.fails_at.is_some_and(|at| at <= shared.calls)
    }

    /// Writes so far, but for those that filled new maps.
    pub fn writes(&self) -> usize {
        self.lock().writes
    }
}

impl<F: Family> FastPath<F> for FakePrograms<F> {
    fn read(&mut self) -> Result<Option<Contents<F>>, FastPathError> {
        let mut shared = self.lock();
        shared.call()?;
        Ok(shared.contents.clone())
    }

    fn rebuild(&mut self, contents: &Contents<F>, renumbered: &[Renumbered]) -> Result<(), FastPathError> {
        let mut shared = self.lock();
        shared.call()?;
        let goes_on = |Renumbered { from, to }: &Renumbered| Some((*to, *shared.translated.get(from)?));
        shared.translated = renumbered.iter().filter_map(goes_on).collect();
        shared.contents = Some(contents.clone());
        shared.is_on = false;
        shared.is_attached = true;
        Ok(())
    }

    fn attach(&mut self) -> Result<(), FastPathError> {
        let mut shared = self.lock();
        shared.call()?;
        shared.is_attached = true;
        Ok(())
    }

    fn write(&mut self, writes: &[Write<F>]) -> Result<(), FastPathError> {
        let mut shared = self.lock();
        for write in writes {
            shared.call()?;
            let contents = shared.contents.as_mut().ok_or(FastPathError::NoMaps)?;
            if !contents.make(write) {
                return Err(FastPathError::NoRoom("a write"));
            }
            if let Write::Endpoint(number, _) = write {
                shared.translated.remove(number);
            }
            shared.writes += 1;
        }
        Ok(())
    }

    fn switch(&mut self, on: bool) {
        self.lock().is_on = on;
    }

    fn prove(&mut self) -> Result<(), FastPathError> {
        let mut shared = self.lock();
        shared.call()?;
        if shared.is_attached { Ok(()) } else { Err(FastPathError::NoMaps) }
    }

    fn look_up(&mut self, key: &FrontendKey<F>) -> Result<Option<Explained<F>>, FastPathError> {
        let shared = self.lock();
        let contents = shared.contents.as_ref().ok_or(FastPathError::NoMaps)?;
        let found = contents.frontends.get(key);
        Ok(found.map(|value| Explained { value: *value, endpoints: contents.choices(value) }))
    }

    fn translated(&self, endpoint: u32) -> u64 {
        self.lock().translated.get(&endpoint).copied().unwrap_or_default()
    }
}

/// What the programs that translate may do with a socket that names this address, while they are switched on: the addresses of which
/// they choose one. It is the one that was named where they leave it to the rules.
pub fn destinations<F: Family>(
    maps: &Contents<F>,
    is_host: bool,
    protocol: Protocol,
    (address, port): (F::Addr, u16),
) -> BTreeSet<(F::Addr, u16)> {
    let key = |address| FrontendKey { address, protocol, port };
    let of_node = || {
        let is_for_host = maps.node_addresses.get(&address)?;
        maps.frontends.get(&key(FrontendAddress::Node)).filter(|_| is_host || !is_for_host)
    };
    let frontend = maps.frontends.get(&key(FrontendAddress::Ip(address))).or_else(of_node);
    let Some(frontend) = frontend.filter(|frontend| is_host || !frontend.host_only) else {
        return BTreeSet::from([(address, port)]);
    };
    let choose = |n: u32| {
        let slot = maps.slots.get(usize::try_from(frontend.base.checked_add(n)?).ok()?)?;
        let endpoint = (*maps.endpoints.get(usize::try_from(slot.endpoint).ok()?)?)?;
        let is_current = slot.extent_epoch == frontend.epoch && slot.endpoint_epoch == endpoint.epoch;
        is_current.then_some((endpoint.address, endpoint.port))
    };
    (0..frontend.count).map(|n| choose(n).unwrap_or((address, port))).collect()
}
