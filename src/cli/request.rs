//! From manifests and options to one run: which pipeline, which parameters, which workers, which storage.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::options::{ClusterOptions, PartOptions, StorageOptions, WantedOptions};
use super::{Failure, validate};
use api::cluster::DaskClusterSpec;
use api::pipeline::{ClusterChoice, Deadlines, PipelineSpec};
use api::run::{PipelineRunSpec, Reuse, ReuseMode, Select};
use decide::cluster;
use local::GroupSpec;
use local::home::{Home, StorageNote};
use local::packing;
use lower::Plan;
use manifest::{Loaded, Object};
use run_model::archive;
use run_model::{CodeSource, Frozen, run_deadlines};

/// A run that was asked for, checked, with its code.
pub(super) struct Request {
    pub frozen: Frozen,
    pub plan: Plan,
    pub code: CodeSource,
}

/// Lowers a specification; all problems in one message, each with `place`, where it was read.
pub(super) fn plan(frozen: &Frozen, place: &str) -> Result<Plan, Failure> {
    frozen.plan("spec").map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(|problem| format!("{place}: {problem}")).collect();
        Failure::bad_input(lines.join("\n"))
    })
}

/// The specification as the journal keeps it, and its digest.
pub(super) fn written(frozen: &Frozen) -> Result<(Vec<u8>, String), Failure> {
    frozen.to_bytes().map_err(|error| Failure::environment(format!("write down the run's specification: {error}")))
}

/// Reads the manifests and makes the run that `options` ask for.
pub(super) fn request(options: &WantedOptions) -> Result<Request, Failure> {
    let reading = manifest::read(&options.files, &mut io::stdin().lock());
    if !reading.problems.is_empty() {
        let mut lines: Vec<String> = reading.problems.iter().map(ToString::to_string).collect();
        lines.extend(validate::further(&reading));
        return Err(Failure::bad_input(lines.join("\n")));
    }
    let loaded = reading.objects;
    let mut problems = Vec::new();
    for object in &loaded {
        for problem in manifest::not_local(&object.object) {
            problems.push(format!("{} (document {}): {problem}", object.file.display(), object.document));
        }
    }
    if !problems.is_empty() {
        return Err(Failure::bad_input(problems.join("\n")));
    }
    let chosen = choose(&loaded, options.pipeline.as_deref())?;
    let folder = chosen.file.parent().map(Path::to_owned).unwrap_or_default();
    let mut spec = chosen.spec.clone();
    if let Some(address) = &options.cluster.address {
        // What the workers there offer is not known here, whatever the manifest says of a cluster of its own.
        spec.cluster = Some(ClusterChoice { address: Some(address.clone()), ..ClusterChoice::default() });
    }
    let cluster = local_cluster(&spec, &loaded, &options.cluster)?;
    // Requests are checked against the workers that will run.
    if let Some(choice) = spec.cluster.as_mut().filter(|choice| choice.address.is_none()) {
        choice.ref_ = None;
        choice.template = Some(cluster.clone());
    }
    if options.cluster.ignore_resources {
        for step in spec.steps.iter_mut().chain(spec.finally.iter_mut()) {
            step.resources.clear();
            step.worker_group = None;
        }
    }
    spec.deadlines = run_deadlines(spec.deadlines, chosen.deadlines);
    let mut params = chosen.params.clone();
    read_params(&options.params, options.params_file.as_deref(), &spec, &mut params)?;
    let code = pack_code(&spec, &folder)?;
    let place = format!("{}: Pipeline {}", chosen.file.display(), chosen.name);
    let name = options.name.clone().unwrap_or_else(|| chosen.name.clone());
    let (select, reuse) = part(&options.part, chosen.run);
    let frozen = Frozen {
        format: Frozen::FORMAT,
        uid: uuid::Uuid::new_v4().to_string(),
        name,
        pipeline: spec,
        params,
        cluster,
        pipeline_name: Some(chosen.pipeline.clone()),
        select,
        reuse,
    };
    let plan = plan(&frozen, &place)?;
    Ok(Request { frozen, plan, code })
}

/// The part of the pipeline that runs, and what it takes from earlier runs: options go before fields of the run.
pub(super) fn part(options: &PartOptions, run: Option<&PipelineRunSpec>) -> (Option<Select>, Option<Reuse>) {
    let mut select = run.and_then(|run| run.select.clone()).unwrap_or_default();
    let given = |field: &mut Vec<String>, option: &Vec<String>| {
        if !option.is_empty() {
            field.clone_from(option);
        }
    };
    given(&mut select.only, &options.only);
    given(&mut select.from, &options.from);
    given(&mut select.to, &options.to);
    given(&mut select.from_inputs, &options.from_inputs);
    given(&mut select.tags, &options.tags);
    select.load_versions.extend(options.load_versions.iter().cloned());
    let select = (select != Select::default()).then_some(select);
    let mut reuse = run.and_then(|run| run.reuse.clone()).unwrap_or_default();
    if options.reuse_run.is_some() {
        reuse.run.clone_from(&options.reuse_run);
    }
    // To name a run and to take nothing from it cannot be meant.
    if options.reuse || (options.reuse_run.is_some() && select.is_none()) {
        reuse.mode = Some(ReuseMode::Missing);
    }
    (select, (reuse != Reuse::default()).then_some(reuse))
}

struct Chosen<'a> {
    name: String,
    /// Name of the pipeline.
    pipeline: String,
    run: Option<&'a PipelineRunSpec>,
    file: PathBuf,
    spec: &'a PipelineSpec,
    params: Map<String, Value>,
    /// Those of the run.
    deadlines: Option<&'a Deadlines>,
}

fn choose<'a>(loaded: &'a [Loaded], wanted: Option<&str>) -> Result<Chosen<'a>, Failure> {
    let mut candidates: Vec<Chosen<'a>> = Vec::new();
    for item in loaded {
        if let Object::Pipeline(pipeline) = &item.object {
            let name = pipeline.metadata.name.clone().unwrap_or_default();
            let file = item.file.clone();
            let (pipeline, spec) = (name.clone(), &pipeline.spec);
            candidates.push(Chosen { name, pipeline, run: None, file, spec, params: Map::new(), deadlines: None });
        }
    }
    // A PipelineRun in the files says with which parameters to run; it stands for its pipeline.
    for item in loaded {
        let Object::PipelineRun(run) = &item.object else { continue };
        let params: Map<String, Value> = run.spec.params.clone().into_iter().collect();
        let name = run.metadata.name.clone().unwrap_or_default();
        let deadlines = run.spec.deadlines.as_ref();
        if let Some(spec) = &run.spec.pipeline_spec {
            let (pipeline, file) = (name.clone(), item.file.clone());
            candidates.push(Chosen { name, pipeline, run: Some(&run.spec), file, spec, params, deadlines });
        } else if let Some(reference) = &run.spec.pipeline_ref {
            let Some(at) = candidates.iter().position(|candidate| candidate.name == *reference) else {
                return Err(Failure::bad_input(format!(
                    "{}: spec.pipelineRef: PipelineNotFound: there is no Pipeline {reference} in the manifests",
                    item.file.display()
                )));
            };
            candidates[at].params = params;
            candidates[at].run = Some(&run.spec);
            candidates[at].deadlines = deadlines;
        }
    }
    let names: Vec<String> = candidates.iter().map(|candidate| candidate.name.clone()).collect();
    if let Some(wanted) = wanted {
        let found = candidates.into_iter().find(|candidate| candidate.name == wanted);
        return found.ok_or_else(|| {
            let near = api::problem::nearest(wanted, names.iter().map(String::as_str));
            let hint = near.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
            Failure::bad_input(format!("--pipeline: there is no pipeline {wanted} in the manifests{hint}"))
        });
    }
    match candidates.len() {
        1 => Ok(candidates.remove(0)),
        0 => Err(Failure::bad_input("the manifests hold no Pipeline")),
        _ => Err(Failure::bad_input(format!(
            "the manifests hold several pipelines ({}); choose one by --pipeline NAME",
            names.join(", ")
        ))),
    }
}

fn local_cluster(spec: &PipelineSpec, loaded: &[Loaded], options: &ClusterOptions) -> Result<DaskClusterSpec, Failure> {
    let choice = spec.cluster.as_ref();
    let mut wanted = match choice.and_then(|choice| choice.ref_.as_ref()) {
        None => choice.and_then(|choice| choice.template.clone()).unwrap_or_default(),
        Some(name) => loaded
            .iter()
            .find_map(|item| match &item.object {
                Object::DaskCluster(cluster) if cluster.metadata.name.as_ref() == Some(name) => {
                    Some(cluster.spec.clone())
                }
                _ => None,
            })
            .ok_or_else(|| {
                Failure::bad_input(format!(
                    "spec.cluster.ref: ClusterNotFound: there is no DaskCluster {name} in the manifests; a local run \
                     takes its worker groups from there (or use --address)"
                ))
            })?,
    };
    wanted.workers = cluster::effective_groups(&wanted);
    for text in &options.workers {
        let parsed = text.split_once('=').and_then(|(name, n)| n.parse::<u32>().ok().map(|n| (name, n)));
        let Some((name, replicas)) = parsed.filter(|(_, n)| *n <= 1000) else {
            return Err(Failure::bad_input(format!("--workers {text}: write GROUP=N, for example cpu=4")));
        };
        let names: Vec<String> = wanted.workers.iter().map(|group| group.name.clone()).collect();
        let Some(group) = wanted.workers.iter_mut().find(|group| group.name == name) else {
            return Err(Failure::bad_input(format!(
                "--workers {text}: there is no worker group {name}; the groups are {}",
                names.join(", ")
            )));
        };
        group.replicas = Some(replicas);
        group.autoscale = None;
    }
    Ok(wanted)
}

/// The worker processes of a local run.
pub(super) fn groups(spec: &DaskClusterSpec) -> Vec<GroupSpec> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    spec.workers
        .iter()
        .map(|group| {
            let scaled = group.autoscale.as_ref().map(|scale| scale.min.unwrap_or(0).max(1).min(scale.max));
            // Two at least, so that the loss of one does not stop the run.
            let replicas = group.replicas.or(scaled).unwrap_or(cores.clamp(2, 8));
            GroupSpec {
                name: group.name.clone(),
                replicas,
                threads: cluster::threads(group),
                resources: cluster::offers(group),
                memory_limit: cluster::memory_bytes(group),
                env: group.env.iter().filter_map(|e| e.value.clone().map(|value| (e.name.clone(), value))).collect(),
            }
        })
        .collect()
}

/// Adds the parameters of a file, then those of the command line, to `params`.
pub(super) fn read_params(
    texts: &[String],
    file: Option<&Path>,
    spec: &PipelineSpec,
    params: &mut Map<String, Value>,
) -> Result<(), Failure> {
    if let Some(file) = file {
        let bad = |cause: String| Failure::bad_input(format!("--params-file {}: {cause}", file.display()));
        let text = fs::read_to_string(file).map_err(|error| bad(error.to_string()))?;
        match manifest::read_value(&text).map_err(bad)? {
            Value::Object(map) => params.extend(map),
            _ => return Err(bad("it must hold a mapping of names to values".into())),
        }
    }
    for text in texts {
        let Some((name, value)) = text.split_once('=') else {
            return Err(Failure::bad_input(format!("--param {text}: write NAME=VALUE")));
        };
        let value = match spec.params.iter().find(|param| param.name == name) {
            Some(param) => lower::read_parameter(param, value)
                .map_err(|problem| Failure::bad_input(format!("--param {text}: {problem}")))?,
            // The check of all parameters says that there is no such one, and which there are.
            None => Value::String(value.to_owned()),
        };
        params.insert(name.to_owned(), value);
    }
    Ok(())
}

/// The archive of a pipeline whose code is one: nothing is packed here.
pub(super) fn archive(spec: &PipelineSpec) -> Option<CodeSource> {
    let code = spec.code.as_ref()?;
    Some(CodeSource::Archive { url: code.url.clone()?, sha256: code.sha256.clone() })
}

fn pack_code(spec: &PipelineSpec, folder: &Path) -> Result<CodeSource, Failure> {
    if let Some(archive) = archive(spec) {
        return Ok(archive);
    }
    let packed = match &spec.code {
        None => archive::pack_files(&BTreeMap::new()),
        Some(code) => match (&code.files, &code.path) {
            (Some(files), _) => archive::pack_files(files),
            (None, Some(path)) => packing::pack_path(&folder.join(path)),
            (None, None) => archive::pack_files(&BTreeMap::new()),
        },
    };
    packed.map(CodeSource::Packed).map_err(|error| Failure::bad_input(format!("spec.code: failed to {error}")))
}

/// Where the run is kept: options first, then the manifest, then the folder of this user.
pub(super) fn storage(
    options: &StorageOptions,
    spec: Option<&PipelineSpec>,
    noted: Option<&StorageNote>,
    home: &Home,
) -> Result<StorageNote, Failure> {
    let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let manifest = spec.and_then(|spec| {
        let template = spec.cluster.as_ref().and_then(|choice| choice.template.as_ref());
        spec.storage.as_ref().or_else(|| template.and_then(|template| template.storage.as_ref()))
    });
    let mut note = match (&options.storage, noted, manifest) {
        (Some(text), _, _) => StorageNote { url: given_storage(text)?, endpoint: None, region: None },
        (None, Some(noted), _) => noted.clone(),
        (None, None, Some(storage)) => {
            StorageNote { url: storage.url.clone(), endpoint: storage.endpoint.clone(), region: storage.region.clone() }
        }
        (None, None, None) => StorageNote { url: storage_url(&home.default_storage())?, endpoint: None, region: None },
    };
    store::check_url(&note.url).map_err(|error| Failure::bad_input(format!("{}: {error}", error.reason())))?;
    if note.url.starts_with("s3://") {
        let endpoint = options.storage_endpoint.clone();
        note.endpoint = endpoint
            .or(note.endpoint)
            .or_else(|| environment("AWS_ENDPOINT_URL_S3"))
            .or_else(|| environment("AWS_ENDPOINT_URL"));
        let region = options.storage_region.clone();
        note.region =
            region.or(note.region).or_else(|| environment("AWS_REGION")).or_else(|| environment("AWS_DEFAULT_REGION"));
    }
    Ok(note)
}

/// A URL, or a folder as people write it.
fn given_storage(text: &str) -> Result<String, Failure> {
    let Some((scheme, rest)) = text.split_once("://") else {
        let path = std::path::absolute(text)
            .map_err(|error| Failure::bad_input(format!("--storage {text}: not a folder: {error}")))?;
        return storage_url(&path);
    };
    let rest = if rest == "/" { rest } else { rest.trim_end_matches('/') };
    Ok(format!("{scheme}://{rest}"))
}

fn storage_url(path: &Path) -> Result<String, Failure> {
    let url = store::folder_url(path);
    url.ok_or_else(|| Failure::bad_input(format!("{}: not the path of a folder", path.display())))
}
