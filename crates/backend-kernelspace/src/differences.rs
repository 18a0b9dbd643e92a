//! What this platform does otherwise than the others, and can't do.

/// Something that VFP and HNS can't do, or do otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// In a word or two.
    pub name: &'static str,
    /// What comes of it, as Services are told.
    pub text: &'static str,
}

/// VFP does not match sources.
pub(crate) const SOURCE_RANGES: Difference = Difference {
    name: "source ranges",
    text: "loadBalancerSourceRanges is not enforced: all clients are let in",
};
/// A frontend has one set of endpoints for all clients.
pub(crate) const SHORT_CUT: Difference = Difference {
    name: "short cut",
    text: "pods and this node reach only endpoints of this node by external addresses with policy Local",
};
/// Affinity is a hash of the client's address.
pub(crate) const AFFINITY: Difference = Difference {
    name: "affinity",
    text: "the time of session affinity has no effect, and clients may move when endpoints change",
};
/// The setting is taken without effect before HNS 12.
pub(crate) const NO_AFFINITY: Difference =
    Difference { name: "no affinity", text: "there is no session affinity before Windows Server 2022" };
/// A load balancer has one internal port.
pub(crate) const PORTS: Difference = Difference {
    name: "several target ports",
    text: "endpoints whose port is not the most common one take no flows",
};
/// Such pods have no HNS endpoint.
pub(crate) const HOST_NETWORK: Difference = Difference {
    name: "host network",
    text: "endpoints on the network of this node itself take no flows from this node",
};
/// There is nothing that could refuse: packets go on as if nobody had asked.
pub(crate) const NO_REFUSAL: Difference = Difference {
    name: "no refusal",
    text: "packets to an address without endpoints are neither refused nor dropped but leave by the default route",
};
/// What masquerades is the lack of direct server return, for all clients alike.
pub(crate) const MASQUERADE: Difference = Difference {
    name: "masquerading",
    text: "whether endpoints see the client or a source VIP depends on direct server return, not on where the client is",
};

/// All of them.
pub const DIFFERENCES: [Difference; 8] =
    [SOURCE_RANGES, SHORT_CUT, AFFINITY, NO_AFFINITY, PORTS, HOST_NETWORK, NO_REFUSAL, MASQUERADE];
