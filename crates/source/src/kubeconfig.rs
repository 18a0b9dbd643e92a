//! A kubeconfig as it is written, and the context of it that counts. Pure: files that it names are read in `access`.
//!
//! The fields are those of `k8s.io/client-go/tools/clientcmd/api/v1/types.go`; what contradicts itself is refused as
//! `clientcmd/validation.go` does.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Most nodes of the YAML document, aliases expanded.
const MAX_NODES: usize = 100_000;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Kubeconfig {
    current_context: Option<String>,
    clusters: Option<Vec<NamedCluster>>,
    users: Option<Vec<NamedUser>>,
    contexts: Option<Vec<NamedContext>>,
}

#[derive(Debug, Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Option<Cluster>,
}

#[derive(Debug, Deserialize)]
struct NamedUser {
    name: String,
    user: Option<User>,
}

#[derive(Debug, Deserialize)]
struct NamedContext {
    name: String,
    context: Option<Context>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Context {
    cluster: Option<String>,
    user: Option<String>,
}

/// How to reach a server.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct Cluster {
    pub(crate) server: Option<String>,
    pub(crate) tls_server_name: Option<String>,
    pub(crate) insecure_skip_tls_verify: Option<bool>,
    pub(crate) certificate_authority: Option<String>,
    pub(crate) certificate_authority_data: Option<String>,
    pub(crate) proxy_url: Option<String>,
    pub(crate) disable_compression: Option<bool>,
    pub(crate) extensions: Option<Vec<Extension>>,
}

/// Something that is not for us, but perhaps for a credential plugin.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Extension {
    pub(crate) name: Option<String>,
    pub(crate) extension: Option<serde_json::Value>,
}

/// Who asks.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct User {
    pub(crate) client_certificate: Option<String>,
    pub(crate) client_certificate_data: Option<String>,
    pub(crate) client_key: Option<String>,
    pub(crate) client_key_data: Option<String>,
    pub(crate) token: Option<String>,
    #[serde(rename = "tokenFile")]
    pub(crate) token_file: Option<String>,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<String>,
    #[serde(rename = "as")]
    pub(crate) impersonate: Option<String>,
    pub(crate) as_uid: Option<String>,
    pub(crate) as_groups: Option<Vec<String>>,
    pub(crate) as_user_extra: Option<BTreeMap<String, Vec<String>>>,
    pub(crate) auth_provider: Option<AuthProvider>,
    pub(crate) exec: Option<Exec>,
}

impl std::fmt::Debug for User {
    /// Without what it holds, which are credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").finish_non_exhaustive()
    }
}

/// Credentials from code inside client-go, of which nothing is left but `oidc`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct AuthProvider {
    pub(crate) name: Option<String>,
}

/// A credential plugin (KEP-541).
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Exec {
    pub(crate) api_version: Option<String>,
    pub(crate) command: Option<String>,
    pub(crate) args: Option<Vec<String>>,
    pub(crate) env: Option<Vec<EnvironmentVariable>>,
    pub(crate) install_hint: Option<String>,
    pub(crate) interactive_mode: Option<String>,
    pub(crate) provide_cluster_info: Option<bool>,
}

/// A variable for a plugin's environment.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct EnvironmentVariable {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
}

/// A kubeconfig that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// It is no YAML, or a field is of another type.
    #[error("it can't be parsed")]
    Parse(#[source] Box<serde_saphyr::Error>),
    /// `current-context` is missing, and so is `--master`.
    #[error("current-context is not set, and neither is --master")]
    NoContext,
    /// A context, cluster or user is named that is not there.
    #[error("there is no {what} {name:?}")]
    Missing {
        /// Which list it should be in.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// There is no server in the cluster, and no `--master`.
    #[error("the cluster has no server")]
    NoServer,
    /// Of two fields only one may be given.
    #[error("{0} and {1} are both given")]
    Both(&'static str, &'static str),
    /// A field needs another one.
    #[error("{0} is given without {1}")]
    Without(&'static str, &'static str),
    /// Something that only client-go has code for.
    #[error("auth-provider {0:?} is not supported; use an exec plugin")]
    AuthProvider(String),
    /// A credential plugin that can't be run.
    #[error("exec: {0}")]
    Exec(String),
}

/// The cluster and the user that the present context names.
///
/// `has_server`: the server is known from elsewhere, so that the kubeconfig need not name one.
pub(crate) fn select(text: &str, has_server: bool) -> Result<(Cluster, User), KubeconfigError> {
    let options = serde_saphyr::options! { budget: serde_saphyr::budget! { max_nodes: MAX_NODES, }, };
    let file: Option<Kubeconfig> = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| KubeconfigError::Parse(Box::new(error)))?;
    let file = file.unwrap_or_default();
    let context = match file.current_context.filter(|name| !name.is_empty()) {
        Some(name) => {
            let context = file.contexts.into_iter().flatten().find(|context| context.name == name);
            context.ok_or(missing("context", name))?.context.unwrap_or_default()
        }
        None if has_server => Context::default(),
        None => return Err(KubeconfigError::NoContext),
    };
    let cluster = match context.cluster.filter(|name| !name.is_empty()) {
        Some(name) => {
            let cluster = file.clusters.into_iter().flatten().find(|cluster| cluster.name == name);
            cluster.ok_or(missing("cluster", name))?.cluster.unwrap_or_default()
        }
        None => Cluster::default(),
    };
    let user = match context.user.filter(|name| !name.is_empty()) {
        Some(name) => {
            let user = file.users.into_iter().flatten().find(|user| user.name == name);
            user.ok_or(missing("user", name))?.user.unwrap_or_default()
        }
        None => User::default(),
    };
    if !has_server && !is_given(cluster.server.as_deref()) {
        return Err(KubeconfigError::NoServer);
    }
    check_cluster(&cluster)?;
    check_user(&user)?;
    Ok((cluster, user))
}

fn missing(what: &'static str, name: String) -> KubeconfigError {
    KubeconfigError::Missing { what, name }
}

fn is_given(field: Option<&str>) -> bool {
    field.is_some_and(|text| !text.is_empty())
}

fn check_cluster(cluster: &Cluster) -> Result<(), KubeconfigError> {
    let ca = is_given(cluster.certificate_authority.as_deref());
    let ca_data = is_given(cluster.certificate_authority_data.as_deref());
    let is_insecure = cluster.insecure_skip_tls_verify == Some(true);
    if ca && ca_data {
        return Err(KubeconfigError::Both("certificate-authority", "certificate-authority-data"));
    }
    if is_insecure && (ca || ca_data) {
        return Err(KubeconfigError::Both("insecure-skip-tls-verify", "a certificate authority"));
    }
    Ok(())
}

fn check_user(user: &User) -> Result<(), KubeconfigError> {
    if let Some(provider) = &user.auth_provider {
        return Err(KubeconfigError::AuthProvider(provider.name.clone().unwrap_or_default()));
    }
    check_given_once(user)?;
    let given = |field: &Option<String>| is_given(field.as_deref());
    let has_certificate = given(&user.client_certificate) || given(&user.client_certificate_data);
    let has_key = given(&user.client_key) || given(&user.client_key_data);
    let has_token = given(&user.token) || given(&user.token_file);
    let has_extra_impersonation = given(&user.as_uid)
        || user.as_groups.as_ref().is_some_and(|groups| !groups.is_empty())
        || user.as_user_extra.as_ref().is_some_and(|extra| !extra.is_empty());
    match () {
        () if has_certificate && !has_key => {
            Err(KubeconfigError::Without("a client certificate", "client-key"))
        }
        () if has_key && !has_certificate => {
            Err(KubeconfigError::Without("client-key", "a client certificate"))
        }
        () if has_token && given(&user.username) => Err(KubeconfigError::Both("a token", "username")),
        () if has_certificate && user.exec.is_some() => {
            Err(KubeconfigError::Both("a client certificate", "exec"))
        }
        () if has_extra_impersonation && !given(&user.impersonate) => {
            Err(KubeconfigError::Without("as-uid, as-groups or as-user-extra", "as"))
        }
        () => user.exec.as_ref().map_or(Ok(()), check_exec),
    }
}

/// A file, or what would be in it.
fn check_given_once(user: &User) -> Result<(), KubeconfigError> {
    let given = |field: &Option<String>| is_given(field.as_deref());
    let (certificate, key) = (&user.client_certificate, &user.client_key);
    let both = [
        (certificate, "client-certificate", &user.client_certificate_data, "client-certificate-data"),
        (key, "client-key", &user.client_key_data, "client-key-data"),
    ];
    let twice = both.into_iter().find(|(file, _, data, _)| given(file) && given(data));
    twice.map_or(Ok(()), |(_, file, _, data)| Err(KubeconfigError::Both(file, data)))
}

fn check_exec(exec: &Exec) -> Result<(), KubeconfigError> {
    let wrong = |text: String| Err(KubeconfigError::Exec(text));
    if !is_given(exec.command.as_deref()) {
        return wrong("command is not given".to_owned());
    }
    match exec.api_version.as_deref() {
        Some("client.authentication.k8s.io/v1" | "client.authentication.k8s.io/v1beta1") => {}
        other => return wrong(format!("apiVersion {:?} is not known", other.unwrap_or_default())),
    }
    match exec.interactive_mode.as_deref() {
        None | Some("" | "Never" | "IfAvailable") => Ok(()),
        Some("Always") => wrong("interactiveMode Always: there is nobody to ask".to_owned()),
        Some(other) => wrong(format!("interactiveMode {other:?} is not known")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: v1
kind: Config
preferences: {}
current-context: b
contexts:
- {name: a, context: {cluster: a, user: a}}
- {name: b, context: {cluster: b, user: b, namespace: x}}
clusters:
- {name: a, cluster: {server: https://a}}
";

    fn config(cluster: &str, user: &str) -> String {
        format!("{HEAD}- {{name: b, cluster: {{{cluster}}}}}\nusers:\n- {{name: b, user: {{{user}}}}}\n")
    }

    #[track_caller]
    fn refused(cluster: &str, user: &str, expected: &str) {
        assert_eq!(select(&config(cluster, user), false).unwrap_err().to_string(), expected);
    }

    #[test]
    fn the_current_context_counts() {
        let (cluster, user) = select(&config("server: b", "token: x"), false).unwrap();
        assert_eq!((cluster.server.as_deref(), user.token.as_deref()), (Some("b"), Some("x")));
        let missing_user = config("server: b", "").replace("- {name: b, user", "- {name: c, user");
        assert_eq!(select(&missing_user, false).unwrap_err().to_string(), "there is no user \"b\"");
        let other = HEAD.replace("current-context: b", "current-context: c");
        assert_eq!(select(&other, false).unwrap_err().to_string(), "there is no context \"c\"");
    }

    #[test]
    fn without_a_context_only_another_server_helps() {
        for text in ["", "{}", "current-context: ''", "clusters: null\nusers: null"] {
            assert!(matches!(select(text, false), Err(KubeconfigError::NoContext)), "{text:?}");
            assert_eq!(select(text, true).unwrap().0, Cluster::default());
        }
        refused("", "", "the cluster has no server");
        assert!(select(&config("", ""), true).is_ok());
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let server = "server: x";
        let ca = "server: x, certificate-authority: a, certificate-authority-data: b";
        refused(ca, "", "certificate-authority and certificate-authority-data are both given");
        let insecure = "server: x, certificate-authority: a, insecure-skip-tls-verify: true";
        refused(insecure, "", "insecure-skip-tls-verify and a certificate authority are both given");
        refused(server, "client-certificate: a", "a client certificate is given without client-key");
        refused(server, "client-key: a", "client-key is given without a client certificate");
        refused(server, "token: a, username: b", "a token and username are both given");
        refused(server, "as-groups: [a]", "as-uid, as-groups or as-user-extra is given without as");
        let provider = "auth-provider: {name: gcp}";
        refused(server, provider, "auth-provider \"gcp\" is not supported; use an exec plugin");
        refused(server, "exec: {command: a}", "exec: apiVersion \"\" is not known");
        let exec = "exec: {command: a, apiVersion: client.authentication.k8s.io/v1, interactiveMode: Always}";
        refused(server, exec, "exec: interactiveMode Always: there is nobody to ask");
    }

    #[test]
    fn garbage_is_an_error() {
        for text in ["[", "- a", "clusters: 3", "{\"a\": "] {
            assert!(matches!(select(text, false), Err(KubeconfigError::Parse(_))), "{text:?}");
        }
    }

    proptest::proptest! {
        /// Whatever is wrong with the text, that is an error or another kubeconfig.
        #[test]
        fn damaged_texts_are_read_without_harm(
            damage in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), "[ -~\n]{0,3}"), 0..6),
            has_server: bool,
        ) {
            let mut text = config("server: 'https://b', certificate-authority: c", "exec: {apiVersion: v1, command: x, env: [{name: a, value: b}]}");
            for (at, other) in damage {
                let at = at.index(text.len());
                text.replace_range(at..=at, &other);
            }
            drop(select(&text, has_server));
        }
    }
}
