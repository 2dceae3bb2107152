//! Runs by the schedule.

use serde_json::{Value, json};

use super::world::{World, at};

fn hourly(more: Value) -> World {
    let mut schedule = json!({"cron": "0 * * * *"});
    for (key, value) in more.as_object().unwrap() {
        schedule[key] = value.clone();
    }
    let mut world = World::new(json!({ "schedule": schedule }));
    world.pass_time("1s");
    world.settle();
    world.made.clear();
    world
}

/// Hours of the moments that made runs, in the order in which they did.
fn hours(world: &World) -> Vec<i8> {
    world
        .made
        .iter()
        .filter_map(|(_, moment)| Some(moment.as_ref()?.to_zoned(jiff::tz::TimeZone::UTC).hour()))
        .collect()
}

fn reasons(world: &World) -> Vec<&'static str> {
    world.notes.iter().map(|note| note.reason.as_str()).collect()
}

#[test]
fn each_moment_makes_one_run_with_its_name() {
    let mut world = hourly(json!({}));
    assert_eq!(world.subject.status.next_schedule_time.as_deref(), Some("2026-01-15T13:00:00Z"));
    assert_eq!(world.planned().wake, Some(at("2026-01-15T13:00:00Z")));
    world.pass_time("1h");
    for _ in 0..3 {
        world.settle();
    }
    assert_eq!(world.names(), ["etl-20260115-130000"]);
    assert_eq!(world.subject.status.last_schedule_time.as_deref(), Some("2026-01-15T13:00:00Z"));
    assert_eq!(world.subject.status.next_schedule_time.as_deref(), Some("2026-01-15T14:00:00Z"));
}

#[test]
fn an_interval_begins_when_the_pipeline_is_made_or_at_its_start() {
    let mut world = World::new(json!({"schedule": {"interval": "10m"}}));
    world.pass_time("2s");
    world.settle();
    assert_eq!(world.names(), ["etl-20260115-120000"]);
    let mut world = World::new(json!({"schedule": {"interval": "10m", "start": "2026-01-15T12:05:00Z"}}));
    world.settle();
    assert!(world.made.is_empty());
    world.pass_time("15m");
    world.end_all();
    world.settle();
    assert_eq!(world.names(), ["etl-20260115-121500"]);
}

#[test]
fn concurrency_is_as_the_policy_says() {
    for (policy, made, active, queued, told) in [
        ("Forbid", vec![13], 1, 0, vec!["MomentSkipped"]),
        ("Allow", vec![13, 14], 2, 0, vec![]),
        ("Replace", vec![13, 14], 2, 0, vec![]),
        ("Queue", vec![13, 14], 1, 1, vec![]),
    ] {
        let mut world = hourly(json!({ "concurrencyPolicy": policy }));
        for _ in 0..2 {
            world.pass_time("1h");
            world.settle();
        }
        assert_eq!(hours(&world), made, "{policy}");
        assert_eq!((world.active().len(), world.queued().len()), (active, queued), "{policy}");
        assert_eq!(reasons(&world), told, "{policy}");
        assert!(
            world.notes.iter().all(|note| note.text.contains("concurrencyPolicy is Forbid")),
            "{policy}: {:?}",
            world.notes
        );
        let cancelled: Vec<bool> = world.runs.iter().map(|run| run["spec"]["cancel"] == json!(true)).collect();
        assert_eq!(cancelled[0], policy == "Replace", "{policy}");
        world.pass_time("1m");
        world.end_all();
        world.settle();
        assert_eq!(hours(&world), made, "{policy}: a moment that was left out does not come later");
        assert_eq!(world.queued().len(), 0, "{policy}");
        assert_eq!(world.active().len(), usize::from(policy == "Queue"));
    }
}

#[test]
fn a_run_by_change_counts_and_one_of_a_person_does_not() {
    let mut world = World::new(json!({"triggers": {"onChange": true}, "schedule": {"interval": "1h"}}));
    world.settle();
    assert_eq!(world.made.len(), 1, "the moment at which it was made is left out: {:?}", world.made);
    assert_eq!(reasons(&world), ["MomentSkipped"]);
    assert!(world.notes[0].text.contains("is active and concurrencyPolicy is Forbid"), "{}", world.notes[0].text);
    world.end_all();
    world.runs.push(json!({"metadata": {"name": "mine"}, "spec": {"pipelineRef": "etl"}}));
    world.pass_time("1h");
    world.settle();
    assert_eq!(hours(&world), [13]);
}

#[test]
fn a_queue_is_served_in_order_is_bounded_and_forgets_what_is_too_late() {
    let mut world = hourly(json!({"concurrencyPolicy": "Queue", "startingDeadline": "150m"}));
    for _ in 0..4 {
        world.pass_time("1h");
        world.settle();
    }
    assert_eq!((hours(&world), world.queued().len()), (vec![13, 14, 15, 16], 3));
    world.end_all();
    world.settle();
    assert_eq!(world.active(), ["etl-20260115-140000"]);
    assert_eq!(world.planned().wake, Some(at("2026-01-15T17:00:00Z")));
    world.pass_time("90m");
    world.settle();
    let late = world.find("etl-20260115-150000").unwrap();
    assert_eq!(late["spec"]["cancel"], true, "its deadline was 17:30");
    for _ in 0..150 {
        world.pass_time("1h");
        world.edit("schedule", json!({"cron": "0 * * * *", "concurrencyPolicy": "Queue"}));
        world.settle();
    }
    assert_eq!(world.queued().len(), 100);
}

#[test]
fn what_was_missed_is_made_up_for_latest_first_and_no_more_than_told() {
    for (more, made) in [
        (json!({}), vec![18]),
        (json!({"catchUp": 0}), vec![]),
        (json!({"catchUp": 3, "concurrencyPolicy": "Allow"}), vec![18, 17, 16]),
        (json!({"catchUp": 100, "concurrencyPolicy": "Allow"}), vec![18, 17, 16, 15, 14, 13]),
        (json!({"catchUp": 3}), vec![18]),
        (json!({"catchUp": 3, "concurrencyPolicy": "Replace"}), vec![18]),
        (json!({"catchUp": 3, "concurrencyPolicy": "Queue"}), vec![18, 17, 16]),
        (json!({"catchUp": 100, "concurrencyPolicy": "Allow", "startingDeadline": "2h"}), vec![18, 17]),
        (json!({"startingDeadline": "10m"}), vec![]),
    ] {
        let mut world = hourly(more.clone());
        world.pass_time("6h30m");
        world.settle();
        assert_eq!(hours(&world), made, "{more}");
        assert_eq!(world.subject.status.next_schedule_time.as_deref(), Some("2026-01-15T19:00:00Z"), "{more}");
        world.settle();
        assert_eq!(world.made.len(), made.len(), "{more}");
        let all = more["catchUp"] == 100 && more["startingDeadline"].is_null();
        assert_eq!(reasons(&world).is_empty(), all, "{more}: {:?}", world.notes);
    }
    let mut world = hourly(json!({"catchUp": 0}));
    world.pass_time("1h");
    world.settle();
    assert_eq!(hours(&world), [13], "what is on time is not made up for");
}

#[test]
fn an_edit_of_the_schedule_begins_anew_and_makes_nothing() {
    let mut world = hourly(json!({}));
    world.pass_time("1h");
    world.settle();
    world.end_all();
    world.pass_time("30m");
    for schedule in
        [json!({"cron": "15 * * * *"}), json!({"interval": "7m"}), json!({"cron": "20 13 * * *", "timeZone": "UTC"})]
    {
        world.edit("schedule", schedule.clone());
        world.settle();
        assert_eq!(hours(&world), [13], "{schedule}");
    }
    world.edit("schedule", json!({"cron": "0 * * * *", "suspend": true}));
    world.settle();
    assert_eq!(world.subject.status.next_schedule_time, None);
    world.pass_time("5h");
    world.settle();
    world.edit("schedule", json!({"cron": "0 * * * *"}));
    world.settle();
    assert_eq!(hours(&world), [13], "what was missed while it was suspended is not made up for");
    world.pass_time("1h");
    world.settle();
    assert_eq!(hours(&world), [13, 19]);
}

#[test]
fn another_edit_while_the_operator_is_down_loses_no_moment() {
    let mut world = hourly(json!({}));
    world.pass_time("90m");
    world.code("2");
    world.settle();
    assert_eq!(hours(&world), [13]);
}

#[test]
fn a_name_that_others_have_is_not_touched() {
    let world = hourly(json!({}));
    let mut later = world.clone();
    later.pass_time("1h");
    let mut facts = later.facts();
    facts.taken.insert("etl-20260115-130000".to_owned());
    let timing =
        decide::pipeline::Timing::read(later.subject.spec.schedule.as_ref().unwrap(), later.subject.created).unwrap();
    let planned = decide::pipeline::plan(&later.subject, Some(&timing), &facts);
    assert!(
        matches!(&planned.actions[0], decide::pipeline::Action::Create { name, .. } if name == "etl-20260115-130000-2")
    );
}

#[test]
fn only_ended_runs_of_the_schedule_beyond_the_limits_are_deleted() {
    let mut world = World::new(json!({"triggers": {"onChange": true}, "schedule": {"cron": "0 * * * *",
        "successfulRunsHistoryLimit": 2, "failedRunsHistoryLimit": 0, "concurrencyPolicy": "Allow"}}));
    world.settle();
    world.end_all();
    for succeeded in [true, false, true, true, false] {
        world.pass_time("1h");
        world.settle();
        for name in world.active() {
            world.end(&name, succeeded);
        }
        world.settle();
    }
    world.pass_time("1h");
    world.settle();
    let mut left: Vec<String> =
        world.runs.iter().map(|run| run["metadata"]["name"].as_str().unwrap().to_owned()).collect();
    assert!(!left.remove(0).contains("-2026"), "the run by change stays");
    assert_eq!(left, ["etl-20260115-150000", "etl-20260115-160000", "etl-20260115-180000"], "and the active one");
    world.edit("schedule", json!(null));
    world.end_all();
    world.settle();
    assert_eq!(world.runs.len(), 4, "without a schedule nothing is deleted");
}

#[test]
fn a_run_whose_retention_is_not_carried_out_yet_stays_beyond_the_limits() {
    let mut world = World::new(json!({"schedule": {"cron": "0 * * * *", "successfulRunsHistoryLimit": 0},
        "retention": {"outputs": "1d", "logs": "2d"}}));
    world.settle();
    world.pass_time("1h");
    world.settle();
    let name = world.active().remove(0);
    let run = world.find(&name).unwrap();
    assert_eq!(run["spec"]["retention"], json!({"outputs": "1d", "logs": "2d"}));
    assert!(run["spec"]["pipelineSpec"].get("retention").is_none());
    world.end(&name, true);
    world.find(&name).unwrap()["status"]["revision"] = json!("r");
    world.settle();
    assert!(world.find(&name).is_some(), "nothing is removed yet");
    world.find(&name).unwrap()["status"]["removed"] = json!({"outputsAt": "2026-01-16T13:00:00Z"});
    world.settle();
    assert!(world.find(&name).is_some(), "the journal is not removed yet");
    world.find(&name).unwrap()["status"]["removed"]["logsAt"] = json!("2026-01-17T13:00:00Z");
    world.settle();
    assert!(world.find(&name).is_none());
}
