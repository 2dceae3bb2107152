//! What runs again when a committed output is lost, and what does not.

use crate::support::{Run, check};
use engine::*;

/// Nothing is submitted before its inputs are finished.
fn no_window() -> Limits {
    Limits { window: 1_000, parallelism: Some(1_000), ..Limits::default() }
}

const CHAIN: &str = "a\n b: data a\n c: data a, data b";

#[test]
fn a_lost_output_is_made_again_and_nothing_else_runs_if_it_is_the_same() {
    let run = check(
        CHAIN,
        no_window(),
        &[
            ("", &["submit a#1"]),
            ("start a; ok a", &["submit b#1 <- a"]),
            ("start b; ok b", &["submit c#1 <- a b"]),
            ("start c; input-lost c a", &["invalidate a OutputLost", "submit a#2"]),
            ("start a; finish a", &["submit c#2 <- a b"]),
            ("commit a; start c; ok c", &["end Succeeded"]),
        ],
    );
    assert_eq!(run.status("b"), Some(TaskStatus::Committed { cached: false }));
}

#[test]
fn committed_readers_run_again_only_behind_an_output_that_is_another_one() {
    check(
        "a\n b: data a\n c: data b\n d: data c",
        no_window(),
        &[
            ("", &["submit a#1"]),
            ("start a; ok a", &["submit b#1 <- a"]),
            ("start b; ok b", &["submit c#1 <- b"]),
            ("start c; ok c", &["submit d#1 <- c"]),
            ("start d; input-lost d c", &["invalidate c OutputLost", "submit c#2 <- b"]),
            // Now the next one is found to be lost too.
            ("start c; input-lost c b", &["invalidate b OutputLost", "submit b#2 <- a"]),
            ("start b; finish b; changed b; commit b", &["submit c#3 <- b"]),
            ("start c; finish c; changed c; commit c", &["submit d#2 <- c"]),
            ("start d; ok d", &["end Succeeded"]),
        ],
    );
    check(
        "a\n b: data a\n c: data b\n d: data a, data c",
        no_window(),
        &[
            ("start a#1; ok a", &["submit b#1 <- a"]),
            ("start b; ok b", &["submit c#1 <- b"]),
            ("start c; ok c", &["submit d#1 <- a c"]),
            ("start d; input-lost d a", &["invalidate a OutputLost", "submit a#2"]),
            ("start a; finish a", &["submit d#2 <- a c"]),
            ("changed a; commit a", &["invalidate b InputChanged", "submit b#2 <- a"]),
            ("start b; finish b", &[]),
            // b has come out as before: c stays.
            ("commit b; start d; ok d", &["end Succeeded"]),
        ],
    );
}

#[test]
fn a_reader_in_flight_starts_again_on_the_new_output_without_being_charged() {
    let mut run = check(
        "a\n b: data a\n c: data a",
        no_window(),
        &[
            ("start a#1; ok a", &["submit b#1 <- a", "submit c#1 <- a"]),
            (
                "start b; start c; input-lost c a",
                &["stop b#1 InputInvalidated", "invalidate a OutputLost", "submit a#2"],
            ),
            ("stopped b; start a; finish a", &["submit b#2 <- a", "submit c#2 <- a"]),
            ("commit a; start b; ok b; start c; ok c", &["end Succeeded"]),
        ],
    );
    for task in ["b", "c"] {
        let view = run.state.task_view(&run.dag, run.task(task)).unwrap();
        assert_eq!((view.retries, view.losses), (0, 0), "{task}");
    }
    assert_eq!(run.plan(), Vec::<String>::new());
}

#[test]
fn an_attempt_whose_input_is_lost_takes_none_of_the_steps_retries() {
    check(
        "a\n b: data a, retry 1",
        no_window(),
        &[
            ("start a#1; ok a", &["submit b#1 <- a"]),
            ("start b; input-lost b a", &["invalidate a OutputLost", "submit a#2"]),
            ("start a; ok a", &["submit b#2 <- a"]),
            ("start b; fail b app", &[]),
            ("at 1000", &["submit b#3 <- a"]),
            ("start b; fail b app", &["failed b StepError", "end Failed"]),
        ],
    );
}

#[test]
fn of_a_map_only_the_item_that_is_lost_runs_again() {
    check(
        "a: len 3\n b: items a\n c: data b",
        no_window(),
        &[
            ("", &["submit a[0]#1", "submit a[1]#1", "submit a[2]#1"]),
            (
                "start a[0]; ok a[0]; start a[1]; ok a[1]; start a[2]; ok a[2]",
                &["submit b[0]#1 <- a[0]", "submit b[1]#1 <- a[1]", "submit b[2]#1 <- a[2]"],
            ),
            ("start b[0]; ok b[0]; start b[1]; input-lost b[1] a[1]", &["invalidate a[1] OutputLost", "submit a[1]#2"]),
            ("start b[2]; ok b[2]", &[]),
            ("start a[1]; finish a[1]; changed a[1]; commit a[1]", &["submit b[1]#2 <- a[1]"]),
            ("start b[1]; ok b[1]", &["submit c#1 <- b[*3]"]),
            (
                "start c; input-lost c b[0] b[2]",
                &[
                    "invalidate b[0] OutputLost",
                    "invalidate b[2] OutputLost",
                    "submit b[0]#2 <- a[0]",
                    "submit b[2]#2 <- a[2]",
                ],
            ),
            ("start b[0]; ok b[0]; start b[2]; ok b[2]", &["submit c#2 <- b[*3]"]),
            ("start c; ok c", &["end Succeeded"]),
        ],
    );
}

#[test]
fn a_map_over_a_list_that_has_another_length_now_is_laid_out_anew() {
    let run = check(
        "a\n b: output a 0\n c: items b\n d: data c\n e: data a",
        Limits { parallelism: Some(2), ..no_window() },
        &[
            ("start a#1; ok a 2", &["length b 2", "length c 2", "submit b[0]#1 <- a", "submit b[1]#1 <- a"]),
            ("start b[0]; ok b[0]; start b[1]; ok b[1]", &["submit c[0]#1 <- b[0]", "submit c[1]#1 <- b[1]"]),
            ("start c[0]; ok c[0]; start c[1]; ok c[1]", &["submit d#1 <- c[*2]", "submit e#1 <- a"]),
            ("start d; ok d; start e; input-lost e a", &["invalidate a OutputLost", "submit a#2"]),
            ("start a; finish a 3", &["submit e#2 <- a"]),
            (
                "changed a; commit a 3",
                &[
                    "invalidate b[0] InputChanged",
                    "invalidate b[1] InputChanged",
                    "invalidate b InputChanged",
                    "invalidate c InputChanged",
                    "invalidate c[0] InputChanged",
                    "invalidate c[1] InputChanged",
                    "invalidate d InputChanged",
                    "length b 3",
                    "length c 3",
                    "submit b[0]#2 <- a",
                ],
            ),
        ],
    );
    assert_eq!(run.state.step_len(StepIx(1)), Some(3));
}

#[test]
fn a_second_loss_of_the_same_output_ends_the_run() {
    let run = check(
        "a\n b: data a, retry 5",
        no_window(),
        &[
            ("start a#1; ok a", &["submit b#1 <- a"]),
            ("start b; input-lost b a", &["invalidate a OutputLost", "submit a#2"]),
            ("start a; ok a", &["submit b#2 <- a"]),
            ("start b; input-lost b a", &["failed b OutputLost", "end Failed"]),
        ],
    );
    assert_eq!(run.state.failure(run.task("b")), Some(&FailReason::OutputLost { why: NoRerun::Again }));
}

#[test]
fn where_nothing_is_to_run_again_the_reader_fails_and_says_why() {
    for (clause, why) in [("on-lost fail", NoRerun::Policy), ("on-lost elsewhere", NoRerun::Elsewhere)] {
        let run = check(
            &format!("a: {clause}\n b: data a, retry 3"),
            no_window(),
            &[
                ("start a#1; ok a", &["submit b#1 <- a"]),
                ("start b; input-lost b a", &["failed b OutputLost", "end Failed"]),
            ],
        );
        assert_eq!(run.state.failure(run.task("b")), Some(&FailReason::OutputLost { why }));
        assert_eq!(run.status("a"), Some(TaskStatus::Committed { cached: false }));
    }
}

#[test]
fn of_two_readers_that_find_the_same_loss_the_second_changes_nothing() {
    check(
        "a\n b: data a\n c: data a",
        no_window(),
        &[
            ("start a#1; ok a", &["submit b#1 <- a", "submit c#1 <- a"]),
            (
                "start b; start c; input-lost b a; input-lost c",
                &["stop c#1 InputInvalidated", "invalidate a OutputLost", "submit a#2"],
            ),
            ("start a; ok a", &["submit b#2 <- a", "submit c#2 <- a"]),
            ("start b; ok b; start c; input-lost c", &["submit c#3 <- a"]),
            ("start c; ok c", &["end Succeeded"]),
        ],
    );
}

#[test]
fn what_a_step_cannot_have_read_is_charged_to_it() {
    check(
        "a\n b\n c: data a",
        no_window(),
        &[
            ("start a#1; ok a; start b#1; ok b", &["submit c#1 <- a"]),
            ("start c; input-lost c b", &["failed c InfrastructureError", "end Failed"]),
        ],
    );
}

#[test]
fn a_run_that_is_being_cancelled_makes_nothing_again() {
    check(
        "a\n b: data a\n z: data a, finally",
        no_window(),
        &[
            ("start a#1; ok a", &["submit b#1 <- a"]),
            ("start b; cancel", &["stop b#1 Cancelled"]),
            ("input-lost b a", &["skip b Cancelled", "submit z#1 <- a"]),
            ("start z; input-lost z a", &["failed z OutputLost", "end Cancelled"]),
        ],
    );
}

#[test]
fn a_finally_step_waits_for_what_it_reads_to_be_made_again() {
    check(
        "a\n z: data a, finally",
        no_window(),
        &[
            ("start a#1; ok a", &["submit z#1 <- a"]),
            ("start z; input-lost z a", &["invalidate a OutputLost", "submit a#2"]),
            ("start a; ok a", &["submit z#2 <- a"]),
            ("start z; ok z", &["end Succeeded"]),
        ],
    );
}

#[test]
fn a_restored_run_goes_on_where_it_was() {
    // a was lost, and has been committed anew; then the run was interrupted.
    let mut run = Run::new("a\n b: data a\n c: data b\n d: data a, data c", no_window());
    let same = "invalidated a#2 lost; commit b; commit c; commit a";
    assert_eq!(run.step(same), ["submit d#1 <- a c"]);
    assert_eq!(run.step("start d; input-lost d a"), ["failed d OutputLost", "end Failed"], "once is once");

    let mut run = Run::new("a\n b: data a\n c: data b\n d: data a, data c", no_window());
    let changed = "invalidated a#2 lost; commit b; commit c; changed a; commit a";
    assert_eq!(run.step(changed), ["invalidate b InputChanged", "submit b#1 <- a", "submit d#1 <- a c"]);

    let mut run = Run::new("a\n b: data a\n c: data b\n d: data a, data c", no_window());
    let done = "invalidated a#2 lost; invalidated b#1; commit c; changed a; commit a; commit b";
    assert_eq!(run.step(done), ["submit d#1 <- a c"], "b was made from what a is now");

    let mut run = Run::new("a: retry 1\n b: data a", no_window());
    let waiting = "invalidated a#2 lost; attempt-failed a#1 app";
    assert_eq!(run.step(waiting), ["submit a#3"], "it was committed by its second attempt");
    assert_eq!(run.step("start a; fail a app"), Vec::<String>::new(), "and may be retried as at first");
}
