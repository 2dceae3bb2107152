//! What the engine decides, case by case.

use crate::support::{Run, check, parse_steps};
use engine::*;

fn no_limits() -> Limits {
    Limits::default()
}

/// Nothing is submitted before its inputs are finished: easier to read where the window is not the subject.
fn no_window() -> Limits {
    Limits { window: 1_000, parallelism: Some(1_000), ..Limits::default() }
}

#[test]
fn a_chain_is_submitted_at_once_and_each_task_waits_in_the_runtime() {
    check(
        "a\n b: data a\n c: data b",
        no_limits(),
        &[
            ("", &["submit a#1", "submit b#1 <- a", "submit c#1 <- b"]),
            ("start a; ok a; start b; ok b; start c; finish c", &[]),
            ("commit c", &["end Succeeded"]),
        ],
    );
}

#[test]
fn finished_inputs_let_dependents_go_and_the_run_ends_when_all_is_committed() {
    check(
        "a\n b: data a",
        no_window(),
        &[
            ("", &["submit a#1"]),
            ("start a", &[]),
            ("finish a", &["submit b#1 <- a"]),
            ("finish b", &[]),
            ("commit a", &[]),
            ("commit b", &["end Succeeded"]),
        ],
    );
}

#[test]
fn the_window_bounds_what_is_submitted_ahead() {
    check(
        "a\n b: data a\n c: data b\n d: data c",
        Limits { window: 2, ..no_limits() },
        &[
            ("", &["submit a#1", "submit b#1 <- a"]),
            ("start a", &[]),
            ("ok a", &["submit c#1 <- b"]),
            ("ok b; ok c", &["submit d#1 <- c"]),
            ("ok d", &["end Succeeded"]),
        ],
    );
}

#[test]
fn a_retry_is_not_kept_out_of_the_window_by_those_that_wait_for_it() {
    check(
        "a: retry 1\n b: data a\n c: data b",
        Limits { window: 2, ..no_limits() },
        &[
            ("", &["submit a#1", "submit b#1 <- a"]),
            ("fail a", &["submit c#1 <- b"]),
            ("at 1000", &["submit a#2"]),
            ("ok a; ok b; ok c", &["end Succeeded"]),
        ],
    );
}

#[test]
fn a_task_ahead_does_not_take_a_hole_that_it_must_not_see() {
    // The runtime takes the recorded failure of a[0] for a hole; c[0] needs its value and still waits for b[0].
    check(
        "a: len 1, continue\n b: len 1\n c: items a, items b",
        no_limits(),
        &[
            ("", &["submit a[0]#1", "submit b[0]#1", "submit c[0]#1 <- a[0] b[0]"]),
            ("fail a[0]", &["withdraw c[0]#1", "failed a[0] StepError"]),
            ("stopped c[0]", &[]),
            ("ok b[0]", &["skip c[0] UpstreamHole", "end Succeeded"]),
        ],
    );
}

#[test]
fn order_is_kept_when_what_came_first_is_lost_again() {
    check(
        "a\n b: after a, late",
        no_limits(),
        &[("", &["submit a#1"]), ("finish a", &["submit b#1 <- ~a"]), ("lose a", &["submit a#2"]), ("commit a", &[])],
    );
    check("a\n b: after a, late", no_limits(), &[("", &["submit a#1"]), ("ok a", &["submit b#1"])]);
}

#[test]
fn a_finished_task_that_only_came_after_a_lost_one_may_commit() {
    check(
        "a\n b: after a\n c: after a",
        Limits { losses: 0, ..no_limits() },
        &[
            ("", &["submit a#1", "submit b#1 <- ~a", "submit c#1 <- ~a"]),
            ("finish a; finish b; finish c; lose a", &["failed a WorkerLost"]),
            ("commit b", &[]),
            ("gone", &["skip c UpstreamFailed", "end Failed"]),
        ],
    );
}

#[test]
fn a_lost_runtime_takes_the_answers_about_its_outputs_along() {
    check(
        "a\n b: data a, when",
        no_limits(),
        &[
            ("", &["submit a#1"]),
            ("finish a", &["decide b"]),
            ("gone", &["submit a#2"]),
            ("finish a", &["decide b"]),
            ("yes b", &["submit b#1 <- a"]),
        ],
    );
}

#[test]
fn late_steps_wait_for_their_inputs() {
    check("a\n b: data a, late", no_limits(), &[("", &["submit a#1"]), ("finish a", &["submit b#1 <- a"])]);
}

#[test]
fn zipped_maps_pair_by_index() {
    check(
        "inc: len 2\n dec: len 2\n add: items inc, items dec\n total: data add",
        no_window(),
        &[
            ("", &["submit inc[0]#1", "submit inc[1]#1", "submit dec[0]#1", "submit dec[1]#1"]),
            ("ok inc[1]; ok dec[0]", &[]),
            ("ok dec[1]", &["submit add[1]#1 <- inc[1] dec[1]"]),
            ("ok inc[0]", &["submit add[0]#1 <- inc[0] dec[0]"]),
            ("ok add[0]", &[]),
            ("ok add[1]", &["submit total#1 <- add[*2]"]),
            ("ok total", &["end Succeeded"]),
        ],
    );
}

#[test]
fn a_map_over_an_output_waits_until_its_length_is_committed() {
    check(
        "list\n each: output list\n next: items each\n total: data next",
        no_window(),
        &[
            ("", &["submit list#1"]),
            ("finish list 2", &[]),
            (
                "commit list 2",
                &["length each 2", "length next 2", "submit each[0]#1 <- list", "submit each[1]#1 <- list"],
            ),
            ("ok each[0]", &["submit next[0]#1 <- each[0]"]),
            ("ok each[1]; ok next[0]", &["submit next[1]#1 <- each[1]"]),
            ("ok next[1]", &["submit total#1 <- next[*2]"]),
        ],
    );
}

#[test]
fn one_output_can_hold_several_lists() {
    check(
        "list\n x: output list 1\n y: output list 0",
        no_window(),
        &[
            ("", &["submit list#1"]),
            (
                "ok list 1 2",
                &[
                    "length x 2",
                    "length y 1",
                    "submit x[0]#1 <- list",
                    "submit x[1]#1 <- list",
                    "submit y[0]#1 <- list",
                ],
            ),
        ],
    );
}

#[test]
fn a_map_inside_another_ones_result_is_the_concatenation_of_its_lists() {
    let mut run = check(
        "list\n each: output list\n inner: flat each\n total: data inner",
        no_window(),
        &[
            ("", &["submit list#1"]),
            (
                "ok list 3",
                &["length each 3", "submit each[0]#1 <- list", "submit each[1]#1 <- list", "submit each[2]#1 <- list"],
            ),
            ("ok each[2] 1; ok each[0] 2; finish each[1] 0", &[]),
            (
                "commit each[1] 0",
                &[
                    "length inner 3",
                    "submit inner[0]#1 <- each[0]",
                    "submit inner[1]#1 <- each[0]",
                    "submit inner[2]#1 <- each[2]",
                ],
            ),
        ],
    );
    let inner = |item| run.state.map_element(&run.dag, run.task(&format!("inner[{item}]")), 0);
    let each = |item| run.task(&format!("each[{item}]"));
    assert_eq!(inner(0), Some(Element::Entry { task: each(0), index: 0 }));
    assert_eq!(inner(1), Some(Element::Entry { task: each(0), index: 1 }));
    assert_eq!(inner(2), Some(Element::Entry { task: each(2), index: 0 }));
    assert_eq!(inner(3), None);
    assert_eq!(run.step("ok inner[0]; ok inner[1]; ok inner[2]"), ["submit total#1 <- inner[*3]"]);
}

#[test]
fn flattening_takes_allowed_holes_as_empty_lists() {
    check(
        "each: len 3, when-each\n inner: flat each",
        no_window(),
        &[
            ("", &["decide each[0]", "decide each[1]", "decide each[2]"]),
            (
                "yes each[0]; no each[1]; yes each[2]",
                &["skip each[1] WhenFalse", "submit each[0]#1", "submit each[2]#1"],
            ),
            (
                "ok each[0] 1; ok each[2] 1",
                &["length inner 2", "submit inner[0]#1 <- each[0]", "submit inner[1]#1 <- each[2]"],
            ),
        ],
    );
}

#[test]
fn an_empty_map_succeeds_and_its_dependents_run() {
    let run = check(
        "list\n each: output list\n next: items each\n total: data next",
        no_window(),
        &[
            ("", &["submit list#1"]),
            ("ok list 0", &["length each 0", "length next 0", "submit total#1 <- next[*0]"]),
            ("ok total", &["end Succeeded"]),
        ],
    );
    assert_eq!(run.state.counts(), Counts { total: 2, done: 2, ..Counts::default() });
    let each = run.state.step_summary(StepIx(1)).expect("a step");
    assert_eq!((each.state, each.len), (StepState::Succeeded, Some(0)));
}

#[test]
fn an_empty_map_does_not_succeed_before_its_inputs() {
    check(
        "a\n each: len 0, data a\n b: data each",
        no_window(),
        &[
            ("", &["submit a#1"]),
            ("fail a", &["failed a StepError", "skip each UpstreamFailed", "skip b UpstreamFailed", "end Failed"]),
        ],
    );
}

#[test]
fn unequal_too_many_and_missing_lengths_fail_the_step() {
    check(
        "a: len 2, len 3\n b: items a",
        no_window(),
        &[("", &["failed a UnequalLengths", "skip b UpstreamFailed", "end Failed"])],
    );
    check("a: len 5", Limits { max_items: 4, ..no_window() }, &[("", &["failed a TooManyItems", "end Failed"])]);
    let submits = ["submit b[0]#1 <- a", "submit b[1]#1 <- a", "submit b[2]#1 <- a", "submit b[3]#1 <- a"];
    let actions = [&["length b 4", "failed c LimitExceeded"], &submits[..]].concat();
    check(
        "a\n b: output a 0\n c: items b",
        Limits { max_tasks: 7, ..no_window() },
        &[("", &["submit a#1"]), ("start a; ok a 4", &actions)],
    );
    check(
        "a: len 4",
        Limits { max_items: 4, ..no_window() },
        &[("", &["submit a[0]#1", "submit a[1]#1", "submit a[2]#1", "submit a[3]#1"])],
    );
    check(
        "a\n b: output a 1",
        no_window(),
        &[("", &["submit a#1"]), ("ok a 3", &["failed b TypeMismatch", "end Failed"])],
    );
    check(
        "a: len 2\n b: flat a",
        Limits { max_items: 9, ..no_window() },
        &[
            ("", &["submit a[0]#1", "submit a[1]#1"]),
            ("ok a[0] 4294967295; ok a[1] 4294967295", &["failed b TooManyItems", "end Failed"]),
        ],
    );
}

#[test]
fn a_failure_skips_dependents_and_leaves_independent_branches_alone() {
    let run = check(
        "a\n b: data a\n c: data b\n x\n y: data x",
        no_window(),
        &[
            ("", &["submit a#1", "submit x#1"]),
            ("fail a", &["failed a StepError", "skip b UpstreamFailed", "skip c UpstreamFailed"]),
            ("ok x", &["submit y#1 <- x"]),
            ("ok y", &["end Failed"]),
        ],
    );
    let failures: Vec<_> = run.state.failures().collect();
    assert_eq!(failures, [(TaskId::whole(StepIx(0)), &FailReason::Attempt(FailureClass::App))]);
    assert_eq!(run.state.counts(), Counts { total: 5, done: 2, failed: 1, skipped: 2, ..Counts::default() });
}

#[test]
fn tasks_submitted_ahead_are_withdrawn_when_an_input_fails() {
    check(
        "a\n b: data a",
        no_limits(),
        &[
            ("", &["submit a#1", "submit b#1 <- a"]),
            ("start a; fail a", &["withdraw b#1", "failed a StepError"]),
            ("stopped b", &["skip b UpstreamFailed", "end Failed"]),
        ],
    );
}

#[test]
fn a_task_that_runs_on_an_input_that_is_lost_for_good_is_stopped() {
    check(
        "a: retry 0\n b: data a\n c: data b",
        Limits { losses: 0, ..no_limits() },
        &[
            ("", &["submit a#1", "submit b#1 <- a", "submit c#1 <- b"]),
            ("finish a; start b; lose a", &["stop b#1 UpstreamFailed", "failed a WorkerLost"]),
            ("stopped b", &["withdraw c#1", "skip b UpstreamFailed"]),
            ("stopped c", &["skip c UpstreamFailed", "end Failed"]),
        ],
    );
    check(
        "a\n b: data a",
        Limits { losses: 0, ..no_limits() },
        &[
            ("", &["submit a#1", "submit b#1 <- a"]),
            (
                "finish a; finish b; lose a",
                &["withdraw b#1", "failed a WorkerLost", "skip b UpstreamFailed", "end Failed"],
            ),
        ],
    );
}

#[test]
fn continue_on_failure_leaves_a_hole_and_the_run_succeeds() {
    check(
        "a: continue\n b: data a\n each: output a",
        no_window(),
        &[
            ("", &["submit a#1"]),
            ("fail a oom", &["failed a OutOfMemory", "skip each UpstreamHole", "submit b#1"]),
            ("ok b", &["end Succeeded"]),
        ],
    );
}

#[test]
fn a_failed_item_leaves_a_hole_only_where_that_is_allowed() {
    let steps = |more: &str| format!("a: len 2{more}\n b: items a\n total: data b\n end: after total");
    check(
        &steps(""),
        no_window(),
        &[
            ("", &["submit a[0]#1", "submit a[1]#1"]),
            (
                "fail a[0]",
                &[
                    "failed a[0] StepError",
                    "skip b[0] UpstreamFailed",
                    "skip total UpstreamFailed",
                    "skip end UpstreamFailed",
                ],
            ),
            ("ok a[1]", &["submit b[1]#1 <- a[1]"]),
            ("ok b[1]", &["end Failed"]),
        ],
    );
    check(
        &steps(", continue"),
        no_window(),
        &[
            ("", &["submit a[0]#1", "submit a[1]#1"]),
            ("fail a[0]", &["failed a[0] StepError", "skip b[0] UpstreamHole"]),
            ("ok a[1]", &["submit b[1]#1 <- a[1]"]),
            ("ok b[1]", &["submit total#1 <- b[*2]"]),
            ("ok total", &["submit end#1"]),
            ("ok end", &["end Succeeded"]),
        ],
    );
}

#[test]
fn a_condition_is_asked_for_when_its_inputs_are_finished() {
    check(
        "a\n b: data a, when\n c: data b\n d: after b",
        no_limits(),
        &[
            ("", &["submit a#1"]),
            ("finish a", &["decide b"]),
            ("no b", &["skip b WhenFalse", "skip c UpstreamSkipped", "submit d#1"]),
            ("ok d; commit a", &["end Succeeded"]),
        ],
    );
    check(
        "a\n b: data a, when\n c: data b",
        no_limits(),
        &[("", &["submit a#1"]), ("finish a", &["decide b"]), ("yes b", &["submit b#1 <- a", "submit c#1 <- b"])],
    );
}

#[test]
fn a_condition_per_item_leaves_holes_that_lists_keep() {
    check(
        "a: len 2\n b: items a, when-each\n c: items b\n total: data c",
        no_window(),
        &[
            ("", &["submit a[0]#1", "submit a[1]#1"]),
            ("ok a[0]", &["decide b[0]"]),
            ("no b[0]; ok a[1]", &["decide b[1]", "skip b[0] WhenFalse", "skip c[0] UpstreamSkipped"]),
            ("yes b[1]", &["submit b[1]#1 <- a[1]"]),
            ("ok b[1]", &["submit c[1]#1 <- b[1]"]),
            ("ok c[1]", &["submit total#1 <- c[*2]"]),
        ],
    );
}

#[test]
fn a_condition_of_a_mapped_step_as_a_whole_skips_it_as_a_whole() {
    let run = check(
        "a\n b: len 3, data a, when\n c: items b\n total: data c\n x: after b",
        no_window(),
        &[
            ("", &["submit a#1"]),
            ("finish a", &["decide b"]),
            ("no b", &["skip b WhenFalse", "skip c UpstreamSkipped", "skip total UpstreamSkipped", "submit x#1"]),
            ("commit a; ok x", &["end Succeeded"]),
        ],
    );
    assert_eq!(run.state.counts(), Counts { total: 9, done: 2, skipped: 7, ..Counts::default() });
    assert_eq!(
        run.state.step_summary(StepIx(1)).map(|step| step.state),
        Some(StepState::Skipped(SkipReason::WhenFalse))
    );
}

#[test]
fn what_is_bad_wins_over_what_is_allowed_whichever_comes_first() {
    let steps = "a: len 1, when-each\n b: len 1\n c: items a, items b\n total: data c";
    check(
        steps,
        no_window(),
        &[
            ("", &["decide a[0]", "submit b[0]#1"]),
            ("no a[0]", &["skip a[0] WhenFalse"]),
            (
                "fail b[0]",
                &["failed b[0] StepError", "skip c[0] UpstreamFailed", "skip total UpstreamFailed", "end Failed"],
            ),
        ],
    );
    check(
        steps,
        no_window(),
        &[
            ("", &["decide a[0]", "submit b[0]#1"]),
            ("fail b[0]", &["failed b[0] StepError", "skip c[0] UpstreamFailed", "skip total UpstreamFailed"]),
            ("no a[0]", &["skip a[0] WhenFalse", "end Failed"]),
        ],
    );
}

#[test]
fn a_refused_condition_fails_the_step_without_retry() {
    let run = check(
        "a\n b: data a, when, retry 3",
        no_window(),
        &[
            ("", &["submit a#1"]),
            ("ok a", &["decide b"]),
            ("refuse b no such key", &["failed b Refused", "end Failed"]),
        ],
    );
    let (_, reason) = run.state.failures().next().expect("a failure");
    assert_eq!(reason.to_string(), "no such key");
    check("b: len 2, when", no_window(), &[("", &["decide b"]), ("refuse b x", &["failed b Refused", "end Failed"])]);
}

#[test]
fn refused_data_calls_the_attempt_back() {
    check(
        "a",
        no_window(),
        &[("", &["submit a#1"]), ("start a; refuse a corrupt", &["withdraw a#1", "failed a Refused", "end Failed"])],
    );
}

#[test]
fn retries_back_off_by_class_and_limit() {
    let mut run = check("a: retry 2, classes oom", no_limits(), &[("", &["submit a#1"]), ("fail a oom", &[])]);
    assert_eq!(run.wake_at(), Some(1000));
    assert_eq!(run.status("a"), Some(TaskStatus::Backoff { until_ms: 1000 }));
    assert_eq!(run.step("at 999"), [""; 0]);
    assert_eq!(run.step("at 1000"), ["submit a#2"]);
    assert_eq!(run.step("fail a oom"), [""; 0]);
    assert_eq!(run.wake_at(), Some(3000));
    assert_eq!(run.step("at 3000"), ["submit a#3"]);
    assert_eq!(run.step("fail a oom"), ["failed a OutOfMemory", "end Failed"]);

    check(
        "a: retry 2, classes oom",
        no_limits(),
        &[("", &["submit a#1"]), ("fail a app", &["failed a StepError", "end Failed"])],
    );
}

#[test]
fn losses_have_their_own_budget() {
    let run = check(
        "a: retry 1",
        Limits { losses: 2, ..no_limits() },
        &[
            ("", &["submit a#1"]),
            ("start a; lose a", &["submit a#2"]),
            ("fail a preempted", &["submit a#3"]),
            ("fail a", &[]),
            ("at 1000", &["submit a#4"]),
            ("finish a", &[]),
            ("lose a", &["failed a WorkerLost", "end Failed"]),
        ],
    );
    let view = run.state.task_view(&run.dag, run.task("a")).expect("a task");
    assert_eq!((view.retries, view.losses, view.attempt), (1, 3, 4));
}

#[test]
fn a_lost_runtime_is_nobodys_fault() {
    let run = check(
        "a\n b: data a\n c: data b",
        Limits { losses: 0, ..no_limits() },
        &[
            ("", &["submit a#1", "submit b#1 <- a", "submit c#1 <- b"]),
            ("ok a; finish b; start c; gone", &["submit b#2 <- a", "submit c#2 <- b"]),
            ("gone; gone", &["submit b#3 <- a", "submit c#3 <- b"]),
            ("ok b; ok c", &["end Succeeded"]),
        ],
    );
    assert_eq!(run.state.counts().done, 3);
}

#[test]
fn an_input_that_is_lost_gets_the_place_of_those_that_wait_for_it() {
    check(
        "a\n b: data a",
        Limits { parallelism: Some(1), ..no_limits() },
        &[
            ("", &["submit a#1"]),
            ("finish a", &["submit b#1 <- a"]),
            ("lose a", &["withdraw b#1"]),
            ("stopped b", &["submit a#2"]),
            ("ok a", &["submit b#2 <- a"]),
            ("ok b", &["end Succeeded"]),
        ],
    );
    check(
        "a\n b: data a",
        Limits { window: 1, ..no_limits() },
        &[
            ("", &["submit a#1"]),
            ("finish a", &["submit b#1 <- a"]),
            ("lose a", &["submit a#2"]),
            ("ok a; ok b", &["end Succeeded"]),
        ],
    );
}

#[test]
fn an_attempt_that_outlives_its_timeout_is_stopped_and_charged() {
    let mut run = check(
        "a: timeout 500, retry 1",
        Limits { timeout_grace_ms: 100, ..no_limits() },
        &[
            ("", &["submit a#1"]),
            ("at 50; start a", &[]),
            ("at 649", &[]),
            ("at 650", &["stop a#1 Timeout"]),
            ("stopped a", &[]),
        ],
    );
    assert_eq!(run.wake_at(), Some(1650));
    assert_eq!(run.step("at 1650"), ["submit a#2"]);
    assert_eq!(run.step("start a; at 3000"), ["stop a#2 Timeout"]);
    assert_eq!(run.step("fail a app"), ["failed a StepError", "end Failed"]);
}

#[test]
fn a_timeout_is_forgotten_when_the_attempt_ends() {
    let mut run = check("a: timeout 500", no_limits(), &[("", &["submit a#1"]), ("start a", &[])]);
    assert_eq!(run.wake_at(), Some(10_500));
    assert_eq!(run.step("finish a; at 99999"), [""; 0]);
    assert_eq!(run.wake_at(), None);
}

#[test]
fn higher_priority_goes_first_then_the_longer_way_to_the_end_then_the_manifest() {
    check(
        "a\n b\n c: data b\n d: priority 3\n e: priority -1",
        no_window(),
        &[("", &["submit d#1 !3", "submit b#1", "submit a#1", "submit e#1 !-1"])],
    );
}

#[test]
fn a_run_is_paused_by_a_parallelism_of_nothing_and_goes_on_when_it_is_raised() {
    let mut run = check("a: len 3", Limits { parallelism: Some(0), ..no_limits() }, &[("", &[])]);
    run.limits.parallelism = Some(2);
    assert_eq!(run.plan(), ["submit a[0]#1", "submit a[1]#1"]);
    assert_eq!(run.step("finish a[1]"), ["submit a[2]#1"]);
}

#[test]
fn a_step_keeps_its_own_parallelism() {
    check(
        "a: len 3, parallel 1\n b: len 2",
        no_limits(),
        &[
            ("", &["submit a[0]#1", "submit b[0]#1", "submit b[1]#1"]),
            ("start a[0]", &[]),
            ("finish a[0]", &["submit a[1]#1"]),
            ("fail a[1]", &["failed a[1] StepError", "submit a[2]#1"]),
        ],
    );
}

#[test]
fn resources_are_shared_and_smaller_needs_fill_the_gaps() {
    let limits = Limits { resources: [("GPU".to_owned(), 2.0)].into(), ..no_limits() };
    check(
        "big: needs GPU 1.5, len 2\n small: needs GPU 0.5, len 2\n free: needs SSD 9",
        limits.clone(),
        &[
            ("", &["submit big[0]#1", "submit small[0]#1", "submit free#1"]),
            ("ok small[0]", &["submit small[1]#1"]),
            ("ok big[0]", &["submit big[1]#1"]),
        ],
    );
    check("a: needs GPU 3", limits, &[("", &["failed a ExceedsLimit", "end Failed"])]);
}

#[test]
fn finally_steps_run_whatever_happened_and_see_holes() {
    check(
        "a\n b: data a\n f: data a b, finally\n g: data f, finally",
        no_limits(),
        &[
            ("", &["submit a#1", "submit b#1 <- a"]),
            ("fail a", &["withdraw b#1", "failed a StepError"]),
            ("stopped b", &["skip b UpstreamFailed", "submit f#1", "submit g#1 <- f"]),
            ("ok f; ok g", &["end Failed"]),
        ],
    );
    check(
        "a\n f: after a, finally",
        no_limits(),
        &[("", &["submit a#1"]), ("ok a", &["submit f#1"]), ("fail f", &["failed f StepError", "end Failed"])],
    );
}

#[test]
fn a_run_is_finalizing_while_nothing_but_finally_steps_is_left() {
    let run = check("a\n f: finally", no_limits(), &[("", &["submit a#1"])]);
    assert!(!run.state.is_finalizing());
    let run = check("a\n f: finally", no_limits(), &[("", &["submit a#1"]), ("ok a", &["submit f#1"])]);
    assert!(run.state.is_finalizing());
    let run = check(
        "a\n f: finally",
        no_limits(),
        &[("", &["submit a#1"]), ("ok a", &["submit f#1"]), ("ok f", &["end Succeeded"])],
    );
    assert!(!run.state.is_finalizing());
}

#[test]
fn finally_lists_are_passed_with_their_holes() {
    check(
        "a: len 2\n f: data a, finally",
        no_limits(),
        &[
            ("", &["submit a[0]#1", "submit a[1]#1"]),
            ("fail a[0]; ok a[1]", &["failed a[0] StepError", "submit f#1 <- a[*2]"]),
        ],
    );
}

#[test]
fn a_cancelled_run_stops_what_runs_starts_nothing_and_still_cleans_up() {
    let run = check(
        "a\n b: data a\n c: data b, late\n m: output c\n f: finally",
        no_limits(),
        &[
            ("", &["submit a#1", "submit b#1 <- a"]),
            ("start a", &[]),
            ("cancel", &["stop a#1 Cancelled", "withdraw b#1", "skip m Cancelled", "skip c Cancelled"]),
            ("stopped b", &["skip b Cancelled"]),
            ("stopped a", &["skip a Cancelled", "submit f#1"]),
            ("cancel", &[]),
            ("ok f", &["end Cancelled"]),
        ],
    );
    assert_eq!(run.state.counts(), Counts { total: 5, done: 1, cancelled: 4, ..Counts::default() });
}

#[test]
fn a_finished_task_may_commit_after_a_cancellation() {
    check("a", no_limits(), &[("", &["submit a#1"]), ("finish a; cancel", &[]), ("commit a", &["end Succeeded"])]);
    check(
        "a\n b",
        no_limits(),
        &[
            ("", &["submit a#1", "submit b#1"]),
            ("finish a; cancel", &["withdraw b#1"]),
            ("commit a; stopped b", &["skip b Cancelled", "end Cancelled"]),
        ],
    );
}

#[test]
fn a_stop_that_comes_too_late_does_not_undo_a_commit() {
    check(
        "a",
        no_limits(),
        &[
            ("", &["submit a#1"]),
            ("start a; cancel", &["stop a#1 Cancelled"]),
            ("finish a", &[]),
            ("commit a", &["end Succeeded"]),
        ],
    );
}

#[test]
fn the_deadline_cancels_the_run() {
    let mut run = check(
        "a\n f: finally",
        Limits { deadline_ms: Some(500), ..no_limits() },
        &[("", &["submit a#1"]), ("start a", &[])],
    );
    assert_eq!(run.wake_at(), Some(500));
    assert_eq!(run.step("at 500"), ["stop a#1 DeadlineExceeded"]);
    assert_eq!(run.step("stopped a"), ["skip a DeadlineExceeded", "submit f#1"]);
    assert_eq!(run.wake_at(), None);
    assert_eq!(run.step("ok f"), ["end DeadlineExceeded"]);
}

#[test]
fn finally_steps_that_take_too_long_are_stopped_and_the_run_has_failed() {
    let limits = || Limits { finally_ms: Some(500), ..no_limits() };
    let graph = "a\n f: finally\n g: finally, data f\n h: finally";
    let mut run = check(graph, limits(), &[("", &["submit a#1"]), ("start a", &[])]);
    assert_eq!(run.wake_at(), None, "their time has not begun");
    run.step("at 1000");
    assert_eq!(run.step("ok a"), ["submit f#1", "submit h#1", "submit g#1 <- f"]);
    assert_eq!(run.wake_at(), Some(1500));
    assert!(run.step("start f; ok h; at 1499").is_empty());
    assert_eq!(run.step("at 1500"), ["stop f#1 DeadlineExceeded", "withdraw g#1"]);
    assert_eq!(run.wake_at(), None);
    assert_eq!(run.step("stopped g"), ["skip g DeadlineExceeded"]);
    assert_eq!(run.step("stopped f"), ["skip f DeadlineExceeded", "end FinallyDeadlineExceeded"]);

    // Restored after the first of them was recorded, it ends in the same way.
    check(
        graph,
        limits(),
        &[(
            "commit a; commit h; skipped f DeadlineExceeded",
            &["skip g DeadlineExceeded", "end FinallyDeadlineExceeded"],
        )],
    );
    // What ends the main part has the last word; and who is done in time has not been cut short.
    check(
        "a\n f: finally",
        limits(),
        &[
            ("", &["submit a#1"]),
            ("start a; cancel", &["stop a#1 Cancelled"]),
            ("stopped a", &["skip a Cancelled", "submit f#1"]),
            ("start f; at 500", &["stop f#1 DeadlineExceeded"]),
            ("stopped f", &["skip f DeadlineExceeded", "end Cancelled"]),
        ],
    );
    check(
        "a\n f: finally",
        limits(),
        &[
            ("", &["submit a#1"]),
            ("ok a", &["submit f#1"]),
            ("finish f; at 500", &[]),
            ("commit f", &["end Succeeded"]),
        ],
    );
}

#[test]
fn fail_fast_lets_running_tasks_end_and_starts_nothing_else() {
    check(
        "a\n b: retry 5\n c\n d: data c\n e: when, data b",
        Limits { fail_fast: true, ..no_limits() },
        &[
            ("", &["submit b#1", "submit c#1", "submit a#1", "submit d#1 <- c"]),
            ("start b; start c; fail a", &["withdraw d#1", "failed a StepError", "skip e FailFast"]),
            ("fail b", &["failed b StepError"]),
            ("ok c; stopped d", &["skip d FailFast", "end Failed"]),
        ],
    );
    check(
        "a: continue\n b: data a",
        Limits { fail_fast: true, ..no_window() },
        &[("", &["submit a#1"]), ("fail a", &["failed a StepError", "submit b#1"])],
    );
}

#[test]
fn outputs_of_earlier_runs_count_as_committed() {
    let run = check(
        "a\n b: output a",
        no_limits(),
        &[("cached a 1", &["length b 1", "submit b[0]#1 <- a"]), ("ok b[0]", &["end Succeeded"])],
    );
    assert_eq!(run.state.counts(), Counts { total: 2, done: 2, cached: 1, ..Counts::default() });
}

#[test]
fn a_restored_run_goes_on_where_the_journal_ends() {
    let run = check(
        "a: retry 3\n b: data a\n m: output x\n x\n n: items m\n s\n t: data s\n u: retry 1",
        no_window(),
        &[
            (
                "length m 2; length n 2; commit x 2; commit m[0]; skipped n[0] UpstreamHole; failed s; skipped t UpstreamFailed; \
             attempt-failed a#1 app; attempt-failed a#2 oom; attempt-failed u#1 app; failed u; attempt-failed x#1 app",
                &["submit m[1]#1 <- x"],
            ),
            ("at 2000", &["submit a#3"]),
        ],
    );
    let view = run.state.task_view(&run.dag, run.task("a")).expect("a task");
    assert_eq!((view.retries, view.attempt), (2, 3));
    assert_eq!(
        run.state.counts(),
        Counts { total: 10, waiting: 2, submitted: 2, done: 2, failed: 2, skipped: 2, ..Counts::default() }
    );
}

#[test]
fn a_recorded_cancellation_goes_on_after_a_restart() {
    check(
        "a\n b\n f: finally",
        no_limits(),
        &[("skipped a Cancelled", &["skip b Cancelled", "submit f#1"]), ("ok f", &["end Cancelled"])],
    );
    // Most of what is missing then is missing because of it, whatever order that is noticed in.
    check("a\n b: after a\n f: finally", no_limits(), &[("skipped a Cancelled", &["skip b Cancelled", "submit f#1"])]);
}

#[test]
fn a_live_runtime_is_taken_over_without_submitting_again() {
    check(
        "a: when\n b: data a\n c: data b",
        no_limits(),
        &[("finish a#3; submitted b#2", &["submit c#1 <- b"]), ("start b; ok b; ok c; commit a", &["end Succeeded"])],
    );
}

#[test]
fn events_that_cannot_be_are_errors_and_change_nothing() {
    let cases = [
        ("ok a; fail a", "Contradiction", "the task is"),
        ("fail a; commit a", "Contradiction", "the task is"),
        ("ok a; failed a", "Contradiction", "the task is"),
        ("ok a; skipped a WhenFalse", "Contradiction", "the task is"),
        ("skipped a WhenFalse; commit a", "Contradiction", "the task is"),
        ("start a#0", "NoAttempt", "counted from 1"),
        ("commit a[0]", "UnknownTask", "step 0 has no such task (item Some(0))"),
        ("commit m[2]", "UnknownTask", "item Some(2)"),
        ("commit m", "UnknownTask", "no such task (item None)"),
        ("commit d[0]", "UnknownTask", "no such task (item Some(0))"),
        ("length m 3", "LengthContradicts", "has 2 items, not 3"),
        ("length a 1", "UnknownTask", "no such task"),
        ("length d 1000001", "TooManyItems", "1000001 items"),
        ("yes a", "NotConditional", "no condition"),
        ("yes w; no w", "Contradiction", "the task is"),
    ];
    for (events, category, words) in cases {
        let mut run = Run::new("a\n m: len 2\n d: output a\n w: when, data a", no_limits());
        run.plan();
        let (before, last) = events.rsplit_once(';').unwrap_or(("", events));
        run.step(before);
        let counts = run.state.counts();
        let error = run.feed(last.trim()).expect_err(events);
        assert_eq!(error.category(), category, "{events}: {error}");
        assert!(error.to_string().contains(words), "{events}: {error}");
        assert_eq!(run.state.counts(), counts, "{events}");
        assert_eq!(run.plan(), [""; 0], "{events}");
    }
    let mut run = Run::new("a", no_limits());
    let error = run
        .apply(Event::CancelRequested)
        .and_then(|()| run.apply(Event::Started { task: TaskId::whole(StepIx(9)), attempt: 1 }));
    let error = error.expect_err("there is one step");
    assert_eq!((error.category(), error.to_string().as_str()), ("UnknownStep", "apply started: there is no step 9"));
}

#[test]
fn repeated_late_and_stale_events_change_nothing() {
    let cases = [
        "start a; start a; finish a; start a; finish a; commit a; commit a; finish a; lose a; stopped a",
        "fail a#1; fail a#1; lose a#1; start a#1; finish a#1; stopped a#1; at 1000",
        "lose a#1; lose a#1; fail a#1; finish a#1",
    ];
    for events in cases {
        let mut run = Run::new("a: retry 1\n b", no_limits());
        run.plan();
        run.step(events);
        let view = run.state.task_view(&run.dag, run.task("a")).expect("a task");
        assert!(view.retries + view.losses <= 1, "{events}: {view:?}");
        assert!(view.attempt <= 2, "{events}: {view:?}");
    }
}

#[test]
fn all_problems_of_a_graph_are_reported_together() {
    let steps = "a: data b\n b: data c\n c: data a\n d: data d\n d: data 99\n e: items a\n m: len 1\n f: output m\n \
                 g: nomap\n h: data i\n i: finally";
    let errors = Dag::build(parse_steps(steps)).expect_err("it is wrong");
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "step d depends on itself",
            "the name of step d is used twice",
            "step d refers to a step number 99, which does not exist",
            "step e is mapped over the items of a, which is not mapped",
            "step f is mapped over the output of m, which is itself mapped",
            "step g has a map without sources",
            "step h depends on i, which runs only when everything else has ended",
            "the steps depend on each other: a -> b -> c -> a",
        ]
    );
    let many = vec![StepSpec::default(); MAX_STEPS + 1];
    assert_eq!(Dag::build(many).expect_err("too many"), [DagError::TooManySteps { count: MAX_STEPS + 1 }]);
}

#[test]
fn a_run_without_steps_succeeds() {
    check("", no_limits(), &[("", &["end Succeeded"])]);
}
