//! The real table of tracked flows, in network namespaces of the tests' own. They need `CAP_SYS_ADMIN` and the commands
//! `ip`, `nft` and `conntrack`, and fail without.

#[cfg(test)]
mod deleting;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod made;
#[cfg(test)]
mod many;
#[cfg(test)]
mod site;
#[cfg(test)]
mod zones;
