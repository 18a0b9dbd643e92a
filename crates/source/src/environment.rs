//! What the process finds around it, as a value.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where a pod finds its service account (`rest.InClusterConfig` in client-go).
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Variables of the environment, and where a pod's service account is mounted.
#[derive(Clone, Debug)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    pub(crate) service_account: PathBuf,
}

impl Environment {
    /// That of this process. A variable that is no text counts as not set.
    pub fn of_process() -> Self {
        let text = |text: std::ffi::OsString| text.into_string().ok();
        Self::new(std::env::vars_os().filter_map(|(name, value)| text(name).zip(text(value))))
    }

    /// One with these variables.
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { variables: variables.into_iter().collect(), service_account: SERVICE_ACCOUNT.into() }
    }

    /// The same with a service account in another folder.
    #[must_use]
    pub fn with_service_account(self, folder: impl Into<PathBuf>) -> Self {
        Self { service_account: folder.into(), ..self }
    }

    /// A variable that is set and not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The first variable that is set and not empty.
    pub(crate) fn first<const N: usize>(&self, names: [&str; N]) -> Option<&str> {
        names.into_iter().find_map(|name| self.get(name))
    }
}
