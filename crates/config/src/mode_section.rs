//! Values that the file has once for each mode but that exist once in a running proxy.

use crate::duration::GoDuration;
use crate::mode::Mode;
use crate::v1alpha1::KubeProxyConfiguration;

/// The values in the section of one mode.
#[derive(Debug)]
pub(crate) struct ModeSection<'a> {
    pub(crate) sync_period: &'a mut GoDuration,
    pub(crate) min_sync_period: &'a mut GoDuration,
    pub(crate) masquerade_all: &'a mut bool,
    pub(crate) masquerade_bit: &'a mut Option<i32>,
}

impl KubeProxyConfiguration {
    /// The values in the section of `mode`. As upstream, an empty mode reads section `iptables`, and mode ipvs masquerades
    /// as section `iptables` says.
    pub(crate) fn mode_section_mut(&mut self) -> ModeSection<'_> {
        let mode = Mode::named(&self.mode).map(Mode::section);
        let Self { iptables, ipvs, nftables, .. } = self;
        let (sync_period, min_sync_period) = match mode {
            Some(Mode::Ipvs) => (&mut ipvs.sync_period, &mut ipvs.min_sync_period),
            Some(Mode::NfTables) => (&mut nftables.sync_period, &mut nftables.min_sync_period),
            _ => (&mut iptables.sync_period, &mut iptables.min_sync_period),
        };
        let (masquerade_all, masquerade_bit) = match mode {
            Some(Mode::NfTables) => (&mut nftables.masquerade_all, &mut nftables.masquerade_bit),
            _ => (&mut iptables.masquerade_all, &mut iptables.masquerade_bit),
        };
        ModeSection { sync_period, min_sync_period, masquerade_all, masquerade_bit }
    }

    /// Where `--iptables-sync-period` and `--iptables-min-sync-period` go: to any mode but ipvs, which has flags of its own.
    pub(crate) fn flagged_sync_periods(&mut self) -> (&mut GoDuration, &mut GoDuration) {
        if Mode::named(&self.mode).map(Mode::section) == Some(Mode::NfTables) {
            (&mut self.nftables.sync_period, &mut self.nftables.min_sync_period)
        } else {
            (&mut self.iptables.sync_period, &mut self.iptables.min_sync_period)
        }
    }

    /// Moves the shared values into the section of the mode that was chosen, and empties their places in the others, which is
    /// how upstream writes a configuration. With an empty mode they come from section `iptables`, so that a file written for
    /// upstream's default mode keeps its meaning in a better one.
    pub(crate) fn settle_mode(&mut self, mode: Mode) {
        let was_empty = self.mode.is_empty();
        let shared = self.mode_section_mut();
        let (sync_period, min_sync_period) = (*shared.sync_period, *shared.min_sync_period);
        let (masquerade_all, masquerade_bit) = (*shared.masquerade_all, *shared.masquerade_bit);
        for (sync, min) in [
            (&mut self.iptables.sync_period, &mut self.iptables.min_sync_period),
            (&mut self.ipvs.sync_period, &mut self.ipvs.min_sync_period),
            (&mut self.nftables.sync_period, &mut self.nftables.min_sync_period),
        ] {
            (*sync, *min) = (GoDuration::ZERO, GoDuration::ZERO);
        }
        self.iptables.masquerade_all = false;
        self.nftables.masquerade_all = false;
        mode.as_str().clone_into(&mut self.mode);
        let shared = self.mode_section_mut();
        (*shared.sync_period, *shared.min_sync_period) = (sync_period, min_sync_period);
        *shared.masquerade_all = masquerade_all;
        if was_empty {
            *shared.masquerade_bit = masquerade_bit;
        }
    }
}
