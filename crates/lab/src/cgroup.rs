//! A cgroup and a file system for programs, of a test's own: nobody else's sockets are touched.
//!
//! Tests are threads of one process, and each test with programs has a cgroup of its own. So these are threaded cgroups, which
//! threads enter one by one; threads and processes that they start are inside as well, and so are all sockets made there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A cgroup that the thread which made it is in, and a file system of type `bpf`. Gone with this.
#[derive(Debug)]
pub struct SocketSite {
    cgroup: PathBuf,
    /// Where the thread came from.
    parent: PathBuf,
    bpffs: PathBuf,
    /// The thread that made it.
    thread: i32,
}

/// Mount points of cgroups of version 2.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

impl SocketSite {
    /// Makes both, and moves the calling thread into the cgroup.
    ///
    /// # Errors
    /// There is no cgroup of version 2, no file system of type `bpf`, or no permission; the text says which.
    pub fn enter() -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("kube-proxy-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let parent = own_cgroup()?;
        let (cgroup, bpffs) = (parent.join(&name), std::env::temp_dir().join(&name));
        fs::create_dir(&cgroup).map_err(failed("make the cgroup", &cgroup))?;
        let thread = nix::unistd::gettid().as_raw();
        let site = Self { cgroup, parent, bpffs, thread };
        write(&site.cgroup.join("cgroup.type"), "threaded")?;
        write(&site.cgroup.join("cgroup.threads"), &thread.to_string())?;
        fs::create_dir(&site.bpffs).map_err(failed("make", &site.bpffs))?;
        let (kind, none) = (Some("bpf"), None::<&str>);
        mount(kind, &site.bpffs, kind, MsFlags::empty(), none)
            .map_err(io::Error::from)
            .map_err(failed("mount, as root, a file system of type bpf at", &site.bpffs))?;
        Ok(site)
    }

    /// The cgroup, as `--ebpf-cgroup-root` takes it.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Where sockets are none of the node's.
    pub fn outside(&self) -> &Path {
        &self.parent
    }

    /// The file system, as `--ebpf-bpffs` takes it.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// What is pinned, relative to the file system.
    pub fn pins(&self) -> Vec<String> {
        fn collect(dir: &Path, root: &Path, into: &mut Vec<String>) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    collect(&path, root, into);
                } else {
                    into.push(path.strip_prefix(root).unwrap_or(&path).display().to_string());
                }
            }
        }
        let mut pins = Vec::new();
        // Beside it the kernel has files of its own.
        collect(&self.bpffs.join("kube-proxy"), &self.bpffs, &mut pins);
        pins.sort();
        pins
    }
}

impl Drop for SocketSite {
    fn drop(&mut self) {
        // The programs go with their links, which go with the file system.
        umount2(&self.bpffs, MntFlags::MNT_DETACH).ok();
        drop(fs::remove_dir(&self.bpffs));
        drop(fs::write(self.parent.join("cgroup.threads"), self.thread.to_string()));
        // Threads and programs that are about to end keep it until then.
        for _ in 0..100 {
            if fs::remove_dir(&self.cgroup).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text).map_err(failed("write to", path))
}

/// An error that says what could not be done.
fn failed<'p>(what: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> io::Error + use<'p> {
    move |error| io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}

/// The directory of this thread's cgroup.
fn own_cgroup() -> io::Result<PathBuf> {
    let text = fs::read_to_string("/proc/thread-self/cgroup")?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let candidates = own.into_iter().flat_map(|own| MOUNTS.map(|mount| Path::new(mount).join(own)));
    let is_cgroup = |path: &PathBuf| path.join("cgroup.threads").exists();
    candidates.into_iter().find(is_cgroup).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("tests of programs at sockets need a cgroup of version 2 at {}", MOUNTS.join(" or ")),
        )
    })
}
