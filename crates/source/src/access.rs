//! How to reach the server and who we are: a kubeconfig, a pod's service account or a plain address, with all files read.
//!
//! What wins over what is client-go's (`clientcmd.ClientConfig`, `rest.InClusterConfig`).

use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use http::{HeaderName, HeaderValue, Uri};
use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::ApiConfig;
use crate::environment::Environment;
use crate::files::{self, FileError};
use crate::kubeconfig::{self, Cluster, Exec, KubeconfigError, User};
use crate::proxy::{Proxy, ProxyError};

/// A configuration that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig can't be read, or makes no sense.
    #[error("the kubeconfig can't be used")]
    Kubeconfig(#[source] Box<AccessError>),
    /// Nothing says where a server is.
    #[error(
        "there is no --kubeconfig, no --master and no --manifests, and this is no pod (KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set)"
    )]
    Nothing,
    /// The pod's service account can't be used.
    #[error("the pod's service account can't be used")]
    InCluster(#[source] Box<AccessError>),
    /// The server's URL makes no sense.
    #[error("the server's url can't be used")]
    Url(#[source] UrlError),
    /// The user agent is no header value.
    #[error("the user agent can't be used")]
    UserAgent(#[source] http::header::InvalidHeaderValue),
    /// The certificates can't be used.
    #[error("the certificates can't be used")]
    Tls(#[source] crate::tls::TlsError),
}

/// A URL that is none of a server.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no url of a server: {reason}")]
pub struct UrlError {
    text: String,
    reason: String,
}

/// Something in a kubeconfig or a service account that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A file can't be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The kubeconfig makes no sense.
    #[error("{}", path.display())]
    Kubeconfig {
        /// The kubeconfig.
        path: PathBuf,
        /// Why.
        #[source]
        source: KubeconfigError,
    },
    /// A field is not what it has to be.
    #[error("{field} in {}: {reason}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// Why.
        reason: String,
    },
    /// A token file without a token.
    #[error("{}: the file is empty", .0.display())]
    EmptyToken(PathBuf),
}

/// Bytes and where they are from, for messages.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Material {
    pub(crate) bytes: Vec<u8>,
    pub(crate) origin: String,
}

impl std::fmt::Debug for Material {
    /// Without the bytes, which may be a key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Material({})", self.origin)
    }
}

/// A client certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) certificate: Material,
    pub(crate) key: Material,
}

/// What is said in the header `Authorization`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Login {
    Nothing,
    /// The same for ever.
    Fixed {
        header: HeaderValue,
        origin: String,
    },
    TokenFile(PathBuf),
    Plugin(Plugin),
}

/// A credential plugin and what it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plugin {
    pub(crate) exec: Exec,
    /// The program: a path, or a name to look for.
    pub(crate) program: PathBuf,
    /// `spec.cluster` of what it is told, if it wants that.
    pub(crate) cluster: Option<serde_json::Value>,
}

/// All that is needed to ask the server. Two that are equal make the same client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// Scheme, host, port and what comes before each path.
    pub(crate) server: Uri,
    pub(crate) ca: Option<Material>,
    /// The CAs that this host trusts; none where they do not matter.
    pub(crate) host_roots: Vec<CertificateDer<'static>>,
    pub(crate) is_insecure: bool,
    /// The name to look for in the server's certificate, if not the one in the URL.
    pub(crate) server_name: Option<String>,
    pub(crate) pair: Option<Pair>,
    pub(crate) login: Login,
    pub(crate) impersonation: Vec<(HeaderName, HeaderValue)>,
    pub(crate) proxy: Option<Proxy>,
    pub(crate) compression: bool,
}

impl Access {
    /// Reads everything anew.
    pub(crate) async fn read(config: &ApiConfig, environment: &Environment) -> Result<Self, ConnectError> {
        let mut access = match (&config.kubeconfig, &config.server) {
            (Some(path), server) => of_kubeconfig(path, server.as_deref(), environment).await?,
            (None, Some(server)) => {
                let server = server_url(server, false).map_err(ConnectError::Url)?;
                Self::plain(server, environment)
            }
            (None, None) => of_pod(environment).await?,
        };
        if access.ca.is_none() && !access.is_insecure {
            access.host_roots = files::read_host_roots().await;
        }
        Ok(access)
    }

    fn plain(server: Uri, environment: &Environment) -> Self {
        let proxy = Proxy::of_environment(environment, &server);
        Self {
            server,
            ca: None,
            host_roots: Vec::new(),
            is_insecure: false,
            server_name: None,
            pair: None,
            login: Login::Nothing,
            impersonation: Vec::new(),
            proxy,
            compression: true,
        }
    }
}

async fn of_pod(environment: &Environment) -> Result<Access, ConnectError> {
    let variable = |name| environment.get(name).ok_or(ConnectError::Nothing);
    let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let server = server_url(&format!("https://{host}:{port}"), true).map_err(ConnectError::Url)?;
    let unusable = |error: AccessError| ConnectError::InCluster(Box::new(error));
    let token = environment.service_account.join("token");
    read_token(&token).await.map_err(unusable)?;
    let ca = environment.service_account.join("ca.crt");
    let ca = read_material(&ca).await.map_err(unusable)?;
    Ok(Access { ca: Some(ca), login: Login::TokenFile(token), ..Access::plain(server, environment) })
}

async fn of_kubeconfig(
    path: &Path,
    server: Option<&str>,
    environment: &Environment,
) -> Result<Access, ConnectError> {
    let unusable = |error: AccessError| ConnectError::Kubeconfig(Box::new(error));
    let text = files::read(path).await.map_err(|error| unusable(error.into()))?;
    let wrong = |source| unusable(AccessError::Kubeconfig { path: path.to_owned(), source });
    let (cluster, user) =
        kubeconfig::select(&String::from_utf8_lossy(&text), server.is_some()).map_err(wrong)?;
    let has_tls = has_tls_fields(&cluster, &user);
    let url = server.or(cluster.server.as_deref()).unwrap_or_default();
    let url = server_url(url, has_tls).map_err(|error| match server {
        Some(_) => ConnectError::Url(error),
        None => {
            unusable(AccessError::Field { path: path.to_owned(), field: "server", reason: error.to_string() })
        }
    })?;
    let reader = Reader { path };
    reader.access(&cluster, &user, Access::plain(url, environment)).await.map_err(unusable)
}

/// Whether a missing scheme means `https` (`rest.DefaultServerUrlFor`).
fn has_tls_fields(cluster: &Cluster, user: &User) -> bool {
    let fields = [
        &cluster.certificate_authority,
        &cluster.certificate_authority_data,
        &user.client_certificate,
        &user.client_certificate_data,
    ];
    cluster.insecure_skip_tls_verify == Some(true)
        || fields.into_iter().flatten().any(|field| !field.is_empty())
}

/// Reads a server's URL. Without a scheme it is `http`, or `https` where certificates are spoken of.
fn server_url(text: &str, has_tls: bool) -> Result<Uri, UrlError> {
    let fail = |reason: &str| UrlError { text: text.to_owned(), reason: reason.to_owned() };
    let trimmed = text.trim();
    let scheme = if has_tls { "https" } else { "http" };
    let full = if trimmed.contains("://") { trimmed.to_owned() } else { format!("{scheme}://{trimmed}") };
    let uri: Uri = full.parse().map_err(|error: http::uri::InvalidUri| fail(&error.to_string()))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(fail("the scheme is neither http nor https"));
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err(fail("it has no host"));
    }
    let after_host = uri.authority().and_then(|authority| authority.as_str().rsplit(authority.host()).next());
    if uri.port().is_none() && after_host.is_some_and(|port| !matches!(port, "" | ":")) {
        return Err(fail("the port is no number of a port"));
    }
    if uri.query().is_some() || full.contains('#') {
        return Err(fail("it has more than a path"));
    }
    Ok(uri)
}

/// Reads what a kubeconfig names.
struct Reader<'a> {
    /// The kubeconfig, which relative paths begin at.
    path: &'a Path,
}

impl Reader<'_> {
    async fn access(&self, cluster: &Cluster, user: &User, plain: Access) -> Result<Access, AccessError> {
        let proxy = match given(cluster.proxy_url.as_ref()) {
            Some(url) => Some(Proxy::parse(url).map_err(|error: ProxyError| self.field("proxy-url", error))?),
            None => plain.proxy,
        };
        let mut access = Access {
            proxy,
            compression: cluster.disable_compression != Some(true),
            impersonation: self.impersonation(user)?,
            ..plain
        };
        // As in client-go, nothing secret goes over a connection that anybody can read.
        if access.server.scheme_str() != Some("https") {
            return Ok(access);
        }
        let file = cluster.certificate_authority.as_ref();
        let data = cluster.certificate_authority_data.as_ref();
        access.ca = self.material(file, data, "certificate-authority-data").await?;
        access.is_insecure = cluster.insecure_skip_tls_verify == Some(true);
        access.server_name = given(cluster.tls_server_name.as_ref()).cloned();
        access.pair = self.pair(user).await?;
        access.login = self.login(user, cluster, &access).await?;
        Ok(access)
    }

    async fn pair(&self, user: &User) -> Result<Option<Pair>, AccessError> {
        let (file, data) = (user.client_certificate.as_ref(), user.client_certificate_data.as_ref());
        let certificate = self.material(file, data, "client-certificate-data").await?;
        let (file, data) = (user.client_key.as_ref(), user.client_key_data.as_ref());
        let key = self.material(file, data, "client-key-data").await?;
        Ok(certificate.zip(key).map(|(certificate, key)| Pair { certificate, key }))
    }

    async fn login(&self, user: &User, cluster: &Cluster, access: &Access) -> Result<Login, AccessError> {
        if let Some(file) = given(user.token_file.as_ref()) {
            let path = self.resolve(file);
            // What is wrong from the beginning is said at the beginning.
            if given(user.token.as_ref()).is_none() {
                read_token(&path).await?;
            }
            return Ok(Login::TokenFile(path));
        }
        if let Some(token) = given(user.token.as_ref()) {
            let header = bearer(token).map_err(|error| self.field("token", error))?;
            return Ok(Login::Fixed { header, origin: self.origin("token") });
        }
        if let Some(name) = given(user.username.as_ref()) {
            let password = user.password.as_deref().unwrap_or_default();
            let header = basic(name, password).map_err(|error| self.field("username", error))?;
            return Ok(Login::Fixed { header, origin: self.origin("username") });
        }
        let Some(exec) = &user.exec else { return Ok(Login::Nothing) };
        let command = exec.command.as_deref().unwrap_or_default();
        let program = if command.contains('/') { self.resolve(command) } else { command.into() };
        let wants_cluster = exec.provide_cluster_info == Some(true);
        let cluster = wants_cluster.then(|| cluster_info(cluster, access));
        Ok(Login::Plugin(Plugin { exec: exec.clone(), program, cluster }))
    }

    /// Header names are those of `transport.NewImpersonatingRoundTripper`.
    fn impersonation(&self, user: &User) -> Result<Vec<(HeaderName, HeaderValue)>, AccessError> {
        let Some(name) = given(user.impersonate.as_ref()) else { return Ok(Vec::new()) };
        let mut pairs = vec![("impersonate-user".to_owned(), name)];
        pairs.extend(given(user.as_uid.as_ref()).map(|uid| ("impersonate-uid".to_owned(), uid)));
        pairs.extend(user.as_groups.iter().flatten().map(|group| ("impersonate-group".to_owned(), group)));
        for (key, values) in user.as_user_extra.iter().flatten() {
            let name = format!("impersonate-extra-{}", escape_header_key(key));
            pairs.extend(values.iter().map(|value| (name.clone(), value)));
        }
        let header = |(name, value): (String, &String)| {
            let name = HeaderName::try_from(name).map_err(|error| self.field("as-user-extra", error))?;
            let value = HeaderValue::from_str(value).map_err(|error| self.field("as", error))?;
            Ok((name, value))
        };
        pairs.into_iter().map(header).collect()
    }

    async fn material(
        &self,
        file: Option<&String>,
        data: Option<&String>,
        field: &'static str,
    ) -> Result<Option<Material>, AccessError> {
        if let Some(data) = given(data) {
            let bytes = decode_base64(data).map_err(|error| self.field(field, error))?;
            return Ok(Some(Material { bytes, origin: self.origin(field) }));
        }
        match given(file) {
            Some(file) => Ok(Some(read_material(&self.resolve(file)).await?)),
            None => Ok(None),
        }
    }

    fn resolve(&self, path: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }

    fn origin(&self, field: &str) -> String {
        format!("{} ({field})", self.path.display())
    }

    fn field(&self, field: &'static str, error: impl std::fmt::Display) -> AccessError {
        AccessError::Field { path: self.path.to_owned(), field, reason: error.to_string() }
    }
}

fn given(field: Option<&String>) -> Option<&String> {
    field.filter(|text| !text.is_empty())
}

async fn read_material(path: &Path) -> Result<Material, AccessError> {
    Ok(Material { bytes: files::read(path).await?, origin: path.display().to_string() })
}

/// Reads a token and cuts off white space.
pub(crate) async fn read_token(path: &Path) -> Result<HeaderValue, AccessError> {
    let bytes = files::read(path).await?;
    let text = String::from_utf8_lossy(&bytes);
    if text.trim().is_empty() {
        return Err(AccessError::EmptyToken(path.to_owned()));
    }
    bearer(&text).map_err(|error| AccessError::Field {
        path: path.to_owned(),
        field: "the token",
        reason: error.to_string(),
    })
}

/// The value of `Authorization` for a token.
pub(crate) fn bearer(token: &str) -> Result<HeaderValue, http::header::InvalidHeaderValue> {
    secret(&format!("Bearer {}", token.trim()))
}

/// The value of `Authorization` or `Proxy-Authorization` for a name and a password.
pub(crate) fn basic(name: &str, password: &str) -> Result<HeaderValue, http::header::InvalidHeaderValue> {
    secret(&format!("Basic {}", BASE64.encode(format!("{name}:{password}").as_bytes())))
}

fn secret(text: &str) -> Result<HeaderValue, http::header::InvalidHeaderValue> {
    let mut header = HeaderValue::from_str(text)?;
    header.set_sensitive(true);
    Ok(header)
}

/// Base 64 with or without line breaks, which YAML's block scalars leave in.
fn decode_base64(text: &str) -> Result<Vec<u8>, data_encoding::DecodeError> {
    let compact: String = text.split_ascii_whitespace().collect();
    BASE64.decode(compact.as_bytes())
}

/// Percent-encodes what may not be in a header's name (`transport.headerKeyEscape`).
fn escape_header_key(key: &str) -> String {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
    key.to_ascii_lowercase()
        .bytes()
        .map(|byte| if is_legal(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// `spec.cluster` of an `ExecCredential`.
fn cluster_info(cluster: &Cluster, access: &Access) -> serde_json::Value {
    let mut info = serde_json::json!({"server": access.server.to_string()});
    let mut set = |name: &str, value: Option<serde_json::Value>| {
        if let Some(value) = value {
            info[name] = value;
        }
    };
    set("tls-server-name", access.server_name.clone().map(Into::into));
    set("insecure-skip-tls-verify", access.is_insecure.then(|| true.into()));
    let ca = access.ca.as_ref().map(|ca| BASE64.encode(&ca.bytes).into());
    set("certificate-authority-data", ca);
    set("proxy-url", cluster.proxy_url.clone().map(Into::into));
    set("disable-compression", cluster.disable_compression.map(Into::into));
    let is_for_plugins = |name: Option<&str>| name == Some("client.authentication.k8s.io/exec");
    let extension = cluster.extensions.iter().flatten().find(|item| is_for_plugins(item.name.as_deref()));
    set("config", extension.and_then(|item| item.extension.clone()));
    info
}
