//! Worker groups with their defaults filled in.

use std::collections::BTreeMap;

use api::cluster::{DaskClusterSpec, GPU_RESOURCE_DEFAULT, Gpu, WorkerGroup};
use api::pod::Resources;

/// Name of the one group of a cluster that names none.
pub const DEFAULT_GROUP: &str = "default";
/// Dask resource that a group's GPUs are.
const GPU: &str = "GPU";

/// The groups of a cluster: those given, or one named `default`.
pub fn effective_groups(spec: &DaskClusterSpec) -> Vec<WorkerGroup> {
    if spec.workers.is_empty() {
        return vec![WorkerGroup { name: DEFAULT_GROUP.to_owned(), ..WorkerGroup::default() }];
    }
    spec.workers.clone()
}

/// Steps that one worker runs at once: as given, or the CPU limit rounded up, or 1.
pub fn threads(group: &WorkerGroup) -> u32 {
    let cpu = group.resources.as_ref().and_then(|resources| resources.limits.get("cpu"));
    let by_cpu = cpu.map(|cpu| cpu.amount().ceil().clamp(1.0, 256.0) as u32);
    group.threads.or(by_cpu).unwrap_or(1)
}

/// Memory of one worker in bytes, if it is limited.
pub fn memory_bytes(group: &WorkerGroup) -> Option<u64> {
    let memory = group.resources.as_ref()?.limits.get("memory")?;
    Some(memory.amount() as u64)
}

/// Abstract resources that one worker offers, GPUs among them.
pub fn offers(group: &WorkerGroup) -> BTreeMap<String, f64> {
    let mut offers = group.dask_resources.clone();
    if let Some(gpu) = &group.gpu {
        offers.insert(GPU.to_owned(), f64::from(gpu.count));
    }
    offers
}

/// Amounts of resources by their names.
pub type Amounts = BTreeMap<String, f64>;

/// The resource of Kubernetes that a group's GPUs are.
pub fn gpu_resource(gpu: &Gpu) -> &str {
    gpu.resource_name.as_deref().unwrap_or(GPU_RESOURCE_DEFAULT)
}

/// What a worker's pod takes of its node, itself counted as one of `pods`.
pub fn requests(group: &WorkerGroup) -> Amounts {
    let mut amounts = match &group.resources {
        Some(resources) => requested(resources),
        None => usual(0.5 * f64::from(threads(group)), 2.0),
    };
    amounts.extend(group.gpu.iter().map(|gpu| (gpu_resource(gpu).to_owned(), f64::from(gpu.count))));
    amounts
}

/// What a scheduler's pod takes of its node.
pub fn scheduler_requests(spec: &DaskClusterSpec) -> Amounts {
    let resources = spec.scheduler.as_ref().and_then(|scheduler| scheduler.resources.as_ref());
    resources.map_or_else(|| usual(0.5, 1.0), requested)
}

/// Without `requests` Kubernetes takes the limits.
fn requested(resources: &Resources) -> Amounts {
    let all = resources.limits.iter().chain(&resources.requests);
    let mut amounts: Amounts = all.map(|(name, quantity)| (name.clone(), quantity.amount())).collect();
    amounts.insert("pods".to_owned(), 1.0);
    amounts
}

/// Of pods whose spec names no resources, as they are built.
fn usual(cpu: f64, gibibytes: f64) -> Amounts {
    let memory = gibibytes * f64::from(1 << 30);
    [("cpu", cpu), ("memory", memory), ("pods", 1.0)].map(|(name, amount)| (name.to_owned(), amount)).into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn group(value: serde_json::Value) -> WorkerGroup {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn groups_have_their_defaults_filled_in() {
        let bare = effective_groups(&DaskClusterSpec::default()).remove(0);
        assert_eq!((bare.name.as_str(), threads(&bare), memory_bytes(&bare)), ("default", 1, None));
        let full = group(json!({
            "name": "a", "autoscale": {"min": 0, "max": 4}, "gpu": {"count": 2}, "daskResources": {"SSD": 1},
            "resources": {"limits": {"cpu": "1500m", "memory": "1Gi"}}
        }));
        assert_eq!((threads(&full), memory_bytes(&full)), (2, Some(1 << 30)));
        assert_eq!(offers(&full), BTreeMap::from([("GPU".to_owned(), 2.0), ("SSD".to_owned(), 1.0)]));
        let amounts = |found: Amounts| -> Vec<(String, f64)> { found.into_iter().collect() };
        let wanted = [("cpu", 1.5), ("memory", f64::from(1 << 30)), ("nvidia.com/gpu", 2.0), ("pods", 1.0)];
        assert_eq!(amounts(requests(&full)), wanted.map(|(name, amount)| (name.to_owned(), amount)));
        let wanted = [("cpu", 0.5), ("memory", 2.0 * f64::from(1 << 30)), ("pods", 1.0)];
        assert_eq!(amounts(requests(&bare)), wanted.map(|(name, amount)| (name.to_owned(), amount)));
        let resources = json!({"limits": {"cpu": 4}, "requests": {"cpu": "100m"}});
        assert_eq!(requests(&group(json!({"name": "a", "resources": resources})))["cpu"], 0.1);
        assert_eq!(scheduler_requests(&DaskClusterSpec::default())["cpu"], 0.5);
        assert_eq!(threads(&group(json!({"name": "a", "threads": 3, "resources": {"limits": {"cpu": 1}}}))), 3);
    }
}
