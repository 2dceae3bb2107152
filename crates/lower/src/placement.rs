//! Whether some worker can ever run a step.

use std::collections::BTreeMap;

use super::params::{listed, shortened};
use api::problem::{Problem, nearest};
use api::reason::Reason;
use api::{cluster::WorkerGroup, pipeline::PipelineSpec, step::Step};

/// Dask resource of a GPU worker.
const GPU: &str = "GPU";

/// What the worker groups of a pipeline's own cluster offer; nothing is known of clusters that others made.
#[derive(Debug)]
pub(super) struct Placement<'a> {
    groups: Option<Vec<Group<'a>>>,
    limits: BTreeMap<&'a str, f64>,
}

#[derive(Debug)]
struct Group<'a> {
    name: &'a str,
    offers: BTreeMap<&'a str, f64>,
    /// It has GPUs.
    gpu: bool,
    /// Steps that ask for no GPU may use it.
    open: bool,
}

impl<'a> Placement<'a> {
    pub fn of(spec: &'a PipelineSpec) -> Self {
        let template = match &spec.cluster {
            Some(cluster) => match (&cluster.template, &cluster.ref_, &cluster.address) {
                (Some(template), _, _) => Some(template.workers.as_slice()),
                (None, None, None) => Some(&[][..]),
                _ => None,
            },
            None => Some(&[][..]),
        };
        let groups = template.map(|workers| {
            if workers.is_empty() {
                return vec![Group { name: "default", offers: BTreeMap::new(), gpu: false, open: true }];
            }
            workers.iter().map(Group::of).collect()
        });
        let limits = spec.limits.iter().flat_map(|limits| &limits.resources);
        Self { groups, limits: limits.map(|(name, amount)| (name.as_str(), *amount)).collect() }
    }

    /// Whether `name` is only a limit across the run, which no worker offers and Dask must not hear of.
    fn is_limit_only(&self, name: &str) -> bool {
        self.limits.contains_key(name)
            && self.groups.as_ref().is_some_and(|groups| groups.iter().all(|group| !group.offers.contains_key(name)))
    }

    /// The resources of `step` that workers are asked for.
    pub fn asked(&self, step: &Step) -> BTreeMap<String, f64> {
        let asked = step.resources.iter().filter(|(name, amount)| **amount > 0.0 && !self.is_limit_only(name));
        asked.map(|(name, amount)| (name.clone(), *amount)).collect()
    }

    /// Checks that a worker can run `step`. Returns whether the step may use GPU workers without asking for a GPU.
    pub fn check(&self, step: &Step, at: &str, problems: &mut Vec<Problem>) -> bool {
        for (name, amount) in &step.resources {
            if let Some(limit) = self.limits.get(name.as_str())
                && amount > limit
            {
                let message = format!("the step asks for {name}: {amount}, the run's limit is {limit}");
                problems.push(Problem::new(Reason::UnsatisfiableResources, format!("{at}.resources.{name}"), message));
            }
        }
        let Some(groups) = &self.groups else { return false };
        let wants_gpu = step.resources.get(GPU).is_some_and(|amount| *amount > 0.0);
        let pinned: Vec<&Group<'_>> = match &step.worker_group {
            None => groups.iter().collect(),
            Some(name) => match groups.iter().find(|group| group.name == name) {
                Some(group) => vec![group],
                None => {
                    let at = format!("{at}.workerGroup");
                    let problem = Problem::new(
                        Reason::UnknownWorkerGroup,
                        at,
                        format!("there is no group {:?}", shortened(name)),
                    );
                    let names: Vec<&str> = groups.iter().map(|group| group.name).collect();
                    problems.push(match nearest(name, names.iter().copied()) {
                        Some(meant) => problem.help(format!("did you mean {meant}?")),
                        None => problem.help(format!("there are {}", listed(&names))),
                    });
                    return false;
                }
            },
        };
        let eligible: Vec<&&Group<'_>> = pinned.iter().filter(|group| wants_gpu || !group.gpu || group.open).collect();
        if eligible.is_empty() {
            let names: Vec<&str> = pinned.iter().map(|group| group.name).collect();
            let message = format!("the step asks for no GPU, and all its workers have GPUs ({})", listed(&names));
            let help = "ask for resources: {GPU: 1}, or set gpu.allowCpuSteps of a group";
            problems.push(Problem::new(Reason::UnsatisfiableResources, at, message).help(help));
            return false;
        }
        let asked = self.asked(step);
        let meets = |group: &Group<'_>| {
            asked.iter().all(|(name, amount)| group.offers.get(name.as_str()).is_some_and(|offer| offer >= amount))
        };
        if !eligible.iter().any(|group| meets(group)) {
            problems.push(unsatisfiable(&asked, &eligible, at));
        }
        let with_gpu: Vec<&&Group<'_>> = pinned.iter().filter(|group| group.gpu).collect();
        !wants_gpu && !with_gpu.is_empty() && with_gpu.iter().all(|group| group.open)
    }
}

impl<'a> Group<'a> {
    fn of(group: &'a WorkerGroup) -> Self {
        let mut offers: BTreeMap<&str, f64> =
            group.dask_resources.iter().map(|(name, amount)| (name.as_str(), *amount)).collect();
        if let Some(gpu) = &group.gpu {
            offers.insert(GPU, f64::from(gpu.count));
        }
        let gpu = offers.get(GPU).is_some_and(|amount| *amount > 0.0);
        Self { name: &group.name, offers, gpu, open: group.gpu.as_ref().is_some_and(|gpu| gpu.allow_cpu_steps) }
    }
}

fn unsatisfiable(asked: &BTreeMap<String, f64>, eligible: &[&&Group<'_>], at: &str) -> Problem {
    let shown = |resources: Vec<(&str, f64)>| match resources.is_empty() {
        true => "none".to_owned(),
        false => resources.iter().map(|(name, amount)| format!("{name}: {amount}")).collect::<Vec<_>>().join(", "),
    };
    let asks = shown(asked.iter().map(|(name, amount)| (name.as_str(), *amount)).collect());
    let offers: Vec<String> = eligible
        .iter()
        .map(|group| {
            format!(
                "{} has {}",
                group.name,
                shown(group.offers.iter().map(|(name, amount)| (*name, *amount)).collect())
            )
        })
        .collect();
    let offers: Vec<&str> = offers.iter().map(String::as_str).collect();
    let message = format!("no single worker can give the step {asks}");
    Problem::new(Reason::UnsatisfiableResources, format!("{at}.resources"), message)
        .help(format!("resources of one worker: {}", listed(&offers)))
}
