//! The DAG engine: decides what a run does next, and nothing else. No I/O, no clock, no names of the outside world.
//!
//! ```text
//! Dag::build(steps)                 once: checks everything, links the steps
//! RunState::new(&dag, seed)
//! state.apply(&dag, &event, now)    facts, from the runtime, the caller or the journal
//! plan(&dag, &mut state, &limits, now) -> actions in order, and when to ask again
//! ```
//!
//! `apply` changes facts and the counts that follow from them; `plan` decides. A plan costs what changed since the last
//! one, not what there is: ten thousand tasks, each with its three events planned for by itself, take tens of
//! milliseconds. Planning again without new facts yields nothing. All algorithms are iterative.
//!
//! # Tasks
//!
//! An unmapped step is one task, a mapped step one per item. [`TaskId`] with `item: None` for a mapped step means the
//! step as a whole.
//!
//! ```text
//! waiting ─▶ submitted ─▶ started ─▶ finished ─▶ COMMITTED
//!    ▲ ▲         │           │           │
//!    │ └─ lost ──┴───────────┴───────────┤        (own budget: Limits::losses)
//!    └─── backoff ◀──── failed ──────────┴──▶ FAILED   (no retry left, or its class is not retried)
//! waiting, or told to stop ─▶ SKIPPED (condition, inputs, fail-fast, cancelled)
//! ```
//!
//! *Finished* lets dependents start. *Committed* is final: it is in the journal and never runs again while its output is
//! readable. Final states absorb everything; a fact that cannot be is a [`TransitionError`], to be reported, and changes nothing. Facts about older
//! attempts are ignored. A newer attempt than the last one known is taken over: that is how a state joins a runtime that
//! outlived its driver.
//!
//! # When a task is submitted
//!
//! * Its inputs are finished; or (the *window*) they are at least submitted, and the runtime waits for them. Steps with a
//!   condition, `late` steps and steps under a limit (their own or the run's parallelism, or a limited resource) are not
//!   submitted ahead. [`Limits::window`] bounds the tasks whose inputs are there and, separately, the total up to which
//!   tasks are submitted ahead, so at most twice as many are in the runtime.
//! * A length that depends on an output is taken from the committed output, so that it never changes.
//! * Order: priority, then the longest way to the end of the graph, then manifest order, then item. Where a resource is
//!   short, smaller needs may go first.
//! * Inputs that are lost after a task was submitted: under a limit it is withdrawn, since it would hold the place that
//!   the input needs; otherwise it waits in the runtime.
//! * A retry waits `initial × factor^(n-1)`, at most the cap, shortened by up to the jitter share; the random part depends
//!   only on (seed, task, attempt). Losses and `preempted` failures are repeated at once and have their own budget.
//!
//! # What happens to the others when a task does not run or fails
//!
//! | the input is | element-wise dependent item | dependent on the whole output or list | `After` |
//! |---|---|---|---|
//! | failed | skipped, `UpstreamFailed` | skipped, `UpstreamFailed` | skipped, `UpstreamFailed` |
//! | failed, `continue_on_failure` | skipped, `UpstreamHole` | runs, sees a hole | runs |
//! | failed so, and its list was to be mapped over | | skipped, `UpstreamHole` | runs |
//! | item skipped by its condition | skipped, `UpstreamSkipped` | runs, sees a hole in the list | runs |
//! | step skipped by its condition | step skipped, `UpstreamSkipped` | skipped, `UpstreamSkipped` | runs |
//! | skipped for a failure, cancelled | skipped, `UpstreamFailed` | skipped, `UpstreamFailed` | skipped, `UpstreamFailed` |
//!
//! A skip is handed on with its reason, so a hole that is allowed stays allowed. What is bad shows at once; what is allowed
//! is judged when all inputs are settled, and a step as a whole before its items: the end of a run depends on its facts and
//! not on their order. A dependent that was submitted ahead is withdrawn; one that started on an input that was lost for
//! good is stopped. One that is finished and needed no data of what failed may still be committed.
//!
//! A map without items succeeds once its inputs have ended. Lengths that differ, too many items and an output that is no
//! list fail the step as a whole (and a list of it cannot be had, so its dependents are skipped even if it may fail).
//!
//! * **`finally`** steps start when all others have ended, however that was; their `deps` on other steps only say what
//!   they read (holes included). Among themselves they follow the same rules as all.
//! * **Cancel** and the deadline: nothing of the main part starts, what is submitted is withdrawn, what runs is stopped,
//!   what is finished may commit. If nothing was left to cancel, the run ends as it would have.
//! * **The time of the `finally` steps** ([`Limits::finally_ms`]) counts from the first plan in which all others have ended,
//!   after a restore anew. Then they are stopped in the same way, and nothing starts any more.
//! * **Fail-fast**: after the first failure that counts nothing starts; what has started ends, without retries.
//! * **Timeout**: the worker enforces it; an attempt that is there [`Limits::timeout_grace_ms`] later is stopped, and
//!   charged as class `timeout` when `Stopped` arrives.
//!
//! # When a committed output is lost
//!
//! A reader says so ([`Event::InputLost`]), and its attempt is not charged. What was committed is invalidated
//! ([`Action::RecordInvalidated`]), once per task, and the task runs again; readers in flight are called back. If it is
//! committed with another output ([`Event::Changed`]), its committed readers are invalidated as well, and so on; with the same
//! output nothing else runs. A map whose length was taken from the output that is another one now is laid out anew. Otherwise
//! (see [`OnLost`], and after a second loss) the reader fails without retry. Decided conditions and failures stand.
//!
//! # What the caller has to do
//!
//! * Carry out actions in their order. `Withdraw` and `Stop` come first in a plan: an attempt must be called back before
//!   the runtime hears of the hole that it must not see.
//! * Record `RecordLength`, `RecordSkipped`, `RecordFailed`, and failed attempts, those stopped for their timeout included.
//! * Drop open questions (`Decide`) when it reports `RuntimeLost`: they are asked again.
//! * Restore in this order: `MapLength`; `Invalidated`; `Committed` in the order of the journal, with `Changed` before those
//!   that are; `Skipped` and `FailedFinal`, items before whole steps;
//!   `AttemptFailed` and `Lost` as they happened; of a runtime that is still alive `Submitted` and `Finished`; and
//!   `CancelRequested` if that was asked for. The new state plans what the old one would have after losing its runtime.

mod action;
mod admission;
mod apply;
mod counts;
mod dag;
mod demand;
mod event;
mod lengths;
mod plan;
mod propagate;
mod rerun;
mod retry;
mod state;
mod topology;
mod transition;
mod types;
mod verdict;
mod view;

pub use action::{Action, FailReason, Invalid, NoRerun, Plan, RunOutcome, SkipReason, StopReason, TaskDep};
pub use counts::Counts;
pub use dag::{Dag, DagError, MAX_STEPS};
pub use demand::{Demand, demand};
pub use event::{Event, TransitionError};
pub use plan::plan;
pub use state::{MAX_ITEMS, RunState};
pub use types::{Attempt, Dep, FailureClass, Limits, MapSource, OnLost, RetryPolicy, StepIx, StepSpec, TaskId, When};
pub use view::{Element, StepState, StepSummary, TaskStatus, TaskView};
