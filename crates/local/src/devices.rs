//! Which GPUs of this machine each local worker may use. A node's device plugin does this in Kubernetes.

use std::env;
use std::fs;

use super::spec::GroupSpec;

/// The machine's GPUs as `CUDA_VISIBLE_DEVICES` names them: what that variable holds already, else NVIDIA's device files
/// counted. Empty if there are none, or none that can be told that way.
pub(super) fn of_this_machine() -> Vec<String> {
    if let Ok(named) = env::var("CUDA_VISIBLE_DEVICES")
        && !matches!(named.trim(), "" | "all")
    {
        return named.split(',').map(|id| id.trim().to_owned()).filter(|id| !id.is_empty()).collect();
    }
    let files = fs::read_dir("/dev").into_iter().flatten().flatten();
    let is_gpu = |name: &str| name.strip_prefix("nvidia").is_some_and(|number| number.parse::<u32>().is_ok());
    let count = files.filter(|file| file.file_name().to_str().is_some_and(is_gpu)).count();
    (0..count).map(|id| id.to_string()).collect()
}

/// The value of `CUDA_VISIBLE_DEVICES` for each worker of each group, by group and number. Workers have devices of their own as
/// long as there are enough; then they share. None leaves a worker as it is: one without GPUs, or with more than there are.
pub(super) fn shared_out(ids: &[String], groups: &[GroupSpec]) -> Vec<Vec<Option<String>>> {
    let mut next = ids.iter().cycle();
    let mut wanted = 0;
    let shares = groups.iter().map(|group| {
        // Whole devices: a worker is not given a part of one.
        let count = group.resources.get("GPU").map_or(0, |count| count.ceil() as usize);
        let share = |_| {
            wanted += count;
            (1..=ids.len()).contains(&count).then(|| next.by_ref().take(count).cloned().collect::<Vec<_>>().join(","))
        };
        (0..group.replicas).map(share).collect()
    });
    let shares = shares.collect();
    if !ids.is_empty() && wanted > ids.len() {
        tracing::warn!(
            "the worker groups ask for {wanted} GPUs and this machine has {}: workers share them",
            ids.len()
        );
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(replicas: u32, gpus: f64) -> GroupSpec {
        let resources = if gpus > 0.0 { [("GPU".to_owned(), gpus)].into() } else { Default::default() };
        GroupSpec { name: "a".to_owned(), replicas, threads: 1, resources, memory_limit: None, env: Vec::new() }
    }

    fn shares(ids: &[&str], groups: &[GroupSpec]) -> Vec<Vec<Option<String>>> {
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        shared_out(&ids, groups)
    }

    fn some(id: &str) -> Option<String> {
        Some(id.to_owned())
    }

    #[test]
    fn each_worker_has_devices_of_its_own() {
        let groups = [group(1, 0.0), group(2, 1.0), group(1, 2.0)];
        let got = shares(&["4", "5", "MIG-a", "7"], &groups);
        assert_eq!(got, [vec![None], vec![some("4"), some("5")], vec![some("MIG-a,7")]]);
    }

    #[test]
    fn workers_share_when_there_are_too_few() {
        assert_eq!(shares(&["0"], &[group(3, 1.0)]), [[some("0"), some("0"), some("0")]]);
        let got = shares(&["0", "1", "2"], &[group(2, 2.0)]);
        assert_eq!(got, [[some("0,1"), some("2,0")]], "never one device twice");
    }

    #[test]
    fn without_devices_everything_is_as_it_is() {
        assert_eq!(shares(&[], &[group(2, 1.0)]), [[None, None]]);
        assert_eq!(shares(&["0"], &[group(1, 2.0)]), [[None]], "more than there are");
    }
}
