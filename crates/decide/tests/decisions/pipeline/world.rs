//! A namespace with one Pipeline, in memory: what is planned is done, as far as the test lets it.

use decide::pipeline::{Action, Cause, Facts, Note, Plan, Subject, Timing, build_run, build_status, plan, read_run};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

pub const START: &str = "2026-01-15T12:00:00Z";

/// The Pipeline, its runs as objects, and all that ever happened.
#[derive(Clone)]
pub struct World {
    pub now: Timestamp,
    pub subject: Subject,
    pub spec: Value,
    pub runs: Vec<Value>,
    /// Names and moments of all runs ever made.
    pub made: Vec<(String, Option<Timestamp>)>,
    pub notes: Vec<Note>,
    serial: u64,
}

impl World {
    pub fn new(extra: Value) -> Self {
        let mut world = Self {
            now: at(START),
            subject: Subject {
                name: "etl".to_owned(),
                namespace: "n".to_owned(),
                uid: "u1".to_owned(),
                generation: 0,
                created: at(START),
                ..Subject::default()
            },
            spec: Value::Null,
            runs: Vec::new(),
            made: Vec::new(),
            notes: Vec::new(),
            serial: 0,
        };
        let mut spec = json!({"steps": [{"name": "a", "call": "m:f"}]});
        for (key, value) in extra.as_object().unwrap() {
            spec[key] = value.clone();
        }
        world.apply(spec);
        world
    }

    /// `kubectl apply`: the generation grows if anything changed.
    pub fn apply(&mut self, spec: Value) {
        if spec != self.spec {
            self.subject.generation += 1;
            self.subject.spec = serde_json::from_value(spec.clone()).unwrap();
            self.spec = spec;
        }
    }

    pub fn edit(&mut self, field: &str, value: Value) {
        let mut spec = self.spec.clone();
        match value {
            Value::Null => drop(spec.as_object_mut().unwrap().shift_remove(field)),
            value => spec[field] = value,
        }
        self.apply(spec);
    }

    /// Another version of the code.
    pub fn code(&mut self, version: &str) {
        self.edit("code", json!({"files": {"flow.py": version}}));
    }

    pub fn pass_time(&mut self, text: &str) {
        let by: api::Duration = text.parse().unwrap();
        self.now += SignedDuration::try_from(by.to_std()).unwrap();
    }

    pub fn facts(&self) -> Facts {
        // One that does not name the Pipeline any more is not among its runs.
        let runs = self.runs.iter().filter_map(|run| Some(read_run(run)?.1)).collect();
        Facts { now: self.now, runs, ..Facts::default() }
    }

    pub fn planned(&self) -> Plan {
        let schedule = self.subject.spec.schedule.as_ref();
        let timing = schedule.map(|schedule| Timing::read(schedule, self.subject.created).unwrap());
        plan(&self.subject, timing.as_ref(), &self.facts())
    }

    pub fn act(&mut self, action: &Action) {
        match action {
            Action::Create { name, cause, queued } => {
                assert!(self.find(name).is_none(), "{name} is there already");
                let mut run = build_run(&self.subject, &self.spec, name, cause, *queued);
                self.serial += 1;
                run["metadata"]["uid"] = json!(format!("r{}", self.serial));
                run["metadata"]["creationTimestamp"] =
                    json!(Timestamp::from_second(self.now.as_second()).unwrap().to_string());
                self.runs.push(run);
                let moment = match cause {
                    Cause::Schedule { moment } => Some(*moment),
                    Cause::Change { .. } => None,
                };
                self.made.push((name.clone(), moment));
            }
            Action::Cancel { name, .. } => {
                let run = self.find(name).unwrap();
                run["spec"]["cancel"] = json!(true);
                run["spec"]["suspend"] = json!(false);
            }
            Action::Release { name, .. } => {
                let run = self.find(name).unwrap();
                run["spec"]["suspend"] = json!(false);
                run["metadata"]["annotations"].as_object_mut().unwrap().remove("daskade.dev/queued");
            }
            Action::Delete { name, .. } => self.runs.retain(|run| run["metadata"]["name"] != **name),
        }
    }

    /// One reconciliation: until nothing is left to do, then the status. `actions` bounds what is done before the process ends.
    /// Tells whether the reconciliation came to its end.
    pub fn reconcile(&mut self, mut actions: usize) -> bool {
        for _ in 0..300 {
            let planned = self.planned();
            if planned.actions.is_empty() {
                if actions == 0 {
                    return false;
                }
                let status = build_status(&self.subject, &self.facts(), &planned);
                self.subject.status = serde_json::from_value(serde_json::to_value(status).unwrap()).unwrap();
                self.notes.extend(planned.notes);
                return true;
            }
            for action in &planned.actions {
                if actions == 0 {
                    return false;
                }
                actions -= 1;
                self.act(action);
            }
        }
        panic!("a pass does not end: {:?}", self.planned().actions);
    }

    pub fn settle(&mut self) {
        assert!(self.reconcile(usize::MAX));
    }

    pub fn find(&mut self, name: &str) -> Option<&mut Value> {
        self.runs.iter_mut().find(|run| run["metadata"]["name"] == *name)
    }

    pub fn end(&mut self, name: &str, succeeded: bool) {
        let status = if succeeded { "True" } else { "False" };
        let run = self.find(name).unwrap_or_else(|| panic!("there is no {name}"));
        run["status"] = json!({"conditions": [{"type": "Succeeded", "status": status}]});
    }

    pub fn end_all(&mut self) {
        for name in self.active() {
            self.end(&name, true);
        }
    }

    /// Names of runs that have not ended and do not wait.
    pub fn active(&self) -> Vec<String> {
        let facts = self.facts();
        facts.runs.iter().filter(|run| run.is_active() && !run.queued).map(|run| run.name.clone()).collect()
    }

    pub fn queued(&self) -> Vec<String> {
        self.facts().runs.iter().filter(|run| run.queued).map(|run| run.name.clone()).collect()
    }

    pub fn names(&self) -> Vec<String> {
        self.made.iter().map(|(name, _)| name.clone()).collect()
    }

    /// The Pipeline as a backup brings it back: another object, without status.
    pub fn restore(&mut self) {
        self.subject.uid.push('x');
        self.subject.generation = 1;
        self.subject.created = self.now;
        self.subject.status = Default::default();
    }
}

pub fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}
