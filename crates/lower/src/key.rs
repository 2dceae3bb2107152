//! Content keys: the same key, the same output. A key is made of what is called, with which code, and of the keys of
//! everything that comes before it. Keys are never stored: those of earlier runs are worked out again from their
//! specification and journal, so this may change from version to version.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

use super::plan::{Part, Plan, Results};
use super::template::{Piece, Reference, Template};
use engine::{Dep, StepIx, TaskId};
use wire::{PathPart, StepDef};

/// Digest over all that an output depends on.
pub type Key = [u8; 32];

/// What is known about a task that another one reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Its output has this key.
    Key(Key),
    /// It has no output, and will have none.
    Hole,
    /// It may still run, or has run for this run alone.
    No,
}

/// One of the things that a key is made of. What comes before a task is told by name, since that is what two runs have in
/// common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Aspect {
    /// Of the pipeline as a whole.
    Code,
    /// The image of the workers.
    Image,
    /// The packages.
    Requirements,
    /// What is called.
    Call,
    /// Environment variables of the step.
    Env,
    /// `cache.version`.
    CacheVersion,
    /// The arguments.
    Arguments,
    /// How its inputs are declared.
    Inputs,
    /// An object that it reads, by its path.
    Object(String),
    /// How and where its output is stored.
    Output,
    /// What is where its output is kept, by its path.
    Kept(String),
    /// A step that it comes after.
    Upstream(String),
}

/// Digests of all that one key is made of; `None`: not known yet. Where two keys differ, one of these does.
pub type Parts = BTreeMap<Aspect, Option<Key>>;

/// The keys of one run's tasks, as far as they are known.
#[derive(Debug)]
pub struct Keyring {
    base: Key,
    /// What `base` is made of.
    general: [(Aspect, Key); 3],
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
        let one = |text: &str| {
            let mut sum = Sum::new(b"part");
            sum.text(text);
            sum.key()
        };
        let general = [
            (Aspect::Code, one(code)),
            (Aspect::Image, one(image.unwrap_or_default())),
            (Aspect::Requirements, one(&requirements.join("\n"))),
        ];
        Self { base: sum.key(), general, keys: HashMap::new(), lists: HashMap::new(), per_step: HashMap::new() }
    }

    /// The key of `task` is known from now on.
    pub fn insert(&mut self, task: TaskId, key: Key) {
        self.keys.insert(task, key);
        *self.per_step.entry(task.step).or_default() += 1;
    }

    /// Forgets the key of a task.
    pub fn remove(&mut self, task: TaskId) {
        if self.keys.remove(&task).is_some() {
            *self.per_step.entry(task.step).or_default() -= 1;
            self.lists.remove(&task.step);
        }
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
        let mut sum = Sum::new(b"task");
        self.sum_up(plan, task, is_hole, results, &mut sum)?;
        Some(sum.key())
    }

    /// What the key of a task is made of, as far as it is known: to say why it has another one.
    pub fn parts(
        &mut self,
        plan: &Plan,
        task: TaskId,
        is_hole: &dyn Fn(TaskId) -> bool,
        results: &dyn Results,
    ) -> Option<Parts> {
        let mut sum = Sum::split();
        self.sum_up(plan, task, is_hole, results, &mut sum)?;
        let mut parts = sum.parts();
        parts.extend(self.general.iter().cloned().map(|(aspect, key)| (aspect, Some(key))));
        Some(parts)
    }

    /// `None` as soon as something is not known, if `sum` is to be a key.
    fn sum_up(
        &mut self,
        plan: &Plan,
        task: TaskId,
        is_hole: &dyn Fn(TaskId) -> bool,
        results: &dyn Results,
        sum: &mut Sum,
    ) -> Option<()> {
        let step = plan.steps.get(task.step.0 as usize).filter(|step| step.part == Part::Runs)?;
        let mut reader = Reader { ring: self, plan, is_hole, results };
        sum.base(&reader.ring.base);
        definition(sum, &step.def);
        sum.about(|| Aspect::CacheVersion);
        sum.text(step.cache.version.as_deref().unwrap_or_default());
        for dep in &plan.dag.step(task.step)?.deps {
            let key = reader.whole(dep.step());
            sum.upstream(plan, dep.step(), key, |sum| {
                sum.bytes(match dep {
                    Dep::Data(_) => b"data",
                    Dep::After(_) => b"after",
                });
            })?;
        }
        sum.about(|| Aspect::Arguments);
        reader.template(sum, &step.template)?;
        sum.about(|| Aspect::Inputs);
        match plan.objects_of(task, results) {
            Ok(named) => {
                let reads = named.reads.into_iter().map(|path| (path, false));
                for (path, kept) in reads.chain(named.keeps.map(|(path, _)| (path, true))) {
                    sum.about(|| if kept { Aspect::Kept(path.clone()) } else { Aspect::Object(path.clone()) });
                    sum.text(&path);
                    match results.version(task, &path) {
                        Some(version) => sum.text(version),
                        None => sum.lacks()?,
                    }
                }
            }
            Err(_) => sum.lacks()?,
        }
        sum.about(|| Aspect::Arguments);
        match plan.filled(task, results, false) {
            Ok(Some(values)) => reader.template(sum, &values)?,
            // Nothing of the arguments tells the items apart.
            Ok(None) => sum.number(task.item.map_or(0, |item| u64::from(item) + 1)),
            Err(_) => sum.lacks()?,
        }
        Some(())
    }
}

/// What of a step's definition shows in its output. Where it runs, how long it may take and how often it is tried does
/// not.
fn definition(sum: &mut Sum, def: &StepDef) {
    sum.about(|| Aspect::Call);
    sum.text(def.call.as_deref().unwrap_or_default());
    sum.text(def.script.as_deref().unwrap_or_default());
    sum.about(|| Aspect::Output);
    sum.text(&def.serializer);
    sum.number(u64::from(def.container));
    sum.number(def.lens.len() as u64);
    def.lens.iter().for_each(|path| sum.path(path));
    sum.about(|| Aspect::Env);
    sum.number(def.env.len() as u64);
    for (name, value) in &def.env {
        sum.text(name);
        sum.text(value);
    }
    sum.about(|| Aspect::Inputs);
    sum.bytes(&def.inputs);
    sum.about(|| Aspect::Output);
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
                let key = self.one(task(*step, *item));
                sum.argument(self.plan, *step, key)?;
                sum.path(path);
            }
            Reference::All { step, gather } => {
                sum.bytes(b"all");
                sum.text(&format!("{gather:?}"));
                let key = self.whole(*step);
                sum.argument(self.plan, *step, key)?;
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
                let key = self.one(task(*step, *item));
                sum.argument(self.plan, *step, key)?;
                sum.number(u64::from(*index));
            }
        }
        Some(())
    }
}

/// A digest over parts, each with its length, so that no two lists of parts are taken for one another.
struct Sum {
    all: Sha256,
    /// The same aspect by aspect, if that is wanted.
    split: Option<Split>,
}

struct Split {
    now: Aspect,
    sums: BTreeMap<Aspect, Option<Sha256>>,
}

impl Sum {
    fn new(kind: &[u8]) -> Self {
        let mut sum = Self { all: Sha256::new(), split: None };
        sum.bytes(kind);
        sum
    }

    fn split() -> Self {
        Self { all: Sha256::new(), split: Some(Split { now: Aspect::Call, sums: BTreeMap::new() }) }
    }

    /// What follows is about this.
    fn about(&mut self, aspect: impl FnOnce() -> Aspect) {
        if let Some(split) = &mut self.split {
            split.now = aspect();
            split.sums.entry(split.now.clone()).or_insert_with(|| Some(Sha256::new()));
        }
    }

    /// What is the same for all tasks.
    fn base(&mut self, base: &Key) {
        if self.split.is_none() {
            self.bytes(base);
        }
    }

    /// What comes next is not known: there is no key then.
    fn lacks(&mut self) -> Option<()> {
        let split = self.split.as_mut()?;
        split.sums.insert(split.now.clone(), None);
        Some(())
    }

    /// A reference to what comes before. Which of several it is, is an argument.
    fn argument(&mut self, plan: &Plan, step: StepIx, key: Option<Key>) -> Option<()> {
        if self.split.is_some() {
            self.text(plan.step_name(step));
        }
        self.upstream(plan, step, key, |_| {})
    }

    /// The key of what comes before; `first`: what else is to be said of it.
    fn upstream(&mut self, plan: &Plan, step: StepIx, key: Option<Key>, first: impl FnOnce(&mut Self)) -> Option<()> {
        let before = self.split.as_ref().map(|split| split.now.clone());
        self.about(|| Aspect::Upstream(plan.step_name(step).to_owned()));
        first(self);
        match key {
            Some(key) => self.bytes(&key),
            None => self.lacks()?,
        }
        if let (Some(split), Some(before)) = (&mut self.split, before) {
            split.now = before;
        }
        Some(())
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let length = (bytes.len() as u64).to_le_bytes();
        self.add(&length);
        self.add(bytes);
    }

    fn add(&mut self, bytes: &[u8]) {
        match &mut self.split {
            None => self.all.update(bytes),
            Some(split) => {
                if let Some(Some(sum)) = split.sums.get_mut(&split.now) {
                    sum.update(bytes);
                }
            }
        }
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn number(&mut self, number: u64) {
        self.add(&number.to_le_bytes());
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
        self.all.finalize().into()
    }

    fn parts(self) -> Parts {
        let sums = self.split.map(|split| split.sums).unwrap_or_default();
        sums.into_iter().map(|(aspect, sum)| (aspect, sum.map(|sum| sum.finalize().into()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Map, Value, json};

    use super::*;
    use crate::{RunInfo, validate};

    struct Nothing;

    impl Results for Nothing {
        fn result(&self, _: TaskId) -> Option<std::borrow::Cow<'_, Value>> {
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
        fn result(&self, _: TaskId) -> Option<std::borrow::Cow<'_, Value>> {
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

    /// What the key of the task `name` is made of, while the keys of `unknown` are not known.
    fn parts(spec: &Value, code: &str, name: &str, unknown: &[&str]) -> Parts {
        let flow = validate(&serde_json::from_value(spec.clone()).unwrap(), "spec").unwrap();
        let plan = flow.bind(&Map::new(), &RunInfo { name: "r".into(), uid: "u".into() }).unwrap();
        let mut ring = Keyring::new(&plan, code, None);
        for (step, _) in plan.dag.steps().filter(|(step, _)| !unknown.contains(&plan.step_name(*step))) {
            let items = if plan.is_mapped(step) { vec![Some(0), Some(1)] } else { vec![None] };
            for task in items.into_iter().map(|item| TaskId { step, item }) {
                if let Some(key) = ring.work_out(&plan, task, &|_| false, &Nothing) {
                    ring.insert(task, key);
                }
            }
        }
        ring.parts(&plan, TaskId::whole(plan.step_index(name).unwrap()), &|_| false, &Nothing).unwrap()
    }

    #[test]
    fn what_has_changed_is_told_apart() {
        use Aspect::{Arguments, Call, Code, Env, Inputs, Kept, Object, Output, Requirements, Upstream};
        let differ = |name: &str, code: &str, change: &dyn Fn(&mut Value)| {
            let mut spec = base();
            change(&mut spec);
            let (before, after) = (parts(&base(), "c", name, &[]), parts(&spec, code, name, &[]));
            let aspects: std::collections::BTreeSet<Aspect> = before.keys().chain(after.keys()).cloned().collect();
            aspects.into_iter().filter(|aspect| before.get(aspect) != after.get(aspect)).collect::<Vec<_>>()
        };
        let up = |name: &str| Upstream(name.to_owned());
        assert_eq!(differ("load", "other", &|_| {}), [Code]);
        assert_eq!(differ("load", "c", &|spec| spec["requirements"] = json!(["numpy"])), [Requirements]);
        assert_eq!(differ("load", "c", &|spec| spec["steps"][0]["script"] = json!("return 2")), [Call]);
        assert_eq!(differ("load", "c", &|spec| spec["params"][0]["default"] = json!(2)), [Arguments]);
        assert_eq!(differ("sum", "c", &|spec| spec["steps"][0]["script"] = json!("return 2")), [up("each")]);
        assert_eq!(differ("last", "c", &|spec| spec["steps"][2]["call"] = json!("m:x")), [up("sum")]);
        let env = json!([{"name": "A", "value": "b"}]);
        assert_eq!(differ("sum", "c", &|spec| spec["steps"][2]["env"] = env.clone()), [Env]);
        assert_eq!(
            differ("apart", "c", &|spec| spec["steps"][4]["output"] = json!({})),
            [Output, Kept("y.pkl".into())]
        );
        let path = json!("z.pkl");
        assert!(
            differ("apart", "c", &|spec| spec["steps"][4]["inputs"]["x"]["path"] = path.clone())
                .contains(&Object("z.pkl".into()))
        );
        let form = &|spec: &mut Value| spec["steps"][4]["inputs"]["x"]["serializer"] = json!("json");
        assert_eq!(differ("apart", "c", form), [Inputs]);
        let two = |order: [&str; 2]| {
            json!({"steps": [
                {"name": "a", "call": "m:a"}, {"name": "b", "call": "m:b"},
                {"name": "c", "call": "m:c", "args": order.map(|name| format!("$(steps.{name}.output)"))}
            ]})
        };
        assert_ne!(parts(&two(["a", "b"]), "c", "c", &[]), parts(&two(["b", "a"]), "c", "c", &[]), "another order");
        let open = parts(&base(), "c", "sum", &["each"]);
        assert_eq!(open.get(&up("each")), Some(&None), "not known is said, and the rest is there");
        assert_eq!(open.get(&Call), parts(&base(), "c", "sum", &[]).get(&Call));
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
