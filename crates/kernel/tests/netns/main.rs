//! The real kernel, in network namespaces of the tests' own. They need `CAP_SYS_ADMIN` and the `nft` command, and
//! fail without.

#[cfg(test)]
mod affinity;
#[cfg(test)]
mod common;
#[cfg(test)]
mod counting;
#[cfg(test)]
mod cutting;
#[cfg(test)]
mod disturbed;
#[cfg(test)]
mod drift;
#[cfg(test)]
mod listing;
#[cfg(test)]
mod lookup;
#[cfg(test)]
mod networks;
#[cfg(test)]
mod refusal;
#[cfg(test)]
mod tracing;
#[cfg(test)]
mod watching;
