//! The options of `daskade operator`. All are checked before anything starts.

use std::net::SocketAddr;
use std::sync::LazyLock;

use clap::{Args, ValueEnum};
use regex::Regex;

use api::storage::{STORAGE_URL_PATTERN, Storage};
use api::{Duration, quantity::Quantity, schema::IMAGE_PATTERN};
use operator::{Namespaces, RunLimits};
use telemetry::log;

/// The worker image of this version.
const IMAGE: &str = concat!("daskade/worker:", env!("CARGO_PKG_VERSION"));
/// Libraries only when somebody must act. The Kubernetes client is silent: its errors are told by what used it, and it
/// would show a Secret that it cannot read.
const LOG: &str = "warn,daskade=info,kube_client=off";
/// One label's name: prefix, slash, name.
const KEY: &str = r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?";
/// One label's value.
const VALUE: &str = r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?";
/// What a namespace's labels may be asked for, as kubectl writes it.
static SELECTOR: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let part =
        format!(r"(!\s*{KEY}|{KEY}(\s*(=|==|!=)\s*{VALUE}|\s+(in|notin)\s*\(\s*{VALUE}(\s*,\s*{VALUE})*\s*\))?)");
    Regex::new(&format!(r"^\s*{part}\s*(,\s*{part}\s*)*$")).ok()
});

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum LogFormat {
    /// One JSON object a line
    #[default]
    Json,
    /// For people
    Text,
}

#[derive(Debug, Args)]
pub(super) struct OperatorOptions {
    /// Serve only these namespaces [default: all]
    #[arg(
        long,
        value_name = "NAME",
        env = "DASKADE_WATCH_NAMESPACES",
        value_delimiter = ',',
        value_parser = namespace,
        conflicts_with = "namespace_selector"
    )]
    pub watch_namespaces: Vec<String>,
    /// Serve only namespaces with these labels, for example team=data [default: all]
    #[arg(long, value_name = "LABELS", env = "DASKADE_NAMESPACE_SELECTOR", value_parser = selector)]
    pub namespace_selector: Option<String>,
    /// Where the operator keeps its lease and the keys of its certificate authorities [default: its own namespace]
    #[arg(long, value_name = "NAME", env = "DASKADE_OWN_NAMESPACE", value_parser = namespace)]
    pub own_namespace: Option<String>,
    /// Image of clusters that name none
    #[arg(long, value_name = "IMAGE", env = "DASKADE_IMAGE", default_value = IMAGE, value_parser = image)]
    pub image: String,
    /// Storage of runs that name none and whose cluster is made for them; each namespace has a folder of its name below it
    /// [default: none, a run has to name one]
    #[arg(long, value_name = "URL", env = "DASKADE_DEFAULT_STORAGE_URL", value_parser = storage_url)]
    pub default_storage_url: Option<String>,
    /// Address of its S3 service where it is not AWS
    #[arg(
        long,
        value_name = "URL",
        env = "DASKADE_DEFAULT_STORAGE_ENDPOINT",
        requires = "default_storage_url",
        value_parser = service
    )]
    pub default_storage_endpoint: Option<String>,
    /// Region of its bucket
    #[arg(long, value_name = "REGION", env = "DASKADE_DEFAULT_STORAGE_REGION", requires = "default_storage_url")]
    pub default_storage_region: Option<String>,
    /// Secret of the run's own namespace with its credentials
    #[arg(
        long,
        value_name = "NAME",
        env = "DASKADE_DEFAULT_STORAGE_SECRET",
        requires = "default_storage_url",
        value_parser = subdomain
    )]
    pub default_storage_secret: Option<String>,
    /// Lifetime of issued certificates, 1m to 365d; each is renewed at half of it
    #[arg(long, value_name = "TIME", env = "DASKADE_CERTIFICATE_LIFETIME", default_value = "90d", value_parser = lifetime)]
    pub certificate_lifetime: Duration,
    /// Maximum number of objects of a kind to reconcile at once, 1 to 256
    #[arg(
        long,
        value_name = "N",
        env = "DASKADE_MAX_CONCURRENT",
        default_value_t = 32,
        value_parser = clap::value_parser!(u16).range(1..=256)
    )]
    pub max_concurrent: u16,
    /// Schedulers that are no DaskClusters and that runs may use (cluster.address): addresses in which * stands for any
    /// text, for example tls://dask.example.com:8786 or tcp://*.team:8786 [default: none]
    #[arg(
        long,
        value_name = "PATTERN",
        env = "DASKADE_ALLOW_ADDRESS",
        value_delimiter = ',',
        value_parser = address_pattern
    )]
    pub allow_address: Vec<Regex>,
    /// Maximum number of concurrent runs per namespace; others wait, oldest first [default: no limit]
    #[arg(long, value_name = "N", env = "DASKADE_MAX_RUNS_PER_NAMESPACE", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_runs_per_namespace: Option<u32>,
    /// Workers that the groups of one cluster may ask for together [default: no limit]
    #[arg(long, value_name = "N", env = "DASKADE_MAX_WORKERS_PER_CLUSTER", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_workers_per_cluster: Option<u32>,
    /// Steps of one run, items of maps counted singly; a run with more is refused, or fails at the map that makes them
    /// [default: no limit]
    #[arg(long, value_name = "N", env = "DASKADE_MAX_STEPS_PER_RUN", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_steps_per_run: Option<u32>,
    /// Attempts of one step, the first included; a run whose retry.limit allows more is refused [default: no limit]
    #[arg(long, value_name = "N", env = "DASKADE_MAX_ATTEMPTS", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_attempts: Option<u32>,
    /// Bytes of a run's pipeline as JSON, code.files included, for example 256Ki [default: 1Mi, the most there can be]
    #[arg(long, value_name = "SIZE", env = "DASKADE_MAX_PIPELINE_SIZE", value_parser = size)]
    pub max_pipeline_size: Option<u64>,
    /// Bytes of a run's parameters together as JSON, for example 64Ki [default: no limit but 256Ki for each]
    #[arg(long, value_name = "SIZE", env = "DASKADE_MAX_PARAMS_SIZE", value_parser = size)]
    pub max_params_size: Option<u64>,
    /// Memory for all runs in progress together, for example 512Mi; others wait, oldest first [default: the container's memory
    /// limit less 192Mi, at least 64Mi; 1Gi without a limit]
    #[arg(long, value_name = "SIZE", env = "DASKADE_MAX_RUN_MEMORY", value_parser = size)]
    pub max_run_memory: Option<u64>,
    /// Name of the lease: operators with the same lease and namespace take turns
    #[arg(long, value_name = "NAME", env = "DASKADE_LEASE_NAME", default_value = "daskade-operator", value_parser = subdomain)]
    pub lease_name: String,
    /// After this time without a sign of the leader another operator takes over, 3s to 5m in whole seconds
    #[arg(long, value_name = "TIME", env = "DASKADE_LEASE_DURATION", default_value = "15s", value_parser = lease_duration)]
    pub lease_duration: Duration,
    /// Address of /health, /ready and /metrics
    #[arg(long, value_name = "ADDRESS:PORT", env = "DASKADE_LISTEN", default_value = "[::]:8080")]
    pub listen: SocketAddr,
    /// Log format; the log goes to standard error
    #[arg(long, value_enum, env = "DASKADE_LOG_FORMAT", default_value_t)]
    pub log_format: LogFormat,
    /// What is logged: levels by target, for example info,daskade=debug
    #[arg(long, value_name = "FILTER", env = "DASKADE_LOG", default_value = LOG, value_parser = filter)]
    pub log: String,
    /// Send traces to this OpenTelemetry collector, by OTLP over HTTP: its base address [default: nowhere]
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_parser = endpoint)]
    pub otlp_endpoint: Option<String>,
}

impl OperatorOptions {
    /// How the process tells about itself.
    pub(super) fn telemetry(&self) -> log::Settings {
        let format = match self.log_format {
            LogFormat::Json => log::Format::Json,
            LogFormat::Text => log::Format::Text,
        };
        log::Settings { format, filter: self.log.clone(), otlp: self.otlp_endpoint.clone() }
    }

    /// Where runs go that name no storage.
    pub(super) fn default_storage(&self) -> Option<Storage> {
        Some(Storage {
            url: self.default_storage_url.clone()?,
            endpoint: self.default_storage_endpoint.clone(),
            region: self.default_storage_region.clone(),
            secret_ref: self.default_storage_secret.clone(),
            service_account_name: None,
        })
    }

    /// What one run may ask for.
    pub(super) fn run_limits(&self) -> RunLimits {
        RunLimits {
            steps: self.max_steps_per_run,
            attempts: self.max_attempts,
            pipeline_bytes: self.max_pipeline_size,
            params_bytes: self.max_params_size,
        }
    }

    /// Which namespaces are served.
    pub(super) fn namespaces(&self) -> Namespaces {
        match (&self.namespace_selector, self.watch_namespaces.as_slice()) {
            (Some(selector), _) => Namespaces::Selector(selector.clone()),
            (None, []) => Namespaces::All,
            (None, names) => Namespaces::Names(names.to_vec()),
        }
    }
}

/// A name of RFC 1123: unlike ours, it may begin with a digit.
fn namespace(text: &str) -> Result<String, &'static str> {
    let fits = (1..=63).contains(&text.len())
        && text.bytes().all(|letter| matches!(letter, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !text.starts_with('-')
        && !text.ends_with('-');
    if fits {
        Ok(text.to_owned())
    } else {
        Err("is no name of a namespace: a to z, 0 to 9 and dashes inside, at most 63")
    }
}

fn subdomain(text: &str) -> Result<String, &'static str> {
    if text.len() <= 253 && text.split('.').all(|part| namespace(part).is_ok()) {
        Ok(text.to_owned())
    } else {
        Err("is no name of an object: a to z, 0 to 9, dashes and dots inside")
    }
}

fn selector(text: &str) -> Result<String, &'static str> {
    match SELECTOR.as_ref() {
        Some(form) if form.is_match(text) => Ok(text.to_owned()),
        _ => Err("is no label selector; write it as team=data,stage!=test or team in (a,b)"),
    }
}

fn image(text: &str) -> Result<String, &'static str> {
    match Regex::new(IMAGE_PATTERN) {
        Ok(form) if form.is_match(text) && text.len() <= 512 => Ok(text.to_owned()),
        _ => Err("is no image reference; write it as repository:tag or repository@sha256:digest"),
    }
}

fn size(text: &str) -> Result<u64, String> {
    let quantity: Quantity = text.parse().map_err(|error| format!("{error}"))?;
    let bytes = quantity.amount();
    if bytes >= 1.0 { Ok(bytes as u64) } else { Err("must be at least one byte".to_owned()) }
}

/// `*` stands for any text; everything else for itself.
fn address_pattern(text: &str) -> Result<Regex, &'static str> {
    const HELP: &str = "is no pattern of addresses; write it as tls://dask.example.com:8786 or tcp://*.team:8786";
    if !["tcp://", "tls://"].iter().any(|scheme| text.len() > scheme.len() && text.starts_with(scheme)) {
        return Err(HELP);
    }
    let parts: Vec<String> = text.split('*').map(regex::escape).collect();
    Regex::new(&format!("^{}$", parts.join(".*"))).map_err(|_| HELP)
}

fn filter(text: &str) -> Result<String, String> {
    log::check_filter(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

fn storage_url(text: &str) -> Result<String, &'static str> {
    match Regex::new(STORAGE_URL_PATTERN) {
        // A folder is a volume of each cluster's own; it cannot be everybody's default.
        Ok(form) if form.is_match(text) && !text.starts_with("file:") && text.len() <= 900 => Ok(text.to_owned()),
        _ => Err("is no bucket with a prefix; write it as s3://bucket/prefix"),
    }
}

fn service(text: &str) -> Result<String, &'static str> {
    match url::Url::parse(text) {
        Ok(url) if ["http", "https"].contains(&url.scheme()) && url.has_host() => Ok(text.to_owned()),
        _ => Err("is no address of an S3 service; write it as https://s3.example.com:9000"),
    }
}

fn endpoint(text: &str) -> Result<String, &'static str> {
    if !cfg!(feature = "otlp") {
        return Err("needs OpenTelemetry, but this binary was built without it; rebuild with `--features otlp`");
    }
    match url::Url::parse(text) {
        Ok(url) if ["http", "https"].contains(&url.scheme()) && url.has_host() => Ok(text.to_owned()),
        _ => Err("is no address of a collector; write it as http://collector:4318"),
    }
}

fn lifetime(text: &str) -> Result<Duration, String> {
    within(text, Duration::from_secs(60), Duration::from_secs(365 * 86_400))
}

fn lease_duration(text: &str) -> Result<Duration, String> {
    let duration = within(text, Duration::from_secs(3), Duration::from_secs(300))?;
    if duration.as_millis() % 1_000 == 0 { Ok(duration) } else { Err("must be whole seconds".to_owned()) }
}

fn within(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let duration: Duration = text.parse().map_err(|error| format!("{error}"))?;
    if (least..=most).contains(&duration) { Ok(duration) } else { Err(format!("must be from {least} to {most}")) }
}
