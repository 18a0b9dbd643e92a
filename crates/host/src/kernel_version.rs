//! Which Linux this is.

use crate::file::Root;

/// The kernel's release, such as `6.1.0-18-amd64`, if it tells it.
pub fn kernel_release(root: &Root) -> Option<String> {
    let text = std::fs::read_to_string(root.path("proc/sys/kernel/osrelease")).ok()?;
    Some(text.trim().to_owned())
}

/// The first two numbers of a release.
pub fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}
