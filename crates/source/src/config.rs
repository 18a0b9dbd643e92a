//! How to reach an API server and how patient to be with it.

use std::path::PathBuf;
use std::time::Duration;

/// Where the API server is and who we are.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// Path of a kubeconfig. Without it and without `server`, the pod's service account is used.
    pub kubeconfig: Option<PathBuf>,
    /// Base URL of the server; wins over that of the kubeconfig (flag `--master`).
    pub server: Option<String>,
    /// Name of this node: the only Node that is watched.
    pub node_name: String,
    /// The format to ask for.
    pub content_type: ContentType,
    /// Header `User-Agent`; see [`user_agent`].
    pub user_agent: String,
    /// Limits of time; the defaults are upstream's.
    pub timings: Timings,
}

/// The format that the server is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContentType {
    /// Protobuf where the server has it, else JSON.
    #[default]
    Protobuf,
    /// JSON only.
    Json,
}

/// Limits of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// The wait after a first failure; it doubles with each further one.
    pub backoff_min: Duration,
    /// The wait stays at this. Up to as much again is added at random, so that nodes don't come all at once.
    pub backoff_max: Duration,
    /// After this time without failure the wait begins at `backoff_min` again.
    pub backoff_reset: Duration,
    /// The server is asked to end a watch after a random time between this and twice this.
    pub watch_timeout: Duration,
    /// A watch that has not ended this long after it should have is given up, and so is an answer that does not begin or
    /// go on. The server's own limit for a request is one minute.
    pub grace: Duration,
    /// An event that has begun to arrive must have arrived after this time, or the stream is taken for garbage.
    pub event: Duration,
    /// A watch is given up after this much silence: servers send bookmarks about every minute. One that has none costs a
    /// question for its version this often.
    pub silence: Duration,
    /// A watch that has delivered events out of order is given up after this time, and everything is listed anew.
    pub out_of_order: Duration,
    /// A credential plugin that has not ended after this time is killed.
    pub plugin: Duration,
    /// How often to ask for `ServiceCIDR`s again where the server has none.
    pub absent_retry: Duration,
}

/// Back-off and watch time are client-go's (`tools/cache/reflector.go`, `NewReflectorWithOptions`).
impl Default for Timings {
    fn default() -> Self {
        Self {
            backoff_min: Duration::from_millis(800),
            backoff_max: Duration::from_secs(30),
            backoff_reset: Duration::from_mins(2),
            watch_timeout: Duration::from_mins(5),
            grace: Duration::from_mins(1),
            event: Duration::from_secs(10),
            silence: Duration::from_secs(200),
            out_of_order: Duration::from_secs(10),
            plugin: Duration::from_mins(1),
            absent_retry: Duration::from_mins(5),
        }
    }
}

/// The `User-Agent` of a program version, such as `kube-proxy/v1.36.0 (linux/amd64)`.
pub fn user_agent(version: &str) -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("kube-proxy/{version} ({}/{arch})", std::env::consts::OS)
}
