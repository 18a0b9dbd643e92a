//! What a process that carries other people's bytes will never ask of the kernel.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};

/// The filter could not be put in force. A kernel may lack it; the process works all the same.
#[derive(Debug, thiserror::Error)]
#[error("restrict system calls")]
pub struct SeccompError(#[from] seccompiler::Error);

/// Has the kernel refuse (EPERM) what a worker never needs: other programs, other processes' memory, namespaces, mounts, modules,
/// tracing, and sockets that are neither of the Internet nor local. For the calling thread and those that it starts; it needs
/// `no_new_privs`.
///
/// # Errors
/// See [`SeccompError`].
pub fn restrict_system_calls() -> Result<(), SeccompError> {
    let errno = u32::try_from(libc::EPERM).unwrap_or(1);
    let arch = std::env::consts::ARCH.try_into().map_err(seccompiler::Error::Backend)?;
    let filter = SeccompFilter::new(rules()?, SeccompAction::Allow, SeccompAction::Errno(errno), arch);
    let program: BpfProgram = filter.and_then(TryInto::try_into).map_err(seccompiler::Error::Backend)?;
    Ok(apply_filter(&program)?)
}

/// Refused whatever the arguments.
const REFUSED: [libc::c_long; 32] = [
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_swapon,
    libc::SYS_reboot,
    libc::SYS_acct,
];

fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.into_iter().map(|number| (number, Vec::new())).collect();
    let is_not = |family: libc::c_int| {
        let family = u64::try_from(family).unwrap_or_default();
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family)
    };
    let others = [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX].map(is_not);
    let others = others.into_iter().collect::<Result<_, _>>().and_then(SeccompRule::new);
    rules.insert(libc::SYS_socket, vec![others.map_err(seccompiler::Error::Backend)?]);
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// On a thread of its own, which takes its filter with it.
    #[test]
    fn programs_and_other_sockets_are_refused() {
        std::thread::spawn(|| {
            crate::drop_all_privileges().unwrap();
            restrict_system_calls().unwrap();
            let refused = Command::new("/bin/true").status().unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
            let netlink = nix::sys::socket::socket(
                nix::sys::socket::AddressFamily::Netlink,
                nix::sys::socket::SockType::Raw,
                nix::sys::socket::SockFlag::empty(),
                None,
            );
            assert_eq!(netlink.unwrap_err(), nix::errno::Errno::EPERM);
            std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        })
        .join()
        .unwrap();
    }
}
