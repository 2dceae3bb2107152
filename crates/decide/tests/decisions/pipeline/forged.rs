//! Who may change runs, and nothing else, writes what they like into labels and annotations: no run more is made for it.

use decide::pipeline::{Action, CHANGES_MAX, Cause, Facts, hash, plan};
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::world::World;

/// A change to the metadata of a run, as by `kubectl annotate` and `kubectl label`. The generation is the Pipeline's.
type Forgery = (&'static str, fn(&mut Value, i64));

fn annotate(run: &mut Value, name: &str, value: Value) {
    run["metadata"]["annotations"][format!("daskade.dev/{name}")] = value;
}

fn label(run: &mut Value, name: &str, value: Value) {
    run["metadata"]["labels"][format!("daskade.dev/{name}")] = value;
}

const FORGERIES: [Forgery; 14] = [
    ("the hash of nothing", |run, _| annotate(run, "hash", json!("v1:00000000000000000000000000000000"))),
    ("no hash", |run, _| annotate(run, "hash", Value::Null)),
    ("a hash of other rules", |run, _| annotate(run, "hash", json!("v0:1"))),
    ("a later generation", |run, now| annotate(run, "pipeline-generation", json!((now + 1).to_string()))),
    ("the last generation", |run, _| annotate(run, "pipeline-generation", json!(i64::MAX.to_string()))),
    ("the present generation", |run, now| annotate(run, "pipeline-generation", json!(now.to_string()))),
    ("the generation before", |run, now| annotate(run, "pipeline-generation", json!((now - 1).to_string()))),
    ("no generation that there is", |run, _| annotate(run, "pipeline-generation", json!("-1"))),
    ("a generation that is no number", |run, _| annotate(run, "pipeline-generation", json!("x"))),
    ("the hash of nothing and a later generation", |run, now| {
        annotate(run, "hash", json!("v1:00000000000000000000000000000000"));
        annotate(run, "pipeline-generation", json!((now + 1).to_string()));
    }),
    ("another Pipeline's uid", |run, _| annotate(run, "pipeline-uid", json!("u2"))),
    ("another trigger", |run, _| label(run, "trigger", json!("manual"))),
    ("a moment", |run, _| {
        label(run, "trigger", json!("schedule"));
        annotate(run, "moment", json!("2026-01-15T13:00:00Z"));
    }),
    ("no Pipeline", |run, _| label(run, "pipeline", Value::Null)),
];

#[test]
fn a_settled_pipeline_makes_no_run_whatever_is_written_on_its_runs() {
    for (what, forge) in FORGERIES {
        // Of all runs or of one, and whichever of them comes last.
        for victims in [vec![0], vec![1], vec![2], vec![0, 1, 2]] {
            for reversed in [false, true] {
                let mut world = World::new(json!({}));
                for version in ["1", "2", "3"] {
                    world.code(version);
                    world.settle();
                }
                let generation = world.subject.generation;
                victims.iter().for_each(|at| forge(&mut world.runs[*at], generation));
                if reversed {
                    world.runs.reverse();
                }
                for _ in 0..3 {
                    world.settle();
                    assert_eq!(world.made.len(), 3, "{what}, runs {victims:?}");
                }
                world.end_all();
                world.settle();
                assert_eq!(world.made.len(), 3, "{what}, runs {victims:?}");
                let told = world.subject.status.last_triggered.clone();
                assert_eq!(told, Some(hash(&world.subject.spec)), "{what}, runs {victims:?}");
            }
        }
    }
}

#[test]
fn a_change_makes_one_run_whatever_is_written_on_those_before() {
    for (what, forge) in FORGERIES {
        for back in [false, true] {
            let mut world = World::new(json!({}));
            for version in ["1", "2"] {
                world.code(version);
                world.settle();
                world.pass_time("1s");
            }
            let generation = world.subject.generation;
            world.runs.iter_mut().for_each(|run| forge(run, generation));
            world.runs.reverse();
            world.code(if back { "1" } else { "3" });
            let taken = world.names();
            for _ in 0..3 {
                let planned = world.planned();
                for action in &planned.actions {
                    let Action::Create { name, cause, .. } = action else { panic!("{action:?}") };
                    if taken.contains(name) {
                        // It is another's now, and the operator is told so.
                        let facts = Facts { taken: taken.iter().cloned().collect(), ..world.facts() };
                        let renamed = plan(&world.subject, None, &facts).actions.remove(0);
                        assert!(matches!(&renamed, Action::Create { name, .. } if !taken.contains(name)));
                        world.act(&renamed);
                    } else {
                        world.act(&Action::Create { name: name.clone(), cause: cause.clone(), queued: false });
                    }
                }
                world.settle();
            }
            assert_eq!(world.made.len(), 3, "{what}, back: {back}");
        }
    }
}

#[test]
fn what_is_written_on_a_run_before_the_status_knows_of_it_makes_one_more_at_most() {
    for (what, forge) in FORGERIES {
        let mut world = World::new(json!({}));
        world.settle();
        world.code("2");
        assert!(!world.reconcile(1), "the run is made, the status is not written");
        let generation = world.subject.generation;
        forge(&mut world.runs[1], generation);
        let mut facts = world.facts();
        facts.made.push(Cause::Change { hash: hash(&world.subject.spec) });
        let planned = plan(&world.subject, None, &facts);
        assert!(planned.actions.is_empty(), "{what}: the process that made it knows");
        assert_eq!(planned.marks.last_triggered, Some(hash(&world.subject.spec)), "{what}");
        if what == "no Pipeline" {
            continue; // Its name is taken then, which the double of the API server shows better.
        }
        for _ in 0..3 {
            world.settle();
            let made = world.made.len();
            assert!(made <= 3, "{what}: {made}");
            let generation = world.subject.generation;
            world.runs.iter_mut().for_each(|run| forge(run, generation));
        }
    }
}

#[test]
fn a_run_that_a_person_made_is_none_of_the_pipelines_own_whatever_is_written_on_it() {
    let other = json!({"steps": [{"name": "z", "call": "m:g"}]});
    for (name, spec) in
        [("zz", other.clone()), ("zz", json!({"steps": 3})), ("zz", json!(null)), ("etl-0000000000-9", other)]
    {
        for generation in ["0", "1", "2", "3", "99"] {
            let mut world = World::new(json!({}));
            world.settle();
            world.code("2");
            world.settle();
            world.runs.push(json!({
                "metadata": {
                    "name": name,
                    "uid": "zz",
                    "creationTimestamp": "2026-01-15T12:00:00Z",
                    "labels": {"daskade.dev/pipeline": "etl", "daskade.dev/trigger": "change"},
                    "annotations": {
                        "daskade.dev/pipeline-uid": "u1",
                        "daskade.dev/pipeline-generation": generation,
                        "daskade.dev/hash": "v1:00000000000000000000000000000000",
                    },
                },
                "spec": {"pipelineSpec": spec},
            }));
            world.settle();
            world.settle();
            assert_eq!(world.made.len(), 2, "{name} {spec} {generation}");
            world.code("3");
            world.settle();
            world.settle();
            assert_eq!(world.made.len(), 3, "{name} {spec} {generation}");
        }
    }
}

#[test]
fn a_moment_has_its_run_whatever_is_written_on_others() {
    let mut world = World::new(json!({"schedule": {"cron": "0 * * * *", "concurrencyPolicy": "Allow"}}));
    world.pass_time("1s");
    world.settle();
    world.made.clear();
    world.pass_time("1h");
    world.settle();
    assert_eq!(world.names(), ["etl-20260115-130000"]);
    annotate(world.find("etl-20260115-130000").unwrap(), "moment", json!("9999-12-31T23:00:00Z"));
    world.pass_time("1h");
    world.settle();
    assert_eq!(world.names(), ["etl-20260115-130000", "etl-20260115-140000"]);
    assert_eq!(world.subject.status.last_schedule_time.as_deref(), Some("2026-01-15T14:00:00Z"));
    // What the schedule did not make is not taken away with what it made.
    world.runs.push(json!({
        "metadata": {
            "name": "mine",
            "labels": {"daskade.dev/pipeline": "etl", "daskade.dev/trigger": "schedule"},
            "annotations": {"daskade.dev/moment": "2020-01-01T00:00:00Z"},
        },
        "spec": {"pipelineRef": "etl"},
    }));
    world.edit(
        "schedule",
        json!({"cron": "0 * * * *", "concurrencyPolicy": "Allow", "successfulRunsHistoryLimit": 0, "suspend": true}),
    );
    for name in ["mine", "etl-20260115-140000"] {
        world.end(name, true);
    }
    world.settle();
    assert!(world.find("mine").is_some() && world.find("etl-20260115-140000").is_none());
}

#[test]
fn a_spec_has_no_more_than_so_many_runs_by_change_in_an_hour_and_that_is_told() {
    let mut world = World::new(json!({}));
    world.settle();
    let rounds = 3 * CHANGES_MAX;
    for _ in 0..rounds {
        // Neither the status nor what is written on the runs shows that there is one.
        world.subject.status.last_triggered = Some("v1:0".to_owned());
        world.runs.iter_mut().for_each(|run| annotate(run, "pipeline-uid", Value::Null));
        world.settle();
        world.pass_time("1s");
    }
    assert_eq!(world.made.len(), CHANGES_MAX);
    let reconciling = |world: &World| {
        let found = world.subject.status.conditions.iter().find(|condition| condition.type_ == "Reconciling");
        found.map(|condition| condition.reason.clone())
    };
    assert_eq!(reconciling(&world).as_deref(), Some("TooManyRuns"));
    let wake = world.planned().wake.expect("it looks again");
    assert_eq!(wake, super::world::at(super::world::START) + SignedDuration::from_hours(1));
    world.code("2");
    world.settle();
    assert_eq!(world.made.len(), CHANGES_MAX + 1, "another spec is another matter");
    assert_eq!(reconciling(&world).as_deref(), Some("Accepted"));
    world.pass_time("2h");
    world.edit("code", Value::Null);
    world.settle();
    assert_eq!(world.made.len(), CHANGES_MAX + 2, "and later it may run again");
}
