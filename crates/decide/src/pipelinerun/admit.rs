//! What is wrong with a run before it starts, and what is written down of it when nothing is.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::code::resolve;
use super::facts::Place;
use super::references::References;
use crate::cluster::facts::Issue;
use crate::cluster::{check_folder, check_shared, effective_groups, not_allowed, too_many_workers, validate_named};
use api::cluster::DaskClusterSpec;
use api::duration::Duration as Span;
use api::pipeline::{ClusterChoice, Deadlines, PipelineSpec};
use api::problem::Problem;
use api::reason::Reason;
use api::run::{PipelineRun, PipelineRunSpec};
use api::storage::Storage;
use manifest::Object;
use run_model::{Frozen, START_DEADLINE, run_deadlines};

/// Everything that a run is carried out from; it never changes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunRevision {
    /// What also stands in the run's journal.
    pub run: Frozen,
    pub place: Place,
    pub storage: Storage,
}

/// What became of a request to run.
#[derive(Debug)]
pub enum Admission {
    Ready(Box<RunRevision>),
    /// All that is wrong, each with object and field.
    Invalid(Vec<String>),
    /// An object that it names is not there yet; how long it waits for it.
    Waits(Issue, Span),
}

/// Checks a run, as JSON, and resolves what it refers to.
pub fn admit(object: &Value, world: &dyn References) -> Admission {
    let run = match read(object, "") {
        Ok(Object::PipelineRun(run)) => run,
        Ok(_) => return Admission::Invalid(vec!["it is no PipelineRun".to_owned()]),
        Err(problems) => return Admission::Invalid(problems),
    };
    let (name, uid) = (run.metadata.name.clone().unwrap_or_default(), run.metadata.uid.clone().unwrap_or_default());
    let (spec, at, told) = match pipeline_of(&run, world) {
        Ok(found) => found,
        Err(admission) => return admission,
    };
    // These fields are the run's own, whosever the others are.
    let own = |problem: &Problem| {
        ["spec.select", "spec.reuse", "spec.params"].iter().any(|path| problem.path.starts_with(path))
    };
    let prefixed = |problems: Vec<Problem>| {
        let texts = problems.iter().map(|p| if own(p) { p.to_string() } else { format!("{told}{p}") });
        texts.collect()
    };
    let limits = world.limits();
    let params: Map<String, Value> = run.spec.params.clone().into_iter().collect();
    let deadlines = run_deadlines(spec.deadlines.clone(), run.spec.deadlines.as_ref());
    let waits = |issue| Admission::Waits(issue, patience(deadlines.as_ref()));
    let mut problems = limits.check(&spec, &params, at);
    let code = match resolve(spec.code.as_ref(), at, world, &mut problems) {
        Ok(code) => code,
        Err(issue) => return waits(issue),
    };
    let placed = match place(&name, &spec, at, world, &mut problems) {
        Ok(placed) => placed,
        Err(issue) => return waits(issue),
    };
    let mut pipeline = PipelineSpec { cluster: placed.choice, code, ..spec };
    pipeline.deadlines = deadlines;
    // They mean nothing to one run.
    (pipeline.triggers, pipeline.schedule, pipeline.retention) = (None, None, None);
    let main = pipeline.steps.len();
    let frozen = Frozen {
        format: Frozen::FORMAT,
        uid,
        pipeline_name: Some(run.spec.pipeline_ref.clone().unwrap_or_else(|| name.clone())),
        name,
        pipeline,
        params,
        cluster: placed.spec.unwrap_or_default(),
        select: run.spec.select.clone(),
        reuse: run.spec.reuse.clone(),
    };
    match frozen.plan(at) {
        Ok(plan) => problems.extend(limits.check_steps(&plan, main, at)),
        Err(more) => problems.extend(more),
    }
    match placed.storage {
        Some(storage) if problems.is_empty() => {
            Admission::Ready(Box::new(RunRevision { run: frozen, place: placed.place, storage }))
        }
        _ => Admission::Invalid(prefixed(problems)),
    }
}

/// Name of the DaskCluster that a run is to use.
pub fn cluster(run: &PipelineRunSpec, world: &dyn References) -> Option<String> {
    if let Some(spec) = &run.pipeline_spec {
        return spec.cluster.as_ref()?.ref_.clone();
    }
    let pipeline = world.pipeline(run.pipeline_ref.as_deref()?)?;
    Some(pipeline.pointer("/spec/cluster/ref")?.as_str()?.to_owned())
}

/// How long a run waits for what it names: the time that it has to its first step, or to its end.
fn patience(deadlines: Option<&Deadlines>) -> Span {
    let (start, active) = deadlines.map_or((None, None), |deadlines| (deadlines.start, deadlines.active));
    let start = start.unwrap_or(Span::from_secs(START_DEADLINE.as_secs()));
    active.map_or(start, |active| start.min(active))
}

fn read(object: &Value, told: &str) -> Result<Object, Vec<String>> {
    let texts = |problems: Vec<Problem>| problems.iter().map(|problem| format!("{told}{problem}")).collect::<Vec<_>>();
    manifest::check_value(object).map_err(texts)
}

/// The pipeline, where its fields stand, and what to say before each of its problems.
fn pipeline_of(run: &PipelineRun, world: &dyn References) -> Result<(PipelineSpec, &'static str, String), Admission> {
    if let Some(spec) = &run.spec.pipeline_spec {
        return Ok((spec.clone(), "spec.pipelineSpec", String::new()));
    }
    let name = run.spec.pipeline_ref.as_deref().unwrap_or_default();
    let Some(found) = world.pipeline(name) else {
        let message = format!(
            "Pipeline \"{name}\" does not exist in the namespace (spec.pipelineRef); create it, and the run continues"
        );
        let issue = Issue::new(Reason::PipelineNotFound, message);
        return Err(Admission::Waits(issue, patience(run.spec.deadlines.as_ref())));
    };
    let told = format!("Pipeline {name}: ");
    match read(&found, &told) {
        Ok(Object::Pipeline(pipeline)) => Ok((pipeline.spec.clone(), "spec", told)),
        Ok(_) => Err(Admission::Invalid(vec![format!("{told}it is no Pipeline")])),
        Err(problems) => Err(Admission::Invalid(problems)),
    }
}

/// Where the run will run.
struct Placed {
    place: Place,
    /// What the pipeline's `cluster` becomes: its groups are what steps are checked against.
    choice: Option<ClusterChoice>,
    spec: Option<DaskClusterSpec>,
    storage: Option<Storage>,
}

fn place(
    name: &str,
    spec: &PipelineSpec,
    at: &str,
    world: &dyn References,
    problems: &mut Vec<Problem>,
) -> Result<Placed, Issue> {
    if let Some(path) = spec.code.as_ref().and_then(|code| code.path.as_ref()) {
        let message = format!("the operator does not see the folder {path}, which is beside the manifest");
        let problem = Problem::new(Reason::InvalidValue, format!("{at}.code.path"), message);
        problems
            .push(problem.help("put the modules into code.files, code.configMap, an archive (code.url) or the image"));
    }
    problems.extend(check_shared(spec, at));
    let choice = spec.cluster.clone().unwrap_or_default();
    if let Some(address) = &choice.address {
        return Ok(outside(address, &choice, spec, at, world, problems));
    }
    if let Some(cluster) = &choice.ref_ {
        let Some(found) = world.cluster(cluster) else {
            let message = format!(
                "DaskCluster \"{cluster}\" does not exist in the namespace ({at}.cluster.ref); create it, and the run \
                 continues"
            );
            return Err(Issue::new(Reason::ClusterNotFound, message));
        };
        let storage = spec.storage.clone().or_else(|| found.storage.clone());
        if storage.is_none() {
            let message = format!("the DaskCluster {cluster} has no storage and the pipeline names none");
            let problem = Problem::new(Reason::MissingField, format!("{at}.storage"), message);
            problems.push(problem.help("say where outputs and journal go: storage: {url: \"s3://bucket/prefix\"}"));
        }
        if let Some(storage) = &spec.storage {
            let volumes = format!("spec.scheduler.volumes, spec.workers[*].volumes of the DaskCluster {cluster}");
            problems.extend(check_folder(&found, &storage.url, &format!("{at}.storage.url"), &volumes));
        }
        let choice = ClusterChoice { template: Some(found.clone()), ..ClusterChoice::default() };
        return Ok(Placed { place: Place::Shared(cluster.clone()), choice: Some(choice), spec: Some(found), storage });
    }
    let mut made = choice.template.unwrap_or_default();
    let template = format!("{at}.cluster.template");
    // The pipeline's own storage goes before the template's, and is told of where it stands.
    made.storage = made.storage.filter(|_| spec.storage.is_none());
    problems.extend(validate_named(name, &made, &template));
    problems.extend(too_many_workers(&made, world.most_workers(), &template));
    if let Some(storage) = &spec.storage {
        let volumes = format!("{template}.scheduler.volumes, {template}.workers[*].volumes");
        problems.extend(check_folder(&made, &storage.url, &format!("{at}.storage.url"), &volumes));
        made.storage = Some(storage.clone());
    }
    made.storage = made.storage.or_else(|| world.storage());
    let storage = made.storage.clone();
    if storage.is_none() {
        let message = "a run in Kubernetes needs a storage, and the operator has no default";
        let problem = Problem::new(Reason::MissingField, format!("{at}.storage"), message);
        problems.push(problem.help("say where outputs and journal go: storage: {url: \"s3://bucket/prefix\"}"));
    }
    made.workers = effective_groups(&made);
    let choice = ClusterChoice { template: Some(made.clone()), ..ClusterChoice::default() };
    Ok(Placed { place: Place::Own, choice: Some(choice), spec: Some(made), storage })
}

/// On a scheduler that is no DaskCluster.
fn outside(
    address: &str,
    choice: &ClusterChoice,
    spec: &PipelineSpec,
    at: &str,
    world: &dyn References,
    problems: &mut Vec<Problem>,
) -> Placed {
    let secret = choice.tls.as_ref().and_then(|tls| tls.secret_ref.clone());
    if !world.allows(address) {
        problems.push(not_allowed(address, at));
    }
    let place = Place::Address { address: address.to_owned(), secret };
    Placed { place, choice: Some(choice.clone()), spec: None, storage: spec.storage.clone() }
}
