//! Metrics as they are registered and written: families, the text form that came before OpenMetrics, and what the operating system says of
//! this process.
//!
//! Never counts anything (see `telemetry`). Where the system has no `/proc`, its part is left out.

use std::{
    fmt::{self, Debug},
    fs,
    hash::Hash,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{TypedMetric, counter::ConstCounter, family::Family, gauge::ConstGauge},
    registry::Registry,
};

use crate::clock::Time;

/// The media type of [`plain`].
pub const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The media type of the metrics as they are encoded first.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Ticks of `/proc/self/stat` in a second: the kernel shows them as 100 on every machine that we run on.
const TICKS: f64 = 100.0;

/// A metric with labels, registered.
pub(crate) fn family<L, M>(registry: &mut Registry, name: &str, help: &str) -> Family<L, M>
where
    L: Clone + Hash + Eq + EncodeLabelSet + Debug + Send + Sync + 'static,
    M: Default + EncodeMetric + TypedMetric + Debug + Send + Sync + 'static,
{
    let family = Family::default();
    registry.register(name, help, family.clone());
    family
}

/// Processor time, memory and start of this process, under the names that every dashboard knows.
#[derive(Debug)]
pub struct OfProcess {
    started_at: Time,
}

impl OfProcess {
    pub fn new(started_at: Time) -> OfProcess {
        OfProcess { started_at }
    }
}

impl Collector for OfProcess {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut put = |name, help, metric: &dyn EncodeMetric| {
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        let started = ConstGauge::new(self.started_at.0 as f64 / 1000.0);
        put("process_start_time_seconds", "When the process started, in seconds since the Unix epoch.", &started)?;
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        if let Some(seconds) = cpu_seconds(&read("/proc/self/stat")) {
            let spent = ConstCounter::new(seconds);
            put("process_cpu_seconds", "Processor time that the process has used.", &spent)?;
        }
        if let Some(bytes) = resident_bytes(&read("/proc/self/status")) {
            let resident = ConstGauge::new(bytes);
            put("process_resident_memory_bytes", "Memory of the process that is in RAM.", &resident)?;
        }
        Ok(())
    }
}

/// The 14th and 15th field (proc(5)). The second is a name in parentheses, which may have spaces and parentheses in it.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS)
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// The same metrics in the text form 0.0.4, which knows no infos and names counters with their suffix.
pub fn plain(openmetrics: &str) -> String {
    let (mut out, mut help) = (String::with_capacity(openmetrics.len()), "");
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            out.push_str(&format!("# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// Whether an `Accept` header asks for the older form rather than for OpenMetrics (RFC 9110, 12.5.1).
pub fn prefers_plain(accept: &str) -> bool {
    weight(accept, "text", "plain") > weight(accept, "application", "openmetrics-text")
}

/// How much a media type is wanted, by the most specific range that it fits; 0: not at all.
fn weight(accept: &str, kind: &str, subtype: &str) -> f32 {
    let ranges = accept.split(',').filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let (of_kind, of_subtype) = parts.next()?.split_once('/')?;
        let fits = |wanted: &str, is: &str| wanted.eq_ignore_ascii_case(is);
        let precision = match (of_kind, of_subtype) {
            ("*", "*") => 0,
            (of_kind, "*") if fits(of_kind, kind) => 1,
            (of_kind, of_subtype) if fits(of_kind, kind) && fits(of_subtype, subtype) => 2,
            _ => return None,
        };
        let named = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
        Some((precision, named.map_or(1.0, |weight| weight.parse().unwrap_or(0.0))))
    });
    ranges.max_by_key(|(precision, _)| *precision).map_or(0.0, |(_, weight)| weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_form_is_sent_to_those_who_ask_for_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let table = [
            ("", false),
            ("*/*", false),
            ("text/plain", true),
            ("Text/Plain; version=0.0.4", true),
            ("text/*", true),
            (prometheus, false),
            ("text/plain, */*;q=0.1", true),
            ("text/html,application/xml;q=0.9,*/*;q=0.8", false),
            ("application/openmetrics-text;q=0.1, text/plain;q=0.2", true),
            ("text/plain;q=0", false),
        ];
        for (accept, is_plain) in table {
            assert_eq!(prefers_plain(accept), is_plain, "{accept}");
        }
    }

    #[test]
    fn the_older_form_has_the_same_samples_under_names_that_it_knows() {
        let openmetrics = "# HELP a_jobs Jobs.\n# TYPE a_jobs counter\na_jobs_total{v=\"x\"} 1\n# HELP a_build B.\n# TYPE a_build info\n\
             a_build_info{version=\"1\"} 1\n# HELP a_s_seconds S.\n# TYPE a_s_seconds histogram\n# UNIT a_s_seconds seconds\n\
             a_s_seconds_sum 1.5\n# EOF\n";
        let expected = "# HELP a_jobs_total Jobs.\n# TYPE a_jobs_total counter\na_jobs_total{v=\"x\"} 1\n# HELP a_build_info B.\n\
             # TYPE a_build_info gauge\na_build_info{version=\"1\"} 1\n# HELP a_s_seconds S.\n# TYPE a_s_seconds histogram\n\
             a_s_seconds_sum 1.5\n";
        assert_eq!(plain(openmetrics), expected);
    }

    #[test]
    fn the_processor_time_is_found_behind_any_name() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194304 88 0 0 0 150 50 0 0 20 0 9 0 5 1 2 3";
        assert_eq!(cpu_seconds(stat), Some(2.0));
        assert_eq!(resident_bytes("VmHWM:\t 9 kB\nVmRSS:\t     12 kB\n"), Some(12_288));
        assert_eq!((cpu_seconds(""), resident_bytes("")), (None, None));
    }
}
