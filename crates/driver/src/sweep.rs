//! Removes what a run has stored, by way of a scheduler: this side decides, the runtime there lists and removes.
//!
//! The order makes it safe to be ended at any point, and to be done again: what goes is marked first, which is the
//! record that says so; then the journal is closed, so that nobody goes on with the run; then it is found out who uses
//! outputs of it; then objects go, the journal last.

use std::collections::BTreeSet;

use serde_json::json;

use super::ended::{Ended, classify, into_error, refused};
use super::error::DriveError;
use super::fabric::SchedulerEndpoint;
use super::install::runtime;
use super::retention::{InUse, Users, split};
use super::terms::storage;
use api::reason::Reason;
use dask::ops::{
    Discard, Final, Folder, Forget, Leader, ListObjects, ListReferences, LookStored, LookUser, MarkRemoved, Operation,
    Part, Seal, Storage, User,
};
use dask::{Address, Limits, Peer};
use run_model::{Runtime, StorageSpec};

/// Names of objects per message to the runtime.
const CHUNK: usize = 5000;

/// What to remove.
#[derive(Debug, Clone)]
pub struct Sweep {
    /// Unique id of the run.
    pub uid: String,
    /// Its pipeline, whose runs do not find it any more without a journal.
    pub pipeline: Option<String>,
    /// Where it is.
    pub storage: StorageSpec,
    /// The outputs.
    pub outputs: bool,
    /// Journal, logs and code.
    pub record: bool,
    /// Uids of runs that are known to have ended, whether or not their journals say so.
    pub ended: BTreeSet<String>,
}

/// What became of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Outputs that stay, since other runs have taken them over.
    pub kept: u64,
}

/// Removes it. All of it may be done twice, also by two at once.
pub async fn sweep(sweep: &Sweep, endpoint: &SchedulerEndpoint) -> Result<Swept, DriveError> {
    let address: Address = endpoint.address.parse().map_err(|error| DriveError::Dask(Box::new(error)))?;
    let peer = Peer::new(address, endpoint.tls.clone(), endpoint.connections.pool.clone()).within(Limits::operator());
    let sweeper = Sweeper { peer, sweep, storage: storage(&sweep.storage), lead: endpoint.lead.clone() };
    sweeper.run(endpoint.install).await.map_err(into_error)
}

struct Sweeper<'a> {
    peer: Peer,
    sweep: &'a Sweep,
    storage: Storage,
    lead: Leader,
}

impl Sweeper<'_> {
    async fn run(&self, install: Option<Runtime>) -> Result<Swept, Ended> {
        runtime(&self.peer, install).await?;
        let run = self.sweep.uid.as_str();
        let (lead, lease) = self.leader();
        let parts = [(Part::Outputs, self.sweep.outputs), (Part::Record, self.sweep.record)];
        let what: Vec<Part> = parts.into_iter().filter(|(_, wanted)| *wanted).map(|(part, _)| part).collect();
        self.call(&MarkRemoved { run, storage: &self.storage, what: &what, lead, lease }).await?;
        let look = LookStored { run, storage: &self.storage, brief: false };
        let mut stored = self.call(&look).await?;
        if stored.open {
            self.call(&Forget { run, epoch: None, lead: Some(lead), lease }).await?;
        }
        if stored.journal.as_ref().is_some_and(|journal| !journal.closed) {
            self.seal(run).await?;
            // By now it says all that it will ever say.
            stored = self.call(&look).await?;
        }
        let mut swept = Swept::default();
        if self.sweep.outputs {
            swept.kept = self.outputs(run).await?;
        }
        // What this run alone had use for, of runs whose time was over before.
        for origin in stored.journal.unwrap_or_default().origins {
            let look = LookStored { run: &origin, storage: &self.storage, brief: true };
            let theirs = self.call(&look).await?;
            if theirs.removed.contains(&Part::Outputs) {
                self.outputs(&origin).await?;
            }
        }
        if self.sweep.record {
            for folder in [Folder::Logs, Folder::Code, Folder::Journal] {
                self.folder(run, folder, &BTreeSet::new()).await?;
            }
            self.discard(run, &[], self.sweep.pipeline.as_deref()).await?;
        }
        Ok(swept)
    }

    /// Removes the outputs of a run that nobody needs; how many stay.
    async fn outputs(&self, run: &str) -> Result<u64, Ended> {
        let users = self.users(run).await?;
        let needed = users.needed().map_err(|InUse { uid, name }| {
            let message = format!("run {name} ({uid}) has taken outputs of run {run} over and has not ended");
            refused(Reason::OutputsInUse, message)
        })?;
        let kept = self.folder(run, Folder::Data, &needed).await?;
        self.folder(run, Folder::Kept, &BTreeSet::new()).await?;
        self.discard(run, &users.spent(), None).await?;
        Ok(kept)
    }

    /// Finds out who uses outputs of a run that is marked.
    async fn users(&self, of: &str) -> Result<Users, Ended> {
        let mut users = Users::default();
        loop {
            let references = self.call(&ListReferences { run: of, storage: &self.storage }).await?;
            let ask = users.ask(references.names);
            if ask.is_empty() {
                return Ok(users);
            }
            for run in ask {
                let mut user = self.user(of, &run).await?;
                if !user.closed && self.sweep.ended.contains(&run) {
                    self.seal(&run).await?;
                    user = self.user(of, &run).await?;
                }
                users.tell(run, user);
                if users.bytes() > limits::USERS_BYTES {
                    let (bytes, most) = (users.bytes(), limits::USERS_BYTES);
                    let reason = format!(
                        "the names of objects that other runs use have {bytes} bytes; at most {most} are allowed"
                    );
                    return Err(classify(dask::Error::excess(LookUser::OP, reason)));
                }
            }
        }
    }

    async fn user(&self, of: &str, run: &str) -> Result<User, Ended> {
        self.call(&LookUser { of, run, storage: &self.storage }).await
    }

    /// Closes the journal of a run that has ended without doing so.
    async fn seal(&self, run: &str) -> Result<(), Ended> {
        let mut closing = Final::new();
        closing.insert("state".to_owned(), json!("Failed"));
        closing.insert("reason".to_owned(), json!("Failed"));
        closing.insert("message".to_owned(), json!("the run ended without a closing record"));
        let (lead, lease) = self.leader();
        self.call(&Seal { run, storage: &self.storage, closing: &closing, lead, lease }).await?;
        Ok(())
    }

    /// Removes what is in a folder of a run and is not needed; how many objects stay.
    async fn folder(&self, run: &str, folder: Folder, needed: &BTreeSet<&str>) -> Result<u64, Ended> {
        let (mut after, mut kept) = (String::new(), 0);
        loop {
            let list = ListObjects { run, storage: &self.storage, folder, after: &after };
            let listed = self.call(&list).await?;
            let last = listed.paths.last().cloned();
            if listed.more && last.as_ref().is_none_or(|last| *last <= after) {
                let message = format!("the list of objects of run {run} does not advance past {after:?}");
                return Err(refused(Reason::Internal, message));
            }
            let (mut go, stay) = split(listed.paths, needed);
            kept += stay;
            if folder == Folder::Journal {
                // From its end: what is left of it can be read at any moment.
                go.reverse();
            }
            for paths in go.chunks(CHUNK) {
                self.discard(run, paths, None).await?;
            }
            match last {
                Some(last) if listed.more => after = last,
                _ => return Ok(kept),
            }
        }
    }

    async fn discard(&self, run: &str, paths: &[String], pipeline: Option<&str>) -> Result<(), Ended> {
        if paths.is_empty() && pipeline.is_none() {
            return Ok(());
        }
        let (lead, lease) = self.leader();
        self.call(&Discard { run, storage: &self.storage, paths, pipeline, lead, lease }).await?;
        Ok(())
    }

    /// Epoch and Lease.
    fn leader(&self) -> (u64, Option<&str>) {
        (self.lead.epoch, self.lead.lease.as_deref())
    }

    async fn call<O: Operation>(&self, operation: &O) -> Result<O::Reply, Ended> {
        self.peer.call(operation).await.map_err(|error| match error {
            dask::Error::UnknownOp { .. } => {
                let message = "the runtime in the scheduler is of a release that does not know retention";
                refused(Reason::RuntimeVersion, message.to_owned())
            }
            other => classify(other),
        })
    }
}
