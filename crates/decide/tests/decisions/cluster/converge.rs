//! Whatever is there: plans that are carried out one after the other lead to what the spec asks for, harm nothing on the way,
//! and then do nothing more.

use std::collections::{BTreeMap, BTreeSet};

use decide::cluster::facts::{
    Base, Cluster, Facts, Phase, PodFact, Role, SchedulerFact, SchedulerState, Slot, TlsFact, WorkerFact,
};
use decide::cluster::names;
use decide::cluster::plan::{Plan, Templates, plan};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::support::{answers, cluster, now, templates};

/// A pod of the simulated cluster.
#[derive(Debug, Clone)]
struct Pod {
    fact: PodFact,
    /// Its node is dead: only force deletes it.
    hangs: bool,
    tasks: u64,
    draining: bool,
}

#[derive(Debug, Clone)]
struct World {
    now: Timestamp,
    pods: Vec<Pod>,
    /// Passes until the scheduler can be reached.
    unreachable: u32,
    clients: u32,
    incarnation: u64,
}

/// What a pod is like at the beginning.
#[derive(Debug, Clone)]
struct Seed {
    group: u8,
    number: u32,
    old: bool,
    phase: u8,
    ready: bool,
    deleting: bool,
    hangs: bool,
    tasks: u64,
    draining: bool,
    restarts: u32,
    age: i64,
}

fn seeds() -> impl Strategy<Value = Vec<Seed>> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let seed = (0..5_u8, 0..4_u32, 0..4_u8, 0..4_u64, 0..7_u32, 0..400_i64, flags).prop_map(
        |(group, number, phase, tasks, restarts, age, (old, ready, deleting, hangs, draining))| Seed {
            group,
            number,
            old,
            phase,
            ready,
            deleting,
            hangs,
            tasks,
            draining,
            restarts,
            age,
        },
    );
    proptest::collection::vec(seed, 0..14)
}

fn specs() -> impl Strategy<Value = Value> {
    (0..6_u32, 0..6_u32, any::<bool>(), any::<bool>()).prop_map(|(a, b, suspend, at_once)| {
        let rollout = if at_once { "Immediately" } else { "WhenIdle" };
        json!({
            "suspend": suspend,
            "scheduler": {"rollout": rollout},
            "workers": [{"name": "a", "replicas": a}, {"name": "b", "autoscale": {"min": b, "max": 9}}],
        })
    })
}

impl World {
    fn new(seeds: Vec<Seed>, unreachable: u32, clients: u32) -> Self {
        let mut pods: Vec<Pod> = Vec::new();
        for (at, seed) in seeds.into_iter().enumerate() {
            // "z" is no group of the spec; the others are schedulers.
            let role = match seed.group {
                0 | 1 => Role::Worker { group: "a".to_owned(), number: seed.number },
                2 => Role::Worker { group: "b".to_owned(), number: seed.number },
                3 => Role::Worker { group: "z".to_owned(), number: seed.number },
                _ => Role::Scheduler,
            };
            let template = if seed.old { "old" } else { "new" };
            let mut pod = Pod::new(Slot { role, incarnation: at as u64 + 1 }, template, now(), seed.age);
            pod.fact.phase = match seed.phase {
                0 => Phase::Pending,
                1 => Phase::Ended,
                _ => Phase::Running,
            };
            pod.fact.ready = seed.ready && pod.fact.phase == Phase::Running;
            pod.fact.ip = (pod.fact.phase == Phase::Running).then(|| "10.0.0.1".to_owned());
            pod.fact.deleting = seed.deleting.then(|| (now(), 30));
            pod.fact.restarts = seed.restarts;
            (pod.hangs, pod.tasks, pod.draining) = (seed.hangs && seed.deleting, seed.tasks, seed.draining);
            pods.push(pod);
        }
        let incarnation = pods.len() as u64;
        Self { now: now(), pods, unreachable, clients, incarnation }
    }

    fn scheduler(&self) -> Option<&Pod> {
        let live = self.pods.iter().filter(|pod| pod.is_scheduler() && pod.fact.deleting.is_none() && pod.fact.ready);
        live.max_by_key(|pod| pod.fact.slot.incarnation)
    }

    fn facts(&self) -> Facts {
        let scheduler = match self.scheduler() {
            None => SchedulerFact::Unknown,
            Some(_) if self.unreachable > 0 => {
                SchedulerFact::Unreachable { since: now(), cause: "connect: refused".to_owned() }
            }
            Some(pod) => SchedulerFact::Answers(self.state(pod)),
        };
        Facts {
            now: self.now,
            pods: self.pods.iter().map(|pod| pod.fact.clone()).collect(),
            scheduler,
            refused: Vec::new(),
            tls: TlsFact::default(),
            gave: BTreeMap::new(),
        }
    }

    fn state(&self, scheduler: &Pod) -> SchedulerState {
        let workers = self.pods.iter().filter(|pod| !pod.is_scheduler() && pod.fact.ready);
        let workers: BTreeMap<String, WorkerFact> = workers
            .map(|pod| {
                let worker = WorkerFact { draining: pod.draining, tasks: pod.tasks, certificate: None };
                (pod.fact.name.clone(), worker)
            })
            .collect();
        let tasks = workers.values().map(|worker| worker.tasks).sum();
        SchedulerState { pod: scheduler.fact.name.clone(), workers, clients: self.clients, tasks, ..answers() }
    }

    /// Does what a plan says.
    fn carry_out(&mut self, plan: &Plan) {
        for name in &plan.drain {
            for pod in self.pods.iter_mut().filter(|pod| pod.fact.name == *name) {
                pod.draining = true;
            }
        }
        let mut gone: BTreeSet<&String> = plan.retire.iter().collect();
        gone.extend(plan.delete.iter().map(|deletion| &deletion.pod));
        for pod in self.pods.iter_mut().filter(|pod| gone.contains(&pod.fact.name)) {
            pod.fact.deleting.get_or_insert((self.now, 30));
        }
        let forced: BTreeSet<&String> =
            plan.delete.iter().filter(|deletion| deletion.force).map(|deletion| &deletion.pod).collect();
        self.pods.retain(|pod| !forced.contains(&pod.fact.name));
        for slot in &plan.create {
            self.pods.push(Pod::new(slot.clone(), "new", self.now, 0));
        }
        self.incarnation = plan.incarnation;
    }

    /// Time passes: pods start and end, tasks are done, what was deleted goes.
    fn go_on(&mut self, wake: Option<std::time::Duration>) {
        let step = wake.map_or(30, |wake| wake.as_secs().max(1)) as i64;
        self.now += SignedDuration::from_secs(step);
        self.unreachable = self.unreachable.saturating_sub(1);
        let before = self.scheduler().map(|pod| pod.fact.uid.clone());
        self.pods.retain(|pod| pod.fact.deleting.is_none() || pod.hangs);
        for pod in &mut self.pods {
            match pod.fact.phase {
                Phase::Pending => (pod.fact.phase, pod.fact.ip) = (Phase::Running, Some("10.0.0.2".to_owned())),
                Phase::Running => pod.fact.ready = pod.fact.deleting.is_none(),
                Phase::Ended => {}
            }
            pod.tasks = pod.tasks.saturating_sub(1);
        }
        if before != self.scheduler().map(|pod| pod.fact.uid.clone()) {
            // A new scheduler knows of nothing that was before.
            for pod in &mut self.pods {
                (pod.tasks, pod.draining) = (0, false);
            }
        }
    }
}

impl Pod {
    fn new(slot: Slot, template: &str, now: Timestamp, age: i64) -> Self {
        let name = names::pod("c", &slot);
        let fact = PodFact {
            uid: format!("uid-{name}"),
            name,
            slot,
            template: template.to_owned(),
            base: Base::default(),
            certificate: None,
            phase: Phase::Pending,
            ready: false,
            ip: None,
            created: now - SignedDuration::from_secs(age),
            deleting: None,
            node: None,
            issue: None,
            shortage: None,
            restarts: 0,
            labelled: true,
        };
        Self { fact, hangs: false, tasks: 0, draining: false }
    }

    fn is_scheduler(&self) -> bool {
        self.fact.slot.role == Role::Scheduler
    }
}

/// What holds of every plan, whatever was before.
fn check_harmless(world: &World, facts: &Facts, plan: &Plan, suspended: bool) {
    let pod = |name: &str| world.pods.iter().find(|pod| pod.fact.name == name).unwrap();
    let named: BTreeSet<&String> = plan.delete.iter().map(|deletion| &deletion.pod).collect();
    assert_eq!(named.len(), plan.delete.len(), "each is deleted once: {plan:?}");
    let state = match &facts.scheduler {
        SchedulerFact::Answers(state) => Some(state),
        _ => None,
    };
    for deletion in &plan.delete {
        let pod = pod(&deletion.pod);
        assert_eq!(deletion.uid, pod.fact.uid);
        assert_eq!(deletion.force, pod.fact.deleting.is_some(), "by force only what hangs");
        if pod.is_scheduler() || pod.fact.phase == Phase::Ended || deletion.force {
            continue;
        }
        match state {
            Some(state) => assert!(!state.workers.contains_key(&deletion.pod), "without draining: {deletion:?}"),
            None => assert!(suspended || pod.fact.ip.is_none(), "unasked: {deletion:?}"),
        }
    }
    for name in plan.drain.iter().chain(&plan.retire) {
        assert!(state.is_some_and(|state| state.workers.contains_key(name)), "{name} is not known");
    }
    for name in &plan.retire {
        assert!(pod(name).draining && pod(name).tasks == 0, "{name} is at work");
    }
    let newest = world.pods.iter().map(|pod| pod.fact.slot.incarnation).max().unwrap_or(0);
    let mut numbers: Vec<u64> = plan.create.iter().map(|slot| slot.incarnation).collect();
    assert!(numbers.iter().all(|number| *number > newest.max(world.incarnation)), "{numbers:?}");
    numbers.dedup();
    assert_eq!(numbers.len(), plan.create.len(), "each name once");
    if plan.create.iter().any(|slot| slot.role == Role::Scheduler) {
        let others = world.pods.iter().filter(|pod| pod.is_scheduler() && pod.fact.deleting.is_none());
        assert!(others.into_iter().all(|pod| named.contains(&pod.fact.name)), "two schedulers: {plan:?}");
    }
}

fn check_reached(world: &World, cluster: &Cluster, templates: &Templates) {
    assert!(world.pods.iter().all(|pod| pod.fact.deleting.is_none()), "nothing hangs: {world:?}");
    let count = |group: Option<&str>| {
        let is_it = |pod: &&Pod| match &pod.fact.slot.role {
            Role::Scheduler => group.is_none(),
            Role::Worker { group: of, .. } => group == Some(of),
        };
        let pods: Vec<&Pod> = world.pods.iter().filter(is_it).collect();
        let current = group.map_or(Some(&templates.scheduler), |group| templates.groups.get(group));
        assert!(pods.iter().all(|pod| Some(&pod.fact.template) == current && pod.fact.ready), "{pods:?}");
        pods.len() as u32
    };
    let all = u32::from(!cluster.spec.suspend);
    assert_eq!(count(None), all, "one scheduler");
    assert_eq!(count(Some("a")), all * cluster.spec.workers[0].replicas.unwrap());
    assert_eq!(count(Some("b")), all * cluster.spec.workers[1].autoscale.as_ref().unwrap().min.unwrap());
    assert_eq!(count(Some("z")), 0, "a group that is gone");
}

fn is_nothing(plan: &Plan) -> bool {
    plan.create.is_empty() && plan.delete.is_empty() && plan.drain.is_empty() && plan.retire.is_empty()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn plans_lead_to_the_spec_from_anywhere_and_then_do_nothing(
        spec in specs(), seeds in seeds(), unreachable in 0..4_u32, clients in 0..3_u32,
    ) {
        let mut cluster = cluster(spec);
        let templates = templates(&cluster);
        let mut world = World::new(seeds, unreachable, clients);
        let mut quiet = 0;
        for pass in 0..400 {
            // People leave after a while: who waits for an idle cluster gets on.
            world.clients = if pass < 20 { world.clients } else { 0 };
            let facts = world.facts();
            let plan = plan(&cluster, &templates, &facts);
            check_harmless(&world, &facts, &plan, cluster.spec.suspend);
            quiet = if is_nothing(&plan) && plan.scheduler_waits.is_none() && !plan.blind { quiet + 1 } else { 0 };
            if quiet > 3 && pass > 20 && plan.wake.is_none() {
                check_reached(&world, &cluster, &templates);
                return Ok(());
            }
            world.carry_out(&plan);
            cluster.status.incarnation = Some(world.incarnation);
            world.go_on(plan.wake);
        }
        prop_assert!(false, "it never comes to rest: {:?}", world);
    }

    /// A reconciliation that was cut off after any of its writes is as good as one that never began.
    #[test]
    fn a_plan_that_was_carried_out_is_not_carried_out_twice(spec in specs(), seeds in seeds()) {
        let mut cluster = cluster(spec);
        let templates = templates(&cluster);
        let mut world = World::new(seeds, 0, 0);
        let first = plan(&cluster, &templates, &world.facts());
        world.carry_out(&first);
        cluster.status.incarnation = Some(world.incarnation);
        let second = plan(&cluster, &templates, &world.facts());
        let again = |name: &String| first.delete.iter().any(|deletion| deletion.pod == *name) || first.drain.contains(name);
        let named = second.delete.iter().map(|deletion| &deletion.pod).chain(&second.drain);
        prop_assert_eq!(named.filter(|name| again(name)).count(), 0, "{:?} then {:?}", first, second);
        let is_made = |slot: &&Slot| first.create.iter().any(|made| made.role == slot.role);
        prop_assert_eq!(second.create.iter().filter(is_made).count(), 0, "{:?} then {:?}", first, second);
    }
}
