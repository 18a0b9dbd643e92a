//! What the kernel's verifier takes for each program.

use ebpf::{Capacity, Contents, FastPath as _};
use kernel::{Bpf, KernelFastPath};
use model::{Family, V4, V6};

use crate::site::Site;

/// Instructions that the verifier may look at, by program. Its own limit is 1,000,000; how many it needs differs a little from
/// kernel to kernel. A change that needs more has to be looked at.
const STEPS: [(&str, usize); 11] = [
    ("kp_peername4", 60),
    ("kp_peername4in6", 60),
    ("kp_recvmsg4", 800),
    ("kp_recvmsg4in6", 800),
    ("kp_connect4", 400),
    ("kp_connect4in6", 400),
    ("kp_sendmsg4", 4000),
    ("kp_peername6", 80),
    ("kp_recvmsg6", 800),
    ("kp_connect6", 800),
    ("kp_sendmsg6", 8000),
];

fn steps<F: Family>(site: &Site) -> Vec<(&'static str, usize)> {
    let mut path = KernelFastPath::<F>::open(site.place(), Bpf::default()).unwrap().with_datagrams().unwrap();
    let capacity = Capacity { frontends: 4, slots: 4, endpoints: 4 };
    path.rebuild(&Contents::empty(capacity), &[]).unwrap();
    let parse = |log: String| -> usize {
        let text = log.lines().find_map(|line| line.strip_prefix("processed ")).unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    };
    path.verify().unwrap().into_iter().map(|(name, log)| (name, parse(log))).collect()
}

#[test]
fn the_verifier_needs_few_steps() {
    let site = Site::new();
    let found = [steps::<V4>(&site), steps::<V6>(&site)].concat();
    assert_eq!(found.iter().map(|(name, _)| *name).collect::<Vec<_>>(), STEPS.map(|(name, _)| name));
    for ((name, found), (_, most)) in found.iter().zip(STEPS) {
        assert!(*found <= most, "{name}: {found}, at most {most}");
        assert!(*found * 8 >= most, "{name}: {found} steps; {most} is too generous");
    }
}
