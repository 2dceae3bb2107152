//! Checks of single fields. Most are in the schema too; objects stored before a rule existed, and files that never saw
//! an API server, are checked here.

use std::collections::BTreeSet;

use super::{
    limits::ITEMS_MAX,
    node::below,
    params::{is_identifier, shortened},
};
use api::names::{STEP_NAME_MAX, check_label};
use api::problem::Problem;
use api::reason::Reason;
use api::{pipeline::PipelineSpec, step::Isolation, step::Retry, step::Step};

/// Longest text of most fields, in bytes.
const CALL_MAX: usize = 500;

pub(super) fn check_pipeline(spec: &PipelineSpec, at: &str, problems: &mut Vec<Problem>) {
    if spec.steps.is_empty() {
        problems.push(Problem::new(Reason::MissingField, below(at, "steps"), "a pipeline needs at least one step"));
    }
    if let Some(limits) = &spec.limits {
        let at = below(at, "limits");
        within(limits.parallelism, 1, 100_000, &format!("{at}.parallelism"), problems);
        within(limits.max_items, 1, ITEMS_MAX, &format!("{at}.maxItems"), problems);
        for (name, amount) in &limits.resources {
            check_amount(name, *amount, &format!("{at}.resources"), problems);
        }
    }
    if let Some(code) = &spec.code {
        let at = below(at, "code");
        let given = [code.files.is_some(), code.path.is_some(), code.config_map.is_some(), code.url.is_some()];
        if given.iter().filter(|given| **given).count() != 1 {
            problems.push(Problem::new(Reason::Conflict, &at, "give exactly one of files, path, configMap and url"));
        }
        if let Some(url) = &code.url
            && !["s3://", "gs://", "file:///"].iter().any(|scheme| url.starts_with(scheme))
        {
            let message = format!("code is fetched from s3://, gs:// or file:///, not from {}", shortened(url));
            let problem = Problem::new(Reason::InvalidValue, format!("{at}.url"), message);
            problems.push(problem.help("put the archive beside the storage, for example s3://bucket/code/flow.tar.gz"));
        }
        if code.sha256.is_some() && code.url.is_none() {
            problems.push(Problem::new(Reason::Conflict, format!("{at}.sha256"), "sha256 belongs to url"));
        }
    }
    if let Some(cluster) = &spec.cluster {
        let given = [cluster.template.is_some(), cluster.ref_.is_some(), cluster.address.is_some()];
        if given.iter().filter(|given| **given).count() > 1 {
            problems.push(Problem::new(
                Reason::Conflict,
                below(at, "cluster"),
                "give one of template, ref and address",
            ));
        }
    }
}

pub(super) fn check_step(step: &Step, at: &str, problems: &mut Vec<Problem>) {
    check_step_name(&step.name, &format!("{at}.name"), problems);
    if let Some(text) = &step.display_name {
        check_text(text, &format!("{at}.displayName"), problems);
    }
    match (&step.call, &step.script) {
        (Some(call), None) => check_call(call, &format!("{at}.call"), problems),
        (None, Some(script)) => {
            if let Some(offset) = script.bytes().position(|byte| byte == 0) {
                let message = format!("the script has a NUL character at byte {offset}");
                problems.push(Problem::new(Reason::InvalidText, format!("{at}.script"), message));
            }
        }
        (Some(_), Some(_)) => {
            problems.push(Problem::new(Reason::Conflict, at, "give exactly one of call and script, not both"))
        }
        (None, None) => problems.push(Problem::new(Reason::MissingField, at, "give exactly one of call and script")),
    }
    if let Some(map) = &step.map {
        if map.is_empty() {
            problems.push(Problem::new(Reason::InvalidValue, format!("{at}.map"), "a map needs at least one variable"));
        }
        for name in map.keys() {
            check_name(name, &below(&format!("{at}.map"), name), problems);
        }
    }
    if let Some(retry) = &step.retry {
        check_retry(retry, &format!("{at}.retry"), problems);
    }
    if step.timeout.is_some_and(|timeout| timeout.as_millis() == 0) {
        problems.push(Problem::new(Reason::InvalidValue, format!("{at}.timeout"), "a timeout must be above zero"));
    }
    if let Some(priority) = step.priority
        && !(-1_000_000..=1_000_000).contains(&priority)
    {
        let message = format!("{priority} is outside -1000000 to 1000000");
        problems.push(Problem::new(Reason::InvalidValue, format!("{at}.priority"), message));
    }
    if let Some(limits) = &step.limits {
        within(limits.parallelism, 1, 100_000, &format!("{at}.limits.parallelism"), problems);
    }
    for (name, amount) in &step.resources {
        check_amount(name, *amount, &format!("{at}.resources"), problems);
    }
    check_env(step, at, problems);
    check_outputs(step, at, problems);
}

fn check_outputs(step: &Step, at: &str, problems: &mut Vec<Problem>) {
    let mut seen = BTreeSet::new();
    for (i, output) in step.outputs.iter().enumerate() {
        let at = format!("{at}.outputs[{i}].name");
        check_name(&output.name, &at, problems);
        if !seen.insert(&output.name) {
            problems.push(Problem::new(
                Reason::Duplicate,
                at,
                format!("the output {} is named twice", shortened(&output.name)),
            ));
        }
    }
    for name in step.inputs.keys() {
        check_name(name, &below(&format!("{at}.inputs"), name), problems);
    }
    if step.cache.as_ref().and_then(|cache| cache.max_age).is_some_and(|age| age.as_millis() == 0) {
        problems.push(Problem::new(Reason::InvalidValue, format!("{at}.cache.maxAge"), "an age must be above zero"));
    }
}

fn check_env(step: &Step, at: &str, problems: &mut Vec<Problem>) {
    if !step.env.is_empty() && step.isolation == Some(Isolation::Thread) {
        let message = "a step in a thread shares the worker's environment; env needs isolation: process";
        problems.push(Problem::new(Reason::Conflict, format!("{at}.env"), message));
    }
    let mut seen = BTreeSet::new();
    for (i, var) in step.env.iter().enumerate() {
        let at = format!("{at}.env[{i}]");
        if !is_env_name(&var.name) {
            let message = format!("{:?} is not a name that a shell can set", shortened(&var.name));
            problems.push(Problem::new(Reason::InvalidName, format!("{at}.name"), message));
        } else if !seen.insert(&var.name) {
            problems.push(Problem::new(Reason::Duplicate, format!("{at}.name"), format!("{} is set twice", var.name)));
        }
        if let Some(offset) = var.value.bytes().position(|byte| byte == 0) {
            let message = format!("the value has a NUL character at byte {offset}");
            problems.push(Problem::new(Reason::InvalidText, format!("{at}.value"), message));
        }
    }
}

fn is_env_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= 256
        && bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn check_retry(retry: &Retry, at: &str, problems: &mut Vec<Problem>) {
    within(Some(retry.limit), 0, 100, &format!("{at}.limit"), problems);
    if let Some(backoff) = &retry.backoff {
        between(backoff.factor, 1.0, 10.0, &format!("{at}.backoff.factor"), problems);
    }
    between(retry.jitter, 0.0, 1.0, &format!("{at}.jitter"), problems);
    if retry.on.as_ref().is_some_and(Vec::is_empty) {
        let message = "no class of failure is named, so nothing would be retried; leave it out for the default";
        problems.push(Problem::new(Reason::InvalidValue, format!("{at}.on"), message));
    }
}

fn check_step_name(name: &str, at: &str, problems: &mut Vec<Problem>) {
    if name.chars().any(char::is_control) {
        check_text(name, at, problems);
    } else if let Err(error) = check_label(name, STEP_NAME_MAX as usize) {
        let help = format!("lower-case letters, digits and dashes, a letter first, at most {STEP_NAME_MAX}");
        let message = format!("the name {:?} {error}", shortened(name));
        problems.push(Problem::new(Reason::InvalidName, at, message).help(help));
    }
}

/// A name that becomes a keyword argument or is used in expressions.
pub(super) fn check_name(name: &str, at: &str, problems: &mut Vec<Problem>) {
    if !is_identifier(name) {
        let message = format!("{:?} is not a name that Python and expressions can use", shortened(name));
        let help = "letters, digits and underscores, at most 63, not beginning with a digit";
        problems.push(Problem::new(Reason::InvalidName, at, message).help(help));
    }
}

/// Text for people must not carry control characters.
fn check_text(text: &str, at: &str, problems: &mut Vec<Problem>) {
    if let Some((offset, c)) = text.char_indices().find(|(_, c)| c.is_control()) {
        let message = format!("the text has the control character U+{:04X} at byte {offset}", u32::from(c));
        problems.push(Problem::new(Reason::InvalidText, at, message));
    }
}

fn check_call(call: &str, at: &str, problems: &mut Vec<Problem>) {
    let dotted = |path: &str| !path.is_empty() && path.split('.').all(is_long_identifier);
    let fits = call.len() <= CALL_MAX
        && call.split_once(':').is_some_and(|(module, attribute)| dotted(module) && dotted(attribute));
    if !fits {
        let problem = Problem::new(Reason::InvalidValue, at, format!("{:?} is not module:function", shortened(call)));
        problems.push(problem.help("for example model:fit, package.module:function or builtins:sum"));
    }
}

fn is_long_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn check_amount(name: &str, amount: f64, at: &str, problems: &mut Vec<Problem>) {
    if !(amount.is_finite() && (0.0..=1e9).contains(&amount)) {
        let message = format!("{amount} of {} is not an amount from 0 to 1000000000", shortened(name));
        problems.push(Problem::new(Reason::InvalidValue, below(at, name), message));
    }
    if name.is_empty() || name.chars().any(char::is_control) {
        problems.push(Problem::new(
            Reason::InvalidName,
            below(at, name),
            "a resource needs a name without control characters",
        ));
    }
}

fn within(value: Option<u32>, least: u32, most: u32, at: &str, problems: &mut Vec<Problem>) {
    if let Some(value) = value
        && !(least..=most).contains(&value)
    {
        problems.push(Problem::new(Reason::InvalidValue, at, format!("{value} is outside {least} to {most}")));
    }
}

fn between(value: Option<f64>, least: f64, most: f64, at: &str, problems: &mut Vec<Problem>) {
    if let Some(value) = value
        && !(least..=most).contains(&value)
    {
        problems.push(Problem::new(Reason::InvalidValue, at, format!("{value} is outside {least} to {most}")));
    }
}
