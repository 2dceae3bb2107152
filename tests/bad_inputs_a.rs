//! Pipelines with mistakes, and some without: every row of `data/pipeline/inputs.json` is one test.
//!
//! A row has an `input` (a Pipeline's spec), the `params` of the run, and either the `problems` that must be reported
//! (all of them, in order), or a `type_error` that reading the spec must give, or the number of `tasks` that are known
//! when the run begins. `{"$repeat": [text, n]}`, `{"$join": […]}` and `{"$steps": n, …}` stand for what is too long to
//! write down.

use std::time::{Duration, Instant};

use daskade::{
    api::pipeline::PipelineSpec,
    graph::{MapSource, StepSpec},
    pipeline::{RunInfo, validate},
};
use serde_json::{Map, Value, json};

const ROWS: &str = include_str!("data/pipeline/inputs.json");

#[test]
fn every_row_is_answered_as_it_says() {
    let rows: Vec<Value> = serde_json::from_str(ROWS).expect("rows");
    let mut wrong = Vec::new();
    for row in &rows {
        if let Err(message) = check(row) {
            wrong.push(format!("{}: {message}", row["name"]));
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

fn check(row: &Value) -> Result<(), String> {
    let spec: PipelineSpec = match (serde_json::from_value(expanded(&row["input"])), row["type_error"].as_str()) {
        (Ok(spec), None) => spec,
        (Err(error), Some(part)) if error.to_string().contains(part) => return Ok(()),
        (Err(error), _) => return Err(format!("cannot be read: {error}")),
        (Ok(_), Some(part)) => return Err(format!("is read, {part} was expected")),
    };
    let params = expanded(&row["params"]).as_object().cloned().unwrap_or_default();
    let run = RunInfo { name: "run".to_owned(), uid: "uid".to_owned() };
    let begun = Instant::now();
    let outcome = validate(&spec, "spec").and_then(|flow| flow.bind(&params, &run));
    if begun.elapsed() > Duration::from_secs(60) {
        return Err(format!("took {:?}", begun.elapsed()));
    }
    let expected = row["problems"].as_array().cloned().unwrap_or_default();
    let found = match outcome {
        Ok(plan) => {
            let tasks: u64 = plan.dag.steps().map(|(_, step)| u64::from(tasks(step))).sum();
            return match row["tasks"].as_u64() {
                Some(expected) if expected == tasks => Ok(()),
                expected => Err(format!("is accepted with {tasks} tasks, expected {expected:?}")),
            };
        }
        Err(problems) => problems,
    };
    let fits = |(found, expected): (&daskade::problem::Problem, &Value)| {
        let text = found.to_string();
        expected["reason"] == found.reason
            && expected["path"] == found.path
            && expected["contains"].as_str().is_some_and(|part| text.contains(part))
            && text.chars().count() < 2000
    };
    if found.len() == expected.len() && found.iter().zip(&expected).all(fits) {
        return Ok(());
    }
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    Err(format!("gives\n    {}\n  expected\n    {}", found.join("\n    "), json!(expected)))
}

fn tasks(step: &StepSpec) -> u32 {
    match step.map.as_deref() {
        Some([MapSource::Len(len), ..]) => *len,
        _ => 1,
    }
}

fn expanded(value: &Value) -> Value {
    match value {
        Value::Array(list) => list.iter().map(expanded).collect(),
        Value::Object(map) => {
            if let Some([Value::String(text), count]) = map.get("$repeat").and_then(Value::as_array).map(Vec::as_slice)
            {
                return Value::String(text.repeat(count.as_u64().unwrap_or(0) as usize));
            }
            if let Some(parts) = map.get("$join").and_then(Value::as_array) {
                return Value::String(
                    parts.iter().filter_map(|part| expanded(part).as_str().map(str::to_owned)).collect(),
                );
            }
            if let Some(count) = map.get("$steps").and_then(Value::as_u64) {
                return (0..count).map(|i| step(i, map)).collect();
            }
            Value::Object(map.iter().map(|(key, value)| (key.clone(), expanded(value))).collect())
        }
        other => other.clone(),
    }
}

fn step(index: u64, fields: &Map<String, Value>) -> Value {
    let mut step = fields.clone();
    step.remove("$steps");
    step.insert("name".to_owned(), json!(format!("s{index}")));
    step.insert("call".to_owned(), json!("m:f"));
    Value::Object(step)
}

/// A chain of 10000 steps and a fan-in of 9999 into one: bound and lowered without recursion, in time that grows with
/// the number of steps alone.
#[test]
fn chains_and_fan_ins_of_ten_thousand_are_ordinary() {
    let chain: Vec<Value> = (0..10_000)
        .map(|i| match i {
            0 => json!({"name": "s0", "call": "m:f"}),
            i => json!({"name": format!("s{i}"), "call": "m:f", "args": [format!("$(steps.s{}.output)", i - 1)]}),
        })
        .rev()
        .collect();
    let mut fan_in: Vec<Value> = (0..9_999).map(|i| json!({"name": format!("s{i}"), "call": "m:f"})).collect();
    let all: Vec<String> = (0..9_999).map(|i| format!("$(steps.s{i}.output)")).collect();
    fan_in.push(json!({"name": "all", "call": "m:f", "args": [all]}));
    let work = move || {
        for steps in [chain, fan_in] {
            let spec: PipelineSpec = serde_json::from_value(json!({ "steps": steps })).expect("a spec");
            let begun = Instant::now();
            let flow = validate(&spec, "spec").expect("no mistakes");
            let run = RunInfo { name: "run".to_owned(), uid: "uid".to_owned() };
            let plan = flow.bind(&Map::new(), &run).expect("no mistakes");
            assert_eq!(plan.step_defs().len(), 10_000);
            let limit = if cfg!(debug_assertions) { Duration::from_secs(20) } else { Duration::from_secs(1) };
            eprintln!("{:?}", begun.elapsed());
            assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
        }
    };
    std::thread::Builder::new().stack_size(512 << 10).spawn(work).expect("a thread").join().expect("no overflow");
}

/// A cycle of 10000 steps is found without recursion and shown in short.
#[test]
fn a_long_cycle_is_shown_in_short() {
    let steps: Vec<Value> = (0..10_000)
        .map(|i| json!({"name": format!("s{i}"), "call": "m:f", "dependsOn": [format!("s{}", (i + 1) % 10_000)]}))
        .collect();
    let work = move || {
        let spec: PipelineSpec = serde_json::from_value(json!({ "steps": steps })).expect("a spec");
        let problems = validate(&spec, "spec").expect_err("a cycle");
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].reason, "DependencyCycle");
        assert!(problems[0].message.contains("s0 -> s1 -> s2") && problems[0].message.len() < 1000, "{}", problems[0]);
    };
    std::thread::Builder::new().stack_size(512 << 10).spawn(work).expect("a thread").join().expect("no overflow");
}
