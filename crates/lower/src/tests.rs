//! Lowering of whole pipelines, from the manifest's JSON to the engine's graph and the runtime's definitions.

use std::borrow::Cow;
use std::collections::HashMap;
use wire::PathPart;

use serde_json::{Map, Value, json};

use super::{Flow, Plan, Results, RunInfo, validate};
use api::pipeline::PipelineSpec;
use api::problem::Problem;
use engine::{Dep, MapSource, OnLost, StepIx, TaskId, When};

#[derive(Debug, Default)]
struct Facts {
    results: HashMap<TaskId, Value>,
    items: HashMap<StepIx, u32>,
    /// Tasks whose output is no JSON.
    opaque: Vec<TaskId>,
}

impl Results for Facts {
    fn result(&self, task: TaskId) -> Option<Cow<'_, Value>> {
        self.results.get(&task).map(Cow::Borrowed)
    }

    fn has_output(&self, task: TaskId) -> bool {
        self.results.contains_key(&task) || self.opaque.contains(&task)
    }

    fn items(&self, step: StepIx) -> Option<u32> {
        self.items.get(&step).copied()
    }

    fn version(&self, _: TaskId, _: &str) -> Option<&str> {
        None
    }

    /// Lists of two entries each.
    fn flat(&self, _: StepIx, index: u32) -> Option<(u32, u32)> {
        Some((index / 2, index % 2))
    }
}

fn flow(spec: Value) -> Result<Flow, Vec<Problem>> {
    let spec: PipelineSpec = serde_json::from_value(spec).expect("a spec of the right types");
    validate(&spec, "spec")
}

fn plan(spec: Value, params: Value) -> Plan {
    let params: Map<String, Value> = params.as_object().cloned().unwrap_or_default();
    let run = RunInfo { name: "r1".to_owned(), uid: "u-1".to_owned() };
    flow(spec).and_then(|flow| flow.bind(&params, &run)).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

fn spec_of<'a>(plan: &'a Plan, name: &str) -> &'a engine::StepSpec {
    let step = plan.step_index(name).expect("a step of this name");
    plan.dag.step(step).expect("a step in the graph")
}

/// Reads a template back; references are shown as `@` and their content.
fn decoded(bytes: &[u8]) -> Value {
    let mut rest = bytes;
    let value = decode(&mut rest);
    assert!(rest.is_empty(), "bytes behind the template");
    value
}

fn decode(bytes: &mut &[u8]) -> Value {
    use rmp::{Marker, decode};
    let marker = Marker::from_u8(bytes[0]);
    match marker {
        Marker::Null => {
            *bytes = &bytes[1..];
            Value::Null
        }
        Marker::True | Marker::False => json!(decode::read_bool(bytes).unwrap()),
        Marker::F64 => json!(decode::read_f64(bytes).unwrap()),
        Marker::U64 => json!(decode::read_int::<u64, _>(bytes).unwrap()),
        Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => {
            let len = decode::read_str_len(bytes).unwrap() as usize;
            let (text, rest) = bytes.split_at(len);
            *bytes = rest;
            json!(std::str::from_utf8(text).unwrap())
        }
        Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => {
            let len = decode::read_array_len(bytes).unwrap();
            (0..len).map(|_| self::decode(bytes)).collect()
        }
        Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => {
            let len = decode::read_map_len(bytes).unwrap();
            let entries = (0..len).map(|_| {
                let key = self::decode(bytes).as_str().unwrap().to_owned();
                (key, self::decode(bytes))
            });
            Value::Object(entries.collect())
        }
        Marker::FixExt1 | Marker::FixExt2 | Marker::FixExt4 | Marker::FixExt8 | Marker::FixExt16 | Marker::Ext8 => {
            let meta = decode::read_ext_meta(bytes).unwrap();
            assert_eq!(meta.typeid, 1);
            let (mut inside, rest) = bytes.split_at(meta.size as usize);
            *bytes = rest;
            json!({ "@": self::decode(&mut inside) })
        }
        _ => json!(decode::read_int::<i64, _>(bytes).unwrap()),
    }
}

fn args_of(plan: &Plan, name: &str) -> Value {
    let step = plan.step_index(name).expect("a step of this name");
    decoded(&plan.step_defs()[step.0 as usize].args)
}

fn values_of(plan: &Plan, name: &str, item: Option<u32>, facts: &Facts) -> Value {
    let task = TaskId { step: plan.step_index(name).unwrap(), item };
    plan.values(task, facts, false)
        .unwrap_or_else(|error| panic!("{error}"))
        .map_or(Value::Null, |bytes| decoded(&bytes))
}

fn diamond() -> Value {
    json!({
        "params": [{"name": "n", "type": "integer", "default": 100}],
        "steps": [
            {"name": "inc", "call": "flow:inc", "map": {"x": "$(range(params.n))"}},
            {"name": "dec", "call": "flow:dec", "map": {"x": "$(range(params.n))"}},
            {"name": "add", "call": "flow:add", "map": {"x": "$(steps.inc.output)", "y": "$(steps.dec.output)"}},
            {"name": "total", "call": "builtins:sum", "args": ["$(steps.add.output)"]}
        ]
    })
}

#[test]
fn the_diamond_has_301_tasks() {
    let plan = plan(diamond(), json!({}));
    assert_eq!(spec_of(&plan, "inc").map, Some(vec![MapSource::Len(100)]));
    assert_eq!(spec_of(&plan, "add").map, Some(vec![MapSource::Items(StepIx(0)), MapSource::Items(StepIx(1))]));
    assert_eq!(spec_of(&plan, "add").deps, []);
    assert_eq!(spec_of(&plan, "total").deps, [Dep::Data(StepIx(2))]);
    assert!(plan.dag.steps().all(|(_, step)| !step.late && step.when == When::Always));
    assert_eq!(args_of(&plan, "inc"), json!([[], {"x": {"@": [2, 0]}}]));
    assert_eq!(args_of(&plan, "add"), json!([[], {"x": {"@": [2, 0]}, "y": {"@": [2, 1]}}]));
    assert_eq!(args_of(&plan, "total"), json!([[{"@": [1, 2, 0]}], {}]));
    let facts = Facts::default();
    assert_eq!(values_of(&plan, "inc", Some(7), &facts), json!([7]));
    assert_eq!(values_of(&plan, "add", Some(7), &facts), json!([{"@": [0, 0, 7, []]}, {"@": [0, 1, 7, []]}]));
    assert_eq!(values_of(&plan, "total", None, &facts), Value::Null);
    let results: Vec<&str> = plan.results().iter().map(|result| result.name.as_str()).collect();
    assert_eq!(results, ["total"]);
    let wanted: Vec<u8> = plan.step_defs().iter().map(|def| def.result).collect();
    assert_eq!(wanted, [0, 0, 0, 1]);
}

#[test]
fn a_parameter_of_the_run_replaces_the_default() {
    let plan = plan(diamond(), json!({"n": 3}));
    assert_eq!(spec_of(&plan, "dec").map, Some(vec![MapSource::Len(3)]));
    assert_eq!(plan.params, json!({"n": 3}));
}

#[test]
fn an_output_whose_length_is_unknown_is_a_container() {
    let plan = plan(
        json!({"steps": [
            {"name": "list-all", "call": "m:f"},
            {"name": "each", "call": "m:g", "map": {"x": "$(steps.list-all.output)"}, "args": {"k": "$(item.x.name)"}},
            {"name": "rows", "call": "m:h", "map": {"row": "$(steps.list-all.output.table.rows)"}, "args": ["$(item.row)"]},
            {"name": "leaves", "call": "m:h", "map": {"leaf": "$(flatten(steps.each.output))"}},
            {"name": "all", "call": "m:i", "args": ["$(flatten(steps.each.output))", "$(compact(steps.rows.output))",
                "$(steps.rows.output[2].k)", "$(steps.list-all.output.table)"]}
        ]}),
        json!({}),
    );
    let defs = plan.step_defs();
    assert!(defs[0].container && !defs[2].container && defs[1].container);
    let rows = vec![PathPart::Key("table".to_owned()), PathPart::Key("rows".to_owned())];
    assert_eq!(defs[0].lens, [vec![], rows]);
    assert_eq!(spec_of(&plan, "each").map, Some(vec![MapSource::Output { step: StepIx(0), lens_slot: 0 }]));
    assert_eq!(spec_of(&plan, "rows").map, Some(vec![MapSource::Output { step: StepIx(0), lens_slot: 1 }]));
    assert_eq!(spec_of(&plan, "leaves").map, Some(vec![MapSource::Flatten(StepIx(1))]));
    let facts = Facts::default();
    assert_eq!(args_of(&plan, "each"), json!([[], {"k": {"@": [2, 0]}}]));
    assert_eq!(values_of(&plan, "each", Some(4), &facts), json!([{"@": [0, 0, -1, [4, "name"]]}]));
    assert_eq!(values_of(&plan, "rows", Some(4), &facts), json!([{"@": [0, 0, -1, ["table", "rows", 4]]}]));
    assert_eq!(values_of(&plan, "leaves", Some(5), &facts), json!([{"@": [3, 1, 2, 1]}]));
    assert_eq!(
        args_of(&plan, "all"),
        json!([[{"@": [1, 1, 2]}, {"@": [1, 2, 1]}, {"@": [0, 2, 2, ["k"]]}, {"@": [0, 0, -1, ["table"]]}], {}])
    );
}

#[test]
fn values_of_items_are_seen_by_expressions() {
    let plan = plan(
        json!({"params": [{"name": "xs", "type": "array", "default": [1, 20, 3]}], "steps": [
            {"name": "a", "call": "m:f", "map": {"x": "$(params.xs)", "y": ["p", "q", "r"]}, "when": "item.x > 2",
             "args": {"text": "$(item.y)-$(item.x)/$(run.name)", "both": "$(item)", "twice": "$(item.x * 2)",
                      "plain": "$$(item.x) $(date)"}}
        ]}),
        json!({}),
    );
    assert_eq!(spec_of(&plan, "a").when, When::PerItem);
    let args = args_of(&plan, "a");
    assert_eq!(args[1]["plain"], "$(item.x) $(date)");
    assert_eq!(args[1]["both"], json!({"x": {"@": [2, 1]}, "y": {"@": [2, 2]}}));
    let facts = Facts::default();
    let decide = |item| plan.decide(TaskId::item(StepIx(0), item), &facts).unwrap();
    assert_eq!([decide(0), decide(1), decide(2)], [false, true, true]);
    assert_eq!(values_of(&plan, "a", Some(1), &facts), json!(["q-20/r1", 20, "q", 40]));
}

#[test]
fn objects_are_arguments_by_their_number_and_paths_of_items_are_values() {
    let plan = plan(
        json!({"params": [{"name": "day", "default": "mon"}], "steps": [
            {"name": "a", "call": "m:f", "args": {"k": 1}, "output": {"path": "out/$(params.day).json", "serializer": "json"},
             "inputs": {"x": {"path": "in/$(params.day).pkl"}, "y": {"path": "raw", "serializer": "numpy"}}},
            {"name": "b", "call": "m:f", "map": {"part": ["p", "q"], "other": [1, 2]},
             "inputs": {"x": {"path": "in/$(item.part).parquet"}},
             "output": {"path": "out/$(item.part).pkl", "ifExists": "Skip"}},
            {"name": "c", "call": "m:f", "inputs": {"x": {"path": "$(steps.a.result)"}},
             "output": {"path": "c.pkl", "ifExists": "Replace"}}
        ]}),
        json!({}),
    );
    let defs = plan.step_defs();
    assert_eq!(args_of(&plan, "a"), json!([[], {"k": 1, "x": {"@": [4, 0]}, "y": {"@": [4, 1]}}]));
    assert_eq!(decoded(&defs[0].inputs), json!([["x", ["in/mon.pkl", "pickle"]], ["y", ["raw", "numpy"]]]));
    let target = |ix: usize| defs[ix].target.as_ref().map(|target| (decoded(&target.place), target.replace)).unwrap();
    assert_eq!(target(0), (json!(["out/mon.json", false]), false));
    // `part` is named by a path and not passed; `other` is.
    assert_eq!(args_of(&plan, "b"), json!([[], {"other": {"@": [2, 0]}, "x": {"@": [4, 0]}}]));
    assert_eq!(decoded(&defs[1].inputs), json!([["x", {"@": [2, 1]}]]));
    assert_eq!(target(1), (json!([{"@": [2, 2]}, {"@": [2, 3]}]), false));
    assert_eq!(target(2), (json!(["c.pkl", false]), true));
    let mut facts = Facts::default();
    let path = json!(["in/q.parquet", "parquet"]);
    assert_eq!(values_of(&plan, "b", Some(1), &facts), json!([2, path, "out/q.pkl", false]));
    let taken = plan.values(TaskId::item(StepIx(1), 1), &facts, true).unwrap().unwrap();
    assert_eq!(decoded(&taken), json!([2, path, "out/q.pkl", true]));
    assert!(defs[1].inputs != defs[0].inputs && spec_of(&plan, "b").late && spec_of(&plan, "a").late);
    for (result, said) in
        [(json!("x.json"), None), (json!("x.csv"), Some("inputs.x.path")), (json!("../x"), Some(".."))]
    {
        facts.results.insert(TaskId::whole(StepIx(0)), result);
        let found = plan.values(TaskId::whole(StepIx(2)), &facts, false).map_err(|error| error.to_string());
        assert_eq!(found.is_ok(), said.is_none(), "{found:?}");
        assert!(said.is_none_or(|said| found.unwrap_err().contains(said)));
    }
}

#[test]
fn a_list_of_outputs_is_a_result_unless_one_of_them_is_no_json() {
    let plan = plan(json!({"steps": [{"name": "a", "call": "m:f", "map": {"x": [1, 2, 3]}}]}), json!({}));
    let item = |item| TaskId::item(StepIx(0), item);
    let mut facts = Facts {
        results: HashMap::from([(item(0), json!(5)), (item(2), Value::Null)]),
        items: HashMap::from([(StepIx(0), 3)]),
        ..Facts::default()
    };
    let whole = |facts: &Facts| plan.computed_result(&plan.results()[0], facts).ok();
    assert_eq!(whole(&facts), Some(json!([5, null, null])), "the one between is a hole");
    facts.opaque.push(item(1));
    assert_eq!(whole(&facts), None);
}

#[test]
fn results_of_steps_make_what_needs_them_late() {
    let plan = plan(
        json!({"steps": [
            {"name": "count", "call": "m:f"},
            {"name": "parts", "call": "m:f", "map": {"i": [0, 1]}},
            {"name": "use", "call": "m:g", "when": "steps.count.result.n >= 2 && steps.parts.result.size() == 2",
             "args": [{"n": "$(steps.count.result.n + 1)"}, "$(steps.parts.result)"]},
            {"name": "each", "call": "m:g", "map": {"x": "$(steps.count.result.list)", "p": "$(steps.parts.result)"},
             "args": {"sum": "$(item.x + item.p)"}}
        ]}),
        json!({}),
    );
    let spec = spec_of(&plan, "use");
    assert!(spec.late && spec.when == When::PerStep);
    assert_eq!(spec.deps, [Dep::Data(StepIx(0)), Dep::Data(StepIx(1))]);
    let wanted: Vec<u8> = plan.step_defs().iter().map(|def| def.result).collect();
    assert_eq!(wanted, [2, 2, 1, 1]);
    let mut facts = Facts::default();
    facts.results.insert(TaskId::whole(StepIx(0)), json!({"n": 2, "list": [10, 20]}));
    facts.results.insert(TaskId::item(StepIx(1), 1), json!(5));
    facts.items.insert(StepIx(1), 2);
    assert!(plan.decide(TaskId::whole(StepIx(2)), &facts).unwrap());
    assert_eq!(values_of(&plan, "use", None, &facts), json!([3, [null, 5]]));
    assert_eq!(values_of(&plan, "each", Some(1), &facts), json!([25]));
    let sources = vec![MapSource::Items(StepIx(1)), MapSource::Output { step: StepIx(0), lens_slot: 0 }];
    assert_eq!(spec_of(&plan, "each").map, Some(sources));
    let error = plan.values(TaskId::item(StepIx(3), 0), &facts, false).unwrap_err();
    assert!(error.to_string().contains("item.p has no value"), "{error}");
}

#[test]
fn a_value_is_never_expanded_again() {
    let spec = json!({"params": [{"name": "text"}], "steps": [
        {"name": "a", "call": "m:f", "args": ["$(params.text)", "<$(params.text)>", {"$(params.text)": 1}]},
        {"name": "b", "script": "output = '$(params.text)'"}
    ]});
    let plan = plan(spec, json!({"text": "$(run.name) {{x}} \u{202e}e\u{301}\u{0}"}));
    let text = "$(run.name) {{x}} \u{202e}e\u{301}\u{0}";
    assert_eq!(args_of(&plan, "a")[0], json!([text, format!("<{text}>"), {"$(params.text)": 1}]));
    assert_eq!(plan.step_defs()[1].script.as_deref(), Some("output = '$(params.text)'"));
}

#[test]
fn what_becomes_of_a_lost_output_is_for_the_pipeline_to_say_and_for_the_selection() {
    let steps = json!([{"name": "a", "call": "m:f"}, {"name": "b", "call": "m:f", "args": ["$(steps.a.output)"]}]);
    for (said, wanted) in [
        (json!({}), OnLost::Rerun),
        (json!({"onOutputLost": "Rerun"}), OnLost::Rerun),
        (json!({"onOutputLost": "Fail"}), OnLost::Fail),
    ] {
        let mut spec = said;
        spec["steps"] = steps.clone();
        let plan = plan(spec, json!({}));
        assert_eq!([spec_of(&plan, "a").on_lost, spec_of(&plan, "b").on_lost], [wanted; 2]);
        let select = serde_json::from_value(json!({"only": ["b"]})).unwrap();
        let part = plan.select(&select, "spec.select").unwrap();
        let found = [spec_of(&part, "a").on_lost, spec_of(&part, "b").on_lost];
        assert_eq!(found, [OnLost::Elsewhere, wanted], "an earlier run has made a");
    }
    let wrong = serde_json::from_value::<PipelineSpec>(json!({"steps": steps, "onOutputLost": "Retry"})).unwrap_err();
    assert!(wrong.to_string().contains("Rerun"), "{wrong}");
}
