//! The maps of one generation.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use ebpf::{
    Capacity, Contents, Endpoint, Explained, FastPathError, FrontendValue, META_WORDS, MapName, Meta,
    Renumbered, Slot, Write, decode_address, decode_key, encode_address, encode_key, endpoint_words,
};
use model::{Family, FrontendKey};

use super::mapped::Mapped;
use super::refused;
use super::sys::{Bpf, Map};

/// Maps that belong together, and those of them that are in memory.
#[derive(Debug)]
pub(crate) struct Generation<F: Family> {
    dir: PathBuf,
    maps: BTreeMap<MapName, Map>,
    slots: Mapped,
    endpoints: Mapped,
    counters: Mapped,
    meta: Mapped,
    family: PhantomData<F>,
}

impl<F: Family> Generation<F> {
    /// The maps that are pinned in a directory; `None` if one is missing or is not as we make them.
    pub(crate) fn open(bpf: &Bpf, dir: &Path) -> Result<Option<Self>, FastPathError> {
        let mut maps = BTreeMap::new();
        for name in MapName::OF_GENERATION {
            let path = dir.join(name.as_str());
            let Some(found) = bpf.pinned(&path).map_err(refused("open", path.display()))? else {
                return Ok(None);
            };
            let map = Map::new(bpf, found).map_err(refused("look at", path.display()))?;
            let capacity = Capacity { frontends: 0, slots: 0, endpoints: 0 };
            let spec = name.spec(F::FAMILY, &capacity);
            let (kind, _) = spec.kind.numbers();
            let is_ours = (map.info.kind, map.info.key_bytes, map.info.value_bytes)
                == (kind, spec.key_bytes, spec.value_bytes);
            if !is_ours {
                return Ok(None);
            }
            maps.insert(name, map);
        }
        Self::of(dir, maps).map(Some)
    }

    /// Makes and fills maps, and pins them in a new directory.
    pub(crate) fn create(bpf: &Bpf, dir: &Path, contents: &Contents<F>) -> Result<Self, FastPathError> {
        fs::create_dir(dir).map_err(refused("make", dir.display()))?;
        let mut maps = BTreeMap::new();
        for name in MapName::OF_GENERATION {
            let path = dir.join(name.as_str());
            let spec = name.spec(F::FAMILY, &contents.capacity);
            let title = format!("kp_{}", name.as_str());
            let made = bpf.create_map(&title, &spec, None).map_err(refused("make", path.display()))?;
            bpf.pin(made.as_fd(), &path).map_err(refused("pin", path.display()))?;
            maps.insert(name, Map::new(bpf, made).map_err(refused("look at", path.display()))?);
        }
        let generation = Self::of(dir, maps)?;
        generation.fill(bpf, contents)?;
        generation.set_meta(Meta::Complete, 1);
        Ok(generation)
    }

    fn of(dir: &Path, maps: BTreeMap<MapName, Map>) -> Result<Self, FastPathError> {
        let mapped = |name: MapName, words: usize| {
            let map = maps.get(&name).ok_or(FastPathError::NoMaps)?;
            let entries = usize::try_from(map.info.entries).unwrap_or(usize::MAX);
            Mapped::new(map.fd(), entries.saturating_mul(words)).map_err(refused("map", name.as_str()))
        };
        let slots = mapped(MapName::Slots, 1)?;
        let endpoints = mapped(MapName::Endpoints, endpoint_words(F::FAMILY))?;
        let counters = mapped(MapName::Counters, 1)?;
        let meta = mapped(MapName::Meta, META_WORDS)?;
        Ok(Self { dir: dir.to_owned(), maps, slots, endpoints, counters, meta, family: PhantomData })
    }

    fn fill(&self, bpf: &Bpf, contents: &Contents<F>) -> Result<(), FastPathError> {
        for (id, endpoint) in (0..).zip(&contents.endpoints) {
            if let Some(endpoint) = endpoint {
                self.write(bpf, &Write::Endpoint(id, *endpoint))?;
            }
        }
        for (position, slot) in (0..).zip(&contents.slots) {
            if *slot != Slot::default() {
                self.write(bpf, &Write::Slot(position, *slot))?;
            }
        }
        for (address, host_only) in &contents.node_addresses {
            self.write(bpf, &Write::NodeAddress(*address, *host_only))?;
        }
        contents.frontends.iter().try_for_each(|(key, value)| self.write(bpf, &Write::Frontend(*key, *value)))
    }

    /// Where it is pinned.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn map(&self, name: MapName) -> Option<&Map> {
        self.maps.get(&name)
    }

    fn required(&self, name: MapName) -> Result<&Map, FastPathError> {
        self.map(name).ok_or(FastPathError::NoMaps)
    }

    pub(crate) fn meta(&self, word: Meta) -> u64 {
        self.meta.load(word.index())
    }

    pub(crate) fn set_meta(&self, word: Meta, value: u64) {
        self.meta.store(word.index(), value);
    }

    pub(crate) fn write(&self, bpf: &Bpf, write: &Write<F>) -> Result<(), FastPathError> {
        let frontends = || self.required(MapName::Frontends);
        let addresses = || self.required(MapName::NodeAddresses);
        let made: io::Result<()> = match write {
            Write::Endpoint(id, endpoint) => self.write_endpoint(*id, endpoint),
            Write::RemoveEndpoint(id) => {
                let words = endpoint_words(F::FAMILY);
                let last = index(*id).saturating_mul(words) + words - 1;
                if self.endpoints.store(last, 0) { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
            }
            Write::Slot(position, slot) => {
                let is_there = self.slots.store(index(*position), slot.word());
                if is_there { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
            }
            Write::Frontend(key, value) => bpf.update(frontends()?, &encode_key(key), &value.encode(key)),
            Write::RemoveFrontend(key) => bpf.delete(frontends()?, &encode_key(key)),
            Write::NodeAddress(address, host_only) => {
                let flags = u32::from(*host_only).to_ne_bytes();
                bpf.update(addresses()?, &encode_address::<F>(*address), &flags)
            }
            Write::RemoveNodeAddress(address) => bpf.delete(addresses()?, &encode_address::<F>(*address)),
        };
        made.map_err(refused("write", write))
    }

    /// The word with the epoch last; before, it says that there is none. The counter is nobody's then.
    fn write_endpoint(&self, id: u32, endpoint: &Endpoint<F>) -> io::Result<()> {
        self.counters.store(index(id), 0);
        let words = endpoint.encode();
        let first = index(id).saturating_mul(words.len());
        if first + words.len() > self.endpoints.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if words.len() > 1 {
            self.endpoints.store(first + words.len() - 1, 0);
        }
        for (n, word) in words.iter().enumerate() {
            self.endpoints.store(first + n, *word);
        }
        Ok(())
    }

    pub(crate) fn read(&self, bpf: &Bpf) -> Result<Contents<F>, FastPathError> {
        let entries = |name| self.required(name).map(|map| map.info.entries);
        let mut contents = Contents::<F>::empty(Capacity {
            frontends: entries(MapName::Frontends)?,
            slots: entries(MapName::Slots)?,
            endpoints: entries(MapName::Endpoints)?,
        });
        for (position, slot) in contents.slots.iter_mut().enumerate() {
            *slot = Slot::of(self.slots.load(position));
        }
        for (id, endpoint) in contents.endpoints.iter_mut().enumerate() {
            *endpoint = self.endpoint(id);
        }
        let elements =
            |name: MapName| bpf.elements(self.required(name)?).map_err(refused("read", name.as_str()));
        for (key, value) in elements(MapName::Frontends)? {
            let key = decode_key::<F>(&key);
            match key.and_then(|key| Some((key, FrontendValue::decode(&key, &value)?))) {
                Some((key, value)) => drop(contents.frontends.insert(key, value)),
                None => contents.unreadable += 1,
            }
        }
        for (key, value) in elements(MapName::NodeAddresses)? {
            let flags = value.try_into().map(u32::from_ne_bytes);
            match (decode_address::<F>(&key), flags) {
                (Some(address), Ok(flags @ 0..=1)) => {
                    contents.node_addresses.insert(address, flags == 1);
                }
                _ => contents.unreadable += 1,
            }
        }
        Ok(contents)
    }

    pub(crate) fn look_up(
        &self,
        bpf: &Bpf,
        key: &FrontendKey<F>,
    ) -> Result<Option<Explained<F>>, FastPathError> {
        let map = self.required(MapName::Frontends)?;
        let found = bpf.find(map, &encode_key(key)).map_err(refused("read", MapName::Frontends.as_str()))?;
        let Some(value) = found.and_then(|bytes| FrontendValue::decode(key, &bytes)) else { return Ok(None) };
        let slots = (value.base..).take(index(value.count).min(self.slots.len()));
        let endpoints = slots.map(|position| {
            let slot = Slot::of(self.slots.load(index(position)));
            let endpoint = self.endpoint(index(slot.endpoint))?;
            let is_current = slot.extent_epoch == value.epoch && endpoint.epoch == slot.endpoint_epoch;
            is_current.then_some(endpoint)
        });
        Ok(Some(Explained { value, endpoints: endpoints.collect() }))
    }

    fn endpoint(&self, id: usize) -> Option<Endpoint<F>> {
        let words = endpoint_words(F::FAMILY);
        let read: Vec<u64> = (0..words).map(|n| self.endpoints.load(id.saturating_mul(words) + n)).collect();
        Endpoint::decode(&read)
    }

    pub(crate) fn translated(&self, endpoint: u32) -> u64 {
        self.counters.load(index(endpoint))
    }

    /// Goes on with the counters of former maps, which no program uses any more.
    pub(crate) fn go_on_counting(&self, before: &Self, renumbered: &[Renumbered]) {
        for Renumbered { from, to } in renumbered {
            self.counters.add(index(*to), before.translated(*from));
        }
    }
}

fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
