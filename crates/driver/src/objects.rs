//! Objects in storage that steps name by their paths: looks at what is there when a task is handed over, and says what
//! follows from it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::facts::{Versions, View};
use super::run_engine::Engine;
use super::terms::storage;
use api::reason::Reason;
use api::step::IfExists;
use dask::Peer;
use dask::ops::{Item, Kept, LookAt, Seen, SeenObjects};
use engine::TaskId;
use lower::Plan;
use run_model::RunSpec;

/// Paths per message to the runtime, which makes a request to the storage for each.
const CHUNK: usize = 1000;

/// What becomes of a task about to be handed over.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meeting {
    /// Its code is called.
    Call,
    /// What is where its output would be kept is its output.
    Take,
    /// It fails, for this reason.
    Refuse(String),
}

/// Where the tasks of a run keep their outputs.
#[derive(Debug)]
pub(super) struct Objects {
    /// Steps of the run name objects.
    any: bool,
    /// Each path belongs to the first task that names it.
    kept: HashMap<String, TaskId>,
    /// What was at the paths of tasks about to be handed over.
    seen: HashMap<TaskId, Option<Seen>>,
}

/// Paths to be looked at.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// Their versions count.
    pub reads: Vec<String>,
    /// Where outputs of tasks would be kept.
    pub keeps: Vec<(String, TaskId)>,
}

impl Objects {
    pub fn new(plan: &Plan) -> Self {
        Self { any: plan.names_objects(), kept: HashMap::new(), seen: HashMap::new() }
    }

    /// Knows again which path a task of an earlier session has.
    pub fn restore(&mut self, plan: &Plan, task: TaskId, view: &View<'_>) {
        if let Ok(Some((path, _))) = plan.objects_of(task, view).map(|named| named.keeps) {
            self.kept.entry(path).or_insert(task);
        }
    }

    /// Looks at what the tasks about to be handed over name.
    pub async fn look(
        &mut self,
        peer: &Peer,
        spec: &RunSpec,
        tasks: &[TaskId],
        engine: &mut Engine<'_>,
    ) -> Result<(), dask::Error> {
        let Wanted { reads, keeps } = self.wanted(spec, tasks, &engine.view());
        engine.facts.versions.extend(versions(peer, spec, reads).await?);
        for keeps in keeps.chunks(CHUNK) {
            let asked: Vec<Kept<'_>> = keeps
                .iter()
                .map(|(path, task)| Kept { path, task: Item { step: task.step.0, item: task.item } })
                .collect();
            let seen = ask(peer, spec, &[], &asked).await?;
            self.saw(keeps.iter().map(|(_, task)| *task).zip(seen.keeps));
        }
        Ok(())
    }

    /// What has to be looked at before these tasks are handed over: what they read, if earlier outputs may be taken in their
    /// place, and where they keep their outputs, if it matters what is there.
    pub fn wanted(&mut self, spec: &RunSpec, tasks: &[TaskId], view: &View<'_>) -> Wanted {
        self.seen.clear();
        let mut wanted = Wanted::default();
        if !self.any {
            return wanted;
        }
        for task in tasks {
            // What is wrong with a path is told when the arguments are made.
            let Ok(named) = spec.plan.objects_of(*task, view) else { continue };
            if spec.reuse.missing {
                let paths = named.reads.into_iter().chain(named.keeps.iter().map(|(path, _)| path.clone()));
                wanted.reads.extend(paths.filter(|path| !view.facts.versions.contains_key(path)));
            }
            if let Some((path, if_exists)) = named.keeps
                && *self.kept.entry(path.clone()).or_insert(*task) == *task
                && if_exists != IfExists::Replace
            {
                wanted.keeps.push((path, *task));
            }
        }
        wanted.reads.sort();
        wanted.reads.dedup();
        wanted
    }

    /// What is where tasks would keep their outputs.
    pub fn saw(&mut self, seen: impl IntoIterator<Item = (TaskId, Option<Seen>)>) {
        self.seen.extend(seen);
    }

    /// What becomes of a task that [`look`](Self::look) has looked at.
    pub fn meet(&self, plan: &Plan, task: TaskId, view: &View<'_>) -> Meeting {
        if !self.any {
            return Meeting::Call;
        }
        let Ok(Some((path, if_exists))) = plan.objects_of(task, view).map(|named| named.keeps) else {
            return Meeting::Call;
        };
        if let Some(owner) = self.kept.get(&path).filter(|owner| **owner != task) {
            return Meeting::Refuse(format!("output.path: {}", plan.collides(*owner, task, &path)));
        }
        match (self.seen.get(&task), if_exists) {
            (Some(Some(_)), IfExists::Skip) => Meeting::Take,
            // What an attempt of this task has left is no other's: the next one finds it.
            (Some(Some(seen)), IfExists::Fail) if !seen.own => Meeting::Refuse(format!(
                "OutputExists: something is at {path} already, and ifExists of output.path is Fail; remove it, choose \
                 another path, or set ifExists: Replace or Skip"
            )),
            _ => Meeting::Call,
        }
    }
}

/// Makes sure that the runtime knows of objects, if the run names any, and learns the versions of those whose paths are
/// known before it begins.
pub(super) async fn before(peer: &Peer, spec: &RunSpec) -> Result<Versions, dask::Error> {
    if !spec.plan.names_objects() {
        return Ok(Versions::new());
    }
    if let Some(problem) = spec.plan.check_pins(&spec.storage.url) {
        return Err(refused(Reason::VersionNotFound, problem.to_string()));
    }
    let mut paths: BTreeSet<String> = spec.plan.pins().keys().cloned().collect();
    if spec.reuse.missing {
        paths.extend(spec.plan.known_paths());
    } else if paths.is_empty() {
        ask(peer, spec, &[], &[]).await?;
    }
    let versions = versions(peer, spec, paths).await?;
    match unpinned(&spec.plan, &versions) {
        Some(missing) => Err(refused(Reason::VersionNotFound, missing)),
        None => Ok(versions),
    }
}

/// Versions that a run fixes, by path.
pub(super) fn pins(spec: &RunSpec) -> BTreeMap<String, String> {
    spec.plan.pins().iter().map(|(path, pin)| (path.clone(), pin.version.clone())).collect()
}

/// Of the versions that are fixed one that is not there.
pub(super) fn unpinned(plan: &Plan, versions: &Versions) -> Option<String> {
    let (path, pin) = plan.pins().iter().find(|(path, _)| matches!(versions.get(*path), None | Some(None)))?;
    Some(format!("{}: there is no version {} of {path}, or it cannot be read", pin.at, pin.version))
}

fn refused(reason: Reason, message: String) -> dask::Error {
    dask::Error::Refused { op: "daskade-look", reason: reason.to_string(), message }
}

async fn versions(
    peer: &Peer,
    spec: &RunSpec,
    paths: impl IntoIterator<Item = String>,
) -> Result<Versions, dask::Error> {
    let mut paths: Vec<String> = paths.into_iter().collect();
    paths.sort();
    paths.dedup();
    let mut found = Versions::new();
    for paths in paths.chunks(CHUNK) {
        let asked: Vec<&str> = paths.iter().map(String::as_str).collect();
        let seen = ask(peer, spec, &asked, &[]).await?;
        found.extend(paths.iter().cloned().zip(seen.reads));
    }
    Ok(found)
}

async fn ask(peer: &Peer, spec: &RunSpec, reads: &[&str], keeps: &[Kept<'_>]) -> Result<SeenObjects, dask::Error> {
    let pins = pins(spec);
    let look = LookAt { run: &spec.uid, storage: storage(&spec.storage), reads, keeps, pins: &pins };
    let too_old = |what: &str| {
        refused(
            Reason::RuntimeVersion,
            format!("the runtime in the scheduler is of a release that does not know {what}"),
        )
    };
    match peer.call(&look).await {
        Err(dask::Error::UnknownOp { .. }) => Err(too_old("inputs and output.path")),
        Ok(seen) if !pins.is_empty() && !seen.pinned => Err(too_old("select.loadVersions")),
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::super::facts::Facts;
    use super::*;
    use ::engine::RunState;
    use engine::StepIx;
    use lower::{RunInfo, validate};

    fn plan(steps: Value) -> Plan {
        let flow = validate(&serde_json::from_value(json!({ "steps": steps })).unwrap(), "spec").unwrap();
        flow.bind(&Map::new(), &RunInfo { name: "r".into(), uid: "u".into() }).unwrap()
    }

    fn meet(if_exists: &str, seen: Option<Seen>) -> Meeting {
        let plan = plan(json!([{"name": "a", "call": "m:f", "output": {"path": "x.pkl", "ifExists": if_exists}}]));
        let task = TaskId::whole(StepIx(0));
        let (facts, state) = (Facts::default(), RunState::new(&plan.dag, 0));
        let mut objects = Objects::new(&plan);
        objects.seen.insert(task, seen);
        objects.meet(&plan, task, &View { facts: &facts, state: &state, dag: &plan.dag })
    }

    #[test]
    fn what_is_there_counts_as_the_step_says() {
        let seen = |own| Some(Seen { version: "v".into(), own });
        for if_exists in ["Fail", "Replace", "Skip"] {
            assert_eq!(meet(if_exists, None), Meeting::Call, "{if_exists}");
        }
        assert!(
            matches!(meet("Fail", seen(false)), Meeting::Refuse(why) if why.contains("x.pkl") && why.contains("Replace"))
        );
        assert_eq!(meet("Fail", seen(true)), Meeting::Call, "an earlier attempt of the same task wrote it");
        assert_eq!(meet("Replace", seen(false)), Meeting::Call);
        assert_eq!(meet("Skip", seen(false)), Meeting::Take);
    }

    #[test]
    fn a_path_belongs_to_the_first_task_that_names_it() {
        let plan = plan(json!([
            {"name": "names", "script": "output = ['a', 'a']"},
            {"name": "each", "call": "m:f", "map": {"x": "$(steps.names.result)"}, "output": {"path": "$(item.x).pkl"}}
        ]));
        let (names, each) = (TaskId::whole(StepIx(0)), |item| TaskId::item(StepIx(1), item));
        let (mut facts, mut state) = (Facts::default(), RunState::new(&plan.dag, 0));
        facts.finished(names, vec![2], Some(json!(["a", "a"]).into()));
        state.apply(&plan.dag, &engine::Event::MapLength { step: StepIx(1), len: 2 }, 0).unwrap();
        let view = View { facts: &facts, state: &state, dag: &plan.dag };
        let mut objects = Objects::new(&plan);
        objects.restore(&plan, each(0), &view);
        assert_eq!(objects.meet(&plan, each(0), &view), Meeting::Call);
        let refused = objects.meet(&plan, each(1), &view);
        assert!(matches!(&refused, Meeting::Refuse(why) if why.contains("items 0 and 1 of each")), "{refused:?}");
    }
}
