//! Which namespaces are served.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::core::PartialObjectMeta;
use kube::runtime::utils::StreamBackoff;
use kube::runtime::watcher::{Config, DefaultBackoff, Event, watcher};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::apiserver::watch::Sinks;

/// Namespaces per page of a list: their annotations may be large.
const PAGE: u32 = 50;

/// Namespaces that are named, that a selector matches, or all.
#[derive(Debug, Clone)]
pub(crate) enum Scope {
    All,
    /// Those of a list whose first lists of objects are complete. The watches show no others.
    Named(Arc<Mutex<BTreeSet<String>>>),
    Matching(Arc<Mutex<BTreeSet<String>>>),
}

impl Scope {
    /// Whether the objects of a namespace are served.
    pub fn has(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) | Self::Matching(names) => names.lock().contains(namespace),
        }
    }

    /// Whether the watches show the objects of a namespace.
    pub fn watches(&self, namespace: &str) -> bool {
        match self {
            Self::All | Self::Matching(_) => true,
            Self::Named(_) => self.has(namespace),
        }
    }
}

/// Keeps `names` as the selector says, and has the objects of a namespace looked at when it joins. Never ends.
pub(crate) async fn follow_selector(
    client: Client,
    selector: String,
    names: Arc<Mutex<BTreeSet<String>>>,
    sinks: Sinks,
    synced: oneshot::Sender<()>,
) {
    let config = Config::default().labels(&selector).page_size(PAGE);
    let events = watcher(Api::<PartialObjectMeta<Namespace>>::all(client), config);
    let mut events = std::pin::pin!(StreamBackoff::new(events, DefaultBackoff::default()));
    let (mut synced, mut listed, mut broken) = (Some(synced), BTreeSet::new(), false);
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(namespace)) => listed.extend([namespace.name_any()]),
            Ok(Event::InitDone) => {
                broken = false;
                change(&names, &sinks, |names| *names = std::mem::take(&mut listed));
                if let Some(synced) = synced.take() {
                    // Nobody waits any more when the controllers end.
                    let _ = synced.send(());
                }
            }
            Ok(Event::Apply(namespace)) => change(&names, &sinks, |names| names.extend([namespace.name_any()])),
            Ok(Event::Delete(namespace)) => {
                change(&names, &sinks, |names| names.retain(|name| *name != namespace.name_any()))
            }
            Err(error) => {
                if !std::mem::replace(&mut broken, true) {
                    tracing::warn!("failed to watch namespaces; trying again: {error}");
                }
            }
        }
    }
}

/// Serves a namespace from now on.
pub(crate) fn join(names: &Mutex<BTreeSet<String>>, name: &str, sinks: &Sinks) {
    change(names, sinks, |names| names.extend([name.to_owned()]));
}

fn change(names: &Mutex<BTreeSet<String>>, sinks: &Sinks, how: impl FnOnce(&mut BTreeSet<String>)) {
    let (before, after) = {
        let mut names = names.lock();
        let before = names.clone();
        how(&mut names);
        (before, names.clone())
    };
    let moved: BTreeSet<&String> = before.symmetric_difference(&after).collect();
    if !moved.is_empty() {
        sinks.look_at(|namespace| moved.iter().any(|name| *name == namespace));
    }
}
