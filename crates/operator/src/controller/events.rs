//! Events for people, from what changes in a status. They never hold up a reconciliation and may be lost: conditions are the truth.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;

use crate::apiserver::record::Kind;
use crate::queue::Key;
use api::reason::{Reason, ReasonClass};
use decide::cluster::names::MANAGER;
use telemetry::metrics::Metrics;

/// Events that may wait for a slow API server; more are dropped.
const WAITING: usize = 256;
/// Longest note that Kubernetes takes, in bytes.
const NOTE_MAX: usize = 1024;

/// Where events go.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    notes: mpsc::Sender<(ObjectReference, Note)>,
    metrics: Arc<Metrics>,
}

/// What happened to an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    pub warning: bool,
    pub reason: Reason,
    pub action: &'static str,
    pub text: String,
}

impl Events {
    /// Ends when the future is dropped.
    pub fn start(client: Client, metrics: Arc<Metrics>) -> (Self, impl Future<Output = ()> + Send) {
        let (notes, mut inbox) = mpsc::channel::<(ObjectReference, Note)>(WAITING);
        // The name of the pod, so that several operators can be told apart.
        let reporter = Reporter { controller: MANAGER.to_owned(), instance: std::env::var("HOSTNAME").ok() };
        let recorder = Recorder::new(client, reporter);
        let publish = async move {
            while let Some((object, note)) = inbox.recv().await {
                let event = Event {
                    type_: if note.warning { EventType::Warning } else { EventType::Normal },
                    reason: note.reason.to_string(),
                    note: Some(note.text),
                    action: note.action.to_owned(),
                    secondary: None,
                };
                if let Err(error) = recorder.publish(&event, &object).await {
                    tracing::debug!(reason = event.reason, "failed to publish an event: {error}");
                }
            }
        };
        (Self { notes, metrics }, publish)
    }

    /// Publishes what happened, or drops it when too much waits.
    pub fn publish(&self, kind: Kind, key: &Key, uid: &str, note: Note) {
        let object = ObjectReference {
            api_version: Some(api::API_VERSION.to_owned()),
            kind: Some(kind.to_string()),
            namespace: Some(key.namespace.clone()),
            name: Some(key.name.clone()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        if self.notes.try_send((object, note)).is_err() {
            self.metrics.count_dropped_event();
        }
    }
}

/// What of a changed status is worth an event: another reason of a condition.
pub(crate) fn notes(before: &[Condition], after: &[Condition]) -> Vec<Note> {
    let mut notes: Vec<Note> = Vec::new();
    for condition in after {
        // Of the kstatus conditions, Stalled repeats what another one says, and Reconciling comes and goes.
        if ["Reconciling", "Stalled"].contains(&condition.type_.as_str()) {
            continue;
        }
        let known = before.iter().find(|other| other.type_ == condition.type_);
        if known.is_some_and(|known| known.reason == condition.reason && known.status == condition.status) {
            continue;
        }
        let Ok(reason) = condition.reason.parse::<Reason>() else { continue };
        let note = Note {
            warning: condition.status != "True" && reason.class() != ReasonClass::Usual,
            reason,
            action: "Reconcile",
            text: clipped(&condition.message),
        };
        // Ready repeats the reason of the condition that it fails for.
        if !notes.iter().any(|other| other.reason == note.reason) {
            notes.push(note);
        }
    }
    notes
}

fn clipped(text: &str) -> String {
    if text.len() <= NOTE_MAX {
        return text.to_owned();
    }
    let room = NOTE_MAX - '…'.len_utf8();
    let end = (0..=room).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(conditions: &[(&str, &str, &str)]) -> Vec<Condition> {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(kind, status, reason)| {
                json!({"type": kind, "status": status, "reason": reason, "message": format!("{reason}…"),
                    "lastTransitionTime": "2024-01-01T00:00:00Z"})
            })
            .collect();
        serde_json::from_value(json!(conditions)).unwrap()
    }

    #[test]
    fn only_another_reason_is_an_event_and_only_once() {
        let waiting = status(&[("Ready", "False", "ImagePull"), ("WorkersReady", "False", "ImagePull")]);
        let starting = status(&[("Ready", "False", "Progressing"), ("Reconciling", "True", "Progressing")]);
        let ready = status(&[("Ready", "True", "Ready")]);
        fn reasons(before: &[Condition], after: &[Condition]) -> Vec<(String, bool)> {
            let notes = notes(before, after);
            assert!(notes.iter().all(|note| note.text == format!("{}…", note.reason)), "{notes:?}");
            notes.into_iter().map(|note| (note.reason.to_string(), note.warning)).collect()
        }
        assert_eq!(reasons(&[], &starting), [("Progressing".to_owned(), false)]);
        assert_eq!(reasons(&starting, &waiting), [("ImagePull".to_owned(), true)]);
        assert_eq!(reasons(&waiting, &ready), [("Ready".to_owned(), false)]);
        assert_eq!(reasons(&ready, &ready), []);
    }

    #[test]
    fn notes_fit_into_an_event() {
        assert!(clipped(&"ä".repeat(2000)).len() <= NOTE_MAX);
        assert_eq!(clipped("short"), "short");
    }
}
