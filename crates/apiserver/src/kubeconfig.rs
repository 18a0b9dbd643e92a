//! A kubeconfig for the server.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::tls::ClientTrust;

/// Writes `kubeconfig` and the files that it names into `dir`. JSON is YAML, so it is written as JSON.
///
/// # Errors
///
/// When a file cannot be written.
pub(super) fn write(
    dir: &Path,
    url: &str,
    trust: Option<&ClientTrust>,
    has_certificate: bool,
    token: Option<&str>,
) -> io::Result<PathBuf> {
    let mut cluster = json!({"server": url});
    let mut user = json!({});
    if let Some(trust) = trust {
        let ca = dir.join("ca.crt");
        fs::write(&ca, &trust.ca)?;
        cluster["certificate-authority"] = json!(ca);
        if has_certificate {
            let (certificate, key) = (dir.join("client.crt"), dir.join("client.key"));
            fs::write(&certificate, &trust.certificate)?;
            fs::write(&key, &trust.key)?;
            user["client-certificate"] = json!(certificate);
            user["client-key"] = json!(key);
        }
    }
    if let Some(token) = token {
        user["token"] = token.into();
    }
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    });
    let path = dir.join("kubeconfig");
    fs::write(&path, format!("{config:#}\n"))?;
    Ok(path)
}
