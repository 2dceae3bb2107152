//! `submit`: a run by hand.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use kube::api::{DynamicObject, PostParams};
use serde_json::{Map, Value, json};

use super::connection::{Connection, failed};
use super::show;
use crate::cli::options::{Output, SubmitOptions};
use crate::cli::{Failure, request, validate};
use api::names::{OBJECT_NAME_MAX, check_label};
use api::pipeline::{Code, PipelineSpec};
use api::problem::Problem;
use api::reason::Reason;
use api::run::{PipelineRunSpec, Retention, Select};
use api::{API_VERSION, PipelineRun};
use decide::pipeline::{PIPELINE_LABEL, TRIGGER_LABEL};
use local::packing;
use manifest::Object;

/// Bytes of code that a run carries: an object of Kubernetes holds 1.5 MiB, and the run's code is in two.
const MOST_CODE: u64 = 1 << 20;
/// Characters that tell runs of one pipeline apart.
const SUFFIX: usize = 5;

/// Makes a PipelineRun, tells its name, and waits for its end if asked to.
pub(in crate::cli) async fn submit(options: SubmitOptions) -> Result<(), Failure> {
    let connection = Connection::open(&options.kube).await?;
    let is_file = options.what == "-" || Path::new(&options.what).exists();
    let run = if is_file { of_file(&options)? } else { of_cluster(&connection, &options).await? };
    make(&connection, run, options.wait, options.output).await
}

/// Makes a PipelineRun, tells its name, and with `wait` follows it to its end.
pub(super) async fn make(connection: &Connection, run: Value, wait: bool, output: Output) -> Result<(), Failure> {
    let name = run["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let object: DynamicObject =
        serde_json::from_value(run).map_err(|error| Failure::environment(format!("make the run: {error}")))?;
    let made = connection.runs().create(&PostParams::default(), &object).await;
    made.map_err(|error| failed(&format!("make the run {name} in {}", connection.namespace), &error))?;
    if wait {
        return show::follow(connection, &name, output, true).await;
    }
    let mut out = io::stdout().lock();
    match output {
        Output::Text => writeln!(out, "{name}")?,
        Output::Json => writeln!(out, "{:#}", json!({"name": name, "namespace": connection.namespace}))?,
    }
    Ok(())
}

/// A run of a Pipeline that is in the cluster.
async fn of_cluster(connection: &Connection, options: &SubmitOptions) -> Result<Value, Failure> {
    let wanted = &options.what;
    let Some(found) = connection.pipeline(wanted).await? else {
        let place = &connection.namespace;
        return Err(Failure::bad_input(format!(
            "there is no file {wanted}, and no Pipeline {wanted} in the namespace {place}"
        )));
    };
    let spec: PipelineSpec = serde_json::from_value(found["spec"].clone())
        .map_err(|error| Failure::bad_input(format!("Pipeline {wanted}: spec: {error}")))?;
    let params = given(options, &spec, Map::new())?;
    told(&format!("Pipeline {wanted}"), lower::check(&spec, "spec", Some(params.clone())))?;
    let mut run = named(options, wanted)?;
    let (select, reuse) = request::part(&options.part, None);
    told(&format!("Pipeline {wanted}"), check_part(&spec, &params, select.as_ref()))?;
    let params = params.into_iter().collect();
    run["spec"] = json!(PipelineRunSpec {
        pipeline_ref: Some(wanted.clone()),
        params,
        select,
        reuse,
        ..PipelineRunSpec::default()
    });
    keep(&mut run, spec.retention.as_ref());
    Ok(run)
}

/// What the run stores is kept as long as its Pipeline says.
fn keep(run: &mut Value, retention: Option<&Retention>) {
    if let Some(retention) = retention {
        run["spec"]["retention"] = json!(retention);
    }
}

/// The run of a file, or a run of the one Pipeline in it, which need not be in the cluster.
fn of_file(options: &SubmitOptions) -> Result<Value, Failure> {
    let reading = manifest::read(&[options.what.clone().into()], &mut io::stdin().lock());
    if !reading.problems.is_empty() {
        let mut lines: Vec<String> = reading.problems.iter().map(ToString::to_string).collect();
        lines.extend(validate::further(&reading));
        return Err(Failure::bad_input(lines.join("\n")));
    }
    let file = &options.what;
    let is_one = |object: &&manifest::Loaded| !matches!(object.object, Object::DaskCluster(_));
    let objects: Vec<&manifest::Loaded> = reading.objects.iter().filter(is_one).collect();
    let runs = objects.iter().filter(|item| matches!(item.object, Object::PipelineRun(_)));
    let chosen = match (&objects[..], &runs.collect::<Vec<_>>()[..]) {
        (_, [run]) => run,
        ([one], _) => one,
        ([], _) => return Err(Failure::bad_input(format!("{file}: there is no Pipeline and no PipelineRun in it"))),
        _ => {
            let names: Vec<&str> = objects.iter().map(|item| item.object.name()).collect();
            return Err(Failure::bad_input(format!(
                "{file}: it holds several ({}); give a file with one",
                names.join(", ")
            )));
        }
    };
    match &chosen.object {
        Object::Pipeline(object) => {
            let name = object.metadata.name.clone().unwrap_or_default();
            let mut spec = PipelineSpec { triggers: None, schedule: None, retention: None, ..object.spec.clone() };
            told(file, bring_code(&mut spec, "spec", chosen))?;
            let params = given(options, &spec, Map::new())?;
            told(file, lower::check(&spec, "spec", Some(params.clone())))?;
            let mut run = named(options, &name)?;
            let (select, reuse) = request::part(&options.part, None);
            told(file, check_part(&spec, &params, select.as_ref()))?;
            let (pipeline_spec, params) = (Some(spec), params.into_iter().collect());
            run["spec"] = json!(PipelineRunSpec { pipeline_spec, params, select, reuse, ..PipelineRunSpec::default() });
            keep(&mut run, object.spec.retention.as_ref());
            Ok(run)
        }
        Object::PipelineRun(object) => of_run(options, object, chosen),
        Object::DaskCluster(_) => Err(Failure::bad_input(format!("{file}: a DaskCluster cannot be run"))),
    }
}

/// Puts a folder beside the manifest into the run, since nobody in the cluster sees it.
fn bring_code(spec: &mut PipelineSpec, at: &str, chosen: &manifest::Loaded) -> Vec<Problem> {
    let Some(path) = spec.code.as_ref().and_then(|code| code.path.clone()) else { return Vec::new() };
    let at = format!("{at}.code.path");
    let folder = chosen.file.parent().unwrap_or(Path::new(""));
    let found = match packing::read_path(&folder.join(path), MOST_CODE) {
        Ok(found) => found,
        Err(error) => return vec![Problem::new(Reason::InvalidValue, at, format!("failed to {error}"))],
    };
    let mut files = BTreeMap::new();
    let mut problems = Vec::new();
    for (name, bytes) in found {
        match String::from_utf8(bytes) {
            Ok(text) => drop(files.insert(name, text)),
            Err(_) => {
                let problem = Problem::new(Reason::InvalidValue, &at, format!("the file {name} is no text"));
                problems.push(problem.help("a run carries text only: put the file into the image or on S3"));
            }
        }
    }
    spec.code = Some(Code { files: Some(files), ..Code::default() });
    problems
}

fn of_run(options: &SubmitOptions, object: &PipelineRun, chosen: &manifest::Loaded) -> Result<Value, Failure> {
    let file = &options.what;
    let mut spec = object.spec.clone();
    if let Some(inline) = &mut spec.pipeline_spec {
        told(file, bring_code(inline, "spec.pipelineSpec", chosen))?;
    }
    let known = spec.pipeline_spec.clone().unwrap_or_default();
    let params = given(options, &known, spec.params.clone().into_iter().collect())?;
    if spec.pipeline_spec.is_some() {
        told(file, lower::check(&known, "spec.pipelineSpec", Some(params.clone())))?;
    }
    (spec.select, spec.reuse) = request::part(&options.part, Some(&spec));
    if spec.pipeline_spec.is_some() {
        told(file, check_part(&known, &params, spec.select.as_ref()))?;
    }
    spec.params = params.into_iter().collect();
    let base = spec.pipeline_ref.clone().or_else(|| object.metadata.name.clone());
    let mut run = named(options, &base.unwrap_or_else(|| "run".to_owned()))?;
    if let (None, Some(name)) = (&options.name, &object.metadata.name) {
        run["metadata"]["name"] = json!(name);
    }
    if spec.pipeline_ref.is_none()
        && let Some(labels) = run["metadata"]["labels"].as_object_mut()
    {
        labels.remove(PIPELINE_LABEL);
    }
    run["spec"] = json!(spec);
    Ok(run)
}

/// What is wrong with a selection of a pipeline that is free of mistakes otherwise.
fn check_part(spec: &PipelineSpec, params: &Map<String, Value>, select: Option<&Select>) -> Vec<Problem> {
    let Some(select) = select else { return Vec::new() };
    let run = lower::RunInfo { name: "run".to_owned(), uid: uuid::Uuid::nil().to_string() };
    let plan = lower::validate(spec, "spec").and_then(|flow| flow.bind(params, &run));
    plan.and_then(|plan| plan.select(select, "spec.select")).err().unwrap_or_default()
}

/// Parameters: those of the manifest, of the file, then of the command line.
fn given(
    options: &SubmitOptions,
    spec: &PipelineSpec,
    mut params: Map<String, Value>,
) -> Result<Map<String, Value>, Failure> {
    request::read_params(&options.params, options.params_file.as_deref(), spec, &mut params)?;
    Ok(params)
}

/// The run without its spec: `--name`, or the pipeline's name with characters of its own.
fn named(options: &SubmitOptions, pipeline: &str) -> Result<Value, Failure> {
    let name = match &options.name {
        Some(name) => {
            check_label(name, OBJECT_NAME_MAX).map_err(|error| {
                let form = "a name has lower-case letters, digits and dashes, and begins with a letter";
                Failure::bad_input(format!("--name: `{name}` {error} ({form}; {OBJECT_NAME_MAX} characters at most)"))
            })?;
            name.clone()
        }
        None => {
            let own = uuid::Uuid::new_v4().simple().to_string();
            let head = pipeline.get(..OBJECT_NAME_MAX - SUFFIX - 1).unwrap_or(pipeline).trim_end_matches('-');
            format!("{head}-{}", &own[..SUFFIX])
        }
    };
    Ok(json!({
        "apiVersion": API_VERSION,
        "kind": "PipelineRun",
        "metadata": {"name": name, "labels": {PIPELINE_LABEL: pipeline, TRIGGER_LABEL: "manual"}},
    }))
}

fn told(place: &str, problems: Vec<Problem>) -> Result<(), Failure> {
    if problems.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = problems.iter().map(|problem| format!("{place}: {problem}")).collect();
    Err(Failure::bad_input(lines.join("\n")))
}
