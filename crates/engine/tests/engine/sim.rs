//! A runtime, a journal and a driver in memory, driven by random choices, with checks after every event.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use engine::*;
use proptest::prelude::*;

/// A step in numbers, which [`build_steps`] makes something valid of.
#[derive(Debug, Clone)]
pub struct Shape {
    map: u8,
    sources: [u8; 2],
    deps: Vec<(u8, bool)>,
    len: u8,
    when: u8,
    flags: u8,
    retry: u8,
    parallelism: Option<u8>,
    gpus: u8,
    priority: i8,
}

pub fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    let shape = (
        (0u8..8, any::<[u8; 2]>(), prop::collection::vec(any::<(u8, bool)>(), 0..3), 0u8..4),
        (0u8..8, any::<u8>(), 0u8..3, prop_oneof![3 => Just(None), 1 => (1u8..3).prop_map(Some)], 0u8..6, -1i8..2),
    )
        .prop_map(|((map, sources, deps, len), (when, flags, retry, parallelism, gpus, priority))| Shape {
            map,
            sources,
            deps,
            len,
            when,
            flags,
            retry,
            parallelism,
            gpus,
            priority,
        });
    prop::collection::vec(shape, 1..9)
}

pub fn build_steps(shapes: &[Shape]) -> Vec<StepSpec> {
    let mut steps: Vec<StepSpec> = Vec::new();
    for (ix, shape) in shapes.iter().enumerate() {
        let up = |number: u8| (ix > 0).then(|| StepIx(u32::from(number) % ix.max(1) as u32));
        let is_mapped = |up: StepIx| steps[up.0 as usize].map.is_some();
        let over = |number: u8, flat: bool| match up(number) {
            None => MapSource::Len(u32::from(shape.len)),
            Some(step) if !is_mapped(step) => MapSource::Output { step, lens_slot: u32::from(flat) },
            Some(step) if flat => MapSource::Flatten(step),
            Some(step) => MapSource::Items(step),
        };
        let map = match shape.map {
            0..=2 => None,
            3 => Some(vec![MapSource::Len(u32::from(shape.len))]),
            4 | 5 => Some(vec![over(shape.sources[0], false)]),
            6 => Some(vec![over(shape.sources[0], true)]),
            _ => Some(vec![over(shape.sources[0], false), over(shape.sources[1], false)]),
        };
        let deps: Vec<Dep> = shape
            .deps
            .iter()
            .filter_map(|(number, data)| up(*number).map(|up| if *data { Dep::Data(up) } else { Dep::After(up) }))
            .collect();
        let ups = map.iter().flatten().filter_map(|source| source.step()).chain(deps.iter().map(|dep| dep.step()));
        let needs_finally = ups.clone().any(|up| steps[up.0 as usize].finally);
        steps.push(StepSpec {
            name: format!("s{ix}"),
            finally: needs_finally || shape.flags & 7 == 7,
            map,
            deps,
            when: [When::PerStep, When::PerItem].get(usize::from(shape.when)).copied().unwrap_or_default(),
            late: shape.flags & 24 == 24,
            continue_on_failure: shape.flags & 96 == 96,
            retry: RetryPolicy {
                limit: u32::from(shape.retry),
                initial_ms: 100,
                jitter: 0.5,
                ..RetryPolicy::default()
            },
            priority: i32::from(shape.priority),
            parallelism: shape.parallelism.map(u32::from),
            resources: if shape.gpus < 3 { vec![("GPU".to_owned(), f64::from(shape.gpus))] } else { Vec::new() },
            timeout_ms: (shape.flags & 128 > 0).then_some(3_000),
            on_lost: OnLost::Rerun,
        });
    }
    steps
}

/// What a task does, whenever it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Run,
    Skip,
    Refuse,
}

#[derive(Clone)]
pub struct Sim {
    pub dag: Dag,
    pub state: RunState,
    limits: Limits,
    seed: u64,
    now: u64,
    wake_at: Option<u64>,
    cancelled: bool,
    // The runtime.
    submitted: BTreeMap<TaskId, (Attempt, Vec<TaskDep>)>,
    started: BTreeMap<TaskId, (Attempt, Vec<TaskDep>)>,
    finished: BTreeMap<TaskId, (Attempt, Vec<TaskDep>)>,
    stops: Vec<(TaskId, Attempt, bool)>,
    outbox: VecDeque<Event>,
    // The journal.
    lengths: BTreeMap<StepIx, u32>,
    attempts: Vec<Event>,
    committed: BTreeSet<TaskId>,
    holes: BTreeMap<TaskId, Option<SkipReason>>,
    // The driver.
    decides: Vec<TaskId>,
    // What the checks remember.
    last_attempt: BTreeMap<TaskId, Attempt>,
    failures: BTreeMap<TaskId, u32>,
    ended: BTreeMap<TaskId, TaskStatus>,
    delivered: Vec<Event>,
}

impl Sim {
    pub fn new(steps: Vec<StepSpec>, limits: Limits, seed: u64) -> Self {
        let dag = Dag::build(steps).expect("a valid graph");
        let state = RunState::new(&dag, seed);
        let mut sim = Self {
            dag,
            state,
            limits,
            seed,
            now: 0,
            wake_at: None,
            cancelled: false,
            submitted: BTreeMap::new(),
            started: BTreeMap::new(),
            finished: BTreeMap::new(),
            stops: Vec::new(),
            outbox: VecDeque::new(),
            lengths: BTreeMap::new(),
            attempts: Vec::new(),
            committed: BTreeSet::new(),
            holes: BTreeMap::new(),
            decides: Vec::new(),
            last_attempt: BTreeMap::new(),
            failures: BTreeMap::new(),
            ended: BTreeMap::new(),
            delivered: Vec::new(),
        };
        sim.plan();
        sim
    }

    fn hash(seed: u64, task: TaskId, salt: u64) -> u64 {
        let place = u64::from(task.step.0) * 1_000 + task.item.map_or(0, |item| u64::from(item) + 1);
        let mixed = (seed ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt.wrapping_mul(0xbf58_476d_1ce4_e5b9))
            .wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 29)).wrapping_mul(0xff51_afd7_ed55_8ccd) >> 33
    }

    /// How often a task fails before it succeeds.
    pub fn failures_of(seed: u64, task: TaskId) -> u32 {
        match Self::hash(seed, task, 1) % 8 {
            0 => u32::MAX,
            1 => 1,
            2 => 2,
            _ => 0,
        }
    }

    pub fn answer_of(seed: u64, task: TaskId) -> Answer {
        match Self::hash(seed, task, 2) % 12 {
            0 => Answer::Refuse,
            1..=4 => Answer::Skip,
            _ => Answer::Run,
        }
    }

    pub fn lens_of(seed: u64, task: TaskId) -> Vec<u32> {
        (0..2).map(|slot| (Self::hash(seed, task, 3 + slot) % 4) as u32).collect()
    }

    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Random events, disasters included.
    pub fn play(&mut self, choices: &[u16]) {
        for choice in choices {
            if self.state.outcome().is_some() {
                return;
            }
            let (kind, pick) = (choice % 64, usize::from(choice / 64));
            match kind {
                0 => self.lose_runtime(),
                1 => self.restart(),
                2 => self.take_over(),
                3..=6 => self.lose(pick),
                7 | 8 => self.repeat(pick),
                9..=11 => self.advance(1 + pick as u64 * 10),
                _ => {
                    let options = self.options();
                    if let Some(option) = options.get(pick % options.len().max(1)) {
                        self.take_option(*option);
                    }
                }
            }
        }
    }

    /// Goes on without disasters until the run has ended.
    pub fn drain(&mut self) {
        for turn in 0..20_000usize {
            if self.state.outcome().is_some() {
                self.check_end();
                return;
            }
            let options = self.options();
            match (options.get(turn % options.len().max(1)), self.wake_at) {
                (Some(option), _) => self.take_option(*option),
                (None, Some(at)) => self.advance(at.saturating_sub(self.now)),
                (None, None) => panic!("nothing is going on and nothing is planned: {:?}", self.state.counts()),
            }
        }
        panic!("the run does not end");
    }

    pub fn cancel(&mut self) {
        if self.state.outcome().is_none() {
            self.cancelled = true;
            self.deliver(Event::CancelRequested);
        }
    }

    fn options(&self) -> Vec<Choice> {
        let mut options = Vec::new();
        options.extend((!self.outbox.is_empty()).then_some(Choice::Deliver));
        options.extend(self.decides.iter().map(|task| Choice::Decide(*task)));
        options.extend((0..self.stops.len()).map(Choice::Stop));
        let ready = self.submitted.iter().filter(|(_, (_, deps))| deps.iter().all(|dep| self.is_there(dep, false)));
        options.extend(ready.map(|(task, _)| Choice::Start(*task)));
        options.extend(self.started.keys().map(|task| Choice::Finish(*task)));
        let durable = self.finished.iter().filter(|(_, (_, deps))| deps.iter().all(|dep| self.is_there(dep, true)));
        options.extend(durable.map(|(task, _)| Choice::Commit(*task)));
        options
    }

    fn take_option(&mut self, choice: Choice) {
        match choice {
            Choice::Deliver => {
                if let Some(event) = self.outbox.pop_front() {
                    self.deliver(event);
                }
            }
            Choice::Decide(task) => {
                self.decides.retain(|other| *other != task);
                let event = self.build_answer(task);
                self.deliver(event);
            }
            Choice::Stop(at) => {
                let (task, attempt, is_timeout) = self.stops.remove(at);
                if self.forget(task, attempt) {
                    if is_timeout {
                        self.attempts.push(Event::AttemptFailed { task, attempt, class: FailureClass::Timeout });
                    }
                    self.outbox.push_back(Event::Stopped { task, attempt });
                }
            }
            Choice::Start(task) => {
                self.check_inputs(task);
                if let Some(entry) = self.submitted.remove(&task) {
                    self.outbox.push_back(Event::Started { task, attempt: entry.0 });
                    self.started.insert(task, entry);
                }
            }
            Choice::Finish(task) => {
                let Some(entry) = self.started.remove(&task) else { return };
                let attempt = entry.0;
                let failed = self.failures.entry(task).or_default();
                if *failed < Self::failures_of(self.seed, task) {
                    *failed += 1;
                    let class = FailureClass::App;
                    self.attempts.push(Event::AttemptFailed { task, attempt, class });
                    self.outbox.push_back(Event::Failed { task, attempt, class });
                } else {
                    let lens = Self::lens_of(self.seed, task);
                    self.finished.insert(task, entry);
                    self.outbox.push_back(Event::Finished { task, attempt, lens });
                }
            }
            Choice::Commit(task) => {
                self.finished.remove(&task);
                assert!(self.committed.insert(task), "{task:?} was committed twice");
                self.outbox.push_back(Event::Committed { task, lens: Self::lens_of(self.seed, task) });
            }
        }
    }

    fn build_answer(&self, task: TaskId) -> Event {
        match Self::answer_of(self.seed, task) {
            Answer::Run => Event::Decided { task, run: true },
            Answer::Skip => Event::Decided { task, run: false },
            Answer::Refuse => Event::Refused { task, reason: "no".to_owned() },
        }
    }

    fn lose(&mut self, pick: usize) {
        let all: Vec<(TaskId, Attempt)> = [&self.submitted, &self.started, &self.finished]
            .into_iter()
            .flatten()
            .map(|(task, (attempt, _))| (*task, *attempt))
            .collect();
        if let Some((task, attempt)) = all.get(pick % all.len().max(1)).copied() {
            self.forget(task, attempt);
            self.attempts.push(Event::Lost { task, attempt });
            self.outbox.push_back(Event::Lost { task, attempt });
        }
    }

    fn forget(&mut self, task: TaskId, attempt: Attempt) -> bool {
        [&mut self.submitted, &mut self.started, &mut self.finished].into_iter().any(|map| {
            let is_it = map.get(&task).is_some_and(|(other, _)| *other == attempt);
            is_it && map.remove(&task).is_some()
        })
    }

    fn clear_runtime(&mut self) {
        self.submitted.clear();
        self.started.clear();
        self.finished.clear();
        self.stops.clear();
    }

    /// The scheduler dies; the driver has read everything from it.
    fn lose_runtime(&mut self) {
        self.deliver_all();
        self.clear_runtime();
        self.decides.clear();
        self.deliver(Event::RuntimeLost);
    }

    /// Scheduler and driver die.
    fn restart(&mut self) {
        self.clear_runtime();
        self.state = self.restore();
        self.last_attempt.clear();
        self.plan();
    }

    /// Only the driver dies. What it was told and had not acted upon is in the snapshot.
    fn take_over(&mut self) {
        let mut state = self.restore();
        let in_flight = self.submitted.iter().chain(&self.started);
        let submitted = in_flight.map(|(task, (attempt, _))| Event::Submitted { task: *task, attempt: *attempt });
        let finished = self.finished.iter().map(|(task, (attempt, _))| Event::Finished {
            task: *task,
            attempt: *attempt,
            lens: Self::lens_of(self.seed, *task),
        });
        for event in submitted.chain(finished) {
            state.apply(&self.dag, &event, self.now).unwrap_or_else(|error| panic!("{event:?}: {error}"));
        }
        self.state = state;
        // The runtime forgets an attempt that it stopped, so its number may come again.
        self.last_attempt.clear();
        self.plan();
    }

    /// A fresh state from the journal. What the driver had not heard of or not decided is forgotten.
    fn restore(&mut self) -> RunState {
        self.outbox.clear();
        self.decides.clear();
        self.delivered.clear();
        self.ended.retain(|_, status| matches!(status, TaskStatus::Committed { .. }));
        let mut state = RunState::new(&self.dag, self.seed);
        let lengths = self.lengths.iter().map(|(step, len)| Event::MapLength { step: *step, len: *len });
        let commits =
            self.committed.iter().map(|task| Event::Committed { task: *task, lens: Self::lens_of(self.seed, *task) });
        // Ends of items came before the end of the rest of their step.
        let (wholes, items): (Vec<_>, Vec<_>) = self.holes.iter().partition(|(task, _)| task.item.is_none());
        let holes = items.into_iter().chain(wholes).map(|(task, reason)| match reason {
            Some(reason) => Event::Skipped { task: *task, reason: *reason },
            None => Event::FailedFinal { task: *task },
        });
        let cancel = self.cancelled.then_some(Event::CancelRequested);
        let attempts = self.attempts.iter().cloned();
        for event in lengths.chain(commits).chain(holes).chain(attempts).chain(cancel) {
            state.apply(&self.dag, &event, self.now).unwrap_or_else(|error| panic!("{event:?}: {error}"));
        }
        state
    }

    fn repeat(&mut self, pick: usize) {
        if let Some(event) = self.delivered.get(pick % self.delivered.len().max(1)).cloned() {
            let before = self.state.counts();
            // A stale decision may contradict; it must not change anything.
            let _ = self.state.apply(&self.dag, &event, self.now);
            assert_eq!(self.state.counts(), before, "repeated {event:?}");
            self.plan();
        }
    }

    fn advance(&mut self, by: u64) {
        self.now += by;
        self.plan();
    }

    fn deliver_all(&mut self) {
        while let Some(event) = self.outbox.pop_front() {
            self.deliver(event);
        }
    }

    fn deliver(&mut self, event: Event) {
        self.state.apply(&self.dag, &event, self.now).unwrap_or_else(|error| panic!("{event:?}: {error}"));
        if matches!(
            event,
            Event::Started { .. } | Event::Finished { .. } | Event::Committed { .. } | Event::Failed { .. }
        ) {
            self.delivered.push(event);
        }
        self.plan();
    }

    fn plan(&mut self) {
        let planned = plan(&self.dag, &mut self.state, &self.limits, self.now);
        self.wake_at = planned.wake_at;
        assert!(planned.wake_at.is_none_or(|at| at > self.now), "wakes up in the past");
        for action in planned.actions {
            self.act(action);
        }
        self.check_nothing_forgotten();
        self.check_counts();
        self.check_terminal();
        self.check_limits();
        self.check_demand();
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Decide { task } => {
                assert!(!self.decides.contains(&task), "{task:?} is decided twice");
                self.decides.push(task);
            }
            Action::Submit { task, attempt, deps, priority } => {
                assert_eq!(Some(priority), self.dag.step(task.step).map(|spec| spec.priority));
                assert!(!self.committed.contains(&task), "{task:?} is submitted after its commit");
                assert!(!self.holes.contains_key(&task), "{task:?} is submitted after its end");
                for map in [&self.submitted, &self.started, &self.finished] {
                    assert!(!map.contains_key(&task), "{task:?} is submitted while it is in flight");
                }
                let last = self.last_attempt.insert(task, attempt);
                assert!(last.is_none_or(|last| last < attempt), "attempt {attempt} of {task:?} after {last:?}");
                self.submitted.insert(task, (attempt, deps));
            }
            Action::Withdraw { task, attempt } => self.stop(task, attempt, false),
            Action::Stop { task, attempt, why } => self.stop(task, attempt, why == StopReason::Timeout),
            Action::RecordLength { step, len } => {
                assert_eq!(self.lengths.insert(step, len), None, "the length of {step:?} is recorded twice");
            }
            Action::RecordSkipped { task, reason } => self.record(task, Some(reason)),
            Action::RecordInvalidated { .. } => panic!("nothing is lost here"),
            Action::RecordFailed { task, reason: _ } => self.record(task, None),
            Action::Finish(outcome) => assert_eq!(self.state.outcome(), Some(outcome)),
        }
    }

    fn stop(&mut self, task: TaskId, attempt: Attempt, is_timeout: bool) {
        // What does not run goes at once; what runs takes a while to stop.
        let is_here = |map: &BTreeMap<TaskId, (Attempt, Vec<TaskDep>)>| {
            map.get(&task).is_some_and(|(other, _)| *other == attempt)
        };
        if !is_timeout && (is_here(&self.submitted) || is_here(&self.finished)) {
            self.forget(task, attempt);
            self.outbox.push_back(Event::Stopped { task, attempt });
        } else {
            self.stops.push((task, attempt, is_timeout));
        }
    }

    fn record(&mut self, task: TaskId, reason: Option<SkipReason>) {
        assert!(!self.committed.contains(&task), "{task:?} ends after its commit");
        assert_eq!(self.holes.insert(task, reason), None, "the end of {task:?} is recorded twice");
    }

    /// What the runtime knows about a dependency.
    fn is_there(&self, dep: &TaskDep, durable: bool) -> bool {
        let one = |task: TaskId| {
            self.committed.contains(&task)
                || self.holes.contains_key(&task)
                || self.holes.contains_key(&TaskId::whole(task.step))
                || (!durable && self.finished.contains_key(&task))
        };
        match dep {
            TaskDep::Task(task) => one(*task),
            TaskDep::After(task) => durable || one(*task),
            TaskDep::All { step, len } => (0..*len).all(|item| one(TaskId::item(*step, item))),
            TaskDep::AfterAll { step, len } => durable || (0..*len).all(|item| one(TaskId::item(*step, item))),
        }
    }

    /// A task starts only on inputs that exist, whatever the engine told the runtime.
    fn check_inputs(&self, task: TaskId) {
        let spec = self.dag.step(task.step).expect("a step");
        let there = |input: TaskId| self.finished.contains_key(&input) || self.committed.contains(&input);
        let ended = |up: StepIx| {
            let is_mapped = self.dag.step(up).is_some_and(|spec| spec.map.is_some());
            let whole = TaskId::whole(up);
            let items = 0..self.state.step_len(up).unwrap_or(0);
            self.holes.contains_key(&whole)
                || (!is_mapped && there(whole))
                || (is_mapped
                    && self.state.step_len(up).is_some()
                    && items
                        .map(|item| TaskId::item(up, item))
                        .all(|item| there(item) || self.holes.contains_key(&item)))
        };
        for (at, source) in spec.map.iter().flatten().enumerate() {
            match self.state.map_element(&self.dag, task, at) {
                Some(Element::Index(_)) => {}
                Some(Element::Output(input) | Element::Entry { task: input, .. }) => {
                    assert!(there(input), "{task:?} starts without {input:?} ({source:?})");
                }
                None => panic!("{task:?} starts before its element is known"),
            }
        }
        for dep in &spec.deps {
            assert!(ended(dep.step()), "{task:?} starts before {dep:?}");
        }
        if spec.finally {
            let main = self.dag.steps().filter(|(_, spec)| !spec.finally);
            for (step, _) in main {
                assert!(ended(step), "{task:?} starts before {step:?} has ended");
            }
        }
    }

    /// Looking at everything again finds nothing that looking at the changes did not.
    fn check_nothing_forgotten(&self) {
        let mut state = self.state.clone();
        let other = Limits { timeout_grace_ms: self.limits.timeout_grace_ms + 1, ..self.limits.clone() };
        let planned = plan(&self.dag, &mut state, &other, self.now);
        assert_eq!(planned.actions, [], "found only by looking at everything");
    }

    fn check_counts(&self) {
        let counts = self.state.counts();
        let sum = counts.waiting
            + counts.submitted
            + counts.running
            + counts.done
            + counts.failed
            + counts.skipped
            + counts.cancelled;
        assert_eq!(counts.total, sum, "{counts:?}");
        let steps = self.dag.steps().filter_map(|(ix, _)| self.state.step_summary(ix)).map(|step| step.counts);
        let (done, failed, waiting) =
            steps.fold((0, 0, 0), |sum, step| (sum.0 + step.done, sum.1 + step.failed, sum.2 + step.waiting));
        assert_eq!((counts.done, counts.failed, counts.waiting), (done, failed, waiting));
    }

    /// What has ended stays as it is.
    fn check_terminal(&mut self) {
        for (step, _) in self.dag.steps() {
            let items = self.state.step_len(step).unwrap_or(0);
            for task in std::iter::once(TaskId::whole(step)).chain((0..items).map(|item| TaskId::item(step, item))) {
                let Some(view) = self.state.task_view(&self.dag, task) else { continue };
                if let Some(before) = self.ended.get(&task) {
                    assert_eq!(view.status, *before, "{task:?} has ended");
                } else if matches!(
                    view.status,
                    TaskStatus::Committed { .. } | TaskStatus::Failed | TaskStatus::Skipped(_)
                ) {
                    self.ended.insert(task, view.status);
                }
            }
        }
    }

    fn check_limits(&self) {
        let in_flight: Vec<TaskId> = self.submitted.keys().chain(self.started.keys()).copied().collect();
        if let Some(most) = self.limits.parallelism {
            assert!(in_flight.len() <= most as usize, "{} in flight, {most} allowed", in_flight.len());
        }
        assert!(in_flight.len() <= 2 * self.limits.window as usize, "{} in flight", in_flight.len());
        let mut gpus = 0.0;
        for (step, spec) in self.dag.steps() {
            let of_step = in_flight.iter().filter(|task| task.step == step).count();
            assert!(spec.parallelism.is_none_or(|most| of_step <= most as usize), "{of_step} of {step:?} in flight");
            gpus += of_step as f64 * spec.resources.iter().map(|(_, amount)| amount).sum::<f64>();
        }
        assert!(self.limits.resources.get("GPU").is_none_or(|most| gpus <= *most), "{gpus} GPUs taken");
    }

    /// What is told to be needed is there, not beyond the limits, and nothing of it waits for more than what is in flight.
    fn check_demand(&self) {
        let told = demand(&self.dag, &self.state, &self.limits);
        let tasks = |step: StepIx| {
            let items = (0..self.state.step_len(step).unwrap_or(0)).map(move |item| TaskId::item(step, item));
            let all = std::iter::once(TaskId::whole(step)).chain(items);
            all.filter_map(|task| self.state.task_view(&self.dag, task)).map(|view| view.status).collect::<Vec<_>>()
        };
        for (step, spec) in self.dag.steps() {
            let none = Demand { step, now: 0, soon: 0, later: 0 };
            let Demand { now, soon, later, .. } =
                told.iter().find(|demand| demand.step == step).copied().unwrap_or(none);
            let sure = soon;
            let soon = soon + later;
            let running = tasks(step).iter().filter(|status| **status == TaskStatus::Started).count();
            assert!(now as usize >= running, "{running} of {step:?} run, {now} are told");
            let has_ended = |status: &TaskStatus| {
                matches!(
                    status,
                    TaskStatus::Finished | TaskStatus::Committed { .. } | TaskStatus::Failed | TaskStatus::Skipped(_)
                )
            };
            let open = tasks(step).iter().filter(|status| !has_ended(status)).count();
            let open = if tasks(step).is_empty() { 1 } else { open };
            assert!((now + soon) as usize <= open, "{now} and {soon} of {step:?}, {open} are open");
            let most = self.limits.parallelism.into_iter().chain(spec.parallelism.map(|most| most.max(1)));
            assert!(most.min().is_none_or(|most| now + soon <= most), "{now} and {soon} of {step:?} at once");
            let gpus: f64 = spec.resources.iter().map(|(_, amount)| amount).sum();
            let most = self.limits.resources.get("GPU").filter(|_| gpus > 0.0);
            assert!(
                most.is_none_or(|most| f64::from(now + soon) * gpus <= *most + 1e-9),
                "{now} and {soon} of {step:?}"
            );
            if soon == 0 {
                continue;
            }
            let lists = spec.map.iter().flatten().filter(|source| !matches!(source, MapSource::Items(_)));
            for up in spec.deps.iter().map(|dep| dep.step()).chain(lists.filter_map(|source| source.step())) {
                let near = |status: &TaskStatus| {
                    has_ended(status)
                        || matches!(status, TaskStatus::Ready | TaskStatus::Submitted | TaskStatus::Started)
                };
                assert!(tasks(up).iter().all(near), "{soon} of {step:?} soon, and {up:?} is {:?}", tasks(up));
                let waits = |status: &TaskStatus| matches!(status, TaskStatus::Ready | TaskStatus::Submitted);
                assert!(
                    sure == 0 || !tasks(up).iter().any(waits),
                    "{sure} of {step:?} need no other worker first, and {up:?} is {:?}",
                    tasks(up)
                );
            }
        }
    }

    fn check_end(&self) {
        let counts = self.state.counts();
        assert_eq!((counts.waiting, counts.submitted, counts.running), (0, 0, 0), "{counts:?}");
        assert_eq!(counts.done as usize, self.committed.len());
    }

    /// Compares this run, when it loses its runtime, with one restored from its journal.
    pub fn check_restore(&mut self) {
        if self.state.outcome().is_some() {
            return;
        }
        self.deliver_all();
        if self.state.outcome().is_some() {
            return;
        }
        let mut old = self.state.clone();
        old.apply(&self.dag, &Event::RuntimeLost, self.now).expect("it is always possible");
        let mut new = self.restore();
        self.clear_runtime();
        self.last_attempt.clear();
        // Late enough that no backoff is running any more: a restored one begins anew.
        let later = self.now + 1_000_000_000;
        let (of_old, of_new) =
            (self.plan_until_settled(&mut old, later), self.plan_until_settled(&mut new.clone(), later));
        assert_eq!(of_new, of_old, "restored and old");
        std::mem::swap(&mut self.state, &mut new);
        self.plan();
    }

    /// All that is planned when every question is answered at once, without attempt numbers.
    fn plan_until_settled(&self, state: &mut RunState, now: u64) -> BTreeSet<String> {
        // Submits come last and without limits: what has to be asked again would lose its place in a queue to others.
        let free = Limits { fail_fast: self.limits.fail_fast, losses: self.limits.losses, ..Limits::default() };
        let mut limits = Limits { parallelism: Some(0), ..free.clone() };
        let mut seen = BTreeSet::new();
        let mut asked = Vec::new();
        loop {
            for mut action in plan(&self.dag, state, &limits, now).actions {
                match &mut action {
                    Action::Decide { task } => asked.push(*task),
                    Action::Submit { attempt, .. } => *attempt = 0,
                    _ => {}
                }
                match action {
                    Action::Decide { .. } => {}
                    // Whether a step is cut short as a whole or item by item depends on what it was doing.
                    Action::RecordSkipped { task, reason }
                        if reason.is_cancellation() || reason == SkipReason::FailFast =>
                    {
                        let items =
                            state.step_len(task.step).filter(|_| task.item.is_none()).map_or(0..0, |len| 0..len);
                        let is_mapped = self.dag.step(task.step).is_some_and(|spec| spec.map.is_some());
                        if is_mapped && task.item.is_none() && state.step_len(task.step).is_some() {
                            let open = items.map(|item| TaskId::item(task.step, item));
                            let open =
                                open.filter(|item| !self.committed.contains(item) && !self.holes.contains_key(item));
                            seen.extend(open.map(|item| format!("{item:?} is cut short: {reason:?}")));
                        } else {
                            seen.insert(format!("{task:?} is cut short: {reason:?}"));
                        }
                    }
                    action => {
                        seen.insert(format!("{action:?}"));
                    }
                }
            }
            match (asked.is_empty(), limits.parallelism) {
                (false, _) => {}
                (true, Some(_)) => limits = free.clone(),
                (true, None) => return seen,
            }
            for task in std::mem::take(&mut asked) {
                let event = self.build_answer(task);
                state.apply(&self.dag, &event, now).unwrap_or_else(|error| panic!("{event:?}: {error}"));
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Choice {
    Deliver,
    Decide(TaskId),
    Stop(usize),
    Start(TaskId),
    Finish(TaskId),
    Commit(TaskId),
}
