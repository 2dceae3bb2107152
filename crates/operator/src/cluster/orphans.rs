//! Authorities of clusters that are gone. A key that is removed does not come back, and with it go all connections of its
//! cluster: that no watch shows a cluster is a reason to ask, not to remove.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, DynamicObject};
use kube::{Api, ResourceExt};
use tokio::time::{Instant, sleep};

use crate::apiserver::record::Kind;
use crate::certificates::{Certificates, Error, NAME, NAMESPACE, about_list, get};
use crate::queue::Key;
use decide::cluster::names;

/// How often to look for those of clusters that were deleted while no process led.
const SWEEP: Duration = Duration::from_secs(3600);
/// After a sweep that failed.
const SWEEP_AGAIN: Duration = Duration::from_secs(60);

/// What the API server says of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    Lives,
    Gone,
    /// It does not tell us: the right to read in its namespace is gone.
    Refused,
}

impl Certificates {
    /// No watch shows the cluster any more. If it is gone, so is its authority.
    pub(crate) async fn forget(&self, key: &Key, uid: &str) -> Result<Presence, Error> {
        let presence = self.presence(key, uid).await?;
        if presence == Presence::Gone {
            self.drop_known(uid);
            self.remove(uid).await?;
        }
        Ok(presence)
    }

    /// Removes authorities of clusters that went while nobody looked, from time to time. `living` tells which are there, of
    /// those in the namespaces that `is_watched`; what it does not know is asked for after `grace`. Never ends.
    pub(crate) async fn sweep_on(
        &self,
        is_watched: impl Fn(&str) -> bool,
        living: impl Fn() -> HashSet<String>,
        grace: Duration,
    ) {
        let mut doubts = HashMap::new();
        loop {
            let pause = match self.sweep(&is_watched, &living, grace, &mut doubts).await {
                Ok(true) => grace,
                Ok(false) => SWEEP,
                Err(error) => {
                    tracing::warn!("failed to {error}; retrying");
                    SWEEP_AGAIN
                }
            };
            sleep(pause).await;
        }
    }

    /// `doubts`: since when which were not shown. Tells whether any of them has to wait.
    async fn sweep(
        &self,
        is_watched: impl Fn(&str) -> bool,
        living: impl Fn() -> HashSet<String>,
        grace: Duration,
        doubts: &mut HashMap<String, Instant>,
    ) -> Result<bool, Error> {
        let noted = self.authorities.uids().await.map_err(|source| about_list("read", source))?;
        // Asked after the list was read, so that none is younger than its answer.
        let living = living();
        doubts.retain(|uid, _| noted.contains(uid) && !living.contains(uid));
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.settings.operator_namespace);
        let mut waits = false;
        for uid in noted.into_iter().filter(|uid| !living.contains(uid)) {
            if doubts.entry(uid.clone()).or_insert_with(Instant::now).elapsed() < grace {
                waits = true;
                continue;
            }
            let Some(secret) = get(&secrets, &names::authority_secret(&uid)).await? else {
                // Nothing is there but the note.
                self.note(&uid, false).await?;
                continue;
            };
            let about = |name: &str| secret.annotations().get(name).cloned();
            let (Some(namespace), Some(name)) = (about(NAMESPACE), about(NAME)) else {
                tracing::debug!(uid, "the authority does not name its cluster; keeping it");
                continue;
            };
            // Another operator may serve the cluster, or this one may again.
            if !is_watched(&namespace) {
                continue;
            }
            match self.presence(&Key::new(namespace, name), &uid).await? {
                Presence::Gone => self.remove(&uid).await?,
                // The watch will show it.
                Presence::Lives => drop(doubts.remove(&uid)),
                Presence::Refused => {}
            }
        }
        Ok(waits)
    }

    /// Asks the API server itself.
    async fn presence(&self, key: &Key, uid: &str) -> Result<Presence, Error> {
        let resource = Kind::Cluster.resource();
        let clusters: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &key.namespace, &resource);
        match clusters.get_metadata_opt(&key.name).await {
            Ok(Some(found)) if found.metadata.uid.as_deref() == Some(uid) => Ok(Presence::Lives),
            Ok(_) => Ok(Presence::Gone),
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(Presence::Refused),
            Err(source) => Err(Error::Cluster { name: key.to_string(), source: Box::new(source) }),
        }
    }

    async fn remove(&self, uid: &str) -> Result<(), Error> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.settings.operator_namespace);
        let name = names::authority_secret(uid);
        match api.delete(&name, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(source) => return Err(Error::Api { verb: "delete", name, source: Box::new(source) }),
        }
        self.note(uid, false).await
    }
}
