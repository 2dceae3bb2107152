//! A small language for runs in tests: steps, events and actions as lines of text.
#![allow(dead_code, reason = "each test file uses a part of it")]

use engine::*;

/// One step a line: `name: word argument, word argument`. Steps are referred to by name, earlier or later.
pub fn parse_steps(text: &str) -> Vec<StepSpec> {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let names: Vec<&str> = lines.iter().map(|line| line.split(':').next().unwrap_or_default().trim()).collect();
    let find = |name: &str| {
        let at = names.iter().position(|other| *other == name);
        StepIx(at.map_or_else(|| name.parse().expect("a step name or number"), |at| at as u32))
    };
    lines.iter().map(|line| parse_step(line, &find)).collect()
}

fn parse_step(line: &str, find: &dyn Fn(&str) -> StepIx) -> StepSpec {
    let (name, rest) = line.split_once(':').unwrap_or((line, ""));
    let mut spec = StepSpec { name: name.trim().to_owned(), ..StepSpec::default() };
    spec.retry = RetryPolicy { limit: 0, initial_ms: 1000, factor: 2.0, cap_ms: 10_000, jitter: 0.0, classes: None };
    for clause in rest.split(',').map(str::trim).filter(|clause| !clause.is_empty()) {
        let words: Vec<&str> = clause.split_whitespace().collect();
        let number = |at: usize| words.get(at).map_or(0, |word| word.parse::<u32>().expect("a number"));
        let source = match words[0] {
            "len" => Some(MapSource::Len(number(1))),
            "items" => Some(MapSource::Items(find(words[1]))),
            "flat" => Some(MapSource::Flatten(find(words[1]))),
            "output" => Some(MapSource::Output { step: find(words[1]), lens_slot: number(2) }),
            _ => None,
        };
        match words[0] {
            "len" | "items" | "flat" | "output" => spec.map.get_or_insert_default().extend(source),
            "nomap" => spec.map = Some(Vec::new()),
            "data" => spec.deps.extend(words[1..].iter().map(|name| Dep::Data(find(name)))),
            "after" => spec.deps.extend(words[1..].iter().map(|name| Dep::After(find(name)))),
            "when" => spec.when = When::PerStep,
            "when-each" => spec.when = When::PerItem,
            "late" => spec.late = true,
            "finally" => spec.finally = true,
            "continue" => spec.continue_on_failure = true,
            "retry" => spec.retry.limit = number(1),
            "classes" => spec.retry.classes = words[1..].iter().map(|word| FailureClass::parse(word)).collect(),
            "priority" => spec.priority = words[1].parse().expect("a number"),
            "parallel" => spec.parallelism = Some(number(1)),
            "needs" => spec.resources.push((words[1].to_owned(), words[2].parse().expect("a number"))),
            "on-lost" => {
                spec.on_lost = match words[1] {
                    "fail" => OnLost::Fail,
                    "elsewhere" => OnLost::Elsewhere,
                    other => panic!("no such answer to a loss: {other}"),
                }
            }
            "timeout" => spec.timeout_ms = Some(u64::from(number(1))),
            other => panic!("no such clause: {other}"),
        }
    }
    spec
}

/// A run under test: applies events, plans, and renders what is planned.
#[derive(Clone)]
pub struct Run {
    pub dag: Dag,
    pub state: RunState,
    pub limits: Limits,
    pub now: u64,
}

impl Run {
    pub fn new(steps: &str, limits: Limits) -> Self {
        let dag = Dag::build(parse_steps(steps)).expect("a valid graph");
        let state = RunState::new(&dag, 7);
        Self { dag, state, limits, now: 0 }
    }

    /// Events separated by `;`, then one plan.
    pub fn step(&mut self, events: &str) -> Vec<String> {
        for event in events.split(';').map(str::trim).filter(|event| !event.is_empty()) {
            self.feed(event).unwrap_or_else(|error| panic!("{event}: {error}"));
        }
        self.plan()
    }

    pub fn plan(&mut self) -> Vec<String> {
        let planned = plan(&self.dag, &mut self.state, &self.limits, self.now);
        let again = plan(&self.dag, &mut self.state, &self.limits, self.now);
        assert_eq!(again.actions, [], "planning twice");
        planned.actions.iter().map(|action| self.render(action)).collect()
    }

    pub fn wake_at(&mut self) -> Option<u64> {
        plan(&self.dag, &mut self.state, &self.limits, self.now).wake_at
    }

    pub fn task(&self, text: &str) -> TaskId {
        let (name, item) = match text.split_once('[') {
            Some((name, item)) => (name, Some(item.trim_end_matches(']').parse().expect("an item"))),
            None => (text, None),
        };
        let found = self.dag.steps().find(|(_, spec)| spec.name == name);
        TaskId { step: found.unwrap_or_else(|| panic!("no step {name}")).0, item }
    }

    pub fn status(&self, task: &str) -> Option<TaskStatus> {
        self.state.task_view(&self.dag, self.task(task)).map(|view| view.status)
    }

    /// `word task[#attempt] arguments`. `ok` stands for finished and committed.
    pub fn feed(&mut self, text: &str) -> Result<(), TransitionError> {
        let words: Vec<&str> = text.split_whitespace().collect();
        match words[0] {
            "at" => {
                self.now = words[1].parse().expect("a time");
                return Ok(());
            }
            "gone" => return self.apply(Event::RuntimeLost),
            "cancel" => return self.apply(Event::CancelRequested),
            _ => {}
        }
        let (name, attempt) = match words[1].split_once('#') {
            Some((name, attempt)) => (name, attempt.parse().expect("an attempt")),
            None => {
                let view = self.state.task_view(&self.dag, self.task(words[1]));
                (words[1], view.map_or(1, |view| view.attempt))
            }
        };
        let task = self.task(name);
        let lens = || words[2..].iter().map(|len| len.parse().expect("a length")).collect::<Vec<u32>>();
        let class = || FailureClass::parse(words.get(2).unwrap_or(&"app")).expect("a class");
        if words[0] == "ok" {
            self.apply(Event::Finished { task, attempt, lens: lens() })?;
        }
        self.apply(match words[0] {
            "submitted" => Event::Submitted { task, attempt },
            "start" => Event::Started { task, attempt },
            "finish" => Event::Finished { task, attempt, lens: lens() },
            "commit" | "ok" => Event::Committed { task, lens: lens() },
            "cached" => Event::Cached { task, lens: lens() },
            "fail" => Event::Failed { task, attempt, class: class() },
            "attempt-failed" => Event::AttemptFailed { task, attempt, class: class() },
            "lose" => Event::Lost { task, attempt },
            "input-lost" => {
                Event::InputLost { task, attempt, inputs: words[2..].iter().map(|input| self.task(input)).collect() }
            }
            "changed" => Event::Changed { task },
            "invalidated" => Event::Invalidated { task, attempt, lost: words.get(2) == Some(&"lost") },
            "stopped" => Event::Stopped { task, attempt },
            "yes" => Event::Decided { task, run: true },
            "no" => Event::Decided { task, run: false },
            "refuse" => Event::Refused { task, reason: words[2..].join(" ") },
            "length" => Event::MapLength { step: task.step, len: words[2].parse().expect("a length") },
            "skipped" => Event::Skipped { task, reason: SkipReason::parse(words[2]).expect("a reason") },
            "failed" => Event::FailedFinal { task },
            other => panic!("no such event: {other}"),
        })
    }

    pub fn apply(&mut self, event: Event) -> Result<(), TransitionError> {
        self.state.apply(&self.dag, &event, self.now)
    }

    fn name(&self, task: &TaskId) -> String {
        let name = &self.dag.step(task.step).expect("a step").name;
        task.item.map_or_else(|| name.clone(), |item| format!("{name}[{item}]"))
    }

    fn render(&self, action: &Action) -> String {
        let list = |step: &StepIx, len: &u32| format!("{}[*{len}]", self.name(&TaskId::whole(*step)));
        match action {
            Action::Decide { task } => format!("decide {}", self.name(task)),
            Action::Submit { task, attempt, deps, priority } => {
                let mut text = format!("submit {}#{attempt}", self.name(task));
                if *priority != 0 {
                    text += &format!(" !{priority}");
                }
                for (at, dep) in deps.iter().enumerate() {
                    text += if at == 0 { " <- " } else { " " };
                    text += &match dep {
                        TaskDep::Task(task) => self.name(task),
                        TaskDep::All { step, len } => list(step, len),
                        TaskDep::After(task) => format!("~{}", self.name(task)),
                        TaskDep::AfterAll { step, len } => format!("~{}", list(step, len)),
                    };
                }
                text
            }
            Action::Withdraw { task, attempt } => format!("withdraw {}#{attempt}", self.name(task)),
            Action::Stop { task, attempt, why } => format!("stop {}#{attempt} {why:?}", self.name(task)),
            Action::RecordLength { step, len } => format!("length {} {len}", self.name(&TaskId::whole(*step))),
            Action::RecordSkipped { task, reason } => format!("skip {} {reason:?}", self.name(task)),
            Action::RecordFailed { task, reason } => format!("failed {} {}", self.name(task), reason.name()),
            Action::RecordInvalidated { task, why } => format!("invalidate {} {}", self.name(task), why.name()),
            Action::Finish(outcome) => format!("end {outcome:?}"),
        }
    }
}

/// Runs a script: before each list of expected actions, the events that lead to it.
#[track_caller]
pub fn check(steps: &str, limits: Limits, script: &[(&str, &[&str])]) -> Run {
    let mut run = Run::new(steps, limits);
    for (at, (events, expected)) in script.iter().enumerate() {
        let actions = run.step(events);
        assert_eq!(actions, *expected, "line {at}: {events}");
    }
    run
}
