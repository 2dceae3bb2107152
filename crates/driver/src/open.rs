//! Opens a run on a scheduler, and follows it from there.

use sha2::{Digest, Sha256};

use super::code::code;
use super::ended::{Ended, classify, fatal, lost, refused};
use super::error::DriveError;
use super::fabric::Access;
use super::facts::Versions;
use super::follow::Follower;
use super::install::runtime;
use super::objects::Objects;
use super::resume::Pages;
use super::reuse::Reusable;
use super::run_engine::Engine;
use super::session::Session;
use super::terms::{step_def, storage};
use super::{Fabric, earlier, objects};
use api::reason::{Reason, ReasonClass};
use dask::ops::{Code, Leader, Open, Opened, Settings};
use dask::{Address, Peer};
use run_model::report::Report;
use run_model::{Endpoint, Runtime, Start};

/// The runtime protocol that this version speaks.
const PROTOCOL: u32 = 1;
/// Outputs up to this size travel in the journal, in bytes: a segment then holds many of them.
const INLINE_MAX: u64 = 64 << 10;
/// Cache of outputs on a worker's disk, in bytes.
const CACHE_BYTES: u64 = 4 << 30;
/// Log of one attempt, in bytes; beyond it the middle is left out.
const LOG_CAP: u64 = 8 << 20;
/// Two tasks per slot keep a worker busy while the answer of one is on its way.
const TASKS_PER_SLOT: u32 = 2;

/// Whether the runtime does not have a run (any more) as it was when it was opened: another process answers, or events are
/// missing.
fn reopens(reason: &str) -> bool {
    reason.parse().is_ok_and(|reason: Reason| reason.class() == ReasonClass::Reopens)
}

fn is_not_there(error: &dask::Error) -> bool {
    error.refusal().is_some_and(|reason| Reason::RunNotFound.is(reason))
}

impl Session<'_> {
    pub(super) async fn run(mut self, fabric: &mut Fabric, endpoint: &Endpoint) -> Result<Report, Ended> {
        let Access { tls, install, lead, connections, limits } = fabric.access().map_err(fatal)?;
        let address: Address = endpoint.address.parse().map_err(fatal)?;
        let peer = Peer::new(address.clone(), tls.clone(), connections.pool.clone()).within(limits);
        tokio::select! {
            finished = self.converse(&peer, install, lead.as_ref()) => finished,
            error = connections.heartbeat.lost(&address, tls.as_ref()) => match error.is_excess() {
                true => Err(classify(error)),
                false => Err(lost(error.to_string())),
            },
            cause = fabric.gone(endpoint.generation) => Err(lost(cause)),
        }
    }

    async fn converse(
        &mut self,
        peer: &Peer,
        install: Option<Runtime>,
        lead: Option<&Leader>,
    ) -> Result<Report, Ended> {
        self.greet(peer, install).await?;
        let code = code(peer, self.spec, lead).await.map_err(|error| self.ended_by(error))?;
        let versions = objects::before(peer, self.spec).await.map_err(|error| self.ended_by(error))?;
        let mut reusable = earlier::ask(peer, self.spec, &code.digest, lead).await.map_err(classify)?;
        let opened = self.open(peer, lead, reusable.as_ref(), code).await?;
        *self.opened_before = true;
        self.go_on(peer, opened, &mut reusable, versions).await.map_err(|ended| match ended {
            Ended::Fatal(DriveError::Refused { reason, message }) if reopens(&reason) => {
                Ended::Again { reason, message, limit: limits::REOPENED }
            }
            other => other,
        })
    }

    /// From the opening to the end of the run, which may have come before.
    async fn go_on(
        &mut self,
        peer: &Peer,
        mut opened: Opened,
        reusable: &mut Option<Reusable>,
        versions: Versions,
    ) -> Result<Report, Ended> {
        let spec = self.spec;
        let mut pages = Pages::new(peer, &spec.uid, &mut opened);
        if pages.is_closed() {
            let known = match self.closing.take() {
                Some(report) => Some(report),
                None => pages.closing().await.map_err(classify)?.filter(|_| !self.spec.reopen),
            };
            if let Some(report) = known {
                return Ok(report);
            }
        }
        let mut follower = Follower {
            session: self,
            peer,
            opened,
            engine: Engine::new(&spec.plan, seed(&spec.uid)),
            reusable,
            objects: Objects::new(&spec.plan),
        };
        follower.engine.facts.versions = versions;
        follower.restore(pages).await?;
        follower.follow().await
    }

    /// Makes sure that the scheduler has a runtime that this version understands.
    async fn greet(&mut self, peer: &Peer, install: Option<Runtime>) -> Result<(), Ended> {
        let info = runtime(peer, install).await?;
        let (low, high) = info.protocol;
        if !(low..=high).contains(&PROTOCOL) {
            return Err(refused(
                Reason::RuntimeVersion,
                format!("the scheduler's runtime speaks protocol {low} to {high}, this command {PROTOCOL}"),
            ));
        }
        Ok(())
    }

    async fn open(
        &mut self,
        peer: &Peer,
        lead: Option<&Leader>,
        reusable: Option<&Reusable>,
        code: Code,
    ) -> Result<Opened, Ended> {
        let mut open = self.open_request(lead, code);
        open.create = !*self.opened_before && !*self.tried_to_open;
        loop {
            if open.create {
                earlier::check(self.spec, reusable).map_err(classify)?;
                *self.tried_to_open = true;
            }
            match peer.call(&open).await {
                Ok(opened) => return Ok(opened),
                // What was there is gone: a new journal in its place would run everything again, as if nothing was committed.
                Err(error) if *self.opened_before && self.spec.start != Start::Again && is_not_there(&error) => {
                    let run = &self.spec.uid;
                    let lost = "it was written but is missing; something deleted it from the storage";
                    let message = format!("segment 0 of the journal of run {run} cannot be read: {lost}");
                    return Err(refused(Reason::RecordUnreadable, message));
                }
                // An earlier request whose answer was lost may or may not have made the journal.
                Err(error) if self.spec.start != Start::Again && !open.create && is_not_there(&error) => {
                    open.create = true;
                }
                Err(error) => return Err(self.ended_by(error)),
            }
        }
    }

    fn open_request(&self, lead: Option<&Leader>, code: Code) -> Open {
        let spec = self.spec;
        Open {
            run: spec.uid.clone(),
            name: spec.name.clone(),
            epoch: None,
            lead: lead.map(|lead| lead.epoch),
            lease: lead.and_then(|lead| lead.lease.clone()),
            create: false,
            // One end is enough: if it was written, it is answered.
            reopen: self.spec.reopen && self.closing.is_none(),
            spec: spec.spec.clone(),
            spec_digest: spec.spec_digest.clone(),
            pages: true,
            storage: storage(&spec.storage),
            pipeline: spec.pipeline.clone(),
            code,
            requirements: spec.requirements.wanted.clone(),
            same_image: spec.requirements.same_image,
            steps: spec.plan.step_defs().into_iter().map(|step| step_def(step, spec.ignore_resources)).collect(),
            settings: Settings {
                inline_max: INLINE_MAX,
                cache_bytes: CACHE_BYTES,
                log_cap: LOG_CAP,
                tasks_per_slot: TASKS_PER_SLOT,
                pins: objects::pins(spec),
            },
        }
    }
}

/// A number from the uid, so that a restored run jitters its retries as before.
fn seed(uid: &str) -> u64 {
    let digest = Sha256::digest(uid.as_bytes());
    digest.iter().take(8).fold(0, |seed, byte| (seed << 8) | u64::from(*byte))
}
