//! What Prometheus clients tell of their own process.

use prometheus::{Counter, Gauge};

use crate::registrar::Registrar;

/// A reading of the process. Somebody else makes it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "the names are those of the metrics")]
pub struct ProcessReading {
    pub cpu_seconds: f64,
    pub resident_memory_bytes: f64,
    pub virtual_memory_bytes: f64,
    /// 2^64 stands for no limit, as in Go's client.
    pub virtual_memory_max_bytes: f64,
    pub open_fds: f64,
    pub max_fds: f64,
    /// Unix time.
    pub start_time_seconds: f64,
    pub network_receive_bytes: f64,
    pub network_transmit_bytes: f64,
}

/// The metrics of the process.
#[derive(Debug)]
pub(crate) struct ProcessMetrics {
    cpu: Counter,
    resident: Gauge,
    virtual_: Gauge,
    virtual_max: Gauge,
    open_fds: Gauge,
    max_fds: Gauge,
    start_time: Gauge,
    receive: Counter,
    transmit: Counter,
}

impl ProcessMetrics {
    pub(crate) fn register(registrar: &Registrar) -> Self {
        let counter = |name, help| registrar.float_counter(name, help);
        let gauge = |name, help| registrar.float_gauge(name, help);
        Self {
            cpu: counter("process_cpu_seconds_total", "User and system CPU time spent"),
            resident: gauge("process_resident_memory_bytes", "Resident memory"),
            virtual_: gauge("process_virtual_memory_bytes", "Virtual memory"),
            virtual_max: gauge("process_virtual_memory_max_bytes", "Limit of the virtual memory"),
            open_fds: gauge("process_open_fds", "Open file descriptors"),
            max_fds: gauge("process_max_fds", "Limit of open file descriptors"),
            start_time: gauge("process_start_time_seconds", "Unix time of the process's start"),
            receive: counter(
                "process_network_receive_bytes_total",
                "Bytes received by the network namespace",
            ),
            transmit: counter("process_network_transmit_bytes_total", "Bytes sent by the network namespace"),
        }
    }

    pub(crate) fn set(&mut self, reading: &ProcessReading) {
        let set = |counter: &Counter, value: f64| {
            counter.reset();
            counter.inc_by(value.max(0.0));
        };
        set(&self.cpu, reading.cpu_seconds);
        set(&self.receive, reading.network_receive_bytes);
        set(&self.transmit, reading.network_transmit_bytes);
        self.resident.set(reading.resident_memory_bytes);
        self.virtual_.set(reading.virtual_memory_bytes);
        self.virtual_max.set(reading.virtual_memory_max_bytes);
        self.open_fds.set(reading.open_fds);
        self.max_fds.set(reading.max_fds);
        self.start_time.set(reading.start_time_seconds);
    }
}
