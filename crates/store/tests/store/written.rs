//! What the writer accepts, both readers read: results of steps, at their limits and beyond, go through the runtime's own
//! functions into a journal, and come back from it.
//!
//! DASKADE_TEST_PYTHON=…/python cargo test --test store written:: -- --ignored

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use lower::values_of;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use store::{Folded, Reader, StorageConfig};

/// The runtime, which writes what it is told and reads it again.
struct Writer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    folder: tempfile::TempDir,
}

impl Writer {
    fn start() -> Self {
        let python = std::env::var_os("DASKADE_TEST_PYTHON").expect("DASKADE_TEST_PYTHON names a python with msgpack");
        let top = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(python)
            .arg(top.join("tests/store/written_writer.py"))
            .arg(folder.path())
            .env("PYTHONPATH", top.join("runtime"))
            .env("PYTHONUTF8", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("DASKADE_TEST_PYTHON can be run");
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output, folder }
    }

    fn tell(&mut self, what: &Value) -> Value {
        writeln!(self.input, "{what}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).expect("the writer answers")
    }

    async fn read(&self, run: &Value) -> Folded {
        let url = format!("file://{}", self.folder.path().display());
        let reader = Reader::open(&StorageConfig { url, ..StorageConfig::default() }).await.unwrap();
        reader.read_journal(run.as_str().expect("a run")).await.unwrap()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter_map("JSON has no such number", |number| number.is_finite().then(|| json!(number))),
        any::<String>().prop_map(Value::from),
        "[\\[\\]{}:,\"\\\\]{0,20}".prop_map(Value::from),
    ]
}

fn tree() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(8, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::vec((any::<String>(), inner), 0..8)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Results: mostly small, some near the limits of size and nesting, some beyond.
fn result() -> impl Strategy<Value = Value> {
    let most = limits::RESULT_JSON;
    let long = (most - 200..most + 200).prop_map(|size| json!("x".repeat(size)));
    let many = (most / 2 - 50..most / 2 + 50).prop_map(|count| json!(vec![1; count]));
    let fractions = (1000..most / 4 + 50).prop_map(|count| json!(vec![0.5; count]));
    let deep = (0..limits::RESULT_DEPTH + 8, any::<bool>(), scalar()).prop_map(|(depth, maps, inner)| {
        (0..depth).fold(inner, |inner, _| if maps { json!({ "a": inner }) } else { json!([inner]) })
    });
    prop_oneof![4 => tree(), 1 => long, 1 => many, 1 => fractions, 3 => deep]
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Issue 13, point 7.
#[test]
#[ignore = "needs python with msgpack: DASKADE_TEST_PYTHON"]
fn what_a_step_may_return_is_read_unchanged_by_both_readers() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let writer = std::cell::RefCell::new(Writer::start());
    let (accepted, refused) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let config = ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() };
    // The run ends with copies of it, wrapped as expressions can: in one record, or in several.
    let cases = (result(), 0..3_usize, prop_oneof![4 => 1..4_usize, 1 => 60..200_usize]);
    TestRunner::new(config)
        .run(&cases, |(value, wraps, copies)| {
            let copies = copies.min(limits::GATHERED_VALUES / values_of(&value) - 1);
            let ends = (0..wraps * 30).fold(json!(vec![value.clone(); copies]), |inner, _| json!([inner]));
            let answer = writer.borrow_mut().tell(&json!({"result": value, "ends": ends}));
            if let Some(why) = answer["refused"].as_str() {
                refused.set(refused.get() + 1);
                prop_assert_eq!(&answer["class"], "data");
                let (deep, large) = (depth(&value) > limits::RESULT_DEPTH, why.contains("16384 are allowed"));
                prop_assert!(if deep { why.contains("more than 60 deep") } else { large }, "{}", why);
                return Ok(());
            }
            accepted.set(accepted.get() + 1);
            prop_assert!(depth(&value) <= limits::RESULT_DEPTH);
            prop_assert_eq!(&answer["read"], &json!([value, ends]), "the runtime's reader");
            let folded = runtime.block_on(writer.borrow().read(&answer["run"]));
            let json = folded.committed[&(0, -1)].json.clone().expect("a result");
            prop_assert_eq!(serde_json::from_slice::<Value>(&json).expect("JSON"), value);
            let finished = folded.finished.expect("it has ended");
            prop_assert_eq!(&finished.fields["results"]["ends"], &ends);
            prop_assert_eq!(&finished.fields["results"]["small"], &json!([1]));
            Ok(())
        })
        .unwrap();
    assert!(accepted.get() > 75 && refused.get() > 5, "{} {}", accepted.get(), refused.get());
}

#[test]
#[ignore = "needs python with msgpack: DASKADE_TEST_PYTHON"]
fn the_longest_list_that_steps_may_map_over_fits_into_the_journal() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut writer = Writer::start();
    let answer = writer.tell(&json!({ "elements": limits::MAPPED_ELEMENTS }));
    assert_eq!(answer["read"], json!(limits::MAPPED_ELEMENTS));
    let folded = runtime.block_on(writer.read(&answer["run"]));
    let container = folded.committed[&(0, -1)].handle.container.clone().expect("an index");
    assert_eq!(container.len, limits::MAPPED_ELEMENTS as u64);
    assert_eq!(container.element(container.len - 1), Some((container.len - 1, 1)));
    let answer = writer.tell(&json!({ "elements": limits::MAPPED_ELEMENTS + 1 }));
    let why = answer["refused"].as_str().expect("it is refused");
    assert!(why.contains("1000001 elements; at most 1000000 are allowed") && answer["class"] == "data", "{answer}");
}

/// More than fits into one record, though no result is larger than a step's.
#[test]
#[ignore = "needs python with msgpack: DASKADE_TEST_PYTHON"]
fn a_run_may_end_with_as_many_results_as_it_is_allowed() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut writer = Writer::start();
    let ends = Value::from(vec![Value::from("ä".repeat(8000)); limits::CLOSING_RESULTS / 16_003 - 1]);
    let answer = writer.tell(&json!({"result": 1, "ends": ends}));
    assert!(answer["read"] == json!([1, ends]), "the runtime's reader");
    let folded = runtime.block_on(writer.read(&answer["run"]));
    assert!(folded.finished.expect("it has ended").fields["results"]["ends"] == ends);
}
