//! `retry` for runs in Kubernetes: another run of what one that failed or was cancelled was made of, which takes over what that
//! one has committed.

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::Api;
use serde_json::{Map, Value, json};

use super::connection::{Connection, failed};
use super::show::{ended, field, pipeline, state};
use super::submit;
use crate::cli::Failure;
use crate::cli::options::RetryOptions;
use api::API_VERSION;
use api::names::{OBJECT_NAME_MAX, check_label};
use decide::pipeline::{PIPELINE_LABEL, TRIGGER_LABEL};

/// What stands between the name of a run and the characters that tell its retries apart.
const MARK: &str = "-retry-";
const SUFFIX: usize = 5;
/// Fields of a run's own that another one of the same has too.
const OWN: [&str; 5] = ["params", "select", "deadlines", "ttlAfterFinished", "retention"];

/// Makes the run, tells its name, and waits for its end if asked to.
pub(in crate::cli) async fn retry(options: RetryOptions) -> Result<(), Failure> {
    let connection = Connection::open(&options.kube).await?;
    let run = connection.run(&options.run).await?;
    check(&run)?;
    let name = name(&options)?;
    let mut spec = of_what(&connection, &run).await?;
    for field in OWN {
        if let Some(value) = run["spec"].get(field) {
            spec.insert(field.to_owned(), value.clone());
        }
    }
    // A run of a part has loaded outputs that it did not make: it goes by its own spec again.
    let reuse = match run.pointer("/spec/select") {
        Some(_) => run.pointer("/spec/reuse").cloned(),
        None => Some(json!({"mode": "Missing", "run": run["metadata"]["uid"]})),
    };
    spec.extend(reuse.map(|reuse| ("reuse".to_owned(), reuse)));
    let mut labels = Map::from_iter([(TRIGGER_LABEL.to_owned(), json!("manual"))]);
    if !pipeline(&run).is_empty() {
        labels.insert(PIPELINE_LABEL.to_owned(), json!(pipeline(&run)));
    }
    let run = json!({
        "apiVersion": API_VERSION,
        "kind": "PipelineRun",
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
    });
    submit::make(&connection, run, options.wait, options.output).await
}

/// Whether there is something to go on from.
fn check(run: &Value) -> Result<(), Failure> {
    let name = field(run, "/metadata/name");
    let submit = match pipeline(run) {
        "" => "daskade submit FILE".to_owned(),
        pipeline => format!("daskade submit {pipeline}"),
    };
    let why = match ended(run) {
        None => format!(
            "{name} has not ended ({}): daskade resume --kube {name} resumes a suspended run, daskade cancel {name} \
             ends it",
            state(run)
        ),
        Some(true) => format!("{name} has succeeded, there is nothing to retry; for another run: {submit}"),
        Some(false) if field(run, "/status/startedAt").is_empty() => {
            format!("{name} never started, so there is nothing to reuse; for another run: {submit}")
        }
        Some(false) => match removed(run) {
            "" => return Ok(()),
            at => format!("what {name} had stored was removed at {at} by spec.retention; for another run: {submit}"),
        },
    };
    Err(Failure::bad_input(why))
}

/// When outputs or journal were removed.
fn removed(run: &Value) -> &str {
    let times = ["/status/removed/outputsAt", "/status/removed/logsAt"].map(|path| field(run, path));
    times.into_iter().find(|at| !at.is_empty()).unwrap_or_default()
}

/// What the run was made of: as it was written down when it began, whatever has become of the Pipeline since.
async fn of_what(connection: &Connection, run: &Value) -> Result<Map<String, Value>, Failure> {
    let revision = field(run, "/status/revision");
    let revisions: Api<ControllerRevision> = connection.typed();
    let data = match revisions.get_opt(revision).await {
        Ok(found) => found.and_then(|found| found.data).map(|data| data.0),
        // What stands in the run itself may be read.
        Err(kube::Error::Api(status)) if status.code == 403 && run.pointer("/spec/pipelineSpec").is_some() => None,
        Err(error) => return Err(failed(&format!("read the ControllerRevision {revision}"), &error)),
    };
    let spec = match (data.as_ref().and_then(written), run.pointer("/spec/pipelineSpec")) {
        (Some(written), _) => written,
        (None, Some(spec)) => spec.clone(),
        (None, None) => {
            let name = field(run, "/metadata/name");
            return Err(Failure::bad_input(format!(
                "what {name} was made of is gone (ControllerRevision {revision}); for another run: daskade submit {}",
                pipeline(run)
            )));
        }
    };
    Ok(Map::from_iter([("pipelineSpec".to_owned(), spec)]))
}

/// The pipeline that was written down, on the cluster that it named: the groups of one that others run are copied into it.
fn written(data: &Value) -> Option<Value> {
    let mut spec = data.pointer("/run/pipeline").filter(|spec| spec.is_object())?.clone();
    if let Some(shared) = data.pointer("/place/shared") {
        spec["cluster"] = json!({"ref": shared});
    }
    Some(spec)
}

/// `--name`, or that of the run with characters of its own; retries of a retry have no longer one.
fn name(options: &RetryOptions) -> Result<String, Failure> {
    if let Some(name) = &options.name {
        check_label(name, OBJECT_NAME_MAX).map_err(|error| Failure::bad_input(format!("--name: `{name}` {error}")))?;
        return Ok(name.clone());
    }
    let run = options.run.as_str();
    let head = run.rsplit_once(MARK).filter(|(_, end)| end.len() == SUFFIX).map_or(run, |(head, _)| head);
    let head = head.get(..OBJECT_NAME_MAX - MARK.len() - SUFFIX).unwrap_or(head).trim_end_matches('-');
    let own = uuid::Uuid::new_v4().simple().to_string();
    Ok(format!("{head}{MARK}{}", &own[..SUFFIX]))
}
