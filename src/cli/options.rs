//! The arguments of each command. Every option has an environment variable.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum Output {
    /// For people
    #[default]
    Text,
    /// One JSON document on standard output
    Json,
}

#[derive(Debug, Args)]
pub(super) struct RunOptions {
    #[command(flatten)]
    pub wanted: WantedOptions,
    #[command(flatten)]
    pub show: ShowOptions,
}

/// As of `run`, so that one stands for the other.
#[derive(Debug, Args)]
pub(super) struct PlanOptions {
    #[command(flatten)]
    pub wanted: WantedOptions,
    /// Output format
    #[arg(long, short, value_enum, default_value_t, env = "DASKADE_OUTPUT")]
    pub output: Output,
}

/// Which run is meant.
#[derive(Debug, Args)]
pub(super) struct WantedOptions {
    /// Manifests: files, folders, or - for standard input
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// Which pipeline to run, if the manifests hold several
    #[arg(long, env = "DASKADE_PIPELINE")]
    pub pipeline: Option<String>,
    /// Name of the run, for people [default: the pipeline's name]
    #[arg(long, env = "DASKADE_RUN_NAME")]
    pub name: Option<String>,
    /// Set a parameter; the value is read as JSON if the parameter is not a string
    #[arg(long = "param", short = 'p', value_name = "NAME=VALUE")]
    pub params: Vec<String>,
    /// Parameters from a YAML or JSON file
    #[arg(long, value_name = "FILE", env = "DASKADE_PARAMS_FILE")]
    pub params_file: Option<PathBuf>,
    #[command(flatten)]
    pub part: PartOptions,
    #[command(flatten)]
    pub storage: StorageOptions,
    #[command(flatten)]
    pub cluster: ClusterOptions,
}

/// Which steps run; these take the place of the same fields of a PipelineRun.
#[derive(Debug, Args)]
pub(super) struct PartOptions {
    /// Run only this step (repeatable); what it needs is loaded from an earlier run
    #[arg(long, value_name = "STEP")]
    pub only: Vec<String>,
    /// Run this step and all that come after it (repeatable)
    #[arg(long, value_name = "STEP")]
    pub from: Vec<String>,
    /// Run this step and all that come before it (repeatable)
    #[arg(long, value_name = "STEP")]
    pub to: Vec<String>,
    /// Run the steps that read the object at this path, and all that come after them (repeatable)
    #[arg(long, value_name = "PATH")]
    pub from_inputs: Vec<String>,
    /// Run the steps with this tag (repeatable)
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// Read this version of an input, in place of what is there (repeatable): NAME is that of an input, or a path
    #[arg(long = "load-version", value_name = "NAME=VERSION", value_parser = version)]
    pub load_versions: Vec<(String, String)>,
    /// Reuse outputs of earlier runs where nothing changed; run the rest
    #[arg(long, env = "DASKADE_REUSE")]
    pub reuse: bool,
    /// Reuse outputs of this earlier run only: its uid or name
    #[arg(long, value_name = "RUN", env = "DASKADE_REUSE_RUN")]
    pub reuse_run: Option<String>,
}

/// A path may have the sign too, a version has none that anybody would begin with.
fn version(text: &str) -> Result<(String, String), String> {
    let (name, version) = text.rsplit_once('=').ok_or("write NAME=VERSION")?;
    Ok((name.to_owned(), version.to_owned()))
}

#[derive(Debug, Args)]
pub(super) struct ResumeOptions {
    /// The run: its uid, the beginning of it, or its name; in Kubernetes the name of one that is suspended
    pub run: String,
    /// A run in Kubernetes, in the namespace of the kubeconfig
    #[arg(long)]
    pub kube: bool,
    #[command(flatten)]
    pub remote: KubeOptions,
    #[command(flatten)]
    pub storage: StorageOptions,
    #[command(flatten)]
    pub cluster: ClusterOptions,
    #[command(flatten)]
    pub show: ShowOptions,
}

impl ResumeOptions {
    /// Whether a run in Kubernetes is meant.
    pub fn is_remote(&self) -> bool {
        self.kube || self.remote.is_given()
    }
}

#[derive(Debug, Args)]
pub(super) struct StorageOptions {
    /// Where outputs and the journal are kept: s3://bucket/prefix or a folder [default: the manifest's, else a folder
    /// of this user]
    #[arg(long, value_name = "URL", env = "DASKADE_STORAGE")]
    pub storage: Option<String>,
    /// Endpoint of an S3 service other than AWS (AWS_ENDPOINT_URL works too)
    #[arg(long, value_name = "URL", env = "DASKADE_STORAGE_ENDPOINT")]
    pub storage_endpoint: Option<String>,
    /// Region of the bucket (AWS_REGION works too)
    #[arg(long, value_name = "NAME", env = "DASKADE_STORAGE_REGION")]
    pub storage_region: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct ClusterOptions {
    /// Use this Dask cluster instead of local processes: tcp://host:port or tls://host:port
    #[arg(long, env = "DASKADE_ADDRESS")]
    pub address: Option<String>,
    /// Certificate authority of a tls:// cluster (PEM)
    #[arg(long, value_name = "FILE", env = "DASKADE_TLS_CA", requires = "tls_cert")]
    pub tls_ca: Option<PathBuf>,
    /// Client certificate for a tls:// cluster (PEM)
    #[arg(long, value_name = "FILE", env = "DASKADE_TLS_CERT", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Client key for a tls:// cluster (PEM)
    #[arg(long, value_name = "FILE", env = "DASKADE_TLS_KEY", requires = "tls_ca")]
    pub tls_key: Option<PathBuf>,
    /// Number of local workers of a group
    #[arg(long, value_name = "GROUP=N", env = "DASKADE_WORKERS", value_delimiter = ',')]
    pub workers: Vec<String>,
    /// A Python that has Dask and the pipeline's requirements; nothing is installed then
    #[arg(long, value_name = "PATH")]
    pub python: Option<PathBuf>,
    /// Ignore the resources and worker groups that steps ask for; each step may run on any worker
    #[arg(long, env = "DASKADE_IGNORE_RESOURCES")]
    pub ignore_resources: bool,
}

#[derive(Debug, Args)]
pub(super) struct ShowOptions {
    /// Output format
    #[arg(long, short, value_enum, default_value_t, env = "DASKADE_OUTPUT")]
    pub output: Output,
    /// Show the steps' log lines while they run
    #[arg(long)]
    pub logs: bool,
}

#[derive(Debug, Args)]
pub(super) struct LogsOptions {
    /// The run: its uid, the beginning of it, or its name; in Kubernetes its name
    pub run: String,
    /// Only this step
    pub step: Option<String>,
    /// Only this item of a mapped step
    #[arg(long)]
    pub item: Option<u32>,
    /// Follow until the run ends
    #[arg(long, short)]
    pub follow: bool,
    /// A run in Kubernetes, in the namespace of the kubeconfig
    #[arg(long)]
    pub kube: bool,
    #[command(flatten)]
    pub remote: KubeOptions,
    #[command(flatten)]
    pub storage: StorageOptions,
}

impl LogsOptions {
    /// Whether a run in Kubernetes is meant.
    pub fn is_remote(&self) -> bool {
        self.kube || self.remote.is_given()
    }
}

#[derive(Debug, Args)]
pub(super) struct RunsOptions {
    /// Output format
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
    /// The runs in Kubernetes, in the namespace of the kubeconfig
    #[arg(long)]
    pub kube: bool,
    #[command(flatten)]
    pub remote: KubeOptions,
}

impl RunsOptions {
    /// Whether runs in Kubernetes are meant.
    pub fn is_remote(&self) -> bool {
        self.kube || self.remote.is_given()
    }
}

/// Which cluster: by KUBECONFIG, ~/.kube/config, or the service account of the pod that this is.
#[derive(Debug, Args)]
pub(super) struct KubeOptions {
    /// Namespace [default: that of the kubeconfig]
    #[arg(long, short)]
    pub namespace: Option<String>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long)]
    pub context: Option<String>,
}

impl KubeOptions {
    fn is_given(&self) -> bool {
        self.namespace.is_some() || self.context.is_some()
    }
}

#[derive(Debug, Args)]
pub(super) struct SubmitOptions {
    /// A manifest with a Pipeline or a PipelineRun (- for standard input), or the name of a Pipeline in the namespace
    #[arg(value_name = "FILE|PIPELINE")]
    pub what: String,
    /// Name of the run [default: the pipeline's with five characters]
    #[arg(long)]
    pub name: Option<String>,
    /// Set a parameter; the value is read as JSON if the parameter is not a string
    #[arg(long = "param", short = 'p', value_name = "NAME=VALUE")]
    pub params: Vec<String>,
    /// Parameters from a YAML or JSON file
    #[arg(long, value_name = "FILE", env = "DASKADE_PARAMS_FILE")]
    pub params_file: Option<PathBuf>,
    #[command(flatten)]
    pub part: PartOptions,
    /// Wait for the end of the run; the exit code is then the run's
    #[arg(long)]
    pub wait: bool,
    /// Output format
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
    #[command(flatten)]
    pub kube: KubeOptions,
}

#[derive(Debug, Args)]
pub(super) struct RetryOptions {
    /// Name of the run
    pub run: String,
    /// Name of the new run [default: that of the run with -retry- and five characters]
    #[arg(long)]
    pub name: Option<String>,
    /// Wait for the end of the run; the exit code is then the run's
    #[arg(long)]
    pub wait: bool,
    /// Output format
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
    #[command(flatten)]
    pub kube: KubeOptions,
}

#[derive(Debug, Args)]
pub(super) struct StatusOptions {
    /// Name of the run [default: all runs of the namespace]
    pub run: Option<String>,
    /// Print changes until the run ends
    #[arg(long, short, requires = "run")]
    pub watch: bool,
    /// Output format
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
    #[command(flatten)]
    pub kube: KubeOptions,
}

#[derive(Debug, Args)]
pub(super) struct CancelOptions {
    /// Name of the run
    pub run: String,
    #[command(flatten)]
    pub kube: KubeOptions,
}

#[derive(Debug, Args)]
pub(super) struct DashboardOptions {
    /// A run that has its cluster, or a DaskCluster
    #[arg(value_name = "RUN|CLUSTER")]
    pub what: String,
    /// Port on this machine, 0 for any that is free
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    #[command(flatten)]
    pub kube: KubeOptions,
}

#[derive(Debug, Args)]
pub(super) struct ValidateOptions {
    /// Manifests: files, folders, or - for standard input
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct CrdOptions {
    /// JSON instead of YAML
    #[arg(long)]
    pub json: bool,
}
