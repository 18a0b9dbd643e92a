//! Noticing what others do: IPVS does not tell, so it is looked at now and then.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::hash::{BuildHasher as _, Hash};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipvs::{Addresses, Devices, Ipvs, ServerId};
use model::Family;
use rustc_hash::FxBuildHasher;

use crate::change::Change;
use crate::target::TargetError;

/// What a target does, which tells its changes from those of others.
#[derive(Clone, Debug, Default)]
pub struct Activity(Arc<Mutex<Doings>>);

#[derive(Clone, Copy, Debug, Default)]
struct Doings {
    /// How often it has begun or ended to do something; odd while it does.
    count: u64,
    /// What there is unless somebody else does something; none: not known.
    expected: Option<Presence>,
}

impl Activity {
    /// The target begins to change something. It may have panicked over the last change.
    pub(crate) fn begin(&self) {
        let mut doings = self.doings();
        doings.count = (doings.count + 1) | 1;
    }

    /// The target has made these changes.
    pub(crate) fn end<F: Family>(&self, made: impl Iterator<Item = Change<F>>) {
        let mut doings = self.doings();
        doings.count += 1;
        if let Some(expected) = &mut doings.expected {
            made.for_each(|change| expected.note(&change));
        }
    }

    /// The target has read everything.
    pub(crate) fn expect(&self, found: Presence) {
        self.doings().expected = Some(found);
    }

    fn doings(&self) -> MutexGuard<'_, Doings> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which virtual servers and addresses of a family there are: the sum of a number for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Presence(u64);

impl Presence {
    pub(crate) fn of<F: Family>(servers: impl Iterator<Item = ServerId>, addresses: &Addresses) -> Self {
        let mut presence = Self::default();
        let of_family = |address: &&IpAddr| F::narrow(**address).is_some();
        servers.filter(|id| of_family(&&id.address)).for_each(|id| presence.add(&id));
        let by_device = [(true, &addresses.device), (false, &addresses.others)];
        for (is_ours, addresses) in by_device {
            addresses.iter().filter(of_family).for_each(|address| presence.add(&(is_ours, *address)));
        }
        presence
    }

    fn note<F: Family>(&mut self, change: &Change<F>) {
        match change {
            Change::NewVirtual(id, _) => self.add(&id.server_id()),
            Change::DeleteVirtual(id) => self.remove(&id.server_id()),
            Change::AddAddress(address) => self.add(&(true, (*address).into())),
            Change::DeleteAddress(address) => self.remove(&(true, (*address).into())),
            Change::SetVirtual(..)
            | Change::NewReal(..)
            | Change::RestoreReal(..)
            | Change::DrainReal(..)
            | Change::ReleaseReal(..)
            | Change::DeleteReal(..)
            | Change::SetTimeouts(_) => {}
        }
    }

    fn add(&mut self, what: &impl Hash) {
        self.0 = self.0.wrapping_add(FxBuildHasher.hash_one(what));
    }

    fn remove(&mut self, what: &impl Hash) {
        self.0 = self.0.wrapping_sub(FxBuildHasher.hash_one(what));
    }
}

/// Looks at virtual servers and addresses of a family.
///
/// Which ones there are is compared with what the target has read and done, so that nothing escapes that others do shortly after a
/// change of ours; how they are set, with the last look, if the target did nothing in between.
///
/// Each look costs the kernel a listing of all virtual servers and of all addresses, some 200 bytes for each, and no listing of
/// real servers, of which there is one for each virtual server: those are only audited.
pub struct Watcher<F: Family> {
    ipvs: Box<dyn Ipvs>,
    devices: Box<dyn Devices>,
    activity: Activity,
    /// What was seen last, and what the target had done by then.
    seen: Option<(u64, u64)>,
    family: std::marker::PhantomData<F>,
}

impl<F: Family> Watcher<F> {
    /// Looks at what the target of this activity changes.
    pub fn new(ipvs: Box<dyn Ipvs>, devices: Box<dyn Devices>, activity: Activity) -> Self {
        Self { ipvs, devices, activity, seen: None, family: std::marker::PhantomData }
    }

    /// Whether somebody else has done something. It is told once; what the target reads next counts from then on.
    ///
    /// # Errors
    /// It can't be read.
    pub fn has_changed(&mut self) -> Result<bool, TargetError<Infallible>> {
        let before = *self.activity.doings();
        let (presence, fingerprint) = self.look()?;
        let mut doings = self.activity.doings();
        if doings.count != before.count || before.count % 2 == 1 {
            self.seen = None;
            return Ok(false);
        }
        let last = self.seen.replace((before.count, fingerprint));
        let is_other = before.expected.is_some_and(|expected| expected != presence)
            || last.is_some_and(|(count, last)| count == before.count && last != fingerprint);
        if is_other {
            doings.expected = None;
        }
        Ok(is_other)
    }

    /// Whether the last look found everything at rest: what others do from now on is a difference from it.
    pub fn has_seen(&self) -> bool {
        self.seen.is_some()
    }

    fn look(&mut self) -> Result<(Presence, u64), TargetError<Infallible>> {
        let servers = self.ipvs.virtual_servers().map_err(TargetError::Ipvs)?;
        let of_family = servers.into_iter().filter(|server| F::narrow(server.id.address).is_some());
        let servers: BTreeSet<_> = of_family.collect();
        let addresses = self.devices.addresses().map_err(TargetError::Devices)?;
        let presence = Presence::of::<F>(servers.iter().map(|server| server.id), &addresses);
        Ok((presence, FxBuildHasher.hash_one((servers, presence.0))))
    }
}
