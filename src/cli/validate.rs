//! `validate` and `crd`: nothing is run.

use std::io::{self, Write};

use super::Failure;
use super::options::{CrdOptions, ValidateOptions};
use api::problem::Problem;
use api::reason::Reason;
use decide::cluster;
use decide::pipeline;
use manifest::crd;
use manifest::{FileProblem, Loaded, Object, Reading};

/// Checks every document; all problems at once, on standard error, and exit code 2.
pub(super) fn validate(options: &ValidateOptions) -> Result<(), Failure> {
    let reading = manifest::read(&options.files, &mut io::stdin().lock());
    let mut problems: Vec<String> = reading.problems.iter().map(ToString::to_string).collect();
    let mut good = Vec::new();
    problems.extend(further(&reading));
    for item in &reading.objects {
        let found = meaning(&item.object);
        if found.is_empty() {
            good.push(format!("{} is valid", place(item)));
        }
        problems.extend(found.into_iter().map(|problem| format!("{}: {problem}", place(item))));
    }
    for note in &reading.notes {
        // A closed standard error is no reason to end.
        drop(writeln!(io::stderr(), "note: {note}"));
    }
    let mut out = io::stdout().lock();
    for line in good {
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    if problems.is_empty() { Ok(()) } else { Err(Failure::bad_input(problems.join("\n"))) }
}

/// What else is wrong with documents that have problems already, so that all of a file are told at once. What may only
/// follow from those problems is left out.
pub(super) fn further(reading: &Reading) -> Vec<String> {
    let mut lines = Vec::new();
    for item in &reading.rest {
        let here = |problem: &&FileProblem| problem.file == item.file && problem.document == Some(item.document);
        let known: Vec<&str> =
            reading.problems.iter().filter(here).map(|problem| problem.problem.path.as_str()).collect();
        let found = meaning(&item.object).into_iter().filter(|problem| !follows(problem, &known));
        lines.extend(found.map(|problem| format!("{}: {problem}", place(item))));
    }
    lines
}

/// Whether a problem may be there only because what is at `known` could not be read.
fn follows(problem: &Problem, known: &[&str]) -> bool {
    let of_step = |path: &str| path.starts_with("spec.steps[") || path.starts_with("spec.finally[");
    let entry = |path: &str| path.find(']').map_or_else(|| path.to_owned(), |end| path[..=end].to_owned());
    let lost = match problem.reason {
        Reason::UndefinedParameter | Reason::UnsatisfiableResources | Reason::UnknownWorkerGroup => {
            known.iter().any(|path| !of_step(path))
        }
        Reason::UnknownOutput | Reason::NotUpstream => known.iter().any(|path| of_step(path)),
        // To take a field away makes none of these.
        Reason::DependencyCycle | Reason::SelfDependency | Reason::UnknownStep => return false,
        _ => false,
    };
    // The field itself was taken away.
    let of_this = |path: &&str| {
        let field = path.strip_prefix(problem.path.as_str()).and_then(|field| field.strip_prefix('.'));
        field.is_some_and(|field| !field.contains(['.', '[']))
    };
    lost || known.iter().any(|path| path.is_empty() || of_this(path) || entry(path) == entry(&problem.path))
}

/// What is wrong with an object that can be read.
fn meaning(object: &Object) -> Vec<Problem> {
    match object {
        Object::Pipeline(object) => {
            let mut problems = lower::check(&object.spec, "spec", None);
            problems.extend(pipeline::validate(&object.spec, "spec"));
            problems.extend(cluster::check_shared(&object.spec, "spec"));
            problems
        }
        Object::DaskCluster(object) => cluster::validate(&object.spec, "spec"),
        Object::PipelineRun(object) => {
            let given = object.spec.params.clone().into_iter().collect();
            let spec = object.spec.pipeline_spec.as_ref();
            let at = "spec.pipelineSpec";
            let check = |spec| [lower::check(spec, at, Some(given)), cluster::check_shared(spec, at)].concat();
            spec.map(check).unwrap_or_default()
        }
    }
}

fn place(item: &Loaded) -> String {
    let Loaded { file, document, object } = item;
    format!("{} (document {document}): {} {}", file.display(), object.kind(), object.name())
}

/// Prints the custom resource definitions, as in `crds/`.
pub(super) fn crd(options: &CrdOptions) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    write!(out, "{}", if options.json { crd::all_json() } else { crd::all_yaml() })?;
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Reasons and paths of all that is wrong with a pipeline's spec.
    fn check(spec: &str, expected: &[&str]) {
        let head = "{apiVersion: daskade.dev/v1alpha1, kind: Pipeline, metadata: {name: p}, spec: ";
        let reading = manifest::read_text(Path::new("p.yaml"), format!("{head}{spec}}}").as_bytes());
        let place = "p.yaml (document 1): Pipeline p: ";
        let told = reading.problems.iter().map(|problem| problem.problem.to_string());
        let found: Vec<String> = told
            .chain(further(&reading).into_iter().map(|line| line.trim_start_matches(place).to_owned()))
            .map(|line| line.splitn(3, ": ").take(2).collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(found, expected, "{spec}");
    }

    #[test]
    fn mistakes_of_form_do_not_hide_those_of_meaning() {
        check(
            "{steps: [{name: a, call: 'm:f', retrys: 1}, {name: b, call: 'm:f', args: ['$(steps.x.output)', '$(range(1 +))']}]}",
            &[
                "spec.steps[0].retrys UnknownField",
                "spec.steps[1].args[0] UnknownStep",
                "spec.steps[1].args[1] InvalidExpression",
            ],
        );
        check(
            "{steps: [{name: a, call: 'm:f', dependsOn: [b], timeout: x}, {name: b, call: 'm:f', dependsOn: [a]}]}",
            &["spec.steps[0].timeout InvalidValue", "spec.steps[0] DependencyCycle"],
        );
    }

    #[test]
    fn what_shows_only_with_parameters_is_found_by_their_defaults() {
        const WORDS: [&str; 2] = ["x has 2, z has 1", "2000000"];
        let reasons = |spec: &str| {
            let head = "{apiVersion: daskade.dev/v1alpha1, kind: Pipeline, metadata: {name: p}, spec: ";
            let reading = manifest::read_text(Path::new("p.yaml"), format!("{head}{spec}}}").as_bytes());
            let problems = meaning(&reading.objects[0].object);
            for problem in &problems {
                assert!(WORDS.iter().any(|words| problem.to_string().contains(words)), "{problem}");
            }
            problems.into_iter().map(|problem| problem.reason.as_str()).collect::<Vec<_>>()
        };
        let step = |map: &str| format!("steps: [{{name: a, call: 'm:f', map: {map}}}]}}");
        assert_eq!(reasons(&format!("{{{}", step("{x: [1, 2], z: [1]}"))), ["UnequalLengths"]);
        let params = |default: &str| format!("{{params: [{{name: n, type: integer{default}}}], ");
        let map = step("{x: $(range(params.n))}");
        assert_eq!(reasons(&format!("{}{map}", params(", default: 2000000"))), ["TooManyItems"]);
        assert_eq!(reasons(&format!("{}{map}", params(", default: 2"))), [""; 0]);
        assert_eq!(reasons(&format!("{}{map}", params(""))), [""; 0], "a run has to say it");
    }

    #[test]
    fn what_may_follow_from_a_mistake_of_form_is_not_told() {
        check(
            "{parms: [{name: n}], steps: [{name: a, call: 'm:f', args: ['$(params.n)']}]}",
            &["spec.parms UnknownField"],
        );
        check(
            "{steps: [{name: a, cal: 'm:f', outputz: [{name: x}]}, {name: b, call: 'm:f', args: ['$(steps.a.output.x)']}]}",
            &["spec.steps[0].cal UnknownField", "spec.steps[0].outputz UnknownField", "spec.steps[0] Conflict"],
        );
        check("{code: {url: 'http://x/y.zip'}, steps: [{name: a, call: 'm:f'}]}", &["spec.code.url InvalidValue"]);
        check("{steps: [{call: 'm:f'}, {name: b, call: 'm:f', dependsOn: [a]}]}", &["spec.steps[0].name MissingField"]);
    }
}
