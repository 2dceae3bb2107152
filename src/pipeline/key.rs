//! Content keys: the same key, the same output. A key is made of what is called, with which code, and of the keys of
//! everything that comes before it. Keys are never stored: those of earlier runs are worked out again from their
//! specification and journal, so this may change from version to version.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use super::expr::PathPart;
use super::plan::{Part, Plan, Results};
use super::wire::{Piece, Reference, StepDef, Template};
use crate::graph::{Dep, StepIx, TaskId};

/// Digest over all that an output depends on.
pub type Key = [u8; 32];

/// What is known about a task that another one reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    Key(Key),
    /// It has no output, and will have none.
    Hole,
    /// It may still run, or has run for this run alone.
    No,
}

/// The keys of one run's tasks, as far as they are known.
#[derive(Debug)]
pub struct Keyring {
    base: Key,
    keys: HashMap<TaskId, Key>,
    /// Digests of whole mapped steps, valid for so many keys of the ring and so many items.
    lists: HashMap<StepIx, ((usize, Option<u32>), Key)>,
    per_step: HashMap<StepIx, usize>,
}

impl Keyring {
    /// For a run with this code (its digest) in this image.
    pub fn new(plan: &Plan, code: &str, image: Option<&str>) -> Self {
        let mut sum = Sum::new(b"run");
        sum.text(code);
        sum.text(image.unwrap_or_default());
        let mut requirements = plan.requirements.clone();
        requirements.sort();
        sum.number(requirements.len() as u64);
        requirements.iter().for_each(|requirement| sum.text(requirement));
        Self { base: sum.key(), keys: HashMap::new(), lists: HashMap::new(), per_step: HashMap::new() }
    }

    /// The key of `task` is known from now on.
    pub fn insert(&mut self, task: TaskId, key: Key) {
        self.keys.insert(task, key);
        *self.per_step.entry(task.step).or_default() += 1;
    }

    /// The key of a task, if it is known.
    pub fn get(&self, task: TaskId) -> Option<Key> {
        self.keys.get(&task).copied()
    }

    /// Works out the key of a task that runs in this run. `None` as long as something before it has none, or may have
    /// one later, and while an object that it names is not there; `is_hole` says of a task (or a mapped step as a whole) that it has no output.
    pub fn work_out(
        &mut self,
        plan: &Plan,
        task: TaskId,
        is_hole: &dyn Fn(TaskId) -> bool,
        results: &dyn Results,
    ) -> Option<Key> {
        let step = plan.steps.get(task.step.0 as usize).filter(|step| step.part == Part::Runs)?;
        let mut reader = Reader { ring: self, plan, is_hole, results };
        let mut sum = Sum::new(b"task");
        sum.bytes(&reader.ring.base);
        definition(&mut sum, &step.def);
        sum.text(step.cache.version.as_deref().unwrap_or_default());
        for dep in &plan.dag.step(task.step)?.deps {
            sum.bytes(match dep {
                Dep::Data(_) => b"data",
                Dep::After(_) => b"after",
            });
            sum.bytes(&reader.whole(dep.step())?);
        }
        reader.template(&mut sum, &step.template)?;
        let named = plan.objects_of(task, results).ok()?;
        for path in named.reads.iter().chain(named.keeps.iter().map(|(path, _)| path)) {
            sum.text(path);
            sum.text(results.version(task, path)?);
        }
        match plan.filled(task, results, false).ok()? {
            Some(values) => reader.template(&mut sum, &values)?,
            // Nothing of the arguments tells the items apart.
            None => sum.number(task.item.map_or(0, |item| u64::from(item) + 1)),
        }
        Some(sum.key())
    }
}

/// What of a step's definition shows in its output. Where it runs, how long it may take and how often it is tried does
/// not.
fn definition(sum: &mut Sum, def: &StepDef) {
    sum.text(def.call.as_deref().unwrap_or_default());
    sum.text(def.script.as_deref().unwrap_or_default());
    sum.text(&def.serializer);
    sum.number(u64::from(def.container));
    sum.number(def.lens.len() as u64);
    def.lens.iter().for_each(|path| sum.path(path));
    sum.number(def.env.len() as u64);
    for (name, value) in &def.env {
        sum.text(name);
        sum.text(value);
    }
    sum.bytes(&def.inputs);
    sum.bytes(def.target.as_ref().map_or(&[], |target| &target.place));
}

/// Reads what comes before a task.
struct Reader<'a> {
    ring: &'a mut Keyring,
    plan: &'a Plan,
    is_hole: &'a dyn Fn(TaskId) -> bool,
    results: &'a dyn Results,
}

impl Reader<'_> {
    fn known(&self, task: TaskId) -> Known {
        match self.ring.get(task) {
            Some(key) => Known::Key(key),
            None if (self.is_hole)(task) => Known::Hole,
            None => Known::No,
        }
    }

    fn one(&self, task: TaskId) -> Option<Key> {
        match self.known(task) {
            Known::Key(key) => Some(key),
            Known::Hole => Some(Sum::new(b"hole").key()),
            Known::No => None,
        }
    }

    /// A step with all of its items.
    fn whole(&mut self, step: StepIx) -> Option<Key> {
        if !self.plan.is_mapped(step) {
            return self.one(TaskId::whole(step));
        }
        let items = self.results.items(step);
        let now = (self.ring.per_step.get(&step).copied().unwrap_or(0), items);
        if let Some((at, key)) = self.ring.lists.get(&step)
            && *at == now
        {
            return Some(*key);
        }
        let key = match items {
            Some(items) => {
                let mut sum = Sum::new(b"list");
                sum.number(u64::from(items));
                (0..items).try_for_each(|item| self.one(TaskId::item(step, item)).map(|key| sum.bytes(&key)))?;
                sum.key()
            }
            None => self.one(TaskId::whole(step))?,
        };
        self.ring.lists.insert(step, (now, key));
        Some(key)
    }

    fn template(&mut self, sum: &mut Sum, template: &Template) -> Option<()> {
        for piece in template.pieces() {
            match piece {
                Piece::Values(bytes) => sum.bytes(bytes),
                Piece::Reference(reference) => self.reference(sum, reference)?,
            }
        }
        Some(())
    }

    /// In place of a reference, which names a step by its number, stands the key of what it refers to.
    fn reference(&mut self, sum: &mut Sum, reference: &Reference) -> Option<()> {
        let task = |step: StepIx, item: i64| TaskId { step, item: u32::try_from(item).ok() };
        match reference {
            Reference::Output { step, item, path } => {
                sum.bytes(b"output");
                sum.bytes(&self.one(task(*step, *item))?);
                sum.path(path);
            }
            Reference::All { step, gather } => {
                sum.bytes(b"all");
                sum.text(&format!("{gather:?}"));
                sum.bytes(&self.whole(*step)?);
            }
            // What is there was counted with its version.
            Reference::Object(number) => {
                sum.bytes(b"object");
                sum.number(u64::from(*number));
            }
            Reference::Slot(slot) => {
                sum.bytes(b"slot");
                sum.number(u64::from(*slot));
            }
            Reference::Element { step, item, index } => {
                sum.bytes(b"element");
                sum.bytes(&self.one(task(*step, *item))?);
                sum.number(u64::from(*index));
            }
        }
        Some(())
    }
}

/// A digest over parts, each with its length, so that no two lists of parts are taken for one another.
struct Sum(Sha256);

impl Sum {
    fn new(kind: &[u8]) -> Self {
        let mut sum = Self(Sha256::new());
        sum.bytes(kind);
        sum
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }

    fn path(&mut self, path: &[PathPart]) {
        self.number(path.len() as u64);
        for part in path {
            match part {
                PathPart::Key(key) => self.text(key),
                PathPart::Index(index) => self.number(u64::from(*index)),
            }
        }
    }

    fn key(self) -> Key {
        self.0.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Map, Value, json};

    use super::*;
    use crate::pipeline::{RunInfo, validate};

    struct Nothing;

    impl Results for Nothing {
        fn result(&self, _: TaskId) -> Option<&Value> {
            None
        }
        fn has_output(&self, _: TaskId) -> bool {
            false
        }
        fn items(&self, _: StepIx) -> Option<u32> {
            Some(2)
        }
        fn flat(&self, _: StepIx, _: u32) -> Option<(u32, u32)> {
            None
        }
        fn version(&self, _: TaskId, path: &str) -> Option<&str> {
            Some(if path == "y.pkl" { "kept" } else { "read" })
        }
    }

    fn base() -> Value {
        json!({
            "params": [{"name": "n", "type": "integer", "default": 1}],
            "steps": [
                {"name": "load", "script": "return 1", "args": {"n": "$(params.n)"}},
                {"name": "each", "call": "m:f", "map": {"x": [1, 2]}, "args": {"y": "$(steps.load.output)"}},
                {"name": "sum", "call": "m:g", "args": ["$(steps.each.output)"]},
                {"name": "last", "call": "m:h", "dependsOn": ["sum"]},
                {"name": "apart", "call": "m:f", "inputs": {"x": {"path": "x.pkl"}}, "output": {"path": "y.pkl"}}
            ]
        })
    }

    fn keys(spec: &Value, code: &str) -> BTreeMap<String, Key> {
        let flow = validate(&serde_json::from_value(spec.clone()).unwrap(), "spec").unwrap();
        let plan = flow.bind(&Map::new(), &RunInfo { name: "r".into(), uid: "u".into() }).unwrap();
        let mut ring = Keyring::new(&plan, code, None);
        let mut named = BTreeMap::new();
        for name in ["load", "each", "sum", "last", "apart"] {
            let step = plan.step_index(name).unwrap();
            let items = if plan.is_mapped(step) { vec![Some(0), Some(1)] } else { vec![None] };
            for item in items {
                let task = TaskId { step, item };
                let key = ring.work_out(&plan, task, &|_| false, &Nothing).unwrap();
                ring.insert(task, key);
                named.insert(item.map_or(name.to_owned(), |item| format!("{name}[{item}]")), key);
            }
        }
        named
    }

    /// Names of the tasks whose key `change` changes.
    fn changed(code: &str, change: impl FnOnce(&mut Value)) -> Vec<String> {
        let (before, mut spec) = (keys(&base(), "c"), base());
        change(&mut spec);
        let after = keys(&spec, code);
        before.into_iter().filter(|(name, key)| after[name] != *key).map(|(name, _)| name).collect()
    }

    #[test]
    fn a_key_changes_with_what_matters_and_with_nothing_else() {
        let all = ["apart", "each[0]", "each[1]", "last", "load", "sum"];
        let after_load = ["each[0]", "each[1]", "last", "load", "sum"];
        assert_eq!(changed("other", |_| {}), all);
        assert_eq!(changed("c", |spec| spec["requirements"] = json!(["numpy"])), all);
        assert_eq!(changed("c", |spec| spec["params"][0]["default"] = json!(2)), after_load);
        assert_eq!(changed("c", |spec| spec["steps"][0]["script"] = json!("return 2")), after_load);
        assert_eq!(changed("c", |spec| spec["steps"][1]["map"]["x"][1] = json!(3)), ["each[1]", "last", "sum"]);
        assert_eq!(
            changed("c", |spec| spec["steps"][2]["env"] = json!([{"name": "A", "value": "b"}])),
            ["last", "sum"]
        );
        assert_eq!(changed("c", |spec| spec["steps"][4]["output"] = json!({"serializer": "json"})), ["apart"]);
        assert_eq!(changed("c", |spec| spec["steps"][4]["cache"] = json!({"version": "2"})), ["apart"]);
        assert_eq!(changed("c", |spec| spec["steps"][4]["inputs"]["x"]["path"] = json!("z.pkl")), ["apart"]);
        assert_eq!(changed("c", |spec| spec["steps"][4]["inputs"]["x"]["serializer"] = json!("json")), ["apart"]);
        assert_eq!(changed("c", |spec| spec["steps"][4]["output"]["path"] = json!("z.pkl")), ["apart"]);
        let nothing: [&str; 0] = [];
        assert_eq!(changed("c", |spec| spec["steps"][0]["timeout"] = json!("1h")), nothing);
        assert_eq!(changed("c", |spec| spec["steps"][0]["retry"] = json!({"limit": 3})), nothing);
        assert_eq!(changed("c", |spec| spec["steps"][1]["priority"] = json!(3)), nothing);
        assert_eq!(changed("c", |spec| spec["steps"][1]["displayName"] = json!("Each")), nothing);
        assert_eq!(changed("c", |spec| spec["steps"][4]["cache"] = json!({"maxAge": "1h"})), nothing);
        assert_eq!(changed("c", |spec| spec["steps"][4]["output"]["ifExists"] = json!("Replace")), nothing);
    }

    /// Objects in one version, or not there.
    struct There(Option<&'static str>);

    impl Results for There {
        fn result(&self, _: TaskId) -> Option<&Value> {
            None
        }
        fn has_output(&self, _: TaskId) -> bool {
            false
        }
        fn items(&self, _: StepIx) -> Option<u32> {
            None
        }
        fn flat(&self, _: StepIx, _: u32) -> Option<(u32, u32)> {
            None
        }
        fn version(&self, _: TaskId, path: &str) -> Option<&str> {
            if path == "fixed.pkl" { Some("f") } else { self.0 }
        }
    }

    #[test]
    fn the_version_of_what_is_read_and_kept_counts_and_without_one_there_is_no_key() {
        for field in [json!({"inputs": {"x": {"path": "in.pkl"}}}), json!({"output": {"path": "out.pkl"}})] {
            let mut step = json!({"name": "a", "call": "m:f", "inputs": {"y": {"path": "fixed.pkl"}}});
            for (name, value) in field.as_object().unwrap() {
                step[name] = value.clone();
            }
            let flow = validate(&serde_json::from_value(json!({"steps": [step]})).unwrap(), "spec").unwrap();
            let plan = flow.bind(&Map::new(), &RunInfo { name: "r".into(), uid: "u".into() }).unwrap();
            let key = |version| {
                let task = TaskId::whole(StepIx(0));
                Keyring::new(&plan, "c", None).work_out(&plan, task, &|_| false, &There(version))
            };
            assert!(key(Some("1")).is_some() && key(Some("1")) == key(Some("1")), "{field}");
            assert_ne!(key(Some("1")), key(Some("2")), "{field}");
            assert_eq!(key(None), None, "{field}");
        }
    }

    #[test]
    fn steps_may_change_their_places() {
        let moved = |spec: &mut Value| spec["steps"].as_array_mut().unwrap().rotate_right(1);
        assert_eq!(changed("c", moved), Vec::<String>::new());
    }

    #[test]
    fn a_list_with_a_hole_is_another_list() {
        let spec = base();
        let flow = validate(&serde_json::from_value(spec).unwrap(), "spec").unwrap();
        let plan = flow.bind(&Map::new(), &RunInfo { name: "r".into(), uid: "u".into() }).unwrap();
        let (each, sum) = (plan.step_index("each").unwrap(), TaskId::whole(plan.step_index("sum").unwrap()));
        let mut ring = Keyring::new(&plan, "c", None);
        assert_eq!(ring.work_out(&plan, sum, &|_| false, &Nothing), None);
        ring.insert(TaskId::item(each, 0), [1; 32]);
        assert_eq!(ring.work_out(&plan, sum, &|_| false, &Nothing), None, "an item is still open");
        let holed = ring.work_out(&plan, sum, &|_| true, &Nothing);
        assert!(holed.is_some());
        ring.insert(TaskId::item(each, 1), [2; 32]);
        let full = ring.work_out(&plan, sum, &|_| true, &Nothing);
        assert!(full.is_some() && full != holed);
    }
}
