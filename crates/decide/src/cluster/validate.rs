//! What is wrong with a DaskCluster's spec beyond its schema.

use std::collections::BTreeMap;

use api::names::{DNS_NAME_MAX, INCARNATION_DIGITS};
use api::problem::Problem;
use api::reason::Reason;
use api::{
    cluster::{DaskClusterSpec, GPU_RESOURCE_DEFAULT, WorkerGroup},
    pod::{EnvVar, Resources, Volume},
};

/// All problems of a spec that stands at `at`, for example `spec` or `spec.cluster.template`.
pub fn validate(spec: &DaskClusterSpec, at: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Some(scheduler) = &spec.scheduler {
        let at = format!("{at}.scheduler");
        check_resources(scheduler.resources.as_ref(), &at, &mut problems);
        check_env(&scheduler.env, &at, &mut problems);
        check_volumes(&scheduler.volumes, &at, &mut problems);
    }
    for (index, group) in spec.workers.iter().enumerate() {
        check_group(group, &format!("{at}.workers[{index}]"), &mut problems);
    }
    if let Some(storage) = &spec.storage {
        let volumes = format!("{at}.scheduler.volumes, {at}.workers[*].volumes");
        problems.extend(super::check_folder(spec, &storage.url, &format!("{at}.storage.url"), &volumes));
    }
    problems
}

/// As [`validate`], for a cluster that has a name: its pods' names must fit a host name.
pub fn validate_named(name: &str, spec: &DaskClusterSpec, at: &str) -> Vec<Problem> {
    let mut problems = validate(spec, at);
    for (index, group) in spec.workers.iter().enumerate() {
        let most = group.autoscale.as_ref().map_or(group.replicas.unwrap_or(1), |autoscale| autoscale.max);
        let digits = most.max(1).ilog10() as usize + 1;
        let length = name.len() + 1 + group.name.len() + 1 + digits + 1 + INCARNATION_DIGITS;
        if length > DNS_NAME_MAX {
            let over = length - DNS_NAME_MAX;
            let message = format!(
                "a worker's pod is named {name}-{}-<number>-<incarnation>, which can be {over} characters too long",
                group.name
            );
            let problem = Problem::new(Reason::InvalidName, format!("{at}.workers[{index}].name"), message);
            problems.push(problem.help("shorten the name of the group or of the cluster"));
        }
    }
    problems
}

/// The groups of a cluster may ask for more workers than whoever runs the operator allows.
pub fn too_many_workers(spec: &DaskClusterSpec, most: Option<u32>, at: &str) -> Option<Problem> {
    let wanted = |group: &WorkerGroup| group.autoscale.as_ref().map_or(group.replicas.unwrap_or(1), |scale| scale.max);
    let wanted: u64 = super::effective_groups(spec).iter().map(|group| u64::from(wanted(group))).sum();
    let most = most.filter(|most| wanted > u64::from(*most))?;
    let message = format!("the groups ask for up to {wanted} workers, and the operator allows {most} per cluster");
    Some(
        Problem::new(Reason::LimitExceeded, format!("{at}.workers"), message)
            .help("lower replicas or autoscale.max of the groups"),
    )
}

/// Where our own volumes are mounted, and what their names begin with.
const OUR_FOLDERS: [&str; 2] = ["/opt/daskade", "/etc/daskade"];
const OUR_VOLUMES: &str = "daskade-";

fn check_group(group: &WorkerGroup, at: &str, problems: &mut Vec<Problem>) {
    check_resources(group.resources.as_ref(), at, problems);
    check_env(&group.env, at, problems);
    check_volumes(&group.volumes, at, problems);
    if let (Some(gpu), Some(resources)) = (&group.gpu, &group.resources) {
        let name = gpu.resource_name.as_deref().unwrap_or(GPU_RESOURCE_DEFAULT);
        for (kind, amounts) in [("limits", &resources.limits), ("requests", &resources.requests)] {
            if amounts.contains_key(name) {
                let message = format!("gpu sets {name}; leave it out here");
                problems.push(Problem::new(Reason::Conflict, format!("{at}.resources.{kind}"), message));
            }
        }
    }
}

fn check_volumes(volumes: &[Volume], at: &str, problems: &mut Vec<Problem>) {
    let mut mounts = BTreeMap::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = volume.mount_path.trim_end_matches('/');
        if let Some(other) = mounts.insert(path, &volume.name) {
            let message = format!("{} is also where the volume {other} is mounted", volume.mount_path);
            problems.push(Problem::new(Reason::Duplicate, format!("{at}.volumes[{index}].mountPath"), message));
        }
        if volume.mount_path.split('/').any(|part| part == "..") {
            let message = "the path must not have a `..`";
            problems.push(Problem::new(Reason::InvalidValue, format!("{at}.volumes[{index}].mountPath"), message));
        }
        let ours = |folder: &&&str| path == **folder || path.starts_with(&format!("{folder}/"));
        if let Some(folder) = OUR_FOLDERS.iter().find(ours) {
            let message = format!("{folder} is where daskade mounts what it needs itself");
            problems.push(Problem::new(Reason::Conflict, format!("{at}.volumes[{index}].mountPath"), message));
        }
        if volume.name.starts_with(OUR_VOLUMES) {
            let message = format!("daskade's own volumes have names that begin with {OUR_VOLUMES}");
            problems.push(Problem::new(Reason::Conflict, format!("{at}.volumes[{index}].name"), message));
        }
    }
}

fn check_resources(resources: Option<&Resources>, at: &str, problems: &mut Vec<Problem>) {
    let Some(Resources { limits, requests }) = resources else { return };
    for (kind, amounts) in [("limits", limits), ("requests", requests)] {
        if let Some(memory) = amounts.get("memory").filter(|memory| memory.amount() < 1.0) {
            let message = format!("{memory} is less than one byte; memory must be above zero");
            problems.push(Problem::new(Reason::InvalidValue, format!("{at}.resources.{kind}.memory"), message));
        }
    }
    for (name, request) in requests {
        if let Some(limit) = limits.get(name).filter(|limit| request.amount() > limit.amount()) {
            let message = format!("the request {request} is above the limit {limit}");
            problems.push(Problem::new(Reason::InvalidValue, format!("{at}.resources.requests.{name}"), message));
        }
    }
}

/// Variables that are ours to set: a user's value would take the worker from its cluster.
const OURS: [&str; 6] = [
    "DASK_SCHEDULER_ADDRESS",
    "DASKADE_CLUSTER",
    "DASKADE_CREDENTIALS",
    "DASKADE_POD_IP",
    "DASKADE_PYTHONPATH",
    "DASKADE_WORKER_NAME",
];

fn check_env(env: &[EnvVar], at: &str, problems: &mut Vec<Problem>) {
    for (index, variable) in env.iter().enumerate() {
        if OURS.contains(&variable.name.as_str()) {
            let message = format!("daskade sets {} itself", variable.name);
            problems.push(Problem::new(Reason::Conflict, format!("{at}.env[{index}].name"), message));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn found(name: &str, workers: Value) -> Vec<(String, &'static str)> {
        let spec: DaskClusterSpec = serde_json::from_value(json!({ "workers": workers })).unwrap();
        validate_named(name, &spec, "spec").into_iter().map(|problem| (problem.path, problem.reason.as_str())).collect()
    }

    #[test]
    fn what_the_schema_cannot_say_is_said_here() {
        let workers = json!([
            {"name": "a", "resources": {"limits": {"cpu": "1", "memory": "500m"}, "requests": {"cpu": "1500m"}}},
            {"name": "b", "gpu": {"count": 1}, "resources": {"limits": {"nvidia.com/gpu": 1}}},
            {"name": "c", "env": [{"name": "DASK_SCHEDULER_ADDRESS", "value": "x"}], "volumes": [
                {"name": "x", "mountPath": "/data", "emptyDir": {}},
                {"name": "y", "mountPath": "/data/", "emptyDir": {}},
                {"name": "z", "mountPath": "/a/../b", "emptyDir": {}}
            ]},
            {"name": "d", "env": [{"name": "DASKADE_WORKER_NAME", "value": "x"}], "volumes": [
                {"name": "daskade-x", "mountPath": "/opt/daskade/", "emptyDir": {}},
                {"name": "tmp", "mountPath": "/tmp", "emptyDir": {}},
                {"name": "mine", "mountPath": "/opt/daskaded", "emptyDir": {}}
            ]}
        ]);
        let expected = [
            ("spec.workers[0].resources.limits.memory", "InvalidValue"),
            ("spec.workers[0].resources.requests.cpu", "InvalidValue"),
            ("spec.workers[1].resources.limits", "Conflict"),
            ("spec.workers[2].env[0].name", "Conflict"),
            ("spec.workers[2].volumes[1].mountPath", "Duplicate"),
            ("spec.workers[2].volumes[2].mountPath", "InvalidValue"),
            ("spec.workers[3].env[0].name", "Conflict"),
            ("spec.workers[3].volumes[0].mountPath", "Conflict"),
            ("spec.workers[3].volumes[0].name", "Conflict"),
        ];
        let found = found("a", workers);
        let found: Vec<(&str, &str)> = found.iter().map(|(path, reason)| (path.as_str(), *reason)).collect();
        let mut sorted = found.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, expected);
    }

    #[test]
    fn names_of_pods_fit_a_host_name() {
        let long = "c".repeat(30);
        let group = "g".repeat(20);
        assert!(found(&long, json!([{ "name": group, "replicas": 10 }])).is_empty());
        assert_eq!(
            found(&"c".repeat(40), json!([{ "name": group, "replicas": 10 }])),
            [("spec.workers[0].name".to_owned(), "InvalidName")]
        );
    }
}
