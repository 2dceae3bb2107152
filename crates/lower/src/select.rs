//! A run of a part of a pipeline: which steps run, and whose outputs are loaded from an earlier run.

use std::collections::BTreeSet;

use super::dag;
use super::plan::{Part, Plan};
use api::problem::{Problem, nearest};
use api::reason::Reason;
use api::run::Select;
use engine::{Dag, Dep, MapSource, OnLost, StepIx, StepSpec, When};

impl Plan {
    /// Keeps the steps that `select`, whose fields stand below `at`, chooses; `finally` steps run in any case.
    ///
    /// Steps outside lose their dependencies: they do not run, so nothing has to wait for what they would need.
    pub fn select(mut self, select: &Select, at: &str) -> Result<Self, Vec<Problem>> {
        let specs: Vec<StepSpec> = self.dag.steps().map(|(_, spec)| spec.clone()).collect();
        let chosen = self.chosen(select, at, &specs)?;
        let problems = self.pin(&select.load_versions, &format!("{at}.loadVersions"));
        if !problems.is_empty() {
            return Err(problems);
        }
        let runs = |ix: usize| specs[ix].finally || chosen.contains(&ix);
        let needed: BTreeSet<usize> =
            chosen.iter().flat_map(|ix| data_of(&specs[*ix])).filter(|ix| !runs(*ix)).collect();
        let kept = specs.iter().enumerate().map(|(ix, spec)| if runs(ix) { spec.clone() } else { resting(spec) });
        self.dag = Dag::build(kept.collect())
            .map_err(|errors| errors.into_iter().map(|error| dag::problem(&error, at)).collect::<Vec<_>>())?;
        for (ix, step) in self.steps.iter_mut().enumerate() {
            step.part = match (runs(ix), needed.contains(&ix)) {
                (true, _) => Part::Runs,
                (false, true) => Part::Loaded,
                (false, false) => Part::LeftOut,
            };
        }
        Ok(self)
    }

    fn chosen(&self, select: &Select, at: &str, specs: &[StepSpec]) -> Result<BTreeSet<usize>, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut named = |names: &[String], field: &str| -> Vec<usize> {
            let found = names.iter().enumerate().filter_map(|(i, name)| {
                self.named(name, specs).map_err(|problem| problems.push(problem(format!("{at}.{field}[{i}]")))).ok()
            });
            found.collect()
        };
        let (only, from, to) = (named(&select.only, "only"), named(&select.from, "from"), named(&select.to, "to"));
        let mut reading = Vec::new();
        for (i, path) in select.from_inputs.iter().enumerate() {
            match self.readers(path, &format!("{at}.fromInputs[{i}]")) {
                Ok(found) => reading.extend(found),
                Err(problem) => problems.push(problem),
            }
        }
        let mut chosen: BTreeSet<usize> = (0..specs.len()).filter(|ix| !specs[*ix].finally).collect();
        if !select.only.is_empty() {
            chosen.retain(|ix| only.contains(ix));
        }
        if !select.from.is_empty() {
            let after = closure(from, &dependents(specs));
            chosen.retain(|ix| after.contains(ix));
        }
        if !select.from_inputs.is_empty() {
            let after = closure(reading, &dependents(specs));
            chosen.retain(|ix| after.contains(ix));
        }
        if !select.to.is_empty() {
            let before = closure(to, &needs(specs));
            chosen.retain(|ix| before.contains(ix));
        }
        let tagged = |ix: &usize, tag: &String| self.steps[*ix].tags.contains(tag);
        for (i, tag) in select.tags.iter().enumerate() {
            if !(0..specs.len()).any(|ix| tagged(&ix, tag)) {
                problems.push(self.unknown_tag(tag, &format!("{at}.tags[{i}]")));
            }
        }
        if !select.tags.is_empty() {
            chosen.retain(|ix| select.tags.iter().any(|tag| tagged(ix, tag)));
        }
        if chosen.is_empty() && problems.is_empty() {
            let problem = Problem::new(Reason::EmptySelection, at, "no step belongs to the selection");
            problems.push(problem.help("a step must fit all of only, from, to, fromInputs and tags that are given"));
        }
        if problems.is_empty() { Ok(chosen) } else { Err(problems) }
    }

    /// The step of this name, if it can be chosen; else the problem, whose path is still to be given.
    fn named(&self, name: &str, specs: &[StepSpec]) -> Result<usize, impl FnOnce(String) -> Problem + use<>> {
        let found = self.step_index(name).map(|step| step.0 as usize);
        if let Some(ix) = found.filter(|ix| !specs[*ix].finally) {
            return Ok(ix);
        }
        let name = name.to_owned();
        let near = nearest(&name, specs.iter().filter(|spec| !spec.finally).map(|spec| spec.name.as_str()));
        let near = near.map(str::to_owned);
        Err(move |path| {
            if found.is_some() {
                let problem =
                    Problem::new(Reason::InvalidValue, path, format!("{name} is a finally step, which runs anyway"));
                return problem.help("choose among the steps; leave it out");
            }
            let problem = Problem::new(Reason::UnknownStep, path, format!("there is no step {name}"));
            near.iter().fold(problem, |problem, near| problem.help(format!("did you mean {near}?")))
        })
    }

    fn unknown_tag(&self, tag: &str, path: &str) -> Problem {
        let problem = Problem::new(Reason::UnknownTag, path, format!("no step has the tag {tag}"));
        let tags = self.steps.iter().flat_map(|step| step.tags.iter().map(String::as_str));
        nearest(tag, tags).into_iter().fold(problem, |problem, near| problem.help(format!("did you mean {near}?")))
    }
}

/// A step that does not run: it waits for nothing, and how many items it has is for an earlier run to say.
fn resting(spec: &StepSpec) -> StepSpec {
    StepSpec {
        deps: Vec::new(),
        map: spec.map.as_ref().map(|_| vec![MapSource::Recorded]),
        when: When::Always,
        late: false,
        on_lost: OnLost::Elsewhere,
        ..spec.clone()
    }
}

/// Steps whose outputs or results it uses.
fn data_of(spec: &StepSpec) -> impl Iterator<Item = usize> {
    let deps = spec.deps.iter().filter(|dep| matches!(dep, Dep::Data(_))).map(|dep| dep.step());
    deps.chain(spec.map.iter().flatten().filter_map(|source| source.step())).map(index)
}

fn index(step: StepIx) -> usize {
    step.0 as usize
}

/// For each step, those that come directly before it.
fn needs(specs: &[StepSpec]) -> Vec<Vec<usize>> {
    let of = |spec: &StepSpec| {
        let sources = spec.map.iter().flatten().filter_map(|source| source.step());
        spec.deps.iter().map(|dep| dep.step()).chain(sources).map(index).collect()
    };
    specs.iter().map(of).collect()
}

/// For each step, those that come directly after it.
fn dependents(specs: &[StepSpec]) -> Vec<Vec<usize>> {
    let mut after = vec![Vec::new(); specs.len()];
    for (ix, before) in needs(specs).into_iter().enumerate() {
        before.into_iter().for_each(|up| after[up].push(ix));
    }
    after
}

fn closure(start: Vec<usize>, next: &[Vec<usize>]) -> BTreeSet<usize> {
    let (mut found, mut work) = (BTreeSet::new(), start);
    while let Some(ix) = work.pop() {
        if found.insert(ix) {
            work.extend(&next[ix]);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;
    use crate::{RunInfo, validate};

    fn plan() -> Plan {
        let spec = json!({
            "steps": [
                {"name": "load", "call": "m:f", "tags": ["slow"]},
                {"name": "each", "call": "m:f", "map": {"x": "$(steps.load.output)"},
                    "inputs": {"w": {"path": "weights/$(run.name).npy"}}},
                {"name": "sum", "call": "m:f", "args": ["$(steps.each.output)"], "tags": ["end"]},
                {"name": "tell", "call": "m:f", "dependsOn": ["sum"], "tags": ["end"]},
                {"name": "apart", "call": "m:f", "map": {"day": ["mon", "tue"]},
                    "inputs": {"d": {"path": "in/$(item.day).json"}, "w": {"path": "s3://b/w.npy"}}}
            ],
            "finally": [{"name": "clean", "call": "m:f"}]
        });
        let flow = validate(&serde_json::from_value(spec).unwrap(), "spec").unwrap();
        flow.bind(&Map::new(), &RunInfo { name: "r".into(), uid: "u".into() }).unwrap()
    }

    fn check(select: serde_json::Value) -> Result<(Vec<String>, Vec<String>), Vec<String>> {
        let select: Select = serde_json::from_value(select).unwrap();
        let plan = plan()
            .select(&select, "spec.select")
            .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let of = |part: Part| {
            let steps = plan.dag.steps().filter(|(ix, spec)| !spec.finally && plan.part(*ix) == part);
            steps.map(|(_, spec)| spec.name.clone()).collect()
        };
        assert_eq!(plan.part(StepIx(5)), Part::Runs, "finally steps run");
        Ok((of(Part::Runs), of(Part::Loaded)))
    }

    fn names(runs: &[&str], loaded: &[&str]) -> Result<(Vec<String>, Vec<String>), Vec<String>> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Ok((owned(runs), owned(loaded)))
    }

    #[test]
    fn a_selection_says_what_runs_and_what_is_loaded() {
        assert_eq!(check(json!({"only": ["each"]})), names(&["each"], &["load"]));
        assert_eq!(check(json!({"from": ["sum"]})), names(&["sum", "tell"], &["each"]));
        assert_eq!(check(json!({"to": ["each"]})), names(&["load", "each"], &[]));
        assert_eq!(check(json!({"from": ["each"], "to": ["sum"]})), names(&["each", "sum"], &["load"]));
        assert_eq!(check(json!({"tags": ["end"]})), names(&["sum", "tell"], &["each"]));
        assert_eq!(check(json!({"tags": ["end", "slow"], "to": ["sum"]})), names(&["load", "sum"], &["each"]));
        let after_each = names(&["each", "sum", "tell"], &["load"]);
        assert_eq!(check(json!({"fromInputs": ["weights/$(run.name).npy"]})), after_each, "as it is written");
        assert_eq!(check(json!({"fromInputs": ["weights/r.npy"]})), after_each, "as it comes out");
        assert_eq!(check(json!({"fromInputs": ["weights/r.npy"], "to": ["sum"]})), names(&["each", "sum"], &["load"]));
        assert_eq!(check(json!({"fromInputs": ["in/tue.json"]})), names(&["apart"], &[]), "of one item");
        assert_eq!(check(json!({"fromInputs": ["s3://b/w.npy"], "tags": ["end"]})).unwrap_err().len(), 1);
        assert_eq!(check(json!({"only": ["tell"]})), names(&["tell"], &[]), "order alone needs no output");
    }

    #[test]
    fn what_cannot_be_selected_is_refused_with_its_path() {
        let first = |select| check(select).unwrap_err()[0].clone();
        let said = first(json!({"only": ["apart", "eech"]}));
        assert!(said.contains("spec.select.only[1]") && said.contains("did you mean each?"), "{said}");
        let said = first(json!({"from": ["clean"]}));
        assert!(said.contains("spec.select.from[0]") && said.contains("finally"), "{said}");
        let said = first(json!({"tags": ["and"]}));
        assert!(said.contains("spec.select.tags[0]") && said.contains("did you mean end?"), "{said}");
        let said = first(json!({"fromInputs": ["s3://b/w.npy", "in/wed.json"]}));
        assert!(
            said.contains("spec.select.fromInputs[1]: UnknownInput") && said.contains("did you mean in/"),
            "{said}"
        );
        for known in ["weights/r.npy", "weights/$(run.name).npy", "in/mon.json", "s3://b/w.npy"] {
            assert!(said.contains(known), "{known}: {said}");
        }
        assert!(first(json!({"only": ["load"], "from": ["sum"]})).contains("EmptySelection"));
    }
}
