//! What HNS tells by itself.

/// A notification of `HcnRegisterServiceCallback`. None tells of load balancers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A network was made.
    NetworkCreated,
    /// A network was deleted.
    NetworkDeleted,
    /// An endpoint was attached to a container or a virtual machine.
    EndpointAttached,
    /// An endpoint was detached.
    EndpointDetached,
    /// The service is gone; nothing more comes over this callback.
    ServiceGone,
    /// Something else.
    Other(u32),
}

impl Event {
    /// From `HCN_NOTIFICATIONS` (`computenetwork.h`).
    pub const fn of(code: u32) -> Self {
        match code {
            2 => Self::NetworkCreated,
            4 => Self::NetworkDeleted,
            9 => Self::EndpointAttached,
            16 => Self::EndpointDetached,
            0x0100_0000 => Self::ServiceGone,
            other => Self::Other(other),
        }
    }

    /// The number that stands for it.
    pub const fn code(self) -> u32 {
        match self {
            Self::NetworkCreated => 2,
            Self::NetworkDeleted => 4,
            Self::EndpointAttached => 9,
            Self::EndpointDetached => 16,
            Self::ServiceGone => 0x0100_0000,
            Self::Other(other) => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_and_numbers_are_the_same() {
        for code in [1, 2, 3, 4, 9, 16, 0x0100_0000, u32::MAX] {
            assert_eq!(Event::of(code).code(), code);
        }
    }
}
