//! The ways to serve TCP.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::{Identity, Mode};

/// The longest HTTP request head that is accepted.
const MAX_HEAD: usize = 16 * 1024;
/// How long an HTTP client may take for its request, and to close afterwards.
const HTTP_PATIENCE: Duration = Duration::from_secs(10);

/// How much is read at once only to be thrown away.
const DISCARD_BYTES: usize = 256 * 1024;

/// Accepts connections for ever.
pub(super) async fn serve(fd: OwnedFd, mode: Mode, identity: Arc<Identity>) {
    let listener = match TcpListener::from_std(fd.into()) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(name = %identity.name, %error, "cannot poll a listener"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, client)) => answer(stream, client, mode, &identity),
            Err(error) => {
                tracing::debug!(name = %identity.name, %error, "cannot accept");
                // Without descriptors left, accepting fails until some are free again.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
}

/// Answers one connection, here or in a task of its own. Failures are the client's to notice and are only logged.
fn answer(stream: TcpStream, client: SocketAddr, mode: Mode, identity: &Arc<Identity>) {
    let name = identity.name.clone();
    let line = match stream.local_addr() {
        Ok(server) => identity.line(client, server),
        Err(error) => return log_lost(&name, &error),
    };
    if mode == Mode::Line {
        // Without waiting for the socket to become writable: a fresh one has room for a line.
        if let Err(error) = stream.into_std().and_then(|mut stream| stream.write_all(line.as_bytes())) {
            log_lost(&name, &error);
        }
        return;
    }
    tokio::spawn(async move {
        let outcome = match mode {
            Mode::Http => answer_http(stream, &line, &name).await,
            Mode::Discard => discard(stream, &line).await,
            _ => send_back(stream, &line).await,
        };
        if let Err(error) = outcome {
            log_lost(&name, &error);
        }
    });
}

fn log_lost(name: &str, error: &io::Error) {
    tracing::debug!(%name, %error, "connection lost");
}

/// Greets with the line and sends back everything until the client closes.
async fn send_back(mut stream: TcpStream, line: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(line.as_bytes()).await?;
    let (mut reader, mut writer) = stream.split();
    tokio::io::copy(&mut reader, &mut writer).await.map(drop)
}

/// Greets with the line and takes in everything until the client closes.
async fn discard(mut stream: TcpStream, line: &str) -> io::Result<()> {
    stream.write_all(line.as_bytes()).await?;
    // Larger than what `tokio::io::copy` uses, so that the network is measured and not this loop.
    let mut buffer = vec![0; DISCARD_BYTES];
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}

/// Answers one request and closes.
async fn answer_http(mut stream: TcpStream, line: &str, name: &str) -> io::Result<()> {
    timeout(HTTP_PATIENCE, read_head(&mut stream)).await??;
    let length = name.len() + 1;
    let echo = line.trim_end();
    let response = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\nx-echo: {echo}\r\n\
         connection: close\r\n\r\n{name}\n"
    );
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await?;
    // Reading on until the client closes keeps an unread request body from turning our close into a reset.
    timeout(HTTP_PATIENCE, tokio::io::copy(&mut stream, &mut tokio::io::sink())).await?.map(drop)
}

/// Reads until the empty line that ends a request's head.
async fn read_head(stream: &mut TcpStream) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if head.len() > MAX_HEAD {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "request head too long"));
        }
        if stream.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}
