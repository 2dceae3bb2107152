//! The transition table: what a fact about an attempt does to a task.

use super::state::{Phase, Then};

/// A fact about one attempt of a task, stripped of its details.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fact {
    Submitted,
    Started,
    Finished,
    Failed,
    Lost,
    Stopped,
}

/// How the attempt of the fact compares with the last one known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    Older,
    Same,
    /// Not submitted by this state: it was restored, and the runtime or the journal knows more.
    Newer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Ignore,
    /// Cannot be: report it.
    Contradict,
    Submit,
    Start,
    Finish,
    /// Charge the failure: retry or fail.
    FailAttempt,
    /// Not charged to the retry limit: run again.
    Lose,
    /// The end of a stop that we asked for.
    EndStop(Then),
    /// Take over the attempt number only.
    Number,
}

/// Total over phases and facts. Final phases absorb; only what cannot be is reported.
pub(super) fn transition(phase: Phase, fact: Fact, relation: Relation) -> Effect {
    use Effect::{Contradict, EndStop, FailAttempt, Finish, Ignore, Lose, Number, Start, Submit};
    match (phase, relation) {
        (Phase::Committed, Relation::Same) => match fact {
            Fact::Failed => Contradict,
            Fact::Submitted | Fact::Started | Fact::Finished | Fact::Lost | Fact::Stopped => Ignore,
        },
        (Phase::Committed, Relation::Older | Relation::Newer) => Ignore,
        (Phase::Failed | Phase::Skipped(_), Relation::Older | Relation::Same | Relation::Newer) => Ignore,

        (
            Phase::Waiting | Phase::Backoff | Phase::Submitted | Phase::Started | Phase::Finished | Phase::Stopping(_),
            Relation::Older,
        ) => Ignore,

        // The attempt has ended already; what comes again or too late changes nothing.
        (Phase::Waiting | Phase::Backoff, Relation::Same) => Ignore,
        (Phase::Submitted, Relation::Same) => match fact {
            Fact::Submitted => Ignore,
            Fact::Started => Start,
            Fact::Finished => Finish,
            Fact::Failed => FailAttempt,
            // Nobody here asked for a stop, so it is a loss: bounded by the same budget.
            Fact::Lost | Fact::Stopped => Lose,
        },
        (Phase::Started, Relation::Same) => match fact {
            Fact::Submitted | Fact::Started => Ignore,
            Fact::Finished => Finish,
            Fact::Failed => FailAttempt,
            Fact::Lost | Fact::Stopped => Lose,
        },
        (Phase::Finished, Relation::Same) => match fact {
            Fact::Submitted | Fact::Started | Fact::Finished => Ignore,
            Fact::Failed => FailAttempt,
            Fact::Lost | Fact::Stopped => Lose,
        },
        (Phase::Stopping(then), Relation::Same | Relation::Newer) => match (fact, then) {
            // The stop is on its way. A commit may still win; it is not a fact about an attempt.
            (Fact::Submitted | Fact::Started | Fact::Finished, _) => Ignore,
            (Fact::Lost | Fact::Stopped, _) | (Fact::Failed, Then::Skip(_)) => EndStop(then),
            // It failed before the stop arrived, and the journal says so.
            (Fact::Failed, Then::Timeout | Then::Requeue) => FailAttempt,
        },

        (Phase::Waiting | Phase::Backoff | Phase::Submitted | Phase::Started | Phase::Finished, Relation::Newer) => {
            match fact {
                Fact::Submitted => Submit,
                Fact::Started => Start,
                Fact::Finished => Finish,
                Fact::Failed => FailAttempt,
                Fact::Lost => Lose,
                Fact::Stopped => Number,
            }
        }
    }
}
