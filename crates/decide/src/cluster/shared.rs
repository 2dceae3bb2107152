//! A cluster that is not made for the run: what a pipeline has to say then, and what it cannot.

use api::pipeline::PipelineSpec;
use api::problem::Problem;
use api::reason::Reason;

/// What is wrong with a pipeline, whose fields stand below `at`, that runs on a cluster which it names. Storage is reached
/// with that cluster's own identity, no other can.
pub fn check_shared(spec: &PipelineSpec, at: &str) -> Vec<Problem> {
    let Some(choice) = spec.cluster.as_ref().filter(|choice| choice.ref_.is_some() || choice.address.is_some()) else {
        return Vec::new();
    };
    let mut problems = Vec::new();
    if let Some(address) = &choice.address {
        if address.starts_with("tls://") && choice.tls.as_ref().is_none_or(|tls| tls.secret_ref.is_none()) {
            let path = format!("{at}.cluster.tls.secretRef");
            let problem = Problem::new(Reason::MissingField, path, "tls:// needs certificates");
            problems.push(problem.help("name a Secret with ca.crt, tls.crt and tls.key"));
        }
        if spec.storage.is_none() {
            let message = "a run on a scheduler that others run needs a storage";
            let problem = Problem::new(Reason::MissingField, format!("{at}.storage"), message);
            problems.push(problem.help("say where outputs and journal go: storage: {url: \"s3://bucket/prefix\"}"));
        }
    }
    let identity = spec
        .storage
        .iter()
        .flat_map(|s| [("secretRef", &s.secret_ref), ("serviceAccountName", &s.service_account_name)]);
    for (field, _) in identity.filter(|(_, value)| value.is_some()) {
        let message = "on a cluster that is not made for the run, storage is reached with the cluster's own identity";
        let problem = Problem::new(Reason::Conflict, format!("{at}.storage.{field}"), message);
        problems.push(problem.help("leave it out, and give the cluster's pods the right to use the storage"));
    }
    problems
}

/// A scheduler at an address that the operator was not told to use.
pub fn not_allowed(address: &str, at: &str) -> Problem {
    let message = format!("the operator is not allowed to use the scheduler {address}");
    let problem = Problem::new(Reason::NotAllowed, format!("{at}.cluster.address"), message);
    problem.help("who runs the operator can allow it with --allow-address")
}
