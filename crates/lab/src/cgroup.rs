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
    /// The thread that made it.
    thread: i32,
    bpffs: Mount,
    /// The cgroups of version 2; a machine has them mounted anywhere, or nowhere.
    _cgroups: Mount,
}

impl SocketSite {
    /// Makes both, and moves the calling thread into the cgroup.
    ///
    /// # Errors
    /// The kernel has no cgroups of version 2, no file system of type `bpf`, or there is no permission; the text says which.
    pub fn enter() -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("kube-proxy-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let mount = |kind| Mount::new(kind, std::env::temp_dir().join(format!("{name}-{kind}")));
        let (cgroups, bpffs) = (mount("cgroup2")?, mount("bpf")?);
        let parent = own_cgroup(&cgroups.0)?;
        let cgroup = parent.join(&name);
        fs::create_dir(&cgroup).map_err(failed("make the cgroup", &cgroup))?;
        let thread = nix::unistd::gettid().as_raw();
        let site = Self { cgroup, parent, thread, bpffs, _cgroups: cgroups };
        write(&site.cgroup.join("cgroup.type"), "threaded")?;
        write(&site.cgroup.join("cgroup.threads"), &site.thread.to_string())?;
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
        &self.bpffs.0
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
        collect(&self.bpffs.0.join("kube-proxy"), &self.bpffs.0, &mut pins);
        pins.sort();
        pins
    }
}

impl Drop for SocketSite {
    fn drop(&mut self) {
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

/// A file system at a directory of its own. Both are gone with this; of `bpf`, so is what is pinned there.
#[derive(Debug)]
struct Mount(PathBuf);

impl Mount {
    fn new(kind: &str, at: PathBuf) -> io::Result<Self> {
        fs::create_dir(&at).map_err(failed("make", &at))?;
        let mounted = mount(Some(kind), &at, Some(kind), MsFlags::empty(), None::<&str>);
        let it = Self(at);
        mounted.map_err(|errno| {
            let text = format!("mount, as root, a file system of type {kind} at {}: {errno}", it.0.display());
            io::Error::new(io::Error::from(errno).kind(), text)
        })?;
        Ok(it)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).ok();
        drop(fs::remove_dir(&self.0));
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text).map_err(failed("write to", path))
}

/// An error that says what could not be done.
fn failed<'p>(what: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> io::Error + use<'p> {
    move |error| io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}

/// The directory of this thread's cgroup, below where cgroups are mounted.
fn own_cgroup(mounted_at: &Path) -> io::Result<PathBuf> {
    let text = fs::read_to_string("/proc/thread-self/cgroup")?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"));
    own.map(|own| mounted_at.join(own)).filter(|path| path.join("cgroup.threads").exists()).ok_or_else(|| {
        let text = format!("this thread's cgroup is not below the root of its namespace:\n{text}");
        io::Error::new(io::ErrorKind::NotFound, text)
    })
}
