//! Credential plugins: programs that print an `ExecCredential` (`k8s.io/client-go/plugin/pkg/client/auth/exec`).
//!
//! A plugin is a foreign program that may hang, print for ever or start others. So it has a process group of its own, which
//! is killed when it has taken too long or nobody waits for it any more, and its output has a limit.

#[cfg_attr(windows, path = "plugin/windows.rs")]
#[cfg_attr(not(windows), path = "plugin/unix.rs")]
mod system;

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

use self::system::Group;
use crate::access::{Material, Pair, Plugin};

/// Most bytes of a credential.
const MAX_OUTPUT_BYTES: u64 = 1 << 20;
/// Most bytes of what a plugin says about a failure.
const MAX_ERROR_BYTES: u64 = 1 << 12;

/// What a plugin gave.
#[derive(Clone)]
pub(crate) struct Credential {
    pub(crate) token: Option<String>,
    pub(crate) pair: Option<Pair>,
    /// It is asked again after this time; without it, when the server refuses what it gave.
    pub(crate) expires: Option<jiff::Timestamp>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecCredential {
    api_version: String,
    kind: String,
    status: Option<CredentialStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CredentialStatus {
    expiration_timestamp: Option<String>,
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

/// Runs a plugin to its end and reads what it prints.
///
/// # Errors
/// A text that names the plugin and what is wrong with it.
pub(crate) async fn run(plugin: &Plugin, limit: Duration) -> Result<Credential, String> {
    let name = plugin.program.display();
    let failed = |reason: String| format!("the credential plugin {name} {reason}");
    let output = tokio::time::timeout(limit, output(plugin))
        .await
        .map_err(|_elapsed| failed(format!("has not ended after {limit:?}")))?
        .map_err(failed)?;
    parse(plugin, &output).map_err(failed)
}

async fn output(plugin: &Plugin) -> Result<Vec<u8>, String> {
    let mut child = Group(command(plugin).spawn().map_err(|error| {
        let hint = plugin.exec.install_hint.as_deref().filter(|hint| !hint.is_empty());
        format!("can't be started: {error}{}", hint.map(|hint| format!("; {hint}")).unwrap_or_default())
    })?);
    let (stdout, stderr) = (child.0.stdout.take(), child.0.stderr.take());
    let errors = async { Ok(start_of(stderr, MAX_ERROR_BYTES).await) };
    let (output, errors) = tokio::try_join!(whole(stdout, MAX_OUTPUT_BYTES), errors)?;
    let status = child.0.wait().await.map_err(|error| format!("can't be waited for: {error}"))?;
    if status.success() {
        return Ok(output);
    }
    Err(format!("fails with {status}: {}", String::from_utf8_lossy(&errors).trim()))
}

fn command(plugin: &Plugin) -> Command {
    let mut spec = json!({"interactive": false});
    if let Some(cluster) = &plugin.cluster {
        spec["cluster"] = cluster.clone();
    }
    let api_version = plugin.exec.api_version.as_deref().unwrap_or_default();
    let info = json!({"apiVersion": api_version, "kind": "ExecCredential", "spec": spec});
    let mut command = Command::new(&plugin.program);
    command.args(plugin.exec.args.iter().flatten());
    for variable in plugin.exec.env.iter().flatten() {
        command.env(&variable.name, variable.value.as_deref().unwrap_or_default());
    }
    command.env("KUBERNETES_EXEC_INFO", info.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    Group::found(&mut command);
    command
}

/// Everything up to the end. An end by an error is an end.
async fn whole(from: Option<impl AsyncRead + Unpin>, limit: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        drop(from.take(limit + 1).read_to_end(&mut bytes).await);
    }
    if bytes.len() as u64 > limit { Err(format!("prints more than {limit} bytes")) } else { Ok(bytes) }
}

/// The first bytes. The rest is read as well, so that the plugin does not wait for us.
async fn start_of(from: Option<impl AsyncRead + Unpin>, limit: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        drop((&mut from).take(limit).read_to_end(&mut bytes).await);
        drop(tokio::io::copy(&mut from, &mut tokio::io::sink()).await);
    }
    bytes
}

fn parse(plugin: &Plugin, output: &[u8]) -> Result<Credential, String> {
    let credential: ExecCredential =
        serde_json::from_slice(output).map_err(|error| format!("prints no ExecCredential: {error}"))?;
    if credential.kind != "ExecCredential"
        || Some(&credential.api_version) != plugin.exec.api_version.as_ref()
    {
        return Err(format!(
            "prints a {:?} of {:?}, not an ExecCredential of {:?}",
            credential.kind,
            credential.api_version,
            plugin.exec.api_version.as_deref().unwrap_or_default()
        ));
    }
    let status = credential.status.ok_or("prints an ExecCredential without status")?;
    let origin = |field| format!("{} ({field})", plugin.program.display());
    let material = |text: String, field| Material { bytes: text.into_bytes(), origin: origin(field) };
    let given = |field: Option<String>| field.filter(|text| !text.is_empty());
    let pair = match (given(status.client_certificate_data), given(status.client_key_data)) {
        (Some(certificate), Some(key)) => Some(Pair {
            certificate: material(certificate, "clientCertificateData"),
            key: material(key, "clientKeyData"),
        }),
        (None, None) => None,
        _ => return Err("prints only one of clientCertificateData and clientKeyData".to_owned()),
    };
    let token = given(status.token);
    if token.is_none() && pair.is_none() {
        return Err("prints neither a token nor a client certificate".to_owned());
    }
    let expires = given(status.expiration_timestamp).map(|text| text.parse()).transpose();
    let expires =
        expires.map_err(|error: jiff::Error| format!("prints a strange expirationTimestamp: {error}"))?;
    Ok(Credential { token, pair, expires })
}
