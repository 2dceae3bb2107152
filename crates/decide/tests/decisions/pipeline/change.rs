//! Runs by changes.

use serde_json::json;

use super::world::World;

#[test]
fn a_change_makes_one_run_and_nothing_else_does() {
    let mut world = World::new(json!({}));
    world.settle();
    assert_eq!(world.made.len(), 1);
    assert_eq!(world.subject.status.last_run.as_deref(), Some(&*world.made[0].0));
    assert_eq!(world.subject.status.active, [world.made[0].0.clone()]);
    world.settle();
    world.end_all();
    world.settle();
    assert_eq!(world.made.len(), 1, "neither another look nor the end of a run");
    assert!(world.subject.status.active.is_empty());
    world.edit("triggers", json!({"onChange": true}));
    world.settle();
    world.edit("limits", json!({}));
    world.settle();
    assert_eq!(world.made.len(), 1, "nothing that matters to a run");
    world.code("2");
    world.settle();
    assert_eq!(world.made.len(), 2);
}

#[test]
fn a_revert_runs_again_under_another_name() {
    let mut world = World::new(json!({}));
    for version in ["1", "2", "1", "2"] {
        world.code(version);
        world.settle();
    }
    let names = world.names();
    assert_eq!(names.len(), 4);
    assert_eq!(names[2], format!("{}-2", names[0]));
    assert_eq!(names[3], format!("{}-2", names[1]));
}

#[test]
fn a_run_has_the_spec_as_it_was_without_what_makes_runs() {
    let mut world = World::new(json!({"triggers": {"onChange": true}, "schedule": {"cron": "@yearly"}}));
    world.settle();
    let run = &world.runs[0];
    assert_eq!(run["spec"], json!({"pipelineSpec": {"steps": [{"name": "a", "call": "m:f"}]}}));
    assert_eq!(run["metadata"]["labels"]["daskade.dev/pipeline"], "etl");
    assert!(run["metadata"].get("ownerReferences").is_none(), "it outlives its Pipeline");
}

#[test]
fn without_its_status_nothing_runs_twice() {
    let mut world = World::new(json!({}));
    for version in ["1", "2", "1"] {
        world.code(version);
        world.settle();
    }
    world.subject.status = Default::default();
    world.settle();
    assert_eq!(world.made.len(), 3, "the status was removed");
    let told = world.subject.status.last_triggered.clone();
    world.restore();
    world.settle();
    assert_eq!(world.made.len(), 3, "Pipeline and runs are back from a backup");
    assert_eq!(world.subject.status.last_triggered, told);
    world.code("2");
    world.settle();
    assert_eq!(world.made.len(), 4, "a change is one as ever");
}

#[test]
fn a_schedule_turns_runs_by_change_off_and_taking_it_away_is_no_change() {
    let mut world = World::new(json!({"schedule": {"cron": "@yearly"}}));
    world.settle();
    world.code("2");
    world.settle();
    world.edit("schedule", json!({"cron": "@monthly"}));
    world.settle();
    world.edit("schedule", json!(null));
    world.settle();
    assert!(world.made.is_empty(), "{:?}", world.made);
    world.code("3");
    world.settle();
    assert_eq!(world.made.len(), 1);
    world.edit("triggers", json!({"onChange": false}));
    world.settle();
    world.code("4");
    world.settle();
    world.edit("triggers", json!({"onChange": true}));
    world.settle();
    assert_eq!(world.made.len(), 1);
}

#[test]
fn an_update_of_daskade_that_counts_otherwise_makes_no_runs() {
    let mut world = World::new(json!({}));
    world.settle();
    world.runs.clear();
    world.subject.status.last_triggered = Some("v0:abc".to_owned());
    world.settle();
    assert_eq!(world.made.len(), 1);
    assert!(world.subject.status.last_triggered.as_ref().is_some_and(|hash| hash.starts_with("v1:")));
    world.code("2");
    world.settle();
    assert_eq!(world.made.len(), 2);
}

#[test]
fn a_process_that_ends_between_run_and_status_makes_it_once_whatever_is_edited_then() {
    for edit in [None, Some(json!({"cron": "@yearly"}))] {
        let mut world = World::new(json!({"triggers": {"onChange": true}}));
        for version in ["1", "2"] {
            world.code(version);
            world.settle();
        }
        world.code("1");
        assert!(!world.reconcile(1), "the run is made, the status is not written");
        if let Some(schedule) = edit {
            world.edit("schedule", schedule);
        }
        world.settle();
        assert_eq!(world.made.len(), 3);
        world.code("2");
        world.settle();
        assert_eq!(world.made.len(), 4);
    }
}

#[test]
fn runs_that_people_make_and_delete_change_nothing() {
    let mut world = World::new(json!({}));
    world.settle();
    world.runs.clear();
    world.settle();
    let mut run = json!({"metadata": {"name": "mine", "creationTimestamp": "2026-01-15T13:00:00Z"}, "spec": {"pipelineRef": "etl"}});
    world.runs.push(run.take());
    world.settle();
    assert_eq!(world.made.len(), 1);
    assert_eq!(world.subject.status.last_run.as_deref(), Some("mine"));
}
