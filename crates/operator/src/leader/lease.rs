//! Leader election over a Lease: who may write, and with which epoch.
//!
//! The algorithm is that of Kubernetes' own controllers: every write carries the resource version that was read, so two
//! candidates never both succeed, and whether another's lease ran out is measured on our own clock since it last changed,
//! so clocks of other machines do not matter. The holder gives up well before others may take over.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::time::{Instant, sleep_until, timeout};

use crate::cause::cause;
use crate::leader::clock::Clock;
use crate::leader::lead::{Grant, Lead, lead, moment};
use dask::ops::Leader;
use telemetry::health::Health;

/// Key of the lease in what `/ready` says.
const NEED: &str = "lease";
/// Longest wait for one answer of the API server.
const REQUEST: Duration = Duration::from_secs(5);
/// Longest time that giving the lease back may take; others wait for it to run out if it does not work.
const RELEASE: Duration = Duration::from_secs(2);
/// Tries of one turn when somebody else wrote in between.
const CONFLICTS: u32 = 3;
/// What a foreign lease may claim, in seconds.
const CLAIM: std::ops::RangeInclusive<i32> = 1..=3600;

/// Which lease, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseSettings {
    /// Where the Lease is.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Unique among all processes that ever run.
    pub identity: String,
    /// After this time without a renewal others may take over: whole seconds, at least one.
    pub duration: Duration,
}

/// A process that wants the lease.
#[derive(Debug)]
pub struct Candidate {
    api: Api<Lease>,
    settings: LeaseSettings,
    grant: Grant,
    health: Arc<Health>,
    clock: Clock,
    /// The lease as we wrote it last; none if it must be read.
    known: Option<Lease>,
    /// Version of another's lease, and when we saw it first.
    seen: Option<(String, Instant)>,
    /// Epoch that we had last; 0 if we never led.
    epoch: u64,
}

/// Whose a lease is.
#[derive(Debug, PartialEq, Eq)]
enum Holder {
    Us,
    Other,
    Nobody,
}

/// Why a turn did not work; reads after "failed to".
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{what} the lease: {}", cause(source))]
    Api { what: &'static str, source: Box<kube::Error> },
    #[error("{0} the lease: another client keeps changing it")]
    Conflict(&'static str),
    #[error("{0} the lease: the API server gave no answer in time")]
    Timeout(&'static str),
}

/// A candidate, and what tells whether it leads. `client` must not be fenced by that lead itself, and tells `clock` the time.
pub fn candidate(client: Client, clock: Clock, settings: LeaseSettings, health: Arc<Health>) -> (Candidate, Lead) {
    let (grant, lead) = lead();
    let api = Api::namespaced(client, &settings.namespace);
    let candidate = Candidate { api, settings, grant, health, clock, known: None, seen: None, epoch: 0 };
    (candidate, lead)
}

impl Candidate {
    /// Takes the lease when it is free and keeps it, until `stop` ends; then gives it back, in at most 2 s. Nothing may
    /// be written any more when this returns.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        loop {
            let begun = Instant::now();
            // A turn that is left in the middle may have written or not: `release` reads before it writes.
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = self.turn() => {}
            }
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = sleep_until(begun + self.settings.every()) => {}
            }
        }
        self.release().await;
    }

    async fn turn(&mut self) {
        // Not beyond the end of what we hold, so that its loss is told at once.
        let most = self.grant.left().unwrap_or(REQUEST).min(REQUEST);
        let result = match timeout(most, self.hold()).await {
            Ok(result) => result,
            Err(_) => {
                self.known = None;
                Err(Error::Timeout("renew or take"))
            }
        };
        match result {
            Ok(()) => {
                self.health.found(NEED);
            }
            Err(error) => {
                let text = error.to_string();
                if self.health.wait_for(NEED, &text) {
                    tracing::warn!(lease = self.settings.name, "failed to {text}; trying again");
                }
            }
        }
        if self.grant.left().is_none() {
            self.grant.lose();
        }
    }

    /// Renews the lease, takes it, or sees that another holds it.
    async fn hold(&mut self) -> Result<(), Error> {
        for _ in 0..CONFLICTS {
            let (begun, begun_wall) = moment();
            let written = match self.read().await? {
                None => self.create().await?,
                Some(lease) => match self.holder(&lease) {
                    Holder::Other => {
                        self.grant.lose();
                        return Ok(());
                    }
                    Holder::Us => {
                        let lease = renewed(lease, self.settings.duration, self.clock.now());
                        self.replace(lease, "renew").await?
                    }
                    Holder::Nobody => self.replace(self.taken(lease), "take").await?,
                },
            };
            // None: somebody else was faster. What they wrote is read in the next round.
            let Some(lease) = written else { continue };
            self.epoch = epoch(&lease);
            let leader = Leader { epoch: self.epoch, lease: lease.metadata.uid.clone() };
            self.grant.renew(leader, begun, begun_wall, self.settings.lasts());
            self.known = Some(lease);
            return Ok(());
        }
        Err(Error::Conflict("renew or take"))
    }

    /// Gives the lease back if it is ours. Who never led has nothing to give back.
    async fn release(mut self) {
        // First of all: a write that is on its way must not meet the next leader's.
        self.grant.lose();
        if self.epoch == 0 {
            return;
        }
        let released = timeout(RELEASE, async {
            for _ in 0..CONFLICTS {
                let Some(lease) = self.read().await? else { return Ok(()) };
                if self.holder(&lease) != Holder::Us
                    || self.replace(freed(lease, self.clock.now()), "release").await?.is_some()
                {
                    return Ok(());
                }
            }
            Err(Error::Conflict("release"))
        });
        match released.await.unwrap_or(Err(Error::Timeout("release"))) {
            Ok(()) => tracing::info!(lease = self.settings.name, "released the lease"),
            Err(error) => tracing::warn!(
                lease = self.settings.name,
                "could not release the lease; other operators wait until it expires ({:?}): failed to {error}",
                self.settings.duration
            ),
        }
    }

    fn holder(&mut self, lease: &Lease) -> Holder {
        let spec = lease.spec.clone().unwrap_or_default();
        match spec.holder_identity.filter(|holder| !holder.is_empty()) {
            None => Holder::Nobody,
            Some(holder) if holder == self.settings.identity => Holder::Us,
            Some(_) => {
                let now = Instant::now();
                let version = lease.metadata.resource_version.clone().unwrap_or_default();
                let since = match &self.seen {
                    Some((seen, since)) if *seen == version => *since,
                    _ => {
                        self.seen = Some((version, now));
                        now
                    }
                };
                let claim = spec.lease_duration_seconds.map(|claim| claim.clamp(*CLAIM.start(), *CLAIM.end()));
                let claim = claim.and_then(|claim| u64::try_from(claim).ok()).map(Duration::from_secs);
                let ran_out = now.saturating_duration_since(since) >= claim.unwrap_or(self.settings.duration);
                if ran_out { Holder::Nobody } else { Holder::Other }
            }
        }
    }

    async fn read(&mut self) -> Result<Option<Lease>, Error> {
        if let Some(lease) = self.known.take() {
            return Ok(Some(lease));
        }
        self.api.get_opt(&self.settings.name).await.map_err(|source| Error::api("read", source))
    }

    /// The lease in our hands.
    fn taken(&self, lease: Lease) -> Lease {
        taken(lease, &self.settings, self.epoch, self.clock.now())
    }

    /// None if another created it first.
    async fn create(&mut self) -> Result<Option<Lease>, Error> {
        let metadata = ObjectMeta { name: Some(self.settings.name.clone()), ..ObjectMeta::default() };
        let lease = self.taken(Lease { metadata, spec: None });
        match self.api.create(&PostParams::default(), &lease).await {
            Ok(lease) => Ok(Some(lease)),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(source) => Err(Error::api("create", source)),
        }
    }

    /// None if it was changed or deleted since it was read.
    async fn replace(&mut self, lease: Lease, what: &'static str) -> Result<Option<Lease>, Error> {
        match self.api.replace(&self.settings.name, &PostParams::default(), &lease).await {
            Ok(lease) => Ok(Some(lease)),
            Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => Ok(None),
            Err(source) => Err(Error::api(what, source)),
        }
    }
}

impl LeaseSettings {
    /// How long the holder may write after a renewal: the rest, a third, is for requests that are still on their way.
    fn lasts(&self) -> Duration {
        self.duration * 2 / 3
    }

    /// Between two turns: three tries before the right to write ends.
    fn every(&self) -> Duration {
        self.duration / 5
    }
}

impl Error {
    fn api(what: &'static str, source: kube::Error) -> Self {
        Self::Api { what, source: Box::new(source) }
    }
}

/// Epochs of one lease only grow: each new holder counts one further.
fn epoch(lease: &Lease) -> u64 {
    let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or(0);
    u64::try_from(transitions).unwrap_or(0).saturating_add(1)
}

fn renewed(mut lease: Lease, duration: Duration, now: Timestamp) -> Lease {
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.renew_time = Some(MicroTime(now));
    spec.lease_duration_seconds = Some(seconds(duration));
    lease
}

/// `epoch` is the last that we know of.
fn taken(mut lease: Lease, settings: &LeaseSettings, epoch: u64, now: Timestamp) -> Lease {
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    // A new lease goes on from the minutes since 1970: above the count of one that was deleted, unless that changed hands
    // more than once a minute. Runtimes of older releases compare epochs of all leases, and would refuse a lower one for
    // ever. The minutes are the API server's, which answered when it said that there is no lease: a clock that is ahead would
    // set the count for good.
    let first = i32::try_from(now.as_second() / 60).unwrap_or(i32::MAX);
    let next = spec.lease_transitions.filter(|count| *count >= 0).map_or(first, |count| count.saturating_add(1));
    spec.lease_transitions = Some(next.max(i32::try_from(epoch).unwrap_or(i32::MAX)));
    spec.holder_identity = Some(settings.identity.clone());
    spec.acquire_time = Some(MicroTime(now));
    renewed(lease, settings.duration, now)
}

fn freed(mut lease: Lease, now: Timestamp) -> Lease {
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity = None;
    spec.acquire_time = None;
    spec.renew_time = Some(MicroTime(now));
    spec.lease_duration_seconds = Some(1);
    lease
}

fn seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(i32::MAX).max(1)
}
