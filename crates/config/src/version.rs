//! The version that the program reports, and the flag `--version`.

use crate::go::ValueError;

/// The Kubernetes version whose kube-proxy this program stands in for.
const KUBERNETES: (u32, u32, u32) = (1, 36, 1);

/// The version as reported: Kubernetes' own, with ours as build metadata, such as `v1.36.1+rust.0.1.0`. Tools compare
/// the part before the `+` with other components' versions.
pub(crate) fn built_in() -> String {
    let (major, minor, patch) = KUBERNETES;
    format!("v{major}.{minor}.{patch}+rust.{}", env!("CARGO_PKG_VERSION"))
}

/// The one version that `showHiddenMetricsForVersion` may name: that before this one.
pub(crate) fn previous_minor() -> String {
    let (major, minor, _) = KUBERNETES;
    format!("{major}.{}", minor - 1)
}

/// What `--version` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum VersionFlag {
    /// Nothing.
    #[default]
    No,
    /// Print the version and end.
    Print,
    /// Print all that is known of the build and end.
    Raw,
    /// Report this version instead of the built-in one.
    Report(String),
}

impl VersionFlag {
    pub(crate) fn parse(text: &str) -> Result<Self, ValueError> {
        match text {
            "raw" => Ok(Self::Raw),
            _ if text.starts_with('v') => report(text),
            _ => Ok(if crate::go::parse_bool(text)? { Self::Print } else { Self::No }),
        }
    }

    /// What to print, if so.
    pub(crate) fn output(&self) -> Option<String> {
        match self {
            Self::No | Self::Report(_) => None,
            Self::Print => Some(format!("Kubernetes {}\n", built_in())),
            Self::Raw => Some(raw()),
        }
    }
}

/// Only what follows the number may differ from the built-in version.
fn report(text: &str) -> Result<VersionFlag, ValueError> {
    let (major, minor, patch) = KUBERNETES;
    let number = format!("v{major}.{minor}.{patch}");
    match text.strip_prefix(&number) {
        Some(rest) if rest.is_empty() || rest.len() > 1 && rest.starts_with(['-', '+']) => {
            Ok(VersionFlag::Report(text.to_owned()))
        }
        _ => Err(ValueError::new(format_args!("{text:?} does not match the built-in version {number}"))),
    }
}

/// What is known of the build, with the names that Kubernetes gives these facts. Those that only a Go program has are empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildInfo {
    /// Kubernetes' major version.
    pub major: String,
    /// Kubernetes' minor version.
    pub minor: String,
    /// The version as reported.
    pub git_version: String,
    /// The commit that it was built from; empty if the builder did not say (`KUBE_PROXY_COMMIT`).
    pub git_commit: &'static str,
    /// Operating system and architecture in Go's words, such as `linux/amd64`.
    pub platform: String,
}

impl BuildInfo {
    /// Of this program.
    pub fn of_this_program() -> Self {
        let (major, minor, _) = KUBERNETES;
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            major: major.to_string(),
            minor: minor.to_string(),
            git_version: built_in(),
            git_commit: option_env!("KUBE_PROXY_COMMIT").unwrap_or_default(),
            platform: format!("{}/{arch}", std::env::consts::OS),
        }
    }
}

/// In the form in which Go prints its structure.
fn raw() -> String {
    let BuildInfo { major, minor, git_version, git_commit, platform } = BuildInfo::of_this_program();
    format!(
        "version.Info{{Major:\"{major}\", Minor:\"{minor}\", GitVersion:\"{git_version}\", GitCommit:\"{git_commit}\", \
         GitTreeState:\"\", BuildDate:\"\", GoVersion:\"\", Compiler:\"rustc\", Platform:\"{platform}\"}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_printed() {
        assert_eq!(VersionFlag::parse("true"), Ok(VersionFlag::Print));
        let line = VersionFlag::Print.output().unwrap();
        assert!(line.starts_with("Kubernetes v1.36.1+rust.") && line.ends_with('\n'));
        let raw = VersionFlag::parse("raw").unwrap().output().unwrap();
        assert!(raw.starts_with("version.Info{Major:\"1\", Minor:\"36\","));
    }

    #[test]
    fn false_is_nothing() {
        assert_eq!(VersionFlag::parse("false").unwrap().output(), None);
    }

    #[test]
    fn another_version_may_differ_only_in_its_suffix() {
        assert_eq!(VersionFlag::parse("v1.36.1-x.1"), Ok(VersionFlag::Report("v1.36.1-x.1".into())));
        assert_eq!(VersionFlag::parse("v1.36.1"), Ok(VersionFlag::Report("v1.36.1".into())));
        for text in ["v1.36.2", "v1.36.10", "v1.36", "v1.36.1-", "v2", "1.36.1"] {
            assert!(VersionFlag::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hidden_metrics_are_those_of_the_version_before() {
        assert_eq!(previous_minor(), "1.35");
    }
}
