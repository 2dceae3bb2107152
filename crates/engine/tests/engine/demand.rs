//! What a run has use for now and soon, case by case; that it never claims too much is among the properties.

use crate::support::Run;
use engine::*;

/// After each list of events: `step now+soon`, with `+later` if there is any, of the steps that want something.
#[track_caller]
fn check(steps: &str, limits: Limits, script: &[(&str, &str)]) {
    let mut run = Run::new(steps, limits);
    for (at, (events, expected)) in script.iter().enumerate() {
        run.step(events);
        let told = demand(&run.dag, &run.state, &run.limits);
        let name = |step| run.dag.step(step).map(|spec| spec.name.clone()).unwrap_or_default();
        let lines: Vec<String> = told
            .iter()
            .map(|Demand { step, now, soon, later }| {
                let later = if *later > 0 { format!("+{later}") } else { String::new() };
                format!("{} {now}+{soon}{later}", name(*step))
            })
            .collect();
        assert_eq!(lines.join(", "), *expected, "line {at}: {events}");
    }
}

fn free() -> Limits {
    Limits::default()
}

/// Nothing goes ahead of its inputs.
fn one_by_one() -> Limits {
    Limits { parallelism: Some(100), ..free() }
}

#[test]
fn of_a_chain_only_the_next_step_is_wanted_soon_although_all_was_handed_over() {
    for limits in [free(), one_by_one()] {
        check(
            "a\n b: data a\n gpu: data b",
            limits,
            &[
                ("", "a 1+0, b 0+0+1"),
                ("start a", "a 1+0, b 0+1"),
                ("ok a", "b 1+0, gpu 0+0+1"),
                ("start b; ok b", "gpu 1+0"),
                ("start gpu", "gpu 1+0"),
                ("ok gpu", ""),
            ],
        );
    }
}

#[test]
fn what_waits_for_many_is_wanted_when_the_last_of_them_run() {
    check(
        "a: len 6\n gpu: data a",
        free(),
        &[
            ("", "a 6+0"),
            ("start a[0]; start a[1]", "a 6+0"),
            ("ok a[0]; ok a[1]; start a[2]; start a[3]", "a 4+0, gpu 0+0+1"),
            ("ok a[2]; ok a[3]; start a[4]; start a[5]", "a 2+0, gpu 0+1"),
            ("ok a[4]; ok a[5]", "gpu 1+0"),
        ],
    );
}

#[test]
fn items_are_wanted_as_the_items_before_them_run_and_a_few_more() {
    check(
        "a: len 10\n gpu: items a",
        free(),
        &[("", "a 10+0, gpu 0+0+1"), ("start a[0]; start a[1]", "a 10+0, gpu 0+2+2"), ("ok a[0]", "a 9+0, gpu 1+1+1")],
    );
}

#[test]
fn a_list_of_unknown_length_counts_as_one() {
    check(
        "a\n gpu: output a 0\n b: data gpu",
        free(),
        &[("", "a 1+0, gpu 0+0+1"), ("start a; finish a 3", "gpu 0+1"), ("commit a 3", "gpu 3+0")],
    );
}

#[test]
fn what_may_not_run_at_all_is_not_waited_for() {
    check(
        "a\n gpu: data a, when\n b: len 2\n c: items b, when-each\n last: finally",
        free(),
        &[
            ("", "a 1+0, b 2+0"),
            ("ok a; ok b[0]; ok b[1]", ""),
            ("yes gpu; yes c[0]; no c[1]", "gpu 1+0, c 1+0"),
            ("ok gpu; ok c[0]", "last 1+0"),
        ],
    );
}

#[test]
fn a_retry_that_is_not_due_brings_nothing_nearer() {
    check(
        "a: retry 1\n gpu: data a",
        free(),
        &[("", "a 1+0, gpu 0+0+1"), ("start a; fail a", ""), ("at 1000", "a 1+0, gpu 0+0+1")],
    );
}

#[test]
fn limits_bound_what_is_wanted() {
    check("a\n gpu: len 10, after a, parallel 2", free(), &[("", "a 1+0, gpu 0+0+2"), ("ok a", "gpu 2+0")]);
    let gpus = Limits { resources: [("GPU".to_owned(), 3.0)].into(), ..free() };
    check("a\n gpu: len 10, after a, needs GPU 1", gpus, &[("", "a 1+0, gpu 0+0+3"), ("ok a", "gpu 3+0")]);
    let two = Limits { parallelism: Some(2), ..free() };
    check("a: len 10\n b: items a", two, &[("", "a 2+0, b 0+0+1")]);
}

#[test]
fn a_run_that_is_cut_short_wants_nothing_more_but_its_end() {
    check(
        "a\n gpu: data a\n last: finally\n then: data last, finally",
        free(),
        &[
            ("", "a 1+0, gpu 0+0+1"),
            ("start a", "a 1+0, gpu 0+1"),
            ("cancel", ""),
            ("stopped a; stopped gpu", "last 1+0, then 0+0+1"),
        ],
    );
}
