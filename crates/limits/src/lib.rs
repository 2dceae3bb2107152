//! How much is taken from a scheduler and from the API server, what a run may have, and how often the same error may come: the
//! numbers, in one place. `docs/limits.md` says the same for people, and `runtime/daskade_runtime/limits.py` has those of [`shared`].
//!
//! Schedulers and objects belong to tenants, and the operator serves all of them. Each number is looked at before memory is taken.

#![warn(missing_docs)]

pub mod repeats;

use std::time::Duration;

/// What one message may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Bytes, the prelude included.
    pub bytes: usize,
    /// Values, counting each member of each array and map; where a message holds results of steps, all but those within them.
    pub values: usize,
}

/// The first message on a connection. Nothing is known yet about who sent it.
pub const INTRODUCTION: Budget = Budget { bytes: 64 << 10, values: 1000 };
/// The answer to an operation that has no budget of its own, errors with their tracebacks included.
pub const ANSWER: Budget = Budget { bytes: 1 << 20, values: 64_000 };
/// The state of a cluster: enough for 1000 workers.
pub const CLUSTER: Budget = Budget { bytes: 2 << 20, values: 64_000 };
/// One message of a run's events.
pub const EVENTS: Budget = Budget { bytes: 4 << 20, values: 4 << 20 };
/// Values of one message of events outside of results.
pub const EVENTS_UNPACKED: usize = 128_000;
/// A page of names of objects (50 000), or what one run needs of another.
pub const NAMES: Budget = Budget { bytes: 16 << 20, values: 256_000 };
/// A page of log objects: about 4 MiB, or one object of at most 64 MiB.
pub const LOGS: Budget = Budget { bytes: 66 << 20, values: 64_000 };
/// What a scheduler without our runtime reports about itself and its workers.
pub const DASK: Budget = Budget { bytes: 16 << 20, values: 1_000_000 };
/// A page of the snapshot of a run, or of results of its steps. The runtime ends a page at about 1 MiB.
pub const PAGE: Budget = Budget { bytes: 8 << 20, values: 256_000 };
/// The snapshot of a run in one message, of a runtime that knows no pages, and what earlier runs have: for a command, which
/// serves one person.
pub const SNAPSHOT: Budget = Budget { bytes: 256 << 20, values: 4 << 20 };
/// The same for the operator: enough for a run of 100 000 tasks.
pub const SNAPSHOT_OF_OPERATOR: Budget = Budget { bytes: 24 << 20, values: 1_500_000 };

/// Values of a message together with those within results; their bytes are kept as they came.
pub const VALUES_WITH_RESULTS: usize = 32 << 20;
/// Values of the closing record of a run, which is read as a whole.
pub const CLOSING_VALUES: usize = 400_000;
/// Frames of one message.
pub const FRAMES: usize = 1024;
/// Nesting of arrays and maps in one message.
pub const DEPTH: usize = 128;

/// A message of at most so many bytes is read at any time; a larger one waits until there is room for it.
pub const FREE_BYTES: usize = 256 << 10;
/// Bytes of larger messages of one scheduler that are held at one time.
pub const PEER_BYTES: usize = 32 << 20;
/// Bytes of larger messages of all schedulers that are held at one time by this process.
pub const PROCESS_BYTES: usize = 64 << 20;

/// Workers of one cluster.
pub const WORKERS: usize = 4000;
/// Kinds of demand of one cluster that are looked at; further ones are left out.
pub const ASKS: usize = 256;
/// Characters of a name or a version that a scheduler tells.
pub const WORD: usize = 253;

/// Bytes of one result: 16 KiB as JSON take no more than this.
pub const RESULT: usize = 64 << 10;
/// Bytes of results that are kept unpacked while expressions look at them; unpacked they take up to seventy times as much.
pub const RESULTS_UNPACKED: usize = 256 << 10;
/// Values of results that expressions gather from the items of a step, and of all results that a run ends with.
pub const GATHERED_VALUES: usize = 200_000;
/// Bytes of results, packed, that expressions gather from the items of a step.
pub const GATHERED_BYTES: usize = 32 << 20;
/// Bytes of results that were fetched because expressions look at them.
pub const RESULTS_LENT: usize = 48 << 20;
/// Pages of one snapshot.
pub const PAGES: usize = 100_000;
/// Bytes of names of objects that tasks of one run have read and kept.
pub const NAMED: usize = 24 << 20;
/// Bytes of the message of a failure, a loss or a trouble.
pub const FAILURE_MESSAGE: usize = 16 << 10;
/// Bytes of the traceback of a failure.
pub const FAILURE_TRACEBACK: usize = 64 << 10;
/// Bytes of the last log lines of a failed attempt.
pub const FAILURE_TAIL: usize = 96 << 10;
/// Bytes of text that are kept of all failures of one run; beyond that each is kept with its first words alone.
pub const FAILURES: usize = 4 << 20;
/// Bytes of those first words.
pub const FAILURE_WORDS: usize = 200;
/// Bytes of the message why tasks of a step wait.
pub const BLOCKED_MESSAGE: usize = 1 << 10;
/// Bytes of the specification of an earlier run: of a larger one nothing is reused.
pub const EARLIER_SPEC: usize = 4 << 20;
/// Values in the specification of an earlier run.
pub const EARLIER_SPEC_VALUES: usize = 256_000;
/// Bytes of results of all earlier runs together whose outputs are offered to a new run of a command.
pub const EARLIER_RESULTS_OF_COMMAND: usize = 64 << 20;
/// Bytes of names of objects of one run that others use.
pub const USERS_BYTES: usize = 24 << 20;
/// Bytes of log objects that `daskade logs` reads at one time.
pub const LOGS_IN_ALL: usize = 256 << 20;

/// How often the same error may come without progress. It is over when both numbers are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repetition {
    /// How many times.
    pub times: u32,
    /// From the first time to the last.
    pub span: Duration,
    /// After so long without the error it counts from one again.
    pub quiet: Option<Duration>,
}

const MINUTE: Duration = Duration::from_secs(60);

/// A scheduler that does not have the run as it was opened: the run is opened again.
pub const REOPENED: Repetition = Repetition { times: 5, span: Duration::ZERO, quiet: Some(MINUTE.saturating_mul(10)) };
/// A runtime that stops the run: it cannot write the journal, or take outputs over.
pub const STOPPED: Repetition = Repetition { times: 5, span: Duration::ZERO, quiet: None };
/// A runtime, or the operator itself, that has made a mistake.
pub const INTERNAL: Repetition = Repetition { times: 10, span: MINUTE.saturating_mul(5), quiet: None };
/// A runtime that refuses the run for another reason, or does not speak the protocol.
pub const REFUSED: Repetition = Repetition { times: 20, span: MINUTE.saturating_mul(30), quiet: None };
/// The longest pause between two tries of a run that is refused.
pub const REFUSED_PAUSE: Duration = MINUTE;
/// A write to the API server that meets another version of the object: from then on the condition says so.
pub const CONFLICT: Repetition = Repetition { times: 20, span: MINUTE, quiet: Some(MINUTE.saturating_mul(10)) };
/// Bytes of one object that the operator keeps as a whole. A larger one is read when its turn comes.
pub const OBJECT_KEPT: usize = 16 << 10;
/// Bytes of all objects together that are kept as a whole.
pub const OBJECTS_KEPT: usize = 24 << 20;
/// Bytes of one page of a list; one object may have more.
pub const LIST_PAGE: usize = 4 << 20;
/// Objects of the first page of a list.
pub const LIST_FIRST: u32 = 4;
/// Most objects of any page of a list.
pub const LIST_MOST: u32 = 100;
/// Bytes of one object that is read: more than the API server stores.
pub const OBJECT: usize = 32 << 20;
/// Bytes of pages, and of objects that watches show, that are read at one time.
pub const LISTED_AT_ONCE: usize = 8 << 20;
/// Values of the spec of one object: a number of one byte takes a hundred when it is unpacked.
pub const OBJECT_VALUES: usize = 150_000;
/// Bytes of memory for objects that are too large to be kept, while they have their turns.
pub const TURNS_AT_ONCE: usize = 40 << 20;
/// Bytes of memory for all runs in progress together, if the container's limit leaves no more.
pub const RUNS_IN_PROGRESS: usize = 64 << 20;
/// What everything else may take of the container's memory.
pub const BESIDES_RUNS: usize = 192 << 20;
/// The same without such a limit.
pub const RUNS_UNLIMITED: usize = 1 << 30;
/// Bytes that a run in progress takes at least.
pub const RUN: usize = 64 << 10;
/// Bytes that a run in progress takes for each of its tasks.
pub const TASK: usize = 256;
/// Bytes of memory for what runs are carried out from, which is kept as long as there is room; beyond that it is read again.
pub const REVISIONS_KEPT: usize = 16 << 20;

pub use shared::{
    CLOSING_RESULTS, EARLIER_RESULTS, FINAL_VALUES, MAPPED_ELEMENTS, RECORD_DEPTH, RESULT_DEPTH, RESULT_JSON,
    RESULTS_KEPT, SEGMENT, SEGMENT_HEADER, SEGMENT_RECORDS,
};

/// What the runtime keeps to as well.
mod shared {
    /// Bytes of the result of one step, as JSON.
    pub const RESULT_JSON: usize = 16 << 10;
    /// Nesting of lists and mappings in it.
    pub const RESULT_DEPTH: usize = 60;
    /// Elements of an output that steps map over: the index of it takes 40 bytes for each, in one record.
    pub const MAPPED_ELEMENTS: usize = 1_000_000;
    /// Bytes of the results of one run that are kept in memory; the others are read from the journal when somebody asks.
    pub const RESULTS_KEPT: usize = 32 << 20;
    /// Bytes of results of all earlier runs together whose outputs are offered to a new run of the operator.
    pub const EARLIER_RESULTS: usize = 8 << 20;
    /// Bytes of a segment of a journal.
    pub const SEGMENT: usize = 64 << 20;
    /// Bytes of the header of a segment.
    pub const SEGMENT_HEADER: usize = 64 << 10;
    /// Records of a segment.
    pub const SEGMENT_RECORDS: usize = 1_000_000;
    /// Nesting of one field of a record.
    pub const RECORD_DEPTH: usize = 64;
    /// Values of the results in a record that closes a run.
    pub const FINAL_VALUES: usize = 1_000_000;
    /// Bytes of the results that a run ends with, as JSON.
    pub const CLOSING_RESULTS: usize = 32 << 20;
}

/// Cuts a text to `most` bytes, between two characters.
pub fn clip(text: &mut String, most: usize) {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text.shrink_to_fit();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        for (most, expected) in [(0, ""), (1, ""), (2, "ä"), (3, "ä"), (6, "äöü"), (100, "äöü")] {
            let mut text = "äöü".to_owned();
            clip(&mut text, most);
            assert_eq!(text, expected, "{most}");
        }
    }
}
