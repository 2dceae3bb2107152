//! Log lines and traces of a process: where they go, and that they never hold it up.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

pub use super::error::Error;
use super::traces::{self, Traces};

/// Lines that wait while the pipe of the log is blocked; further ones are dropped and counted. A line is some 300 bytes,
/// so this is a few MiB at most, and minutes of a busy operator.
const LINES_WAITING: usize = 8_192;
/// How long the end of the process waits for the log's writer: more than the writer's own 1.1 s.
const FLUSH: Duration = Duration::from_millis(1_300);

/// Form of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// What to log, how, and where traces go.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How each line looks.
    pub format: Format,
    /// Directives as in `info,daskade=debug`; [`check_filter`] says whether they are any.
    pub filter: String,
    /// Base address of an OTLP collector that takes HTTP, for example `http://collector:4318`.
    pub otlp: Option<String>,
}

/// Keeps log and traces running; [`Telemetry::finish`] writes out what waits.
#[derive(Debug)]
pub struct Telemetry {
    log: WorkerGuard,
    dropped: ErrorCounter,
    traces: Option<Traces>,
}

/// The log of a command for people: to standard error, errors only unless `DASKADE_LOG` asks for more.
pub fn start_terminal() {
    let filter = EnvFilter::try_from_env("DASKADE_LOG").unwrap_or_else(|_| EnvFilter::new("error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

/// Whether a text is a log filter.
pub fn check_filter(filter: &str) -> Result<(), Error> {
    parse_filter(filter).map(drop)
}

/// Starts the log of a long-lived process, to standard error by a thread of its own: a blocked pipe drops lines, and
/// never holds up the process. Once per process, without a Tokio context.
pub fn start(settings: &Settings) -> Result<Telemetry, Error> {
    start_to(settings, io::stderr())
}

fn start_to<W: Write + Send + 'static>(settings: &Settings, writer: W) -> Result<Telemetry, Error> {
    let traces = settings.otlp.as_deref().map(traces::start).transpose()?;
    let (writer, log) =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_WAITING).thread_name("log").finish(writer);
    let dropped = writer.error_counter();
    let filter = parse_filter(&settings.filter)?;
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match settings.format {
        Format::Json => Box::new(
            tracing_subscriber::fmt::layer()
                .json()
                .flatten_event(true)
                .with_current_span(true)
                .with_span_list(false)
                .with_ansi(false)
                .with_writer(writer)
                .with_filter(filter),
        ),
        Format::Text => {
            Box::new(tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer).with_filter(filter))
        }
    };
    // Spans are exported whatever the log's filter says; those of libraries would be noise.
    let spans = traces.as_ref().map(|traces| {
        let ours = tracing_subscriber::filter::Targets::new()
            .with_default(LevelFilter::OFF)
            .with_target("daskade", LevelFilter::DEBUG);
        traces.layer().with_filter(ours)
    });
    tracing_subscriber::registry().with(lines).with(spans).try_init()?;
    Ok(Telemetry { log, dropped, traces })
}

impl Telemetry {
    /// Lines that were dropped since the start.
    pub fn dropped(&self) -> ErrorCounter {
        self.dropped.clone()
    }

    /// Writes out what waits, for at most 2.5 s altogether. Not in a Tokio context.
    pub fn finish(self) {
        if let Some(traces) = self.traces {
            traces.finish();
        }
        // The guard waits for at most 1.1 s, and may then write a note to standard output, which might be blocked as well.
        let (done, wait) = mpsc::channel::<()>();
        let log = self.log;
        thread::spawn(move || {
            drop(log);
            drop(done);
        });
        // Either way it is the end.
        let _ = wait.recv_timeout(FLUSH);
    }
}

fn parse_filter(filter: &str) -> Result<EnvFilter, Error> {
    EnvFilter::builder().parse(filter).map_err(|source| Error::Filter { filter: filter.to_owned(), source })
}
