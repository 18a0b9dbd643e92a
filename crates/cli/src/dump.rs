//! An archive for a bug report: what the proxy tells about itself. All of it is readable for whoever reaches the metrics server,
//! so there is nothing secret in it: configuration has paths of credentials, never their content.

use std::io::{self, Write};

use inspect::document::Status;

use crate::client::{ClientError, Server};

/// What goes in: the file's name, and the path that it comes from.
const FILES: [(&str, &str); 12] = [
    ("status.json", "/api/v1/status"),
    ("services.json", "/api/v1/services"),
    ("endpoints.json", "/api/v1/endpoints"),
    ("traffic.json", "/api/v1/traffic"),
    ("conflicts.json", "/api/v1/conflicts"),
    ("rejections.json", "/api/v1/rejections"),
    ("findings.json", "/api/v1/findings"),
    ("flows.json", "/api/v1/flows"),
    ("configz.json", "/configz"),
    ("flagz.txt", "/flagz"),
    ("metrics.txt", "/metrics"),
    ("healthz.txt", "/healthz?verbose"),
];

/// Writes the archive to a file, or to `out` for the path `-`. What can't be asked for is in it as a file that says why.
pub(crate) async fn write(
    server: &Server,
    path: Option<&str>,
    out: &mut impl Write,
) -> Result<(), ClientError> {
    let status: Status = server.get("status").await?;
    let mut archive = tar::Builder::new(Vec::new());
    for (name, path) in FILES {
        let added = match server.bytes(path).await {
            Ok(body) => add(&mut archive, name, &body, status.now),
            Err(error) => {
                add(&mut archive, &format!("{name}.error"), error.to_string().as_bytes(), status.now)
            }
        };
        added.map_err(|error| failed(server, error))?;
    }
    let bytes = archive.into_inner().map_err(|error| failed(server, error))?;
    let default = format!("kube-proxy-dump-{}.tar", file_name(&status.overview.node));
    let written = match path.unwrap_or(&default) {
        "-" => out.write_all(&bytes).and_then(|()| out.flush()),
        path => std::fs::write(path, &bytes).and_then(|()| writeln!(out, "Wrote {path}.")),
    };
    written.map_err(|error| failed(server, error))
}

fn add(archive: &mut tar::Builder<Vec<u8>>, name: &str, body: &[u8], now: f64) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(body.len() as u64);
    header.set_mode(0o644);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds of Unix time")]
    header.set_mtime(now as u64);
    header.set_cksum();
    archive.append_data(&mut header, format!("kube-proxy-dump/{name}"), body)
}

/// A node's name as part of a file's.
fn file_name(node: &str) -> String {
    node.chars().map(|c| if c.is_ascii_alphanumeric() || "-.".contains(c) { c } else { '_' }).collect()
}

fn failed(server: &Server, error: io::Error) -> ClientError {
    ClientError::Http { server: server.to_string(), source: error.into() }
}
