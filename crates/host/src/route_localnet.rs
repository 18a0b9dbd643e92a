//! Whether packets with loopback addresses may leave the host and come in.

use crate::file::{FileError, Root, read_number, write_number};

/// Has the kernel route packets whose source is a loopback address, as node ports on localhost need (IPv4; the kernel has no
/// such setting for IPv6). Others could then reach what listens on loopback addresses: the rules must keep them away. False
/// if it was so already.
///
/// # Errors
/// The setting can't be read or written.
pub fn set_route_localnet(root: &Root) -> Result<bool, FileError> {
    let path = root.path("proc/sys/net/ipv4/conf/all/route_localnet");
    if read_number::<u8>(&path)? == 1 {
        return Ok(false);
    }
    write_number(&path, 1).map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_unless_it_is_set() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        assert!(set_route_localnet(&root).is_err());
        let path = root.path("proc/sys/net/ipv4/conf/all/route_localnet");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "0\n").unwrap();
        assert!(set_route_localnet(&root).unwrap());
        assert!(!set_route_localnet(&root).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1");
    }
}
