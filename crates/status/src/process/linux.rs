//! Reads what the kernel knows of this process.

use metrics::ProcessReading;
use procfs::process::{LimitValue, Process};

/// A reading; `None` where `/proc` is missing or unreadable.
pub(crate) fn read() -> Option<ProcessReading> {
    let process = Process::myself().ok()?;
    let (stat, limits, devices) = (process.stat().ok()?, process.limits().ok()?, process.dev_status().ok()?);
    let ticks_per_second = number(procfs::ticks_per_second());
    let limit = |limit| match limit {
        LimitValue::Value(limit) => number(limit),
        // What Go's client says.
        LimitValue::Unlimited => number(u64::MAX),
    };
    let boot_time = number(procfs::boot_time_secs().ok()?);
    Some(ProcessReading {
        cpu_seconds: number(stat.utime + stat.stime) / ticks_per_second,
        resident_memory_bytes: number(stat.rss * procfs::page_size()),
        virtual_memory_bytes: number(stat.vsize),
        virtual_memory_max_bytes: limit(limits.max_address_space.soft_limit),
        open_fds: number(process.fd_count().ok()? as u64),
        max_fds: limit(limits.max_open_files.soft_limit),
        start_time_seconds: boot_time + number(stat.starttime) / ticks_per_second,
        network_receive_bytes: devices.values().map(|device| number(device.recv_bytes)).sum(),
        network_transmit_bytes: devices.values().map(|device| number(device.sent_bytes)).sum(),
    })
}

#[expect(clippy::cast_precision_loss, reason = "metrics are floating-point numbers")]
fn number(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_read() {
        let reading = read().unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap();
        let age = now.as_secs_f64() - reading.start_time_seconds;
        assert!((-2.0..86_400.0).contains(&age), "started {age} s ago");
        assert!(reading.resident_memory_bytes > 100_000.0, "{reading:?}");
        assert!(reading.virtual_memory_bytes > reading.resident_memory_bytes, "{reading:?}");
        assert!(reading.open_fds >= 3.0 && reading.max_fds >= reading.open_fds, "{reading:?}");
    }
}
