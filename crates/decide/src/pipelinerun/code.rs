//! Code that a run takes from a ConfigMap: copied when it starts.

pub use super::references::ConfigMap;
use super::references::References;
use crate::cluster::facts::Issue;
use api::pipeline::Code;
use api::problem::Problem;
use api::reason::Reason;
use api::run::PipelineRunSpec;

/// Bytes of all files as JSON: they are written down with the run, in one object of the API server.
const FILES: usize = 900 << 10;

/// Name of the ConfigMap that holds the code of a run.
pub fn config_map(run: &PipelineRunSpec, world: &dyn References) -> Option<String> {
    if let Some(spec) = &run.pipeline_spec {
        return spec.code.as_ref()?.config_map.clone();
    }
    let pipeline = world.pipeline(run.pipeline_ref.as_deref()?)?;
    Some(pipeline.pointer("/spec/code/configMap")?.as_str()?.to_owned())
}

/// The code with the files of its ConfigMap in it; `at` is where it stands.
pub(super) fn resolve(
    code: Option<&Code>,
    at: &str,
    world: &dyn References,
    problems: &mut Vec<Problem>,
) -> Result<Option<Code>, Issue> {
    let Some(name) = code.and_then(|code| code.config_map.as_deref()) else { return Ok(code.cloned()) };
    let at = format!("{at}.code.configMap");
    let (files, binary) = match world.config_map(name) {
        ConfigMap::Found { files, binary } => (files, binary),
        ConfigMap::Unread(issue) => return Err(issue),
        ConfigMap::Missing => {
            let message = format!(
                "ConfigMap \"{name}\" does not exist in the namespace ({at}); create it, and the run continues"
            );
            return Err(Issue::new(Reason::ConfigMapNotFound, message));
        }
    };
    if !binary.is_empty() {
        let message = format!("the ConfigMap {name} has files that are no UTF-8 text: {}", binary.join(", "));
        let help = "put them into an archive (code.url) or into the image";
        problems.push(Problem::new(Reason::InvalidText, &at, message).help(help));
    } else if files.is_empty() {
        let message = format!("the ConfigMap {name} has no files");
        let help = format!("put modules into its data: kubectl create configmap {name} --from-file=flow.py");
        problems.push(Problem::new(Reason::Empty, &at, message).help(help));
    }
    let size = serde_json::to_string(&files).map_or(0, |text| text.len());
    if size > FILES {
        let message = format!("the files of the ConfigMap {name} have {size} bytes, and {FILES} can be written down");
        problems.push(
            Problem::new(Reason::TooLarge, &at, message).help("put them into an archive (code.url) or into the image"),
        );
    }
    Ok(Some(Code { files: Some(files), ..Code::default() }))
}
