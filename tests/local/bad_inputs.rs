//! What people may get wrong in a manifest, row by row: every row of `data/bad_inputs.txt`, whose head says how it is
//! written, is one case. Of each the reasons, the paths and a part of the words are asserted.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};

use api::pipeline::PipelineSpec;
use api::reason::Reason;
use engine::{MapSource, StepSpec};
use lower::{RunInfo, validate};

const ROWS: &str = include_str!("../data/bad_inputs.txt");

struct Row {
    number: &'static str,
    place: &'static str,
    title: &'static str,
    /// Reason, path and part of the text.
    expected: Vec<(&'static str, &'static str, &'static str)>,
    tasks: Option<u64>,
    unreadable: Option<&'static str>,
    params: Value,
    input: String,
}

/// A problem as a row tells it: reason, path, text.
type Found = (String, String, String);

#[test]
fn every_row_is_answered_as_it_says() {
    // Deep inputs must not need a deep stack.
    let work = || {
        let rows = rows();
        let wrong: Vec<String> = rows.iter().filter_map(|row| check(row).err()).collect();
        assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    };
    std::thread::Builder::new().stack_size(1 << 20).spawn(work).expect("a thread").join().expect("no overflow");
}

#[test]
fn no_number_of_the_list_is_missing() {
    let have: BTreeSet<String> = rows().iter().map(|row| row.number.to_owned()).collect();
    let wanted = (1..=35).map(|n| format!("A{n}")).chain((36..=47).map(|n| format!("B{n}")));
    let missing: Vec<String> = wanted.filter(|number| !have.contains(number)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

fn rows() -> Vec<Row> {
    ROWS.split("\n##### ").skip(1).map(row).collect()
}

fn row(text: &'static str) -> Row {
    let (head, rest) = text.split_once('\n').expect("a row has lines");
    let mut words = head.splitn(3, ' ');
    let mut word = || words.next().unwrap_or_default();
    let (number, place, title) = (word(), word(), word());
    let mut row = Row {
        number,
        place,
        title,
        expected: Vec::new(),
        tasks: None,
        unreadable: None,
        params: json!({}),
        input: String::new(),
    };
    for line in rest.lines() {
        if let Some(expected) = line.strip_prefix("#> ") {
            let mut parts = expected.splitn(3, ' ');
            let mut part = || parts.next().unwrap_or_default();
            row.expected.push((part(), part(), part()));
        } else if let Some(tasks) = line.strip_prefix("#tasks ") {
            row.tasks = Some(tasks.parse().expect("a number of tasks"));
        } else if let Some(part) = line.strip_prefix("#unreadable ") {
            row.unreadable = Some(part);
        } else if let Some(params) = line.strip_prefix("#params ") {
            row.params = serde_json::from_str(params).expect("parameters");
        } else {
            row.input.push_str(line);
            row.input.push('\n');
        }
    }
    row
}

fn check(row: &Row) -> Result<(), String> {
    let Row { number, place, title, .. } = row;
    let begun = Instant::now();
    let answer = match *place {
        "manifest" => in_manifest(row),
        "pipeline" => in_pipeline(row),
        "cluster" if !row.input.trim().is_empty() => Ok(()),
        other => Err(format!("no place {other}")),
    };
    let limit = if cfg!(debug_assertions) { Duration::from_secs(30) } else { Duration::from_secs(1) };
    let answer =
        answer.and_then(|()| if begun.elapsed() < limit { Ok(()) } else { Err(format!("took {:?}", begun.elapsed())) });
    answer.map_err(|message| format!("{number} {title}: {message}"))
}

fn in_manifest(row: &Row) -> Result<(), String> {
    let problems = manifest::read_text(Path::new("flow.yaml"), row.input.as_bytes()).problems;
    let found = problems
        .iter()
        .map(|found| (found.problem.reason.to_string(), found.problem.path.clone(), found.to_string()))
        .collect();
    compare(row, found)
}

fn in_pipeline(row: &Row) -> Result<(), String> {
    let input: Value = serde_json::from_str(&row.input).map_err(|error| format!("the row's JSON: {error}"))?;
    let spec: PipelineSpec = match (serde_json::from_value(expanded(&input)), row.unreadable) {
        (Ok(spec), None) => spec,
        (Err(error), Some(part)) if error.to_string().contains(part) => return Ok(()),
        (Err(error), _) => return Err(format!("cannot be read: {error}")),
        (Ok(_), Some(part)) => return Err(format!("is read, {part} was expected")),
    };
    let params = expanded(&row.params).as_object().cloned().unwrap_or_default();
    let run = RunInfo { name: "run".to_owned(), uid: "uid".to_owned() };
    match validate(&spec, "spec").and_then(|flow| flow.bind(&params, &run)) {
        Ok(plan) => {
            let tasks = plan.dag.steps().map(|(_, step)| u64::from(tasks(step))).sum();
            if row.tasks == Some(tasks) {
                return Ok(());
            }
            Err(format!("is accepted with {tasks} tasks, expected {:?}", row.tasks))
        }
        Err(problems) => compare(
            row,
            problems.iter().map(|found| (found.reason.to_string(), found.path.clone(), found.to_string())).collect(),
        ),
    }
}

/// Exactly the problems expected, in any order; none of them longer than a screen.
fn compare(row: &Row, mut found: Vec<Found>) -> Result<(), String> {
    let mut wrong = Vec::new();
    for (reason, path, part) in &row.expected {
        let path = if *path == "-" { "" } else { *path };
        match found.iter().position(|(r, p, text)| r == reason && p == path && text.contains(part)) {
            Some(at) if found[at].2.chars().count() < 2000 => drop(found.remove(at)),
            Some(at) => wrong.push(format!("{} characters: {reason} {path}", found[at].2.chars().count())),
            None => wrong.push(format!("not found: {reason} {path} {part}")),
        }
    }
    wrong.extend(found.iter().map(|(_, _, text)| format!("not expected: {text}")));
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n    ")) }
}

fn tasks(step: &StepSpec) -> u32 {
    match step.map.as_deref() {
        Some([MapSource::Len(len), ..]) => *len,
        _ => 1,
    }
}

/// What a row's short forms stand for.
fn expanded(value: &Value) -> Value {
    let Value::Object(map) = value else {
        return match value {
            Value::Array(list) => list.iter().map(expanded).collect(),
            other => other.clone(),
        };
    };
    let count = |name: &str| map.get(name).and_then(Value::as_u64);
    if let Some([Value::String(text), times]) = map.get("$repeat").and_then(Value::as_array).map(Vec::as_slice) {
        return Value::String(text.repeat(times.as_u64().unwrap_or(0) as usize));
    }
    if let Some(parts) = map.get("$join").and_then(Value::as_array) {
        return Value::String(parts.iter().filter_map(|part| expanded(part).as_str().map(str::to_owned)).collect());
    }
    if let Some(count) = count("$steps") {
        return (0..count).map(|i| step(i, map)).collect();
    }
    if let Some(count) = count("$chain") {
        // The last one first: the order in the file is not the order of the steps.
        let args = |i: u64| if i == 0 { json!([]) } else { json!([format!("$(steps.s{}.output)", i - 1)]) };
        return (0..count).rev().map(|i| json!({"name": format!("s{i}"), "call": "m:f", "args": args(i)})).collect();
    }
    if let Some(count) = count("$fan-in") {
        let all: Vec<String> = (0..count).map(|i| format!("$(steps.s{i}.output)")).collect();
        let mut steps: Vec<Value> = (0..count).map(|i| step(i, &Map::new())).collect();
        steps.push(json!({"name": "all", "call": "m:f", "args": [all]}));
        return Value::Array(steps);
    }
    Value::Object(map.iter().map(|(key, value)| (key.clone(), expanded(value))).collect())
}

fn step(index: u64, fields: &Map<String, Value>) -> Value {
    let mut step = fields.clone();
    step.remove("$steps");
    step.insert("name".to_owned(), json!(format!("s{index}")));
    step.insert("call".to_owned(), json!("m:f"));
    Value::Object(step)
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
        assert_eq!(problems[0].reason, Reason::DependencyCycle);
        assert!(problems[0].message.contains("s0 -> s1 -> s2") && problems[0].message.len() < 1000, "{}", problems[0]);
    };
    std::thread::Builder::new().stack_size(512 << 10).spawn(work).expect("a thread").join().expect("no overflow");
}
