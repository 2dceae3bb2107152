//! `validate` and `crd`: nothing is run.

use std::io::{self, Write};

use super::Failure;
use super::options::{CrdOptions, ValidateOptions};
use crate::manifest::{self, Object};
use crate::{cluster, crd, pipeline};

/// Checks every document; all problems at once, on standard error, and exit code 2.
pub(super) fn validate(options: &ValidateOptions) -> Result<(), Failure> {
    let reading = manifest::read(&options.files, &mut io::stdin().lock());
    let mut problems: Vec<String> = reading.problems.iter().map(ToString::to_string).collect();
    let mut good = Vec::new();
    for item in &reading.objects {
        let (kind, name, found) = match &item.object {
            Object::Pipeline(object) => {
                ("Pipeline", &object.metadata.name, pipeline::validate(&object.spec, "spec").err().unwrap_or_default())
            }
            Object::DaskCluster(object) => {
                ("DaskCluster", &object.metadata.name, cluster::validate(&object.spec, "spec"))
            }
            Object::PipelineRun(object) => {
                let spec = object.spec.pipeline_spec.as_ref();
                let found =
                    spec.and_then(|spec| pipeline::validate(spec, "spec.pipelineSpec").err()).unwrap_or_default();
                ("PipelineRun", &object.metadata.name, found)
            }
        };
        let place = format!("{} (document {})", item.file.display(), item.document);
        let name = name.clone().unwrap_or_default();
        if found.is_empty() {
            good.push(format!("{place}: {kind} {name} is valid"));
        }
        problems.extend(found.into_iter().map(|problem| format!("{place}: {kind} {name}: {problem}")));
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

/// Prints the custom resource definitions, as in `crds/`.
pub(super) fn crd(options: &CrdOptions) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    write!(out, "{}", if options.json { crd::all_json() } else { crd::all_yaml() })?;
    out.flush()?;
    Ok(())
}
