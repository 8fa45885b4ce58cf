//! Where traces go, from the standard variables (<https://opentelemetry.io/docs/specs/otel/protocol/exporter/>).
//!
//! Never an error: these variables are often set for many programs at once, so the standard wants one that cannot be used to be ignored with a
//! warning.

use std::fmt;

use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};
use percent_encoding::percent_decode_str;

use super::source::Env;
use crate::{job::Job, vendor::http::Origin};

/// The collector that traces are sent to, as OTLP in JSON over HTTP.
#[derive(Clone)]
pub struct Collector {
    pub origin: Origin,
    /// Path and query, as they go out.
    pub path: String,
    pub headers: HeaderMap,
    /// What every span says of this program: names and values.
    pub resource: Vec<(String, String)>,
    pub sampler: Sampler,
}

/// Path, headers and attributes may have secrets in them.
impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector")
            .field("origin", &self.origin)
            .field("sampler", &self.sampler)
            .finish_non_exhaustive()
    }
}

/// Which traces are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    /// What the caller's `traceparent` says decides, where there is one.
    follows_caller: bool,
    /// Of traces whose last 56 bits are evenly spread, those below this one.
    below: u64,
}

/// The bits of a trace's id that are random, by the second version of the standard. Those of job ids are, too.
const RANDOM_BITS: u32 = 56;

impl Sampler {
    fn new(follows_caller: bool, ratio: f64) -> Sampler {
        // A float that is out of range becomes the nearest number.
        Sampler { follows_caller, below: (ratio * (1u64 << RANDOM_BITS) as f64) as u64 }
    }

    /// Whether the job's trace is sent. All processes decide the same.
    pub fn takes(self, job: &Job) -> bool {
        let random = job.trace().id as u64 & ((1 << RANDOM_BITS) - 1);
        let by_caller = job.caller.filter(|_| self.follows_caller).map(|caller| caller.is_sampled);
        by_caller.unwrap_or(random < self.below)
    }
}

/// The collector, if the environment names one that can be used.
pub(super) fn traces(env: &Env, warnings: &mut Vec<String>) -> Option<Collector> {
    let get = |name: &str| env.0.get(name).map(|value| value.trim()).filter(|value| !value.is_empty());
    let is_off = get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    if is_off || get("OTEL_TRACES_EXPORTER") == Some("none") {
        return None;
    }
    // The one for traces is taken as it is.
    let (name, url) = match get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
        Some(url) => ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", url.to_owned()),
        None => {
            let base = get("OTEL_EXPORTER_OTLP_ENDPOINT")?.trim_end_matches('/');
            ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("{base}/v1/traces"))
        }
    };
    let url = url.parse::<url::Url>().ok();
    let Some((origin, url)) = url.and_then(|url| Some((Origin::of(&url)?, url))) else {
        warnings.push(format!(
            "{name} is no http or https URL, so no traces are sent. Write one such as http://localhost:4318."
        ));
        return None;
    };
    let protocol = get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or(get("OTEL_EXPORTER_OTLP_PROTOCOL"));
    if protocol.is_some_and(|protocol| protocol != "http/json") {
        warnings.push(format!(
            "Traces are sent as http/json, whatever OTEL_EXPORTER_OTLP_PROTOCOL says. {name} has to be the collector's port for HTTP, usually 4318."
        ));
    }
    let (given, own) = (get("OTEL_EXPORTER_OTLP_TRACES_HEADERS"), get("OTEL_EXPORTER_OTLP_HEADERS"));
    let mut headers = HeaderMap::new();
    for (key, value) in pairs(given.or(own).unwrap_or_default()) {
        let value = HeaderValue::from_str(&value).map(|mut value| {
            value.set_sensitive(true);
            value
        });
        match (HeaderName::from_bytes(key.as_bytes()), value) {
            (Ok(key), Ok(value)) => drop(headers.insert(key, value)),
            _ => warnings.push("A header in OTEL_EXPORTER_OTLP_HEADERS cannot be sent, and is left out.".to_owned()),
        }
    }
    let path = url[url::Position::BeforePath..url::Position::AfterQuery].to_owned();
    let resource = resource(get("OTEL_SERVICE_NAME"), get("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default());
    let sampler = sampler(get("OTEL_TRACES_SAMPLER"), get("OTEL_TRACES_SAMPLER_ARG"), warnings);
    Some(Collector { origin, path, headers, resource, sampler })
}

fn resource(name: Option<&str>, attributes: &str) -> Vec<(String, String)> {
    let mut resource: Vec<(String, String)> = pairs(attributes).collect();
    if let Some(name) = name {
        resource.retain(|(key, _)| key != "service.name");
        resource.push(("service.name".to_owned(), name.to_owned()));
    }
    for (key, default) in [("service.name", "fetchgate"), ("service.version", env!("CARGO_PKG_VERSION"))] {
        if !resource.iter().any(|(known, _)| known == key) {
            resource.push((key.to_owned(), default.to_owned()));
        }
    }
    resource
}

fn sampler(name: Option<&str>, ratio: Option<&str>, warnings: &mut Vec<String>) -> Sampler {
    let all = Sampler::new(true, 1.0);
    let name = name.unwrap_or("parentbased_always_on");
    let own = name.strip_prefix("parentbased_");
    let ratio = match own.unwrap_or(name) {
        "always_on" => 1.0,
        "always_off" => 0.0,
        "traceidratio" => match ratio.map_or(Ok(1.0), str::parse::<f64>) {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => ratio,
            _ => {
                warnings.push("OTEL_TRACES_SAMPLER_ARG is no number from 0 to 1, so all traces are sent.".to_owned());
                1.0
            }
        },
        _ => {
            warnings.push(format!(
                "OTEL_TRACES_SAMPLER is {name:?}, which is not known here, so all traces are sent. Write always_on, always_off or traceidratio, or one of them after parentbased_."
            ));
            return all;
        }
    };
    Sampler::new(own.is_some(), ratio)
}

/// `key=value,key=value`, with values percent-encoded.
fn pairs(text: &str) -> impl Iterator<Item = (String, String)> {
    text.split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.trim().to_owned(), percent_decode_str(value.trim()).decode_utf8_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        clock::Time,
        job::{JobId, Lane, NewJob, Priority, Trace},
    };

    fn read(variables: &[(&str, &str)]) -> (Option<Collector>, Vec<String>) {
        let env = Env(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect());
        let mut warnings = Vec::new();
        (traces(&env, &mut warnings), warnings)
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://otel.example:4318/base/");

    #[test]
    fn traces_are_off_without_an_endpoint_and_where_they_are_disabled() {
        for variables in
            [&[][..], &[ENDPOINT, ("OTEL_SDK_DISABLED", "True")], &[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]]
        {
            let (collector, warnings) = read(variables);
            assert!(collector.is_none() && warnings.is_empty(), "{variables:?}");
        }
        let (collector, warnings) = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4317")]);
        assert!(collector.is_none());
        assert!(warnings[0].contains("no http or https URL"), "{warnings:?}");
    }

    #[test]
    fn the_variables_mean_what_the_standard_says() {
        let (collector, warnings) = read(&[
            ENDPOINT,
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b, x = y"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other,deployment.environment=prod"),
            ("OTEL_SERVICE_NAME", "jobs"),
        ]);
        let collector = collector.unwrap();
        assert_eq!(warnings, [""; 0]);
        assert_eq!(
            (collector.origin.to_string().as_str(), &*collector.path),
            ("https://otel.example:4318", "/base/v1/traces")
        );
        assert_eq!(
            (&collector.headers["api-key"], &collector.headers["x"]),
            (&"a b".parse().unwrap(), &"y".parse().unwrap())
        );
        assert!(!format!("{collector:?}").contains("a b"));
        assert!(collector.resource.contains(&("service.name".into(), "jobs".into())), "{:?}", collector.resource);
        assert!(collector.resource.contains(&("deployment.environment".into(), "prod".into())));
        let (collector, _) = read(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://h/x")]);
        assert_eq!(collector.unwrap().path, "/x");
    }

    #[test]
    fn the_sampler_takes_its_part_of_the_traces_and_follows_the_caller_where_it_should() {
        let job = |id: u128, is_sampled: Option<bool>| {
            let lane = Lane { vendor: "v".into(), priority: Priority::Normal, tenant: "t".into() };
            let caller = is_sampled.map(|is_sampled| Trace { id, span: 1, is_sampled });
            Job::from(NewJob {
                caller,
                ..NewJob::new(JobId::from_bytes(id.to_be_bytes()), lane, Bytes::new(), Time(0))
            })
        };
        // The second half of a job's id begins with two bits that are always the same.
        let low = |share: f64| (2u128 << 62) | (share * (1u64 << 56) as f64) as u128;
        let takes = |name, ratio, job: &Job| sampler(Some(name), Some(ratio), &mut Vec::new()).takes(job);
        for (share, caller, taken) in
            [(0.2, None, true), (0.3, None, false), (0.2, Some(false), false), (0.3, Some(true), true)]
        {
            assert_eq!(
                takes("parentbased_traceidratio", "0.25", &job(low(share), caller)),
                taken,
                "{share} {caller:?}"
            );
        }
        assert!(takes("traceidratio", "0.25", &job(low(0.2), Some(false))));
        assert!(!takes("always_off", "", &job(low(0.2), Some(true))));
        assert!(takes("parentbased_always_on", "", &job(low(0.999), None)));
        let mut warnings = Vec::new();
        assert_eq!(sampler(Some("x"), None, &mut warnings), Sampler::new(true, 1.0));
        assert_eq!(warnings.len(), 1);
    }
}
