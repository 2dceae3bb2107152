//! `resume` for runs in Kubernetes: one that was suspended goes on.

use std::io::{self, Write};

use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::connection::{Connection, failed};
use super::show::{ended, state};
use crate::cli::Failure;
use crate::cli::options::KubeOptions;

/// Takes `spec.suspend` back. What has ended stays as it is.
pub(in crate::cli) async fn resume(kube: &KubeOptions, name: &str) -> Result<(), Failure> {
    let connection = Connection::open(kube).await?;
    let run = connection.run(name).await?;
    if ended(&run).is_some() {
        return Err(Failure::bad_input(format!(
            "{name} has ended ({}), and a run in Kubernetes that has ended cannot be resumed; use daskade retry {name}",
            state(&run)
        )));
    }
    let mut out = io::stdout().lock();
    if run.pointer("/spec/suspend") != Some(&json!(true)) {
        writeln!(out, "{name} is not suspended: {}", state(&run))?;
        return Ok(());
    }
    let patch = Patch::Merge(json!({"spec": {"suspend": false}}));
    let patched = connection.runs().patch(name, &PatchParams::default(), &patch).await;
    patched.map_err(|error| failed(&format!("resume run {name}"), &error))?;
    writeln!(out, "{name} resumed")?;
    Ok(())
}
