//! What a person can do about a storage that does not let a run in.

use super::facts::Frozen;
use crate::cluster::facts::Issue;
use api::reason::Reason;

/// The trouble with what to do about it.
pub(super) fn advised(issue: &Issue, frozen: &Frozen) -> Issue {
    let Some(advice) = advice(issue.reason, frozen) else { return issue.clone() };
    Issue { message: format!("{}; {advice}", issue.message), ..issue.clone() }
}

fn advice(reason: Reason, frozen: &Frozen) -> Option<String> {
    let is_folder = frozen.storage_url.starts_with("file://");
    let text = match (reason, &frozen.storage_secret) {
        (Reason::AccessDenied, _) if is_folder => {
            "let user 1000 or group 1000 of the pods write there, and the run continues".to_owned()
        }
        (Reason::AccessDenied | Reason::CredentialsExpired, Some(secret)) => format!(
            "correct the keys in the Secret {secret} (storage.secretRef) or their permissions: the pods pick them up \
             within two minutes, and the run continues"
        ),
        (Reason::AccessDenied | Reason::CredentialsExpired, None) => {
            "no storage.secretRef is set, so the pods use their own identity (service account, environment): allow it \
             to read, write and list there, and the run continues"
                .to_owned()
        }
        (Reason::NoSuchBucket, _) => "create the bucket, and the run continues".to_owned(),
        (Reason::StorageFull, _) => "free some space, and the run continues".to_owned(),
        _ => return None,
    };
    Some(text)
}
