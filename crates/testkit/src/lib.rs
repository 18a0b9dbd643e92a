//! A cluster for tests, the demo and the benchmark: an API server, the laboratory with a server in each pod, and the program; and a
//! collector of spans.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod collector;
