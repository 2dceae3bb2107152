//! `logs` for runs in Kubernetes: through the scheduler while the run is open there, from its storage afterwards.

use std::io::{self, Write};
use std::time::Duration;

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::Api;
use serde_json::Value;
use tokio::time::{interval, sleep};

use super::connection::{Connection, failed};
use super::scheduler::Scheduler;
use super::show::{ended, field, state};
use crate::cli::lines::Printed;
use crate::cli::logs::MAX_LINES;
use crate::cli::options::{LogsOptions, StorageOptions};
use crate::cli::progress::clean;
use crate::cli::run::{home, reader, store_failure};
use crate::cli::{Failure, exit, request};
use api::problem::nearest;
use api::reason::Reason;
use api::storage::Storage;
use dask::ops::{FollowEvents, StoredLogs};
use dask::{Error, Events, RuntimeEvent};
use local::home::StorageNote;
use run_model::Frozen;
use store::{LogFilter, LogLine, Logs};

/// How often the run itself is looked at while its lines are followed.
const LOOK: Duration = Duration::from_secs(2);
/// Between two tries to reach a scheduler that is not there yet, or not any more.
const AGAIN: Duration = Duration::from_secs(1);

/// Prints the lines that there are, and with `-f` those to come until the run ends.
pub(in crate::cli) async fn logs(options: &LogsOptions) -> Result<(), Failure> {
    let connection = Connection::open(&options.remote).await?;
    let mut run = connection.run(&options.run).await?;
    let removed = field(&run, "/status/removed/logsAt");
    if !removed.is_empty() {
        let why = format!("the logs of {} were removed at {removed} by spec.retention", options.run);
        return Err(Failure::bad_input(why));
    }
    let mut about = About::gather(&connection, &run, &options.storage).await?;
    about.check_step(options)?;
    let filter = LogFilter { step: options.step.clone(), item: options.item.map(i64::from), attempt: None };
    let mut printed = Printed::default();
    let mut whole = false;
    while ended(&run).is_none() {
        if let Some(live) = Live::open(&connection, &run).await? {
            if options.follow {
                // From here on no line is missed; those before are in the storage, or will be at the end.
                let events = live.follow().await?;
                live.stored(&filter, &mut printed).await?;
                let mut following = Following { connection: &connection, options, about: &about, filter: &filter };
                whole = following.lines(&live, events, &mut printed).await?;
            } else {
                live.stored(&filter, &mut printed).await?;
            }
        } else if !options.follow {
            break;
        }
        if !options.follow {
            return about.at_end(&printed, &run);
        }
        sleep(AGAIN).await;
        run = connection.run(&options.run).await?;
        if about.steps.is_empty() {
            about = About::gather(&connection, &run, &options.storage).await?;
            about.check_step(options)?;
        }
    }
    let Some(storage) = &about.storage else { return about.at_end(&printed, &run) };
    match stored(storage, &about.uid, &filter).await {
        Ok(logs) => {
            printed.stored(&logs.lines)?;
            if logs.omitted > 0 {
                let hint = "name a step to see fewer";
                drop(writeln!(io::stderr(), "{} more lines are in storage; {hint}", logs.omitted));
            }
            about.at_end(&printed, &run)
        }
        // Who followed it to its end has seen all.
        Err(failure) if failure.code == exit::ENVIRONMENT && whole => about.at_end(&printed, &run),
        Err(failure) if failure.code == exit::ENVIRONMENT && !printed.is_empty() => {
            let why = failure.message.unwrap_or_default();
            drop(writeln!(io::stderr(), "some lines may be only in storage: {why}"));
            Ok(())
        }
        Err(mut failure) => {
            if let Some(message) = failure.message.as_mut().filter(|_| failure.code == exit::ENVIRONMENT) {
                message.push_str(&format!("\nthe run is open no more: {}", where_from(&storage.url)));
            }
            Err(failure)
        }
    }
}

/// What does not change about a run.
struct About {
    uid: String,
    /// Names of steps by their index; empty if they are not known yet, or may not be read.
    steps: Vec<String>,
    storage: Option<StorageNote>,
}

impl About {
    /// From what was written down when the run began, as far as that may be read.
    async fn gather(connection: &Connection, run: &Value, options: &StorageOptions) -> Result<Self, Failure> {
        let uid = field(run, "/metadata/uid").to_owned();
        let revision = field(run, "/status/revision");
        let revisions: Api<ControllerRevision> = connection.typed();
        let mut data = Value::Null;
        if !revision.is_empty() {
            match revisions.get_opt(revision).await {
                Ok(found) => data = found.and_then(|found| found.data).map(|data| data.0).unwrap_or_default(),
                Err(kube::Error::Api(status)) if status.code == 403 => {}
                Err(error) => return Err(failed(&format!("read the ControllerRevision {revision}"), &error)),
            }
        }
        let frozen: Option<Frozen> = serde_json::from_value(data["run"].take()).ok();
        let stored: Option<Storage> = serde_json::from_value(data["storage"].take()).ok();
        let steps = match &frozen {
            Some(frozen) => frozen.steps().map(|step| step.name.clone()).collect(),
            None => inline_steps(run),
        };
        let told = field(run, "/status/storageUrl").rsplit_once("/runs/").map(|(url, _)| url.to_owned());
        let noted = stored.map(|storage| StorageNote {
            url: storage.url.trim_end_matches('/').to_owned(),
            endpoint: storage.endpoint,
            region: storage.region,
        });
        let noted = noted.or_else(|| told.map(|url| StorageNote { url, endpoint: None, region: None }));
        let storage = match noted.is_some() || options.storage.is_some() {
            true => Some(request::storage(options, None, noted.as_ref(), &home()?)?),
            false => None,
        };
        Ok(Self { uid, steps, storage })
    }

    /// Refuses a step that the run does not have.
    fn check_step(&self, options: &LogsOptions) -> Result<(), Failure> {
        let Some(step) = options.step.as_ref().filter(|step| !self.steps.is_empty() && !self.steps.contains(step))
        else {
            return Ok(());
        };
        let near = nearest(step, self.steps.iter().map(String::as_str));
        let hint = near.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
        Err(Failure::bad_input(format!("UnknownStep: run {} has no step {}{hint}", options.run, clean(step))))
    }

    fn at_end(&self, printed: &Printed, run: &Value) -> Result<(), Failure> {
        if printed.is_empty() {
            let more = if ended(run).is_none() { ", it is " } else { ": " };
            drop(writeln!(io::stderr(), "no log lines{more}{}", state(run)));
        }
        Ok(())
    }

    fn name(&self, step: u32) -> String {
        self.steps.get(step as usize).cloned().unwrap_or_else(|| format!("step {step}"))
    }
}

/// The steps of a run that has its pipeline in itself.
fn inline_steps(run: &Value) -> Vec<String> {
    let of = |path: &str| run.pointer(path).and_then(Value::as_array).into_iter().flatten();
    let steps = of("/spec/pipelineSpec/steps").chain(of("/spec/pipelineSpec/finally"));
    steps.map(|step| field(step, "/name").to_owned()).collect()
}

/// A run that is open on a scheduler.
struct Live {
    scheduler: Scheduler,
    uid: String,
    epoch: u64,
}

impl Live {
    async fn open(connection: &Connection, run: &Value) -> Result<Option<Self>, Failure> {
        let (uid, cluster) = (field(run, "/metadata/uid"), field(run, "/status/cluster"));
        if cluster.is_empty() {
            return Ok(None);
        }
        let Some(scheduler) = Scheduler::open(connection, cluster).await? else { return Ok(None) };
        let epoch = scheduler.runs.get(uid).copied();
        Ok(epoch.map(|epoch| Self { scheduler, uid: uid.to_owned(), epoch }))
    }

    async fn follow(&self) -> Result<Events, Failure> {
        let ask = FollowEvents::looking_on(&self.uid, self.epoch, &self.scheduler.instance);
        self.scheduler.dask.follow(&ask).await.map_err(|error| unheard(&error))
    }

    /// What the storage has, by the scheduler's rights.
    async fn stored(&self, filter: &LogFilter, printed: &mut Printed) -> Result<(), Failure> {
        let (mut objects, mut bytes) = (Vec::new(), 0);
        let mut after = None;
        loop {
            let ask = StoredLogs { run: self.uid.clone(), after: after.take() };
            let answer = match self.scheduler.dask.call(&ask).await {
                Ok(answer) => answer,
                // The run has just ended; its lines are read where they are kept then.
                Err(error) if error.refusal().is_some_and(|reason| Reason::RunNotFound.is(reason)) => break,
                // The storage may be away, or the runtime be older; the lines to come are told all the same.
                Err(error) if error.refusal().is_some() || matches!(error, Error::UnknownOp { .. }) => {
                    drop(writeln!(io::stderr(), "cannot read the lines in storage: {error}"));
                    break;
                }
                Err(error) => return Err(unheard(&error)),
            };
            after = answer.objects.last().map(|(key, _)| key.clone());
            bytes += answer.objects.iter().map(|(key, data)| key.len() + data.len()).sum::<usize>();
            objects.extend(answer.objects);
            if !answer.more || after.is_none() {
                break;
            }
            if bytes > limits::LOGS_IN_ALL {
                let most = limits::LOGS_IN_ALL >> 20;
                drop(writeln!(io::stderr(), "stopped after {most} MiB of logs; the storage has more lines"));
                break;
            }
        }
        let logs = Logs::of(objects.iter().map(|(_, data)| data.as_slice()), filter, MAX_LINES);
        printed.stored(&logs.lines)
    }
}

/// Somebody who looks on.
struct Following<'a> {
    connection: &'a Connection,
    options: &'a LogsOptions,
    about: &'a About,
    filter: &'a LogFilter,
}

impl Following<'_> {
    /// Prints lines as they are written, until the stream ends or the run does; whether the run was closed in sight, so that
    /// all of its lines came by.
    async fn lines(&mut self, live: &Live, mut events: Events, printed: &mut Printed) -> Result<bool, Failure> {
        let mut look = interval(LOOK);
        look.tick().await;
        let mut heard = false;
        loop {
            tokio::select! {
                batch = events.next() => {
                    // Taken over, or its scheduler is lost: what is next is found out anew.
                    let batch = match batch {
                        Ok(batch) => batch,
                        Err(error) => {
                            tracing::debug!("failed to follow: {error}");
                            return Ok(false);
                        }
                    };
                    for event in batch.events {
                        match event {
                            RuntimeEvent::Logs { lines, .. } => printed.live(&self.read(lines))?,
                            RuntimeEvent::Closing { .. } => return Ok(true),
                            _ => {}
                        }
                    }
                }
                _ = look.tick() => {
                    if !heard {
                        // What was printed just before the workers heard that somebody listens.
                        live.stored(self.filter, printed).await?;
                        heard = true;
                    }
                    if ended(&self.connection.run(&self.options.run).await?).is_some() {
                        tracing::debug!("the run has ended before its stream");
                        return Ok(false);
                    }
                }
            }
        }
    }

    fn read(&self, lines: Vec<dask::events::LogLine>) -> Vec<LogLine> {
        let lines = lines.into_iter().map(|line| LogLine {
            t: line.at,
            step: self.about.name(line.task.step),
            item: line.task.item.map_or(-1, i64::from),
            attempt: line.task.attempt,
            stream: line.stream,
            text: line.text,
        });
        lines.filter(|line| self.filter.wants(line)).collect()
    }
}

/// How the lines of a run that has ended are come by.
fn where_from(url: &str) -> String {
    match url.strip_prefix("file://") {
        Some(folder) => format!(
            "its lines are on a volume that its pods mount, in {folder}; where that is elsewhere on this machine, name it by \
             --storage file:///FOLDER"
        ),
        None => "its lines are read with your own credentials for the storage (AWS_*)".to_owned(),
    }
}

async fn stored(storage: &StorageNote, uid: &str, filter: &LogFilter) -> Result<Logs, Failure> {
    let logs = reader(storage).await?.logs(uid, filter, MAX_LINES).await;
    logs.map_err(|error| store_failure(storage, &error))
}

fn unheard(error: &Error) -> Failure {
    Failure::environment(format!("read the log of the run through its scheduler: failed to {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_no_lines_is_told_where_they_are() {
        assert!(where_from("s3://bucket/runs").contains("AWS_*"));
        let volume = where_from("file:///data/runs");
        assert!(volume.contains("in /data/runs") && !volume.contains("AWS"), "{volume}");
    }
}
