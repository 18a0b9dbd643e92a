//! `mode`: how packets are directed, and which modes this program has.

use std::fmt;

use crate::field::FieldError;
use crate::platform::Platform;

/// A mode that Kubernetes or this program knows, built in or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Rules of `nf_tables`, in flat maps.
    NfTables,
    /// Rules of iptables.
    IpTables,
    /// Virtual servers of the kernel.
    Ipvs,
    /// eBPF programs.
    Ebpf,
    /// A proxy process.
    Userspace,
    /// HNS rules of Windows.
    Kernelspace,
}

impl Mode {
    /// The modes that this program has, best first. An empty `mode` takes the first that the kernel supports.
    pub const BUILT_IN: &[Self] = Self::built_in(Platform::HERE);

    /// The modes of a system, best first.
    pub(crate) const fn built_in(platform: Platform) -> &'static [Self] {
        match platform {
            Platform::Linux => &[Self::NfTables, Self::IpTables, Self::Ipvs, Self::Ebpf, Self::Userspace],
            Platform::Windows => &[Self::Kernelspace],
        }
    }

    const ALL: [Self; 6] =
        [Self::NfTables, Self::IpTables, Self::Ipvs, Self::Ebpf, Self::Userspace, Self::Kernelspace];

    /// As in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NfTables => "nftables",
            Self::IpTables => "iptables",
            Self::Ipvs => "ipvs",
            Self::Ebpf => "ebpf",
            Self::Userspace => "userspace",
            Self::Kernelspace => "kernelspace",
        }
    }

    /// The mode whose section of the file has what modes share: the rules of mode ebpf are those of mode nftables.
    pub(crate) const fn section(self) -> Self {
        match self {
            Self::Ebpf => Self::NfTables,
            other => other,
        }
    }

    /// The mode of a name; case matters.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == name)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A mode of [`Mode::BUILT_IN`] on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModeSupport {
    /// The mode.
    pub mode: Mode,
    /// Why this host can't run it, if so.
    pub unusable: Option<String>,
}

impl ModeSupport {
    /// A mode that this host can run.
    pub const fn usable(mode: Mode) -> Self {
        Self { mode, unusable: None }
    }
}

/// The mode to run: the one asked for, or with an empty name the first usable one.
pub(crate) fn choose(name: &str, modes: &[ModeSupport]) -> Result<Mode, FieldError> {
    let invalid = |reason: String| FieldError::invalid("mode", name, &reason);
    if name.is_empty() {
        let best = modes.iter().find(|support| support.unusable.is_none());
        let why_not = || -> Vec<_> {
            let reason =
                |support: &ModeSupport| Some(format!("{}: {}", support.mode, support.unusable.as_ref()?));
            modes.iter().filter_map(reason).collect()
        };
        return best
            .map(|support| support.mode)
            .ok_or_else(|| invalid(format!("no mode can be used here ({})", why_not().join("; "))));
    }
    let built_in = modes.iter().map(|support| support.mode.as_str()).collect::<Vec<_>>().join(",");
    let Some(mode) = Mode::named(name) else {
        let best =
            modes.iter().find(|support| support.unusable.is_none()).map_or("none", |best| best.mode.as_str());
        return Err(invalid(format!(
            "must be {built_in} or blank (blank means the best-available proxy [currently {best}])"
        )));
    };
    match modes.iter().find(|support| support.mode == mode) {
        Some(ModeSupport { unusable: None, .. }) => Ok(mode),
        Some(ModeSupport { unusable: Some(reason), .. }) => {
            Err(invalid(format!("can't be used here: {reason}")))
        }
        None if mode == Mode::Kernelspace => Err(invalid("is for Windows only".to_owned())),
        None => Err(invalid(format!("is not built into this program, must be {built_in} or blank"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modes() -> Vec<ModeSupport> {
        let old = ModeSupport { mode: Mode::NfTables, unusable: Some("the kernel is too old".to_owned()) };
        vec![old, ModeSupport::usable(Mode::IpTables)]
    }

    #[test]
    fn an_empty_name_takes_the_first_usable() {
        assert_eq!(choose("", &modes()), Ok(Mode::IpTables));
        assert_eq!(choose("", &[ModeSupport::usable(Mode::NfTables)]), Ok(Mode::NfTables));
    }

    #[track_caller]
    fn refused(name: &str, modes: &[ModeSupport], reason: &str) {
        assert_eq!(choose(name, modes).unwrap_err().to_string(), reason);
    }

    #[test]
    fn what_cant_run_is_refused_with_the_reason() {
        let modes = modes();
        refused(
            "nftables",
            &modes,
            "mode: Invalid value: \"nftables\": can't be used here: the kernel is too old",
        );
        refused(
            "ipvs",
            &modes,
            "mode: Invalid value: \"ipvs\": is not built into this program, must be nftables,iptables or blank",
        );
        refused("kernelspace", &modes, "mode: Invalid value: \"kernelspace\": is for Windows only");
        refused(
            "IPTables",
            &modes,
            "mode: Invalid value: \"IPTables\": must be nftables,iptables or blank (blank means the best-available \
             proxy [currently iptables])",
        );
        refused(
            "",
            &modes[..1],
            "mode: Invalid value: \"\": no mode can be used here (nftables: the kernel is too old)",
        );
    }

    #[test]
    fn names_are_read_back() {
        for mode in Mode::ALL {
            assert_eq!(Mode::named(mode.as_str()), Some(mode));
        }
    }
}
