//! Reads what Windows knows of this process.

use metrics::ProcessReading;

/// What Go's client says of Windows' handles.
const MAX_HANDLES: u32 = 16 << 20;

/// A reading; `None` if the system does not answer. There are no limits of memory, and bytes are not counted by process.
pub(crate) fn read() -> Option<ProcessReading> {
    let figures = hns::process::figures().ok()?;
    Some(ProcessReading {
        cpu_seconds: figures.processor_time.as_secs_f64(),
        resident_memory_bytes: number(figures.working_set_bytes),
        virtual_memory_bytes: number(figures.committed_bytes),
        virtual_memory_max_bytes: number(u64::MAX),
        open_fds: figures.handles.into(),
        max_fds: MAX_HANDLES.into(),
        start_time_seconds: figures.started.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs_f64(),
        network_receive_bytes: 0.0,
        network_transmit_bytes: 0.0,
    })
}

#[expect(clippy::cast_precision_loss, reason = "metrics are floating-point numbers")]
fn number(value: u64) -> f64 {
    value as f64
}
