//! Programs of others at the same hooks.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use ebpf::{Capacity, Contents, FastPath as _, FastPathError, FastPathRemoval, Hook, Instruction};
use lab::Namespace;
use lab::cgroup::SocketSite;
use lab::proxy::wait_until;
use model::{IpFamily, V4};

use super::{Bpf, FastPathPlace, KernelFastPath, remove_fast_path};

/// `BPF_F_ALLOW_OVERRIDE` and `BPF_F_ALLOW_MULTI`.
const OVERRIDE: u32 = 1;
const MULTI: u32 = 2;

struct Site {
    node: Namespace,
    place: SocketSite,
    cgroup: File,
    stranger: OwnedFd,
}

impl Site {
    /// With a program of somebody else, which passes everything, and is attached with these flags.
    fn new(flags: u32) -> Self {
        let place = SocketSite::enter().unwrap();
        let node = Namespace::new("node").unwrap();
        node.exec("ip", &["link", "set", "lo", "up"]).unwrap();
        let cgroup = File::open(place.cgroup()).unwrap();
        let op = |code, immediate| Instruction { code, dst: 0, src: 0, offset: 0, immediate };
        // r0 = 1; exit
        let code = [op(0xb7, 1), op(0x95, 0)];
        let (stranger, _) = Bpf::default()
            .load_program("stranger", super::sys::Kind::SocketAddress(connect()), &code)
            .unwrap();
        Bpf::default().attach(stranger.as_fd(), cgroup.as_fd(), connect(), flags).unwrap();
        Self { node, place, cgroup, stranger }
    }

    fn open(&self) -> KernelFastPath<V4> {
        self.open_with(Bpf::default())
    }

    fn open_with(&self, bpf: Bpf) -> KernelFastPath<V4> {
        let place = FastPathPlace {
            cgroup_root: self.place.cgroup().to_owned(),
            bpffs: self.place.bpffs().to_owned(),
        };
        KernelFastPath::open(place, bpf).unwrap()
    }

    fn serve(&self, path: &mut KernelFastPath<V4>) -> Result<(), FastPathError> {
        let capacity = Capacity { frontends: 4, slots: 4, endpoints: 4 };
        path.rebuild(&Contents::empty(capacity), &[])?;
        self.node.run(|| path.prove())
    }

    fn attached(&self) -> u32 {
        Bpf::default().attached(self.cgroup.as_fd(), connect()).unwrap()
    }

    fn remove_ours(&self) {
        // A process that another test has just begun to start has the lock for a moment.
        while let Err(error) = remove_fast_path(self.place.bpffs(), FastPathRemoval::Everything) {
            assert!(matches!(error, FastPathError::Busy { .. }), "{error}");
            std::thread::yield_now();
        }
        // The kernel takes a program off some time after its link is gone.
        assert!(wait_until(Duration::from_secs(20), || self.attached() <= 1));
    }
}

fn connect() -> u32 {
    Hook::Connect4.attach_type()
}

#[test]
fn a_stranger_that_lets_others_in_stays_beside_ours() {
    let site = Site::new(MULTI);
    assert_eq!(site.attached(), 1);
    let mut path = site.open();
    site.serve(&mut path).unwrap();
    assert_eq!(site.attached(), 2);
    drop(path);
    site.remove_ours();
    assert_eq!(site.attached(), 1, "the stranger");
}

#[test]
fn a_stranger_that_wants_to_be_alone_is_left_alone() {
    let site = Site::new(OVERRIDE);
    let mut path = site.open();
    let error = site.serve(&mut path).unwrap_err();
    assert!(error.to_string().contains("attach kp_connect4"), "{error}");
    assert_eq!(site.attached(), 1);
    Bpf::default().detach(site.stranger.as_fd(), site.cgroup.as_fd(), connect()).unwrap();
    site.serve(&mut path).unwrap();
    assert_eq!(site.attached(), 1, "ours");
}

/// Somebody holds the link, so that it does not end with its pin.
#[test]
fn a_link_that_can_not_be_updated_gives_way() {
    let site = Site::new(MULTI);
    let mut path = site.open();
    site.serve(&mut path).unwrap();
    drop(path);
    let links = super::family_dir(site.place.bpffs(), IpFamily::V4).join(super::LINKS);
    let held = Bpf::default().pinned(&links.join("kp_connect4")).unwrap().expect("a link");
    let refuse_updates = |command: &'static str| match command {
        "BPF_LINK_UPDATE" => Err(std::io::Error::from_raw_os_error(libc::ENOMEM)),
        _ => Ok(()),
    };
    let mut path = site.open_with(Bpf::gated(Arc::new(refuse_updates)));
    site.serve(&mut path).unwrap();
    assert_eq!(site.attached(), 2, "the stranger's and one of ours");
    drop(held);
}
