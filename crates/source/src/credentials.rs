//! What goes with each request to say who asks: read again when it may have been replaced.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderValue;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::access::{Login, Pair, Plugin, bearer, read_token};
use crate::plugin::{self, Credential};

/// A token file is read again after this time, as in client-go (`transport.NewCachedFileTokenSource`).
const TOKEN_PERIOD: Duration = Duration::from_mins(1);

/// Who asks.
pub(crate) enum Credentials {
    Nothing,
    Fixed { header: HeaderValue, origin: String },
    TokenFile { path: PathBuf, read: Mutex<Option<Read>> },
    Plugin(Box<Asked>),
}

/// A plugin and what it gave last.
pub(crate) struct Asked {
    plugin: Plugin,
    /// How long it may take.
    limit: Duration,
    /// One request runs the plugin; the others wait for what it gives.
    given: Mutex<Given>,
}

/// A token and when it was read.
pub(crate) struct Read {
    header: HeaderValue,
    at: Instant,
}

/// What a plugin gave last.
#[derive(Default)]
pub(crate) struct Given {
    credential: Option<Credential>,
    /// How often it has given something.
    serial: u64,
}

/// What a request is sent with.
#[derive(Default)]
pub(crate) struct Presented {
    pub(crate) header: Option<HeaderValue>,
    /// A plugin's client certificate.
    pub(crate) pair: Option<Pair>,
    /// How often a plugin has given something, with this.
    pub(crate) serial: u64,
}

impl Credentials {
    /// `plugin_limit`: how long a plugin may take.
    pub(crate) fn new(login: Login, plugin_limit: Duration) -> Self {
        match login {
            Login::Nothing => Self::Nothing,
            Login::Fixed { header, origin } => Self::Fixed { header, origin },
            Login::TokenFile(path) => Self::TokenFile { path, read: Mutex::default() },
            Login::Plugin(plugin) => {
                Self::Plugin(Box::new(Asked { plugin, limit: plugin_limit, given: Mutex::default() }))
            }
        }
    }

    /// What to send now.
    ///
    /// # Errors
    /// A text that names the file or the plugin.
    pub(crate) async fn present(&self) -> Result<Presented, String> {
        match self {
            Self::Nothing => Ok(Presented::default()),
            Self::Fixed { header, .. } => {
                Ok(Presented { header: Some(header.clone()), ..Presented::default() })
            }
            Self::TokenFile { path, read } => {
                let header = current_token(path, &mut *read.lock().await).await?;
                Ok(Presented { header: Some(header), ..Presented::default() })
            }
            Self::Plugin(asked) => {
                let mut given = asked.given.lock().await;
                if !given.credential.as_ref().is_some_and(is_valid) {
                    given.credential = Some(plugin::run(&asked.plugin, asked.limit).await?);
                    given.serial += 1;
                }
                present(&given)
            }
        }
    }

    /// The server has refused what was sent with this number: it is read anew for the next request, unless that has been done
    /// since.
    pub(crate) async fn refused(&self, serial: u64) {
        match self {
            Self::Nothing | Self::Fixed { .. } => {}
            Self::TokenFile { read, .. } => *read.lock().await = None,
            Self::Plugin(asked) => {
                let mut given = asked.given.lock().await;
                if given.serial == serial {
                    given.credential = None;
                }
            }
        }
    }

    /// Where they are from, for messages.
    pub(crate) fn origin(&self) -> Option<String> {
        match self {
            Self::Nothing => None,
            Self::Fixed { origin, .. } => Some(origin.clone()),
            Self::TokenFile { path, .. } => Some(path.display().to_string()),
            Self::Plugin(asked) => Some(format!("the credential plugin {}", asked.plugin.program.display())),
        }
    }
}

fn is_valid(credential: &Credential) -> bool {
    credential.expires.is_none_or(|expires| jiff::Timestamp::now() < expires)
}

fn present(given: &Given) -> Result<Presented, String> {
    let Some(credential) = &given.credential else { return Ok(Presented::default()) };
    let header = credential.token.as_deref().map(bearer).transpose();
    let header = header.map_err(|error| format!("the credential plugin's token is none: {error}"))?;
    Ok(Presented { header, pair: credential.pair.clone(), serial: given.serial })
}

/// A file that can't be read now, as in the middle of its replacement, does not matter while there is a token.
async fn current_token(path: &Path, read: &mut Option<Read>) -> Result<HeaderValue, String> {
    if let Some(read) = read.as_ref().filter(|read| read.at.elapsed() < TOKEN_PERIOD) {
        return Ok(read.header.clone());
    }
    match (read_token(path).await, &read) {
        (Ok(header), _) => {
            *read = Some(Read { header: header.clone(), at: Instant::now() });
            Ok(header)
        }
        (Err(error), Some(read)) => {
            tracing::warn!(%error, "the token can't be read again; the former one stays in use");
            Ok(read.header.clone())
        }
        (Err(error), None) => Err(crate::transport::chain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::kubeconfig::Exec;

    /// Three kinds ask at the same time, and all three are refused.
    #[tokio::test]
    async fn a_credential_that_is_refused_often_is_replaced_once() {
        let dir = tempfile::tempdir().unwrap();
        let (program, runs) = (dir.path().join("plugin"), dir.path().join("runs"));
        let version = "client.authentication.k8s.io/v1";
        let given =
            format!(r#"{{"apiVersion":"{version}","kind":"ExecCredential","status":{{"token":"x"}}}}"#);
        let script = format!("#!/bin/sh\necho run >> {}\necho '{given}'\n", runs.display());
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        let exec = Exec { api_version: Some(version.to_owned()), ..Exec::default() };
        let plugin = Plugin { exec, program, cluster: None };
        let credentials = Credentials::new(Login::Plugin(plugin), Duration::from_mins(10));
        let first = credentials.present().await.unwrap();
        for _ in 0..3 {
            credentials.refused(first.serial).await;
            assert_eq!(token(&credentials).await, "Bearer x");
        }
        assert_eq!(std::fs::read_to_string(&runs).unwrap().lines().count(), 2);
    }

    async fn token(credentials: &Credentials) -> String {
        let header = credentials.present().await.unwrap().header.unwrap();
        header.to_str().unwrap().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_file_is_read_again_after_a_minute_or_a_refusal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write(" first\r\n\n");
        let credentials = Credentials::new(Login::TokenFile(path.clone()), Duration::ZERO);
        assert_eq!(token(&credentials).await, "Bearer first");
        write("\tsecond\n");
        assert_eq!(token(&credentials).await, "Bearer first");
        tokio::time::advance(TOKEN_PERIOD).await;
        assert_eq!(token(&credentials).await, "Bearer second");
        write("third");
        credentials.refused(0).await;
        assert_eq!(token(&credentials).await, "Bearer third");
        write("\n");
        tokio::time::advance(TOKEN_PERIOD).await;
        assert_eq!(token(&credentials).await, "Bearer third", "a broken file costs nothing yet");
        credentials.refused(0).await;
        let error = credentials.present().await.map(drop).unwrap_err();
        assert_eq!(error, format!("{}: the file is empty", path.display()));
    }
}
