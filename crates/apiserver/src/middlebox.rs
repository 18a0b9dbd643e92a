//! What stands between a client and a server: proxies for HTTP and SOCKS, and a relay whose connections can fall silent.
//!
//! They run as tasks of the runtime that starts them.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// What a middlebox does with a connection.
#[derive(Clone)]
pub enum Role {
    /// An HTTP proxy: `CONNECT`, and whole requests for `http` URLs. With a value of `Proxy-Authorization`, it takes no other.
    Http(Option<&'static str>),
    /// The same, over TLS.
    Https(TlsAcceptor),
    /// A SOCKS proxy of version 5. With a name and a password, it takes no others.
    Socks5(Option<(&'static str, &'static str)>),
    /// Hands all bytes on to one server.
    Relay(SocketAddr),
}

impl std::fmt::Debug for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Http(_) => "Http",
            Self::Https(_) => "Https",
            Self::Socks5(_) => "Socks5",
            Self::Relay(_) => "Relay",
        })
    }
}

/// A running middlebox. It ends when dropped.
#[derive(Debug)]
pub struct Middlebox {
    address: SocketAddr,
    targets: Arc<Mutex<Vec<String>>>,
    /// How often connections have fallen silent: those made before the last time are.
    silenced: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Middlebox {
    /// Listens on a free port of the loopback interface.
    ///
    /// # Errors
    /// There is no such port.
    pub async fn start(role: Role) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (targets, silenced) = (Arc::default(), watch::Sender::new(0));
        let connection = Connection { role, targets: Arc::clone(&targets), silenced: silenced.clone() };
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection.clone().run(stream));
            }
        });
        Ok(Self { address, targets, silenced, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where clients have been led so far, as they said it: a host and a port.
    pub fn targets(&self) -> Vec<String> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All connections that are open now fall silent: they stay, but nothing comes through any more.
    pub fn silence(&self) {
        self.silenced.send_modify(|times| *times += 1);
    }
}

impl Drop for Middlebox {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Connection {
    role: Role,
    targets: Arc<Mutex<Vec<String>>>,
    silenced: watch::Sender<u64>,
}

impl Connection {
    async fn run(self, stream: TcpStream) {
        let mut silenced = self.silenced.subscribe();
        // Whoever leaves too early has what he deserves; the client notices.
        let role = self.role.clone();
        let served = async {
            drop(match role {
                Role::Http(login) => self.http(stream, login).await,
                Role::Https(tls) => match tls.accept(stream).await {
                    Ok(stream) => self.http(stream, None).await,
                    Err(error) => Err(error),
                },
                Role::Socks5(login) => self.socks5(stream, login).await,
                Role::Relay(server) => self.lead(stream, &server.to_string(), &[], &[]).await,
            });
            false
        };
        let mut served = std::pin::pin!(served);
        let is_silent = tokio::select! {
            over = &mut served => over,
            changed = silenced.changed() => changed.is_ok(),
        };
        if is_silent {
            // The sockets inside stay open, and nobody reads from them.
            std::future::pending::<()>().await;
        }
    }

    /// Connects to the target, answers the client, and hands on.
    async fn lead(
        &self,
        mut client: impl AsyncRead + AsyncWrite + Unpin,
        target: &str,
        answer: &[u8],
        request: &[u8],
    ) -> io::Result<()> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner).push(target.to_owned());
        let mut server = TcpStream::connect(target).await?;
        server.set_nodelay(true)?;
        client.write_all(answer).await?;
        server.write_all(request).await?;
        copy_bidirectional(&mut client, &mut server).await?;
        Ok(())
    }

    async fn http(
        &self,
        mut client: impl AsyncRead + AsyncWrite + Unpin,
        login: Option<&str>,
    ) -> io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await?);
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        let header = |line: &str| line.to_ascii_lowercase().starts_with("proxy-authorization:");
        let given = text.lines().find(|line| header(line)).and_then(|line| line.split_once(": "));
        if login.is_some() && given.map(|(_, value)| value) != login {
            return client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
        }
        let mut words = text.split_whitespace();
        match (words.next(), words.next()) {
            (Some("CONNECT"), Some(target)) => {
                self.lead(client, target, b"HTTP/1.1 200 Connection established\r\n\r\n", &[]).await
            }
            (Some(_), Some(url)) => {
                let rest = url.strip_prefix("http://").unwrap_or_default();
                let target = rest.split('/').next().unwrap_or_default();
                self.lead(client, target, &[], &head).await
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// RFC 1928 and, for the login, RFC 1929.
    async fn socks5(&self, mut client: TcpStream, login: Option<(&str, &str)>) -> io::Result<()> {
        let [_version, n_methods] = read_array(&mut client).await?;
        read_text(&mut client, n_methods).await?;
        if let Some(login) = login {
            client.write_all(&[5, 2]).await?;
            let [_version, length] = read_array(&mut client).await?;
            let name = read_text(&mut client, length).await?;
            let length = client.read_u8().await?;
            let password = read_text(&mut client, length).await?;
            if (name.as_str(), password.as_str()) != login {
                return client.write_all(&[1, 1]).await;
            }
            client.write_all(&[1, 0]).await?;
        } else {
            client.write_all(&[5, 0]).await?;
        }
        let [_version, _connect, _reserved, kind] = read_array(&mut client).await?;
        let host = match kind {
            1 => std::net::Ipv4Addr::from(read_array(&mut client).await?).to_string(),
            4 => format!("[{}]", std::net::Ipv6Addr::from(read_array(&mut client).await?)),
            _ => {
                let length = client.read_u8().await?;
                read_text(&mut client, length).await?
            }
        };
        let port = client.read_u16().await?;
        let answer = [5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        self.lead(client, &format!("{host}:{port}"), &answer, &[]).await
    }
}

async fn read_array<const N: usize>(from: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn read_text(from: &mut TcpStream, length: u8) -> io::Result<String> {
    let mut bytes = vec![0; usize::from(length)];
    from.read_exact(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
