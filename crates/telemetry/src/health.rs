//! Whether the operator can do its work, and what it waits for.

use std::collections::BTreeMap;

use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};

/// Shared by all parts; `/ready` shows it. A new one waits for nothing.
#[derive(Debug, Default)]
pub struct Health {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    leads: bool,
    /// What is waited for, and why.
    waiting: BTreeMap<&'static str, String>,
}

impl Health {
    /// `what` is needed and not there; whether that is new.
    pub fn wait_for(&self, what: &'static str, why: impl Into<String>) -> bool {
        let why = why.into();
        let before = self.state().waiting.insert(what, why.clone());
        before.is_none_or(|before| before != why)
    }

    /// `what` is there; whether it was waited for.
    pub fn found(&self, what: &'static str) -> bool {
        self.state().waiting.remove(what).is_some()
    }

    /// Whether this process holds the lease. A standby is ready too: it takes over at once.
    pub fn set_leads(&self, leads: bool) {
        self.state().leads = leads;
    }

    /// Whether nothing is waited for, and all of it as a document.
    pub fn report(&self) -> (bool, Value) {
        let state = self.state();
        let ready = state.waiting.is_empty();
        let role = if state.leads { "leader" } else { "standby" };
        (ready, json!({ "ready": ready, "role": role, "waiting": state.waiting }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a single insertion or removal: a panic in between leaves nothing half done.
        self.state.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_once_nothing_is_waited_for() {
        let health = Health::default();
        assert!(health.report().0);
        assert!(health.wait_for("crds", "daskclusters is missing"));
        assert!(!health.wait_for("crds", "daskclusters is missing"), "told once");
        assert!(health.wait_for("crds", "the API server does not answer"));
        let (ready, document) = health.report();
        assert!(!ready);
        assert_eq!(document["waiting"]["crds"], "the API server does not answer");
        assert_eq!(document["role"], "standby");
        assert!(health.found("crds"));
        assert!(!health.found("crds"));
        health.set_leads(true);
        assert_eq!(health.report(), (true, json!({ "ready": true, "role": "leader", "waiting": {} })));
    }
}
