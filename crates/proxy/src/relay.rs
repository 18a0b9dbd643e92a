//! Two TCP connections made one: bytes go both ways until both sides have said that they have no more.
//!
//! An idle direction holds no memory. Bytes first go through a buffer that all connections of a thread share; a direction that has
//! carried much gets a pipe, through which the kernel moves pages without copying them.

use std::cell::RefCell;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// What a direction carries before it gets a pipe, which costs more to set up than to copy less.
const COPIED_BYTES: usize = 256 * 1024;
const BUFFER_BYTES: usize = 32 * 1024;
/// What a pipe holds unless it is told otherwise.
const PIPE_BYTES: usize = 64 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER_BYTES].into());
}

/// Carries bytes both ways to the end of both, and says how many as it goes.
///
/// # Errors
/// One of the connections broke; whoever has them breaks the other.
pub(crate) async fn relay(
    client: &TcpStream,
    endpoint: &TcpStream,
    carried: impl Fn(usize),
) -> io::Result<()> {
    tokio::try_join!(one_way(client, endpoint, &carried), one_way(endpoint, client, &carried))?;
    Ok(())
}

/// Carries bytes to their end, and tells it on: the other direction may go on for long.
async fn one_way(from: &TcpStream, to: &TcpStream, carried: &impl Fn(usize)) -> io::Result<()> {
    if !copy(from, to, carried).await? {
        splice_rest(from, to, carried).await?;
    }
    match SockRef::from(to).shutdown(Shutdown::Write) {
        // It is closed already.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        other => other,
    }
}

/// Carries what there is; false if that is much, and more is to come.
async fn copy(from: &TcpStream, to: &TcpStream, carried: &impl Fn(usize)) -> io::Result<bool> {
    let mut copied = 0;
    while copied < COPIED_BYTES {
        from.readable().await?;
        match copy_some(from, to)? {
            Copied::Nothing => {}
            Copied::End => return Ok(true),
            Copied::All(n) => {
                copied += n;
                carried(n);
            }
            Copied::Some(n, rest) => {
                copied += n;
                carried(n);
                write_all(to, &rest).await?;
            }
        }
    }
    Ok(false)
}

enum Copied {
    /// It was not readable after all.
    Nothing,
    /// There is no more.
    End,
    /// So many bytes.
    All(usize),
    /// So many bytes, of which these could not be written yet.
    Some(usize, Vec<u8>),
}

fn copy_some(from: &TcpStream, to: &TcpStream) -> io::Result<Copied> {
    BUFFER.with_borrow_mut(|buffer| {
        let n = match from.try_read(buffer) {
            Ok(0) => return Ok(Copied::End),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Copied::Nothing),
            Err(error) => return Err(error),
        };
        let written = match to.try_write(&buffer[..n]) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        let rest = &buffer[written..n];
        Ok(if rest.is_empty() { Copied::All(n) } else { Copied::Some(n, rest.to_vec()) })
    })
}

async fn write_all(to: &TcpStream, mut rest: &[u8]) -> io::Result<()> {
    while !rest.is_empty() {
        to.writable().await?;
        match to.try_write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn splice_rest(from: &TcpStream, to: &TcpStream, carried: &impl Fn(usize)) -> io::Result<()> {
    let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    loop {
        let mut held = fill(from, &into).await?;
        if held == 0 {
            return Ok(());
        }
        carried(held);
        while held > 0 {
            held -= to.async_io(Interest::WRITABLE, || move_bytes(&out, to, held)).await?;
        }
    }
}

async fn fill(from: &TcpStream, pipe: &OwnedFd) -> io::Result<usize> {
    from.async_io(Interest::READABLE, || move_bytes(from, pipe, PIPE_BYTES)).await
}

/// Moves at most so many bytes, one of the two being a pipe.
fn move_bytes(from: &impl AsFd, to: &impl AsFd, most: usize) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    splice(from.as_fd(), None, to.as_fd(), None, most, flags).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, connected) = tokio::join!(listener.accept(), TcpStream::connect(address));
        (accepted.unwrap().0, connected.unwrap())
    }

    /// Client and endpoint, and the relay between them.
    async fn relayed() -> (TcpStream, TcpStream, tokio::task::JoinHandle<io::Result<()>>) {
        let (near, client) = connected().await;
        let (far, endpoint) = connected().await;
        let relayed = tokio::spawn(async move { relay(&near, &far, |_| ()).await });
        (client, endpoint, relayed)
    }

    fn pattern(n: usize, seed: u8) -> Vec<u8> {
        (0..251_u8).cycle().map(|byte| byte ^ seed).take(n).collect()
    }

    #[tokio::test]
    async fn long_streams_arrive_unchanged_both_ways() {
        for n in [0, 1, BUFFER_BYTES, COPIED_BYTES, COPIED_BYTES + 1, 8 << 20] {
            let (client, endpoint, relayed) = relayed().await;
            let (up, down) = (pattern(n, 1), pattern(n, 2));
            let exchange = async |mut stream: TcpStream, send: &[u8]| {
                let (mut reader, mut writer) = stream.split();
                let mut received = Vec::new();
                let sent = async {
                    writer.write_all(send).await.unwrap();
                    writer.shutdown().await.unwrap();
                };
                let ((), read) = tokio::join!(sent, reader.read_to_end(&mut received));
                read.unwrap();
                received
            };
            let (at_client, at_endpoint) = tokio::join!(exchange(client, &down), exchange(endpoint, &up));
            assert!(at_client == up && at_endpoint == down, "{n} bytes came out as others");
            relayed.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn a_side_that_has_no_more_can_still_be_told_much() {
        let (mut client, mut endpoint, relayed) = relayed().await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = Vec::new();
        endpoint.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        let answer = pattern(2 * COPIED_BYTES, 3);
        let mut received = Vec::new();
        let answered = async {
            endpoint.write_all(&answer).await.unwrap();
            drop(endpoint);
        };
        let ((), read) = tokio::join!(answered, client.read_to_end(&mut received));
        read.unwrap();
        assert!(received == answer);
        relayed.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_reader_that_reads_nothing_stops_the_writer() {
        let (mut client, endpoint, relayed) = relayed().await;
        let mut taken = 0;
        let piece = vec![7; 64 * 1024];
        // What is taken ends up in buffers of the kernel, whose size it bounds.
        while tokio::time::timeout(std::time::Duration::from_millis(500), client.write_all(&piece))
            .await
            .is_ok()
        {
            taken += piece.len();
            assert!(taken < 256 << 20, "{taken} bytes were taken that nobody reads");
        }
        drop(endpoint);
        assert!(relayed.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_connection_that_breaks_is_told_as_broken() {
        let (client, endpoint, relayed) = relayed().await;
        SockRef::from(&endpoint).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(endpoint);
        assert!(relayed.await.unwrap().is_err());
        drop(client);
    }
}
