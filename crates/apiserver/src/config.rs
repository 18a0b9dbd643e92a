//! How the server is set up.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::negotiate::ProtobufSupport;

/// How clients must prove who they are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Auth {
    /// Not at all.
    #[default]
    None,
    /// With this bearer token, which [`ApiServer::set_token`](super::ApiServer::set_token) can replace.
    Token(String),
    /// With a client certificate of the server's CA. Implies TLS.
    ClientCertificate,
}

/// The keys of all certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keys {
    /// ECDSA with P-256.
    #[default]
    P256,
    /// ECDSA with P-384.
    P384,
    /// ECDSA with P-521.
    P521,
    /// Ed25519.
    Ed25519,
}

/// What certificates are made.
#[derive(Debug, Clone, Default)]
pub struct Certificates {
    /// The keys of the CA, the server and the client.
    pub keys: Keys,
    /// The server's certificate expired at the beginning of 2021.
    pub is_server_expired: bool,
    /// The server presents the certificate of its CA.
    pub is_self_signed: bool,
    /// The client's certificate is of X.509 version 1. Needs [`Keys::P256`].
    pub is_client_version_1: bool,
}

/// Set-up of an [`ApiServer`](super::ApiServer).
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen, in the network namespace of the thread that starts the server. Port 0 takes any free
    /// one. Default: `127.0.0.1:0`.
    pub address: SocketAddr,
    /// Names and addresses in the server's certificate besides `address`, `127.0.0.1`, `::1` and `localhost`.
    pub names: Vec<String>,
    /// HTTPS instead of HTTP.
    pub tls: bool,
    /// Which certificates there are.
    pub certificates: Certificates,
    /// Lists of at least so many bytes are compressed for clients that want it, as in a real server. Default: 128 KiB.
    pub gzip_from: usize,
    /// What clients need to be let in. `/healthz` and the like are open to all.
    pub auth: Auth,
    /// Whether protobuf is served.
    pub protobuf: ProtobufSupport,
    /// Whether `sendInitialEvents` is served. Off: 422, as servers before 1.32 answer.
    pub streamed_lists: bool,
    /// How many changes are remembered for watches and consistent lists. Default: 4096.
    pub history_limit: usize,
    /// How often a quiet watch with `allowWatchBookmarks` gets a bookmark. Default: one minute.
    pub bookmark_interval: Duration,
    /// The longest wait for a resource version from the future. Default: three seconds.
    pub future_wait: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            names: Vec::new(),
            tls: false,
            certificates: Certificates::default(),
            gzip_from: 128 << 10,
            auth: Auth::None,
            protobuf: ProtobufSupport::Serve,
            streamed_lists: true,
            history_limit: 4096,
            bookmark_interval: Duration::from_mins(1),
            future_wait: Duration::from_secs(3),
        }
    }
}

impl Config {
    /// Whether connections are encrypted.
    pub(super) fn uses_tls(&self) -> bool {
        self.tls || self.auth == Auth::ClientCertificate
    }
}
