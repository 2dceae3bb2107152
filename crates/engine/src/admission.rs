//! Which of the tasks that could run are submitted: order, limits, window.
//!
//! Steps whose tasks need the same limited resources form a class. If one task of a class does not fit, none does, so
//! a plan looks at the first step of each class and never at the whole queue, and only if something was freed or
//! became ready.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::action::{Action, TaskDep};
use super::dag::{Dag, Node};
use super::state::{Admission, Key, Need, Phase, Pool, Queued, RunState};
use super::types::{Dep, Limits, MapSource, StepIx, TaskId};

impl RunState {
    /// Takes over the limits. Other limits than last time mean other queues.
    pub(super) fn apply_limits(&mut self, dag: &Dag, limits: &Limits) {
        if self.limits.as_ref() == Some(limits) {
            return;
        }
        let mut classes: BTreeMap<Vec<Need>, usize> = BTreeMap::from([(Vec::new(), 0)]);
        self.admission.pools = limits
            .resources
            .iter()
            .map(|(name, total)| Pool { name: name.clone(), total: to_millionths(*total), taken: 0, least: u64::MAX })
            .collect();
        for (step, node) in self.steps.iter_mut().zip(&dag.nodes) {
            let needs = build_needs(&self.admission.pools, node);
            step.exceeds = needs
                .iter()
                .map(|need| (need.amount, &self.admission.pools[need.pool]))
                .find(|(amount, pool)| *amount > pool.total)
                .map(|(_, pool)| pool.name.clone());
            step.limited = limits.parallelism.is_some() || node.spec.parallelism.is_some() || !needs.is_empty();
            for need in &needs {
                let pool = &mut self.admission.pools[need.pool];
                pool.taken = pool.taken.saturating_add(need.amount.saturating_mul(u64::from(step.outstanding)));
            }
            let next = classes.len();
            step.class = *classes.entry(needs).or_insert(next);
            step.ready.clear();
            step.ahead.clear();
            for task in &mut step.tasks {
                task.queued = Queued::No;
            }
        }
        for needs in classes.keys() {
            for need in needs {
                let pool = &mut self.admission.pools[need.pool];
                pool.least = pool.least.min(need.amount);
            }
        }
        self.admission.ready = vec![BTreeSet::new(); classes.len()];
        self.admission.needs = vec![Vec::new(); classes.len()];
        for (needs, class) in classes {
            self.admission.needs[class] = needs;
        }
        self.admission.heads.clear();
        self.admission.ahead.clear();
        self.admission.is_stuck = false;
        self.limits = Some(limits.clone());
        self.mark_all();
    }

    pub(super) fn queue(&mut self, key: Key, queued: Queued) {
        if self.task(key).queued == queued {
            return;
        }
        self.unqueue(key);
        let step = &mut self.steps[key.step as usize];
        step.tasks[key.slot as usize].queued = queued;
        let place = self.admission.place[key.step as usize];
        match queued {
            Queued::No => {}
            Queued::Ready => {
                step.ready.insert(key.slot);
                self.admission.enter(step.class, place);
            }
            Queued::Ahead => {
                step.ahead.insert(key.slot);
                self.admission.ahead.insert(place);
            }
        }
    }

    pub(super) fn unqueue(&mut self, key: Key) {
        let step = &mut self.steps[key.step as usize];
        let place = self.admission.place[key.step as usize];
        match std::mem::take(&mut step.tasks[key.slot as usize].queued) {
            Queued::No => {}
            Queued::Ready => {
                step.ready.remove(&key.slot);
                if step.ready.is_empty() {
                    self.admission.leave(step.class, place);
                }
            }
            Queued::Ahead => {
                step.ahead.remove(&key.slot);
                if step.ahead.is_empty() {
                    self.admission.ahead.remove(&place);
                }
            }
        }
    }

    /// A task of the step takes a place in the runtime.
    pub(super) fn take(&mut self, ix: u32) {
        let step = &mut self.steps[ix as usize];
        step.outstanding += 1;
        self.admission.outstanding += 1;
        self.admission.change_taken(step.class, u64::saturating_add);
    }

    pub(super) fn release(&mut self, ix: u32) {
        let step = &mut self.steps[ix as usize];
        step.outstanding -= 1;
        self.admission.outstanding -= 1;
        self.admission.change_taken(step.class, u64::saturating_sub);
        self.admission.is_stuck = false;
        if !step.ready.is_empty() {
            // It was taken off the queue when the step reached its own limit.
            let place = self.admission.place[ix as usize];
            self.admission.enter(step.class, place);
        }
    }

    /// Submits tasks whose inputs are there. Says whether it submitted any.
    pub(super) fn admit_ready(&mut self, dag: &Dag, limits: &Limits) -> bool {
        let mut any = false;
        // Heads only move on, so one sweep over them sees all.
        let mut from = (0, 0usize);
        while !self.admission.is_stuck {
            let admission = &self.admission;
            let active = admission.outstanding - admission.outstanding_ahead;
            if limits.parallelism.is_some_and(|most| admission.outstanding >= most) || active >= limits.window.max(1) {
                return any;
            }
            let first = admission.heads.range(from..).next().copied();
            // Full for all: what is left of every resource is too little for anybody.
            let is_full = admission.ready[0].is_empty() && admission.pools.iter().all(Pool::is_full);
            let Some((place, class)) = first.filter(|_| !is_full) else {
                self.admission.is_stuck = true;
                return any;
            };
            if !admission.fits(class) {
                from = (place, class + 1);
                continue;
            }
            let ix = admission.order[place as usize];
            let step = &self.steps[ix as usize];
            let most = dag.nodes[ix as usize].spec.parallelism.map_or(u32::MAX, |most| most.max(1));
            match step.ready.first() {
                Some(slot) if step.outstanding < most => {
                    self.submit(dag, Key { step: ix, slot: *slot }, false);
                    any = true;
                }
                _ => self.admission.leave(class, place),
            }
        }
        any
    }

    /// Submits tasks together with inputs that are still being made, as far as the window allows.
    pub(super) fn admit_ahead(&mut self, dag: &Dag, limits: &Limits) -> bool {
        let mut any = false;
        while self.admission.outstanding < limits.window {
            let Some(place) = self.admission.ahead.first().copied() else { return any };
            let ix = self.admission.order[place as usize];
            match self.steps[ix as usize].ahead.first() {
                Some(slot) => {
                    self.submit(dag, Key { step: ix, slot: *slot }, true);
                    any = true;
                }
                None => {
                    self.admission.ahead.remove(&place);
                }
            }
        }
        any
    }

    fn submit(&mut self, dag: &Dag, key: Key, ahead: bool) {
        let task = self.task_mut(key);
        task.attempt = task.attempt.saturating_add(1);
        let attempt = task.attempt;
        self.set_phase(dag, key, Phase::Submitted, None);
        self.set_ahead(key, ahead);
        let deps = self.build_deps(dag, key);
        let priority = dag.nodes[key.step as usize].spec.priority;
        self.actions.push(Action::Submit { task: key.id(dag), attempt, deps, priority });
    }

    /// Notes whether a submitted task waits for inputs in the runtime, where it keeps nobody else from running.
    pub(super) fn set_ahead(&mut self, key: Key, ahead: bool) {
        let was = std::mem::replace(&mut self.task_mut(key).ahead, ahead);
        if ahead != was {
            let count = &mut self.admission.outstanding_ahead;
            *count = *count + u32::from(ahead) - u32::from(was);
            self.admission.is_stuck = false;
        }
    }

    /// Whose outputs, or ends, a task waits for. Holes that are known already are left out; holes inside a list are
    /// not, since the runtime has their records.
    fn build_deps(&self, dag: &Dag, key: Key) -> Vec<TaskDep> {
        let node = &dag.nodes[key.step as usize];
        let mut data = BTreeSet::new();
        let mut after = BTreeSet::new();
        for source in node.spec.map.iter().flatten() {
            match source {
                MapSource::Len(_) | MapSource::Recorded => {}
                MapSource::Items(up) => {
                    data.insert(TaskDep::Task(TaskId::item(*up, key.slot)));
                }
                MapSource::Output { step, .. } => {
                    data.insert(TaskDep::Task(TaskId::whole(*step)));
                }
                MapSource::Flatten(up) => {
                    if let Some((item, _)) = self.flat_position(*up, key.slot) {
                        data.insert(TaskDep::Task(TaskId::item(*up, item)));
                    }
                }
            }
        }
        for dep in &node.spec.deps {
            let (step, is_data) = (dep.step(), matches!(dep, Dep::Data(_)));
            if is_data {
                data.extend(self.build_dep(dag, step, true));
            } else if !self.steps[step.0 as usize].ended {
                after.extend(self.build_dep(dag, step, false));
            }
        }
        after.retain(|dep| match dep {
            TaskDep::After(task) => !data.contains(&TaskDep::Task(*task)),
            TaskDep::AfterAll { step, len } => !data.contains(&TaskDep::All { step: *step, len: *len }),
            TaskDep::Task(_) | TaskDep::All { .. } => true,
        });
        data.into_iter().chain(after).collect()
    }

    fn build_dep(&self, dag: &Dag, ix: StepIx, data: bool) -> Option<TaskDep> {
        let step = &self.steps[ix.0 as usize];
        if dag.is_mapped(ix.0) {
            let len = step.len.filter(|_| step.allocated && step.whole.is_none())?;
            return Some(if data { TaskDep::All { step: ix, len } } else { TaskDep::AfterAll { step: ix, len } });
        }
        let is_hole = matches!(step.tasks.first()?.phase, Phase::Failed | Phase::Skipped(_));
        let task = TaskId::whole(ix);
        (!is_hole).then_some(if data { TaskDep::Task(task) } else { TaskDep::After(task) })
    }
}

impl Pool {
    fn is_full(&self) -> bool {
        self.total.saturating_sub(self.taken) < self.least
    }
}

impl Admission {
    /// A step has ready tasks.
    fn enter(&mut self, class: usize, place: u32) {
        self.change_queue(class, |places| places.insert(place));
        self.is_stuck = false;
    }

    fn leave(&mut self, class: usize, place: u32) {
        self.change_queue(class, |places| places.remove(&place));
    }

    fn change_queue(&mut self, class: usize, change: impl FnOnce(&mut BTreeSet<u32>) -> bool) {
        let before = self.ready[class].first().copied();
        change(&mut self.ready[class]);
        let after = self.ready[class].first().copied();
        if before != after {
            if let Some(place) = before {
                self.heads.remove(&(place, class));
            }
            self.heads.extend(after.map(|place| (place, class)));
        }
    }

    fn fits(&self, class: usize) -> bool {
        self.needs[class].iter().all(|need| {
            let pool = &self.pools[need.pool];
            pool.taken.saturating_add(need.amount) <= pool.total
        })
    }

    fn change_taken(&mut self, class: usize, change: fn(u64, u64) -> u64) {
        for need in self.needs.get(class).into_iter().flatten() {
            let pool = &mut self.pools[need.pool];
            pool.taken = change(pool.taken, need.amount);
        }
    }
}

fn build_needs(pools: &[Pool], node: &Node) -> Vec<Need> {
    let mut needs: BTreeMap<usize, u64> = BTreeMap::new();
    for (name, amount) in &node.spec.resources {
        let amount = to_millionths(*amount);
        if let Ok(pool) = pools.binary_search_by(|pool| pool.name.as_str().cmp(name))
            && amount > 0
        {
            let need = needs.entry(pool).or_default();
            *need = need.saturating_add(amount);
        }
    }
    let mut needs: Vec<Need> = needs.into_iter().map(|(pool, amount)| Need { pool, amount }).collect();
    needs.sort_unstable_by_key(|need| (need.pool, Reverse(need.amount)));
    needs
}

/// Negative and not-a-number count as nothing, too much as the most.
fn to_millionths(amount: f64) -> u64 {
    (amount * 1e6).round() as u64
}
