//! What HNS' codes mean.

use std::fmt;

/// An `HRESULT`, as the number that it is printed as: 0x803B0001. 0 and what has the highest bit unset is success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(pub u32);

/// What is to be made of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Failure {
    /// There is no such object: what was believed to be there is not. A deletion is done.
    NotFound,
    /// A network, endpoint or port that the object refers to is not there: what is known is stale.
    Stale,
    /// HNS refuses this object as it is.
    Refused,
    /// Something like it exists: the frontend of a load balancer, or an address.
    Exists,
    /// An address is outside of the network's subnets, or reserved there.
    BadAddress,
    /// This HNS can't do that.
    NotImplemented,
    /// The service does not answer: nothing is known, and nothing that was known is to be forgotten.
    Away,
    /// We may not.
    Denied,
    /// Anything else.
    Other,
}

impl Code {
    /// `S_OK`
    pub const OK: Self = Self(0);
    /// `E_NOTIMPL`
    pub const NOT_IMPLEMENTED: Self = Self(0x8000_4001);
    /// `E_FAIL`
    pub const FAIL: Self = Self(0x8000_4005);
    /// `E_ACCESSDENIED`
    pub const ACCESS_DENIED: Self = Self(0x8007_0005);
    /// `E_INVALIDARG`
    pub const INVALID_ARGUMENT: Self = Self(0x8007_0057);
    /// `ERROR_ALREADY_EXISTS`
    pub const ALREADY_EXISTS: Self = Self(0x8007_00B7);
    /// `ERROR_SERVICE_NOT_ACTIVE`
    pub const SERVICE_NOT_ACTIVE: Self = Self(0x8007_0426);
    /// `ERROR_NOT_FOUND`: no such element.
    pub const NOT_FOUND: Self = Self(0x8007_0490);
    /// `RPC_S_SERVER_UNAVAILABLE`
    pub const RPC_UNAVAILABLE: Self = Self(0x8007_06BA);
    /// `RPC_S_CALL_FAILED`
    pub const RPC_CALL_FAILED: Self = Self(0x8007_06BE);
    /// `HCN_E_NETWORK_NOT_FOUND`
    pub const NETWORK_NOT_FOUND: Self = Self(0x803B_0001);
    /// `HCN_E_ENDPOINT_NOT_FOUND`
    pub const ENDPOINT_NOT_FOUND: Self = Self(0x803B_0002);
    /// `HCN_E_SWITCH_PORT_NOT_FOUND`
    pub const SWITCH_PORT_NOT_FOUND: Self = Self(0x803B_0007);
    /// `HCN_E_INVALID_POLICY`
    pub const INVALID_POLICY: Self = Self(0x803B_000D);
    /// `HCN_E_PORT_ALREADY_EXISTS`
    pub const PORT_EXISTS: Self = Self(0x803B_0013);
    /// `HCN_E_ADDR_INVALID_OR_RESERVED`
    pub const ADDRESS_INVALID: Self = Self(0x803B_002F);

    /// Whether it says that the call was done.
    pub const fn is_success(self) -> bool {
        self.0 >> 31 == 0
    }

    /// What is to be made of it.
    pub const fn failure(self) -> Failure {
        match self {
            Self::NOT_FOUND => Failure::NotFound,
            Self::NETWORK_NOT_FOUND | Self::ENDPOINT_NOT_FOUND | Self::SWITCH_PORT_NOT_FOUND => {
                Failure::Stale
            }
            Self::INVALID_POLICY | Self::INVALID_ARGUMENT => Failure::Refused,
            Self::PORT_EXISTS | Self::ALREADY_EXISTS => Failure::Exists,
            Self::ADDRESS_INVALID => Failure::BadAddress,
            Self::NOT_IMPLEMENTED => Failure::NotImplemented,
            Self::RPC_UNAVAILABLE | Self::RPC_CALL_FAILED | Self::SERVICE_NOT_ACTIVE => Failure::Away,
            Self::ACCESS_DENIED => Failure::Denied,
            _ => Failure::Other,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:08X}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_codes_of_a_service_that_is_not_there_count_as_away() {
        let away = [0x8007_06BA, 0x8007_06BE, 0x8007_0426];
        for code in away {
            assert_eq!(Code(code).failure(), Failure::Away, "{code:x}");
        }
        for code in [0x8007_0490, 0x803B_0001, 0x803B_0002, 0x803B_000D, 0x8000_4005, 1, 0] {
            assert_ne!(Code(code).failure(), Failure::Away, "{code:x}");
        }
    }

    #[test]
    fn codes_without_the_highest_bit_are_success() {
        assert!(Code::OK.is_success() && Code(1).is_success());
        assert!(!Code::NOT_FOUND.is_success() && !Code(u32::MAX).is_success());
        assert_eq!(Code::NETWORK_NOT_FOUND.to_string(), "0x803B0001");
    }
}
