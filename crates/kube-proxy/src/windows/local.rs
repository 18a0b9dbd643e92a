//! What commands do on the node itself, beside asking the proxy, on Windows: nothing.

use nft::Name;
use nft::trace::Traced;

/// The node that the command runs on.
pub(crate) struct ThisNode;

impl cli::Local for ThisNode {
    fn trace(&self, _: &Name, _: &[Traced], _: u32) -> Result<Box<dyn cli::Packets>, String> {
        Err("Windows does not tell what becomes of packets".to_owned())
    }
}
