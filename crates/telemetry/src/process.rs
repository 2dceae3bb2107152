//! Metrics of the process itself, read when they are asked for. What a system does not tell is left out.

use std::fs;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Linux counts a process's CPU time in ticks of 1/100 s, on all machines.
const TICKS_PER_SECOND: f64 = 100.0;

pub(super) struct ProcessCollector {
    dropped: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl std::fmt::Debug for ProcessCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProcessCollector")
    }
}

impl ProcessCollector {
    pub(super) fn new(dropped: Arc<dyn Fn() -> u64 + Send + Sync>) -> Self {
        Self { dropped }
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        counter(
            &mut encoder,
            "daskade_log_lines_dropped",
            "Log lines dropped since the log's pipe was blocked; alert on any increase",
            (self.dropped)(),
        )?;
        if let Some(seconds) = cpu_seconds() {
            counter(&mut encoder, "process_cpu_seconds", "CPU time used", seconds)?;
        }
        let gauges = [
            ("process_resident_memory_bytes", "Memory in use; alert near the limit", resident()),
            ("daskade_memory_limit_bytes", "Memory limit of the container", memory_limit()),
            ("process_open_fds", "Open file descriptors; alert near the maximum", open_files()),
            ("process_max_fds", "Most file descriptors that may be open", most_files()),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                gauge(&mut encoder, name, help, value)?;
            }
        }
        Ok(())
    }
}

fn counter<N>(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: N) -> std::fmt::Result
where
    ConstCounter<N>: EncodeMetric,
{
    let metric = ConstCounter::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: i64) -> std::fmt::Result {
    let metric = ConstGauge::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn resident() -> Option<i64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: i64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// User and system time: the 14th and 15th field. The second is a name in parentheses that may hold anything.
fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let mut after = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u32 = after.next()?.parse().ok()?;
    let system: u32 = after.next()?.parse().ok()?;
    Some((f64::from(user) + f64::from(system)) / TICKS_PER_SECOND)
}

fn open_files() -> Option<i64> {
    i64::try_from(fs::read_dir("/proc/self/fd").ok()?.count()).ok()
}

fn most_files() -> Option<i64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().ok()
}

/// Of the container: of its control group, version 2; `max` means none.
pub fn memory_limit() -> Option<i64> {
    fs::read_to_string("/sys/fs/cgroup/memory.max").ok()?.trim().parse().ok()
}
