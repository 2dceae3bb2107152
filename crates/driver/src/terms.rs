//! Between the engine's terms and those of the wire.

use std::collections::BTreeMap;

use bytes::Bytes;

use dask::ops::{Decided, Storage, SubmitItem, TaskAddr, TaskDep};
use engine::{FailureClass, StepIx, TaskId};
use run_model::StorageSpec;
use wire::StepDef;

pub(super) fn task_id(task: TaskAddr) -> TaskId {
    TaskId { step: StepIx(task.step), item: task.item }
}

pub(super) fn address(task: TaskId, attempt: u32) -> TaskAddr {
    TaskAddr::new(task.step.0, task.item, attempt)
}

/// A class that this version does not know is the platform's.
pub(super) fn failure_class(name: &str) -> FailureClass {
    FailureClass::parse(name).unwrap_or(FailureClass::Infra)
}

pub(super) fn decision(task: TaskId, reason: &str, message: String) -> Decided {
    Decided { step: task.step.0, item: task.item, reason: reason.to_owned(), message }
}

pub(super) fn submit_item(
    task: TaskId,
    attempt: u32,
    priority: i32,
    values: Option<Vec<u8>>,
    deps: &[engine::TaskDep],
) -> SubmitItem {
    let mut data_deps = Vec::with_capacity(deps.len());
    let mut after_deps = Vec::new();
    for dep in deps {
        match *dep {
            engine::TaskDep::Task(task) => data_deps.push(TaskDep::Task { step: task.step.0, item: task.item }),
            engine::TaskDep::All { step, len } => data_deps.push(TaskDep::All { step: step.0, len }),
            engine::TaskDep::After(task) => after_deps.push(TaskDep::Task { step: task.step.0, item: task.item }),
            engine::TaskDep::AfterAll { step, len } => after_deps.push(TaskDep::All { step: step.0, len }),
        }
    }
    SubmitItem { task: address(task, attempt), priority, values: values.map(Bytes::from), data_deps, after_deps }
}

/// Where the runtime finds the storage.
pub(super) fn storage(spec: &StorageSpec) -> Storage {
    Storage {
        url: spec.url.clone(),
        endpoint: spec.endpoint.clone(),
        region: spec.region.clone(),
        ..Storage::default()
    }
}

/// A step's definition where workers have no groups and offer no resources, if `ignore_resources`.
pub(super) fn step_def(step: StepDef, ignore_resources: bool) -> StepDef {
    match ignore_resources {
        true => StepDef { resources: BTreeMap::new(), group: None, gpu_ok: true, ..step },
        false => step,
    }
}
