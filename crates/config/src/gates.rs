//! Feature gates: those of Kubernetes v1.36 that concern kube-proxy, and our own.
//!
//! Cluster tools hand one list of gates to all components, so a gate that is not known here is ignored with a warning.
//! Upstream, which knows every gate of the whole tree, refuses to start.

use std::collections::BTreeMap;

use crate::platform::Platform;

/// How far a feature has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Off by default.
    Alpha,
    /// Usually on by default.
    Beta,
    /// Done.
    Ga,
    /// Going away.
    Deprecated,
}

/// A feature gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Its name.
    pub name: &'static str,
    /// How far it has come.
    pub stage: Stage,
    /// Whether it is on unless something else is said.
    pub default: bool,
    /// Whether nothing else may be said.
    pub locked: bool,
    /// What it does here.
    pub meaning: &'static str,
    /// Why setting it does nothing here, if so.
    pub no_effect: Option<&'static str>,
}

/// Our own gate: node ports are served on localhost in mode nftables.
pub const NFTABLES_LOCALHOST_NODE_PORTS: &str = "NFTablesLocalhostNodePorts";
/// `spec.externalIPs` of Services are served.
pub const ALLOW_SERVICE_EXTERNAL_IPS: &str = "AllowServiceExternalIPs";
/// `/flagz` is served.
pub const COMPONENT_FLAGZ: &str = "ComponentFlagz";
/// `/statusz` is served.
pub const COMPONENT_STATUSZ: &str = "ComponentStatusz";
pub(crate) const LOGGING_ALPHA_OPTIONS: &str = "LoggingAlphaOptions";
pub(crate) const LOGGING_BETA_OPTIONS: &str = "LoggingBetaOptions";

const ALL_ALPHA: &str = "AllAlpha";
const ALL_BETA: &str = "AllBeta";

const GO_ONLY: &str = "it concerns the inside of Kubernetes' Go libraries";
const ALWAYS_ON: &str = "it is always on";
const WINDOWS: &str = match Platform::HERE {
    Platform::Linux => "it concerns Windows",
    Platform::Windows => ALWAYS_ON,
};
const NO_CBOR: &str = "CBOR is not spoken here";

/// All gates, by name.
pub static GATES: [Gate; 27] = [
    gate(ALL_ALPHA, Stage::Alpha, false, "all gates of stage Alpha"),
    gate(ALL_BETA, Stage::Beta, false, "all gates of stage Beta"),
    gate(ALLOW_SERVICE_EXTERNAL_IPS, Stage::Ga, true, "serve `spec.externalIPs` of Services"),
    ignored("AtomicFIFO", Stage::Beta, true, GO_ONLY),
    ignored("CBORServingAndStorage", Stage::Alpha, false, NO_CBOR),
    ignored("ClientsAllowCARotation", Stage::Beta, true, ALWAYS_ON),
    ignored("ClientsAllowCBOR", Stage::Alpha, false, NO_CBOR),
    ignored("ClientsAllowTLSCacheGC", Stage::Beta, true, GO_ONLY),
    ignored("ClientsPreferCBOR", Stage::Alpha, false, NO_CBOR),
    gate(COMPONENT_FLAGZ, Stage::Beta, true, "serve `/flagz`"),
    gate(COMPONENT_STATUSZ, Stage::Beta, true, "serve `/statusz`"),
    ignored("ContextualLogging", Stage::Beta, true, GO_ONLY),
    ignored("InOrderInformers", Stage::Ga, true, ALWAYS_ON).locked(),
    ignored("InOrderInformersBatchProcess", Stage::Beta, true, GO_ONLY),
    ignored("InformerResourceVersion", Stage::Ga, true, GO_ONLY),
    gate(LOGGING_ALPHA_OPTIONS, Stage::Alpha, false, "permit `splitStream` and `infoBufferSize`"),
    gate(LOGGING_BETA_OPTIONS, Stage::Beta, true, "permit `logging.format: json`"),
    ignored("MultiCIDRServiceAllocator", Stage::Ga, true, ALWAYS_ON).locked(),
    gate(
        NFTABLES_LOCALHOST_NODE_PORTS,
        Stage::Alpha,
        false,
        "serve node ports on localhost in mode nftables",
    ),
    ignored("NFTablesProxyMode", Stage::Ga, true, ALWAYS_ON).locked(),
    ignored("NativeHistograms", Stage::Alpha, false, "histograms are of the classic kind only"),
    ignored("PreferSameTrafficDistribution", Stage::Ga, true, ALWAYS_ON).locked(),
    ignored("UnlockWhileProcessingFIFO", Stage::Beta, true, GO_ONLY),
    ignored("WatchListClient", Stage::Beta, true, "initial lists are streamed where the server can do so"),
    ignored("WinDSR", Stage::Ga, true, WINDOWS).locked(),
    ignored("WinOverlay", Stage::Ga, true, WINDOWS).locked(),
    ignored("DisableNodeKubeProxyVersion", Stage::Deprecated, true, "it concerns the kubelet").locked(),
];

const fn gate(name: &'static str, stage: Stage, default: bool, meaning: &'static str) -> Gate {
    Gate { name, stage, default, locked: false, meaning, no_effect: None }
}

const fn ignored(name: &'static str, stage: Stage, default: bool, why: &'static str) -> Gate {
    Gate { name, stage, default, locked: false, meaning: "", no_effect: Some(why) }
}

impl Gate {
    const fn locked(mut self) -> Self {
        self.locked = true;
        self
    }
}

/// A gate that can't be set as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot set feature gate {name} to {}, feature is locked to {locked}", !locked)]
pub struct GateError {
    name: &'static str,
    locked: bool,
}

/// The state of all gates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gates {
    given: BTreeMap<String, bool>,
}

impl Gates {
    /// Checks what was asked for.
    pub(crate) fn new(given: BTreeMap<String, bool>) -> Result<Self, GateError> {
        for (name, value) in &given {
            if let Some(gate) = known(name).filter(|gate| gate.locked && gate.default != *value) {
                return Err(GateError { name: gate.name, locked: gate.default });
            }
        }
        Ok(Self { given })
    }

    /// Whether a gate is on. What was said of the gate itself counts more than what was said of its stage.
    pub fn enabled(&self, name: &str) -> bool {
        if let Some(value) = self.given.get(name) {
            return *value;
        }
        let Some(gate) = known(name) else { return false };
        let group = match gate.stage {
            Stage::Alpha => ALL_ALPHA,
            Stage::Beta => ALL_BETA,
            Stage::Ga | Stage::Deprecated => return gate.default,
        };
        // Upstream lets `AllBeta=false` switch betas off, and takes an unset group for nothing said.
        self.given.get(group).copied().filter(|_| !gate.locked).unwrap_or(gate.default)
    }

    /// All gates with their state, by name: for the metric `kubernetes_feature_enabled`.
    pub fn all(&self) -> impl Iterator<Item = (&'static Gate, bool)> + '_ {
        GATES.iter().map(|gate| (gate, self.enabled(gate.name)))
    }

    /// Gates that were set but are not known here.
    pub(crate) fn unknown(&self) -> Vec<String> {
        self.given.keys().filter(|name| known(name).is_none()).cloned().collect()
    }

    /// Gates that were set to something else than their default, to no effect.
    pub(crate) fn ineffective(&self) -> impl Iterator<Item = (&'static Gate, &'static str)> + '_ {
        let gate = |(name, value): (&String, &bool)| known(name).filter(|gate| gate.default != *value);
        self.given.iter().filter_map(gate).filter_map(|gate| Some((gate, gate.no_effect?)))
    }

    /// Gates that were set although they are done or going away.
    pub(crate) fn done(&self) -> impl Iterator<Item = &'static Gate> + '_ {
        self.given
            .keys()
            .filter_map(|name| known(name))
            .filter(|gate| matches!(gate.stage, Stage::Ga | Stage::Deprecated))
    }
}

fn known(name: &str) -> Option<&'static Gate> {
    GATES.iter().find(|gate| gate.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gates(text: &[(&str, bool)]) -> Result<Gates, GateError> {
        Gates::new(text.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect())
    }

    #[test]
    fn defaults_hold_unless_something_is_said() {
        let gates = gates(&[("LoggingAlphaOptions", true)]).unwrap();
        assert!(gates.enabled(LOGGING_ALPHA_OPTIONS) && gates.enabled(LOGGING_BETA_OPTIONS));
        assert!(!gates.enabled(NFTABLES_LOCALHOST_NODE_PORTS));
    }

    #[test]
    fn a_stage_is_set_as_a_whole_except_for_gates_of_their_own() {
        let gates =
            gates(&[("AllAlpha", true), ("NFTablesLocalhostNodePorts", false), ("AllBeta", false)]).unwrap();
        assert!(gates.enabled(LOGGING_ALPHA_OPTIONS));
        assert!(!gates.enabled(NFTABLES_LOCALHOST_NODE_PORTS));
        assert!(!gates.enabled(LOGGING_BETA_OPTIONS));
        assert!(gates.enabled(ALLOW_SERVICE_EXTERNAL_IPS));
    }

    #[test]
    fn a_locked_gate_stays() {
        let error = gates(&[("NFTablesProxyMode", false)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot set feature gate NFTablesProxyMode to false, feature is locked to true"
        );
        assert!(gates(&[("NFTablesProxyMode", true)]).is_ok());
    }

    #[test]
    fn what_does_nothing_is_known() {
        let gates =
            gates(&[("WatchListClient", false), ("ContextualLogging", true), ("TopologyAwareHints", true)])
                .unwrap();
        let names: Vec<_> = gates.ineffective().map(|(gate, _)| gate.name).collect();
        assert_eq!(names, ["WatchListClient"]);
        assert_eq!(gates.unknown(), ["TopologyAwareHints"]);
    }
}
