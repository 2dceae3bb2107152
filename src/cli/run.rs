//! `run` and `resume`: prepare, drive, report.

use std::fs;
use std::process;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::options::{ClusterOptions, ResumeOptions, RunOptions, ShowOptions, WantedOptions};
use super::progress::Progress;
use super::request::{self, Request};
use super::{Failure, exit, finish};
use api::duration::Duration as Span;
use api::pipeline::Deadlines;
use api::problem::nearest;
use dask::{Address, Scheme};
use driver::{DriveError, Fabric, TlsPaths, drive};
use local::home::{Home, RunNote, SchedulerNote, StorageNote, WorkerNote};
use local::{Environment, Fleet, FleetSpec, environment};
use lower::Plan;
use run_model::archive::{self, Code};
use run_model::{
    CodeSource, FleetState, Frozen, Moment, Patience, Report, Requirements, RunSpec, START_DEADLINE, Start, StorageSpec,
};
use runtime_bundle::RUNTIME;

/// What `run`, `plan` and `resume` have in common once the run is known.
pub(super) struct Job {
    pub home: Home,
    pub frozen: Frozen,
    pub plan: Plan,
    pub code: CodeSource,
    pub storage: StorageNote,
    create: bool,
    created: f64,
}

/// The run that is asked for, checked. Nothing of it is written yet.
pub(super) fn job(options: &mut WantedOptions) -> Result<Job, Failure> {
    let home = home()?;
    if let Some(wanted) = &mut options.part.reuse_run
        && let Some(note) = home.find_note(wanted).map_err(|error| read_notes(&error))?
    {
        // A name of this machine, or the beginning of a uid, means the latest run of it here.
        *wanted = note.uid;
    }
    let Request { frozen, plan, code } = request::request(options)?;
    let storage = request::storage(&options.storage, Some(&frozen.pipeline), None, &home)?;
    if let Some(problem) = plan.check_pins(&storage.url) {
        return Err(Failure::bad_input(problem.to_string()));
    }
    Ok(Job { home, frozen, plan, code, storage, create: true, created: now() })
}

pub(super) async fn run(options: RunOptions) -> Result<(), Failure> {
    let RunOptions { mut wanted, show } = options;
    let job = job(&mut wanted)?;
    let zip = match &job.code {
        CodeSource::Packed(code) => code.zip.as_slice(),
        CodeSource::Archive { .. } => &[],
    };
    job.home
        .write_request(&job.frozen.uid, &request::written(&job.frozen)?.0, zip)
        .map_err(|error| Failure::environment(format!("keep the run's specification: {error}")))?;
    execute(job, &wanted.cluster, &show).await
}

pub(super) async fn resume(options: ResumeOptions) -> Result<(), Failure> {
    let home = home()?;
    let note = home.find_note(&options.run).map_err(|error| read_notes(&error))?;
    if note.is_none() && options.storage.storage.is_none() {
        return Err(unknown_run(&home, &options.run)?);
    }
    let uid = note.as_ref().map_or_else(|| options.run.clone(), |note| note.uid.clone());
    let storage = request::storage(&options.storage, None, note.as_ref().map(|note| &note.storage), &home)?;
    let reader = reader(&storage).await?;
    let (frozen, code, create) = match reader.read_journal(&uid).await {
        Ok(journal) => {
            let frozen = thaw(&uid, journal.opened.spec.as_deref().unwrap_or_default())?;
            if let Some(closed) = journal.finished.as_ref().filter(|end| end.state.as_deref() == Some("Succeeded")) {
                return finish::already(&frozen, &storage, closed, &options.show);
            }
            let zip = reader.read_code(&uid, &journal).await.map_err(|error| store_failure(&storage, &error))?;
            let digest = journal.opened.code.digest.clone().unwrap_or_default();
            (frozen, CodeSource::Packed(Code { digest, zip: zip.to_vec() }), false)
        }
        Err(error @ store::StoreError::RunNotFound(_)) => {
            // The command died before the journal was opened: what was asked for is kept on this machine.
            let kept = home.read_request(&uid).map_err(|error| read_notes(&error))?;
            let (spec, zip) = kept.ok_or_else(|| store_failure(&storage, &error))?;
            let frozen = thaw(&uid, &spec)?;
            let code = request::archive(&frozen.pipeline);
            let code = code.unwrap_or_else(|| CodeSource::Packed(archive::from_zip(zip)));
            (frozen, code, true)
        }
        Err(error) => return Err(store_failure(&storage, &error)),
    };
    let plan = request::plan(&frozen, &format!("run {uid}"))?;
    let created = note.map_or_else(now, |note| note.created);
    let job = Job { home, frozen, plan, code, storage, create, created };
    execute(job, &options.cluster, &options.show).await
}

/// The specification as the journal keeps it.
pub(super) fn thaw(uid: &str, bytes: &[u8]) -> Result<Frozen, Failure> {
    let frozen: Frozen = serde_json::from_slice(bytes).map_err(|error| {
        Failure::environment(format!("RecordUnreadable: the specification in the journal of run {uid}: {error}"))
    })?;
    if frozen.format != Frozen::FORMAT {
        let format = frozen.format;
        let message =
            format!("RecordUnreadable: run {uid} was written by another version of daskade (format {format})");
        return Err(Failure::environment(message));
    }
    Ok(frozen)
}

async fn execute(job: Job, cluster: &ClusterOptions, show: &ShowOptions) -> Result<(), Failure> {
    let mut progress = Progress::new(job.frozen.titles());
    let note = RunNote {
        uid: job.frozen.uid.clone(),
        name: job.frozen.name.clone(),
        storage: job.storage.clone(),
        created: job.created,
        state: "Running".into(),
        message: None,
        steps: None,
        pid: Some(process::id()),
        scheduler: None,
        workers: Vec::new(),
    };
    let keeper = NoteKeeper::new(job.home.clone(), note)?;
    let cancel = cancel_on_signals()?;
    let done = carry_out(&job, cluster, show, &keeper, &mut progress, cancel).await;
    progress.finish();
    match done {
        Ok(report) => {
            // A leftover is harmless: the journal is looked for first.
            drop(job.home.remove_request(&job.frozen.uid));
            keeper.finish(report.outcome.as_str(), report.message.clone(), Some(serde_json::json!(report.counts)));
            finish::report(&job.frozen, &job.storage, &report, show)
        }
        Err(failure) => {
            let failure = failure.with_hint(&job.frozen.uid);
            let state = if failure.code == exit::CANCELLED { "Cancelled" } else { "Interrupted" };
            keeper.finish(state, failure.message.clone(), None);
            finish::broken(&job.frozen, &job.storage, &failure, show)?;
            Err(failure)
        }
    }
}

async fn carry_out(
    job: &Job,
    cluster: &ClusterOptions,
    show: &ShowOptions,
    keeper: &Arc<NoteKeeper>,
    progress: &mut Progress,
    cancel: watch::Receiver<bool>,
) -> Result<Report, Failure> {
    check_folder(&job.storage)?;
    let to = remote(&job.frozen, cluster)?;
    let mut run = run_spec(job, cluster, show.logs)?;
    if to.is_some() {
        // Without a cluster of others the environment is made with them.
        run.requirements = Requirements { wanted: job.frozen.pipeline.requirements.clone(), same_image: false };
    }
    if let Some((address, tls)) = to {
        keeper.scheduler(&address);
        progress.phase(&format!("connecting to {address}"));
        let mut fabric = Fabric::Remote { address, tls, runtime: RUNTIME };
        return drive(&run, &mut fabric, progress, cancel).await.map_err(drive_failure);
    }
    let environment = prepare(job, cluster, progress, cancel.clone()).await?;
    let groups = request::groups(&job.frozen.cluster);
    for group in groups.iter().filter(|group| group.resources.contains_key("GPU")) {
        progress.say(&format!(
            "group {}: its workers carry the GPU label only; whether there is a GPU is not checked here",
            group.name
        ));
    }
    let scratch = job.home.scratch(&run.uid);
    fs::create_dir_all(&scratch)
        .map_err(|error| Failure::environment(format!("make the folder {}: {error}", scratch.display())))?;
    progress.phase("starting Dask");
    let fleet = Fleet::start(FleetSpec { environment, scratch: scratch.clone(), groups });
    let watcher = tokio::spawn(keep_note(keeper.clone(), fleet.state()));
    if let Some(url) = dashboard(fleet.state(), cancel.clone()).await {
        progress.say(&format!("dashboard: {url}"));
    }
    let mut fabric = Fabric::Local { state: fleet.state(), replace: fleet.replacer() };
    let driven = drive(&run, &mut fabric, progress, cancel).await;
    watcher.abort();
    fleet.stop().await;
    if driven.is_ok() {
        // Logs of the processes are of no use after a good end; what cannot be removed stays.
        drop(fs::remove_dir_all(&scratch));
    }
    driven.map_err(drive_failure)
}

/// The run as it is driven.
pub(super) fn run_spec(job: &Job, cluster: &ClusterOptions, logs: bool) -> Result<RunSpec, Failure> {
    let (spec, digest) = request::written(&job.frozen)?;
    let deadlines = job.frozen.pipeline.deadlines.as_ref();
    let deadline = |which: fn(&Deadlines) -> Option<&Span>| deadlines.and_then(which).map(|span| span.to_std());
    Ok(RunSpec {
        uid: job.frozen.uid.clone(),
        name: job.frozen.name.clone(),
        plan: job.plan.clone(),
        spec,
        spec_digest: digest,
        code: job.code.clone(),
        requirements: Requirements::default(),
        image: job.frozen.cluster.image.clone(),
        pipeline: job.frozen.pipeline_name.clone(),
        reuse: job.frozen.reuse(),
        storage: StorageSpec {
            url: job.storage.url.clone(),
            endpoint: job.storage.endpoint.clone(),
            region: job.storage.region.clone(),
        },
        start: if job.create { Start::New } else { Start::Again },
        reopen: true,
        logs,
        ignore_resources: cluster.ignore_resources,
        deadline: deadline(|deadlines| deadlines.active.as_ref()),
        start_deadline: Some(deadline(|deadlines| deadlines.start.as_ref()).unwrap_or(START_DEADLINE)),
        finally_deadline: deadline(|deadlines| deadlines.finally.as_ref()),
        patience: Patience::default(),
        time: Moment::here(),
    })
}

/// The cluster of others that the run uses, if any: the option's, else the manifest's.
fn remote(frozen: &Frozen, cluster: &ClusterOptions) -> Result<Option<(String, Option<TlsPaths>)>, Failure> {
    let named = frozen.pipeline.cluster.as_ref().and_then(|choice| choice.address.as_ref());
    let Some(text) = cluster.address.as_ref().or(named) else { return Ok(None) };
    let address: Address = text.parse().map_err(|error| Failure::bad_input(format!("--address: failed to {error}")))?;
    let tls = match (&cluster.tls_ca, &cluster.tls_cert, &cluster.tls_key) {
        (Some(ca), Some(cert), Some(key)) => Some(TlsPaths { ca: ca.clone(), cert: cert.clone(), key: key.clone() }),
        _ => None,
    };
    if address.scheme() == Scheme::Tls && tls.is_none() {
        return Err(Failure::bad_input(format!("{text} needs certificates: give --tls-ca, --tls-cert and --tls-key")));
    }
    Ok(Some((text.clone(), tls)))
}

/// The environment with the pipeline's requirements; ends early if the user cancels.
async fn prepare(
    job: &Job,
    cluster: &ClusterOptions,
    progress: &Progress,
    mut cancel: watch::Receiver<bool>,
) -> Result<Environment, Failure> {
    let (home, requirements) = (job.home.clone(), job.frozen.pipeline.requirements.clone());
    let python = cluster.python.clone();
    let (said, mut saying) = tokio::sync::mpsc::unbounded_channel::<String>();
    let mut made = tokio::task::spawn_blocking(move || match python {
        Some(python) => environment::existing(&home, RUNTIME, &python, &requirements),
        // Nobody listens any more only if the command ends.
        None => environment::prepared(&home, RUNTIME, &requirements, &|text| drop(said.send(text.to_owned()))),
    });
    loop {
        tokio::select! {
            made = &mut made => {
                let made = made.map_err(|error| Failure::environment(format!("prepare Python: {error}")))?;
                return made.map_err(|error| Failure::environment(format!("failed to {error}")));
            }
            Some(text) = saying.recv() => progress.say(&text),
            Ok(_) = cancel.wait_for(|cancel| *cancel) => return Err(Failure::silent(exit::CANCELLED)),
        }
    }
}

/// Waits for the first scheduler, to show the link to its dashboard before the steps start.
async fn dashboard(mut state: watch::Receiver<FleetState>, mut cancel: watch::Receiver<bool>) -> Option<String> {
    tokio::select! {
        ready = state.wait_for(|state| state.endpoint.is_some() || state.failed.is_some()) => {
            ready.ok()?.endpoint.as_ref()?.dashboard.clone()
        }
        _ = cancel.wait_for(|cancel| *cancel) => None,
    }
}

/// A directory store must be there and writable before anything is started.
fn check_folder(storage: &StorageNote) -> Result<(), Failure> {
    let Some(folder) = store::folder_of(&storage.url) else { return Ok(()) };
    let probe = folder.join(format!(".daskade-probe-{}", process::id()));
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&probe, b"probe"))
        .and_then(|()| fs::remove_file(&probe))
        .map_err(|error| {
            Failure::environment(format!("StorageUnreachable: cannot write to {}: {error}", folder.display()))
        })
}

pub(super) fn drive_failure(error: DriveError) -> Failure {
    Failure::environment(error.to_string())
}

pub(super) fn store_failure(storage: &StorageNote, error: &store::StoreError) -> Failure {
    Failure::environment(format!("{}: {}: {error}", error.reason(), storage.url))
}

pub(super) async fn reader(storage: &StorageNote) -> Result<store::Reader, Failure> {
    let config = store::StorageConfig {
        url: storage.url.clone(),
        endpoint: storage.endpoint.clone(),
        region: storage.region.clone(),
    };
    store::Reader::open(&config).await.map_err(|error| store_failure(storage, &error))
}

pub(super) fn home() -> Result<Home, Failure> {
    Home::from_env().map_err(|error| Failure::environment(error.to_string()))
}

/// No run of that name: the nearest one, and where others would be.
pub(super) fn unknown_run(home: &Home, wanted: &str) -> Result<Failure, Failure> {
    let notes = home.read_notes().map_err(|error| read_notes(&error))?;
    let near = nearest(wanted, notes.iter().map(|note| note.name.as_str()));
    let hint = near.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
    Ok(Failure::bad_input(format!(
        "RunNotFound: no run {wanted} was started on this machine{hint} (daskade runs lists them; --storage reads \
         another one by its uid)"
    )))
}

pub(super) fn read_notes(error: &std::io::Error) -> Failure {
    Failure::environment(format!("read the notes of runs: {error}"))
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

/// Turns true at the first Ctrl-C or SIGTERM; the second one ends the command at once (its processes end with it).
fn cancel_on_signals() -> Result<watch::Receiver<bool>, Failure> {
    let (set, cancel) = watch::channel(false);
    let listen = |kind| signal(kind).map_err(|error| Failure::environment(format!("listen for signals: {error}")));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if first {
                set.send_replace(true);
            } else {
                process::exit(i32::from(exit::CANCELLED));
            }
        }
    });
    Ok(cancel)
}

/// Keeps the run's note on disk true while its processes come and go.
struct NoteKeeper {
    home: Home,
    note: Mutex<RunNote>,
}

impl NoteKeeper {
    fn new(home: Home, note: RunNote) -> Result<Arc<Self>, Failure> {
        home.write_note(&note).map_err(|error| Failure::environment(format!("write the note of the run: {error}")))?;
        Ok(Arc::new(Self { home, note: Mutex::new(note) }))
    }

    fn change(&self, change: impl FnOnce(&mut RunNote)) {
        let mut note = self.note.lock();
        change(&mut note);
        if let Err(error) = self.home.write_note(&note) {
            tracing::warn!(%error, "the note of the run could not be written");
        }
    }

    fn scheduler(&self, address: &str) {
        let scheduler = SchedulerNote { address: address.to_owned(), pid: None, dashboard: None };
        self.change(|note| note.scheduler = Some(scheduler));
    }

    fn finish(&self, state: &str, message: Option<String>, steps: Option<serde_json::Value>) {
        self.change(|note| {
            note.state = state.to_owned();
            note.message = message;
            note.steps = steps;
            note.pid = None;
            note.scheduler = None;
            note.workers.clear();
        });
    }
}

async fn keep_note(keeper: Arc<NoteKeeper>, mut state: watch::Receiver<FleetState>) {
    loop {
        let current = state.borrow_and_update().clone();
        keeper.change(|note| {
            note.scheduler = current.endpoint.as_ref().map(|endpoint| SchedulerNote {
                address: endpoint.address.clone(),
                pid: endpoint.pid,
                dashboard: endpoint.dashboard.clone(),
            });
            let group = |name: &str| name.rsplitn(3, '-').nth(2).unwrap_or(name).to_owned();
            note.workers = current
                .workers
                .iter()
                .map(|(name, pid)| WorkerNote { name: name.clone(), group: group(name), pid: *pid })
                .collect();
        });
        if state.changed().await.is_err() {
            return;
        }
    }
}
