//! A folder as storage: the same one in every pod, or it is none.

use super::effective_groups;
use api::cluster::DaskClusterSpec;
use api::pod::Volume;
use api::problem::Problem;
use api::reason::Reason;

/// Why the folder `url` (`file://…`), which stands at `at`, is no storage of a cluster of this spec: it must lie on a
/// PersistentVolumeClaim that scheduler and workers mount. `volumes` says where those are, for people.
pub fn check_folder(spec: &DaskClusterSpec, url: &str, at: &str, volumes: &str) -> Vec<Problem> {
    let Some(path) = url.strip_prefix("file://") else { return Vec::new() };
    let path = plain(path);
    if path.split('/').any(|part| part == "..") {
        return vec![Problem::new(Reason::InvalidValue, at, "the path must not have a `..`")];
    }
    if path.contains('%') {
        let problem = Problem::new(Reason::InvalidValue, at, "the path must not have a `%`");
        return vec![problem.help("use a folder whose path needs no escapes")];
    }
    let scheduler = spec.scheduler.as_ref().map_or(&[][..], |scheduler| &scheduler.volumes);
    let groups = effective_groups(spec);
    let pods = std::iter::once(("the scheduler".to_owned(), scheduler));
    let pods = pods.chain(groups.iter().map(|group| (format!("group {}", group.name), group.volumes.as_slice())));
    let (mut without, mut problems, mut first) = (Vec::new(), Vec::new(), None);
    for (who, mounted) in pods {
        let Some(volume) = holder(mounted, &path) else {
            without.push(who);
            continue;
        };
        let Some(claim) = &volume.persistent_volume_claim else {
            let message = format!("the volume {} of {who} is seen by one pod alone, or cannot be written", volume.name);
            problems.push(Problem::new(Reason::InvalidValue, at, message).help("use a persistentVolumeClaim"));
            continue;
        };
        if volume.read_only {
            let message = format!("the volume {} of {who} is mounted readOnly", volume.name);
            problems.push(
                Problem::new(Reason::Conflict, at, message).help("outputs are written there: leave out readOnly"),
            );
        }
        let place = (claim, plain(&volume.mount_path));
        if *first.get_or_insert_with(|| place.clone()) != place {
            let message = format!("{who} sees another volume at {path} than the scheduler");
            problems.push(
                Problem::new(Reason::Conflict, at, message).help("mount the same claim at the same path everywhere"),
            );
        }
    }
    if !without.is_empty() {
        let message = format!("{path} lies on no volume of {}", without.join(", "));
        let help = format!(
            "mount a claim there in scheduler and workers ({volumes}), for example volumes: [{{name: data, mountPath: {}, \
             persistentVolumeClaim: NAME}}]",
            root(&path)
        );
        problems.insert(0, Problem::new(Reason::InvalidValue, at, message).help(help));
    }
    problems
}

/// The volume that the path lies on: that with the longest mount path.
fn holder<'a>(volumes: &'a [Volume], path: &str) -> Option<&'a Volume> {
    let holds = |volume: &&Volume| {
        let mount = plain(&volume.mount_path);
        path == mount || path.starts_with(&format!("{mount}/"))
    };
    volumes.iter().filter(holds).max_by_key(|volume| plain(&volume.mount_path).len())
}

/// Without doubled slashes and one at the end.
fn plain(path: &str) -> String {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").map(|part| format!("/{part}")).collect()
}

/// The first folder of a path.
fn root(path: &str) -> String {
    path.split('/').nth(1).map_or_else(|| "/data".to_owned(), |part| format!("/{part}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(url: &str, scheduler: Value, worker: Value) -> Vec<String> {
        let spec = json!({"scheduler": {"volumes": scheduler}, "workers": [{"name": "a", "volumes": worker}]});
        let spec: DaskClusterSpec = serde_json::from_value(spec).unwrap();
        check_folder(&spec, url, "spec.storage.url", "spec.scheduler.volumes, spec.workers[*].volumes")
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    fn claim(name: &str, path: &str) -> Value {
        json!([{"name": "v", "mountPath": path, "persistentVolumeClaim": name}])
    }

    #[test]
    fn a_folder_lies_on_the_same_claim_in_every_pod() {
        for url in ["file:///data", "file:///data/", "file:///data/runs/a", "file:////data//runs", "s3://bucket/x"] {
            assert_eq!(check(url, claim("c", "/data"), claim("c", "/data/")), [""; 0], "{url}");
        }
        for (url, scheduler, worker, words) in [
            (
                "file:///data",
                json!([]),
                json!([]),
                &["lies on no volume of the scheduler, group a", "mountPath: /data"][..],
            ),
            ("file:///data", json!([]), claim("c", "/data"), &["no volume of the scheduler ("]),
            ("file:///data", claim("c", "/data"), json!([]), &["no volume of group a"]),
            ("file:///database", claim("c", "/data"), claim("c", "/data"), &["/database lies on no volume"]),
            ("file:///", claim("c", "/data"), claim("c", "/data"), &["lies on no volume"]),
            ("file:///data/../etc", claim("c", "/data"), claim("c", "/data"), &["`..`"]),
            ("file:///data", claim("c", "/data"), claim("d", "/data"), &["Conflict", "group a sees another volume"]),
            (
                "file:///data/a",
                claim("c", "/data"),
                json!([
                    {"name": "v", "mountPath": "/data", "persistentVolumeClaim": "c"},
                    {"name": "w", "mountPath": "/data/a", "emptyDir": {}}
                ]),
                &["the volume w of group a", "use a persistentVolumeClaim"],
            ),
            (
                "file:///data",
                claim("c", "/data"),
                json!([{"name": "v", "mountPath": "/data", "persistentVolumeClaim": "c", "readOnly": true}]),
                &["readOnly"],
            ),
        ] {
            let found = check(url, scheduler.clone(), worker.clone());
            let told = found.join("\n");
            assert!(told.starts_with("spec.storage.url: "), "{url}: {told}");
            for word in words {
                assert!(told.contains(word), "{url}: {word} in {told}");
            }
        }
    }
}
