//! The command line. Exit codes: 0 success, 1 the run failed, 2 bad input, 3 the environment, storage or cluster does
//! not work, 130 cancelled.

mod finish;
mod lines;
mod logs;
mod operator;
mod operator_options;
mod options;
mod plan;
mod progress;
mod remote;
mod request;
mod run;
mod runs;
mod table;
mod validate;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit codes of all commands.
pub mod exit {
    pub const SUCCESS: u8 = 0;
    pub const RUN_FAILED: u8 = 1;
    pub const BAD_INPUT: u8 = 2;
    pub const ENVIRONMENT: u8 = 3;
    pub const CANCELLED: u8 = 130;
}

/// Runs pipelines on Dask: on this machine with one command, in Kubernetes by an operator.
#[derive(Debug, Parser)]
#[command(name = "daskade", version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a pipeline on this machine, or on a Dask cluster given by its address
    Run(Box<options::RunOptions>),
    /// Tell step by step what a run would do, and with --reuse what it would take from earlier runs and why the rest runs;
    /// nothing runs
    Plan(Box<options::PlanOptions>),
    /// Resume an interrupted or failed run; committed steps do not run again while their outputs are readable. With -n,
    /// --context or --kube: resume a suspended run in Kubernetes
    Resume(Box<options::ResumeOptions>),
    /// Show the log lines of a run's steps; with -n, --context or --kube of a run in Kubernetes
    Logs(options::LogsOptions),
    /// List the runs of this machine, or with -n, --context or --kube those in Kubernetes
    Runs(options::RunsOptions),
    /// Make a run in Kubernetes: of a Pipeline that is there, or of a manifest
    Submit(options::SubmitOptions),
    /// Run again in Kubernetes what has failed or was cancelled: another run of the same, which takes over what that one has
    /// committed
    Retry(options::RetryOptions),
    /// Tell how a run in Kubernetes is getting on, or list all of a namespace
    Status(options::StatusOptions),
    /// End a run in Kubernetes; steps that have ended stay committed
    Cancel(options::CancelOptions),
    /// Open Dask's dashboard of a run or a DaskCluster in Kubernetes on this machine, until Ctrl-C
    Dashboard(options::DashboardOptions),
    /// Check manifests without running anything
    Validate(options::ValidateOptions),
    /// Print the custom resource definitions
    Crd(options::CrdOptions),
    /// Carry out DaskClusters, PipelineRuns and Pipelines: the process in Kubernetes
    Operator(Box<operator_options::OperatorOptions>),
}

/// An end of the command that is not success: its message has been shown or is in `message`.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: Option<String>,
}

impl Failure {
    pub(crate) fn bad_input(message: impl Into<String>) -> Self {
        Self { code: exit::BAD_INPUT, message: Some(message.into()) }
    }

    pub(crate) fn environment(message: impl Into<String>) -> Self {
        Self { code: exit::ENVIRONMENT, message: Some(message.into()) }
    }

    /// Of a run that did not come to an end: says how to go on when what is in the way is gone.
    fn with_hint(mut self, uid: &str) -> Self {
        if self.code == exit::ENVIRONMENT
            && let Some(message) = &mut self.message
        {
            message.push_str(&format!("\nthe run can go on: daskade resume {}", uid.get(..8).unwrap_or(uid)));
        }
        self
    }

    /// Ends with `code`; what there is to say has been said.
    pub(crate) fn silent(code: u8) -> Self {
        Self { code, message: None }
    }
}

impl From<io::Error> for Failure {
    /// Only writing to standard output is left to `?`: a reader that went away (`| head`) ends the command quietly.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::silent(exit::SUCCESS);
        }
        Self::environment(format!("write the output: {error}"))
    }
}

/// Parses the arguments, runs the command and gives its exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output; a closed pipe there is no error.
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { exit::BAD_INPUT } else { exit::SUCCESS });
        }
    };
    let done = match cli.command {
        Command::Run(options) => on_one_thread(run::run(*options)),
        Command::Plan(options) => on_one_thread(plan::plan(*options)),
        Command::Resume(options) if options.is_remote() => on_one_thread(remote::resume(&options.remote, &options.run)),
        Command::Resume(options) => on_one_thread(run::resume(*options)),
        Command::Logs(options) if options.is_remote() => on_one_thread(remote::logs(&options)),
        Command::Logs(options) => on_one_thread(logs::logs(options)),
        Command::Runs(options) if options.is_remote() => on_one_thread(remote::runs(&options.remote, options.output)),
        Command::Runs(options) => on_one_thread(async { runs::runs(&options) }),
        Command::Submit(options) => on_one_thread(remote::submit(options)),
        Command::Retry(options) => on_one_thread(remote::retry(options)),
        Command::Status(options) => on_one_thread(remote::status(options)),
        Command::Cancel(options) => on_one_thread(remote::cancel(options)),
        Command::Dashboard(options) => on_one_thread(remote::dashboard(options)),
        Command::Validate(options) => on_one_thread(async { validate::validate(&options) }),
        Command::Crd(options) => on_one_thread(async { validate::crd(&options) }),
        Command::Operator(options) => operator::operator(*options),
    };
    match done {
        Ok(()) => ExitCode::from(exit::SUCCESS),
        Err(failure) => {
            if let Some(message) = failure.message {
                // Nothing is left to do if standard error is closed.
                drop(writeln!(io::stderr(), "error: {message}"));
            }
            ExitCode::from(failure.code)
        }
    }
}

/// Runs a command for a person. The kernel ends the local Dask processes when the thread that started them does, so that
/// thread must be the one that lives as long as the command.
fn on_one_thread(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    telemetry::log::start_terminal();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::environment(format!("start: {error}")))?;
    runtime.block_on(work)
}
