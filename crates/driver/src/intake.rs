//! What of a scheduler's events is let in: what is about the run, and of texts as much as is ever shown.

use dask::RuntimeEvent;
use dask::ops::TaskAddr;
use engine::{RunState, StepIx};
use limits::clip;
use lower::Plan;

use super::terms::task_id;

/// The event, if it is about a task or a step that the run has; of others nothing is read or kept.
pub(super) fn admitted(mut event: RuntimeEvent, plan: &Plan, state: &RunState) -> Option<RuntimeEvent> {
    let is_task = |task: &TaskAddr| state.task_view(&plan.dag, task_id(*task)).is_some();
    let is_step = |step: u32| plan.step_def(StepIx(step)).is_some();
    let is_ours = match &mut event {
        RuntimeEvent::Started { task, .. } | RuntimeEvent::Stopped { task } => is_task(task),
        RuntimeEvent::Finished { task, lens, .. } => {
            let wanted = plan.step_def(StepIx(task.step)).map_or(0, |step| step.lens.len());
            lens.truncate(wanted);
            lens.shrink_to_fit();
            is_task(task)
        }
        RuntimeEvent::Committed { tasks, .. } => {
            tasks.retain(is_task);
            !tasks.is_empty()
        }
        RuntimeEvent::Failed { task, worker, class, kind, message, traceback, tail, .. } => {
            for word in [worker, class, kind] {
                clip(word, limits::WORD);
            }
            clip(message, limits::FAILURE_MESSAGE);
            clip(traceback, limits::FAILURE_TRACEBACK);
            shorten(tail);
            is_task(task)
        }
        RuntimeEvent::Lost { task, worker, message } => {
            clip(worker, limits::WORD);
            clip(message, limits::FAILURE_MESSAGE);
            is_task(task)
        }
        RuntimeEvent::Logs { lines, .. } => {
            lines.retain(|line| is_task(&line.task));
            !lines.is_empty()
        }
        RuntimeEvent::Blocked { step, message, .. } => {
            clip(message, limits::BLOCKED_MESSAGE);
            is_step(*step)
        }
        RuntimeEvent::Unblocked { step } => is_step(*step),
        RuntimeEvent::Storage { message, reason, .. } | RuntimeEvent::Closing { message, reason } => {
            clip(message, limits::FAILURE_MESSAGE);
            clip(reason, limits::WORD);
            true
        }
        RuntimeEvent::Worker(change) => {
            clip(&mut change.name, limits::WORD);
            true
        }
        RuntimeEvent::Fenced { .. } => true,
    };
    is_ours.then_some(event)
}

/// The last lines that are shown of an attempt.
fn shorten(tail: &mut Vec<String>) {
    let mut room = limits::FAILURE_TAIL;
    let kept = tail.iter().rev().take_while(|line| {
        let fits = line.len() < room;
        room = room.saturating_sub(line.len() + 1);
        fits
    });
    let from = tail.len() - kept.count();
    drop(tail.drain(..from));
    tail.shrink_to_fit();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_last_lines_as_many_stay_as_fit() {
        let mut tail: Vec<String> = (0..10).map(|n| n.to_string().repeat(limits::FAILURE_TAIL / 4)).collect();
        shorten(&mut tail);
        assert_eq!(tail.iter().map(|line| &line[..1]).collect::<String>(), "789");
        let mut empty = vec![String::new(); limits::FAILURE_TAIL * 2];
        shorten(&mut empty);
        assert!(empty.len() <= limits::FAILURE_TAIL);
    }
}
