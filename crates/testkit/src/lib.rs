//! A cluster for tests, the demo and the benchmark: an API server, the laboratory with a server in each pod, and the program.
#![forbid(unsafe_code)]

pub mod cluster;
