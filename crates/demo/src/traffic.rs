//! HTTP requests: one at a time, or a steady stream of which every one is accounted for.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use lab::Namespace;
use tokio::time::Instant;

/// How long connecting and each read may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Sends `GET /` on a new connection; yields the body, which is the name of the pod that answered.
///
/// # Errors
/// The connection failed, or the answer is not a complete one with status 200.
pub(crate) fn get(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    body(&response).map(str::to_owned).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, response))
}

/// The only line of the body of a response with status 200.
fn body(response: &str) -> Option<&str> {
    let (head, body) = response.split_once("\r\n\r\n")?;
    let line = body.strip_suffix('\n')?;
    (head.starts_with("HTTP/1.1 200 ") && !line.contains('\n')).then_some(line)
}

/// How often each pod answered.
pub(crate) type Counts = BTreeMap<String, u64>;

/// Sends so many requests, one after the other, and counts who answered.
///
/// # Errors
/// The first that failed.
pub(crate) fn spread(requests: usize, address: SocketAddr) -> io::Result<Counts> {
    let mut counts = Counts::new();
    for _ in 0..requests {
        *counts.entry(get(address)?).or_default() += 1;
    }
    Ok(counts)
}

/// What came of the requests of a while.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// How often each pod answered.
    pub(crate) counts: Counts,
    /// How many requests failed.
    pub(crate) failed: u64,
    /// Why the first one did.
    pub(crate) first_failure: Option<String>,
    /// How long the slowest success took.
    pub(crate) slowest: Duration,
}

impl Account {
    fn record(&mut self, outcome: io::Result<String>, took: Duration) {
        match outcome {
            Ok(pod) => {
                *self.counts.entry(pod).or_default() += 1;
                self.slowest = self.slowest.max(took);
            }
            Err(error) => {
                self.failed += 1;
                self.first_failure.get_or_insert_with(|| error.to_string());
            }
        }
    }

    /// Requests that were answered.
    pub(crate) fn answered(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Both whiles together, the other one being the later.
    pub(crate) fn add(&mut self, later: &Self) {
        for (pod, count) in &later.counts {
            *self.counts.entry(pod.clone()).or_default() += count;
        }
        self.failed += later.failed;
        self.first_failure = self.first_failure.take().or_else(|| later.first_failure.clone());
        self.slowest = self.slowest.max(later.slowest);
    }
}

/// A running stream of requests from a namespace. Stops when dropped.
#[derive(Debug)]
pub(crate) struct Stream {
    account: Arc<Mutex<Account>>,
    total: Account,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    /// Sends a request each `every`, the next one not before the last one has ended.
    pub(crate) fn start(namespace: &Namespace, address: SocketAddr, every: Duration) -> Self {
        let account = Arc::new(Mutex::new(Account::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (sink, stopped) = (Arc::clone(&account), Arc::clone(&stop));
        let send = move || {
            let mut due = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let outcome = get(address);
                lock(&sink).record(outcome, begun.elapsed());
                due += every;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        };
        Self { account, total: Account::default(), stop, thread: Some(namespace.spawn(send)) }
    }

    /// The account of the time since the last call.
    pub(crate) fn lap(&mut self) -> Account {
        let lap = std::mem::take(&mut *lock(&self.account));
        self.total.add(&lap);
        lap
    }

    /// The account of the time from now on, that long.
    pub(crate) fn lap_of(&mut self, time: Duration) -> Account {
        // A request may be under way that belongs to the time before.
        std::thread::sleep(Duration::from_millis(20));
        self.lap();
        std::thread::sleep(time);
        self.lap()
    }

    /// Waits for the request under way, and gives the whole account.
    pub(crate) fn stop(mut self) -> Account {
        self.join();
        self.lap();
        std::mem::take(&mut self.total)
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic of the thread has been printed by then.
        drop(self.thread.take().map(JoinHandle::join));
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.join();
    }
}

/// Nothing that holds the lock can leave the account half written.
fn lock(account: &Mutex<Account>) -> std::sync::MutexGuard<'_, Account> {
    account.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_complete_answer_with_status_200_counts() {
        assert_eq!(body("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\npod0\n"), Some("pod0"));
        for wrong in [
            "HTTP/1.1 503 Unavailable\r\n\r\npod0\n",
            "HTTP/1.1 200 OK\r\n\r\npod",
            "HTTP/1.1 200 OK\r\n",
            "",
            "HTTP/1.1 200 OK\r\n\r\na\nb\n",
        ] {
            assert_eq!(body(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn accounts_add_up() {
        let mut total = Account::default();
        total.record(Ok("a".to_owned()), Duration::from_millis(3));
        let mut later = Account::default();
        later.record(Ok("a".to_owned()), Duration::from_millis(2));
        later.record(Err(io::ErrorKind::ConnectionReset.into()), Duration::from_millis(9));
        total.add(&later);
        assert_eq!((total.answered(), total.failed), (2, 1));
        assert_eq!(total.slowest, Duration::from_millis(3), "a failure is not a slow success");
        assert_eq!(total.first_failure.as_deref(), Some("connection reset"));
    }
}
