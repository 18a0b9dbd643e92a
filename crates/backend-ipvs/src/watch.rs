//! Noticing what others do: IPVS does not tell, so it is looked at now and then.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ipvs::{Devices, Ipvs};
use model::Family;
use rustc_hash::FxBuildHasher;

use crate::target::TargetError;

/// How often a target has done something, which tells its changes from those of others.
#[derive(Clone, Debug, Default)]
pub struct Activity(Arc<AtomicU64>);

impl Activity {
    pub(crate) fn note(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Looks at virtual servers and addresses of a family.
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

    /// Whether something differs from the last look although the target did nothing in between.
    ///
    /// # Errors
    /// It can't be read.
    pub fn has_changed(&mut self) -> Result<bool, TargetError<std::convert::Infallible>> {
        let before = self.activity.count();
        let now = self.fingerprint()?;
        if self.activity.count() != before {
            self.seen = None;
            return Ok(false);
        }
        let last = self.seen.replace((before, now));
        Ok(last.is_some_and(|(count, fingerprint)| count == before && fingerprint != now))
    }

    fn fingerprint(&mut self) -> Result<u64, TargetError<std::convert::Infallible>> {
        let servers = self.ipvs.virtual_servers().map_err(TargetError::Ipvs)?;
        let of_family = servers.into_iter().filter(|server| F::narrow(server.id.address).is_some());
        let servers: BTreeSet<_> = of_family.collect();
        let addresses = self.devices.addresses().map_err(TargetError::Devices)?;
        let mut hasher = FxBuildHasher.build_hasher();
        servers.hash(&mut hasher);
        for address in addresses.device.iter().chain(&addresses.others) {
            if F::narrow(*address).is_some() {
                (addresses.device.contains(address), address).hash(&mut hasher);
            }
        }
        Ok(hasher.finish())
    }
}
