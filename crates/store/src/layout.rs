//! Keys of what a run stores, relative to the storage url. Pure.

use std::fmt::Write as _;

use api::keys::{KeyError, check_key};

/// A run's place in storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    run: String,
}

impl Layout {
    /// The layout of the run with this uid: 1 to 63 letters, digits, `-`, `_` or `.`, a letter or digit first.
    pub fn new(run: &str) -> Result<Self, KeyError> {
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if run.len() > 63 || !run.starts_with(|c: char| c.is_ascii_alphanumeric()) || !run.chars().all(fine) {
            return Err(KeyError::Run(run.chars().take(64).filter(|c| !c.is_control()).collect()));
        }
        Ok(Self { run: run.to_owned() })
    }

    /// The uid.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// Folder of all runs.
    pub fn runs() -> &'static str {
        "runs"
    }

    /// Folder of the run.
    pub fn folder(&self) -> String {
        format!("runs/{}", self.run)
    }

    /// Folder of the segments.
    pub fn journal(&self) -> String {
        format!("runs/{}/journal", self.run)
    }

    /// Key of a segment.
    pub fn segment(&self, seg: u64) -> String {
        format!("runs/{}/journal/{seg:010}.seg", self.run)
    }

    /// Key of the mark that journal, logs and code are removed.
    pub fn removed(&self) -> String {
        format!("runs/{}/removed/record", self.run)
    }

    /// Folder of the marks that outputs, or journal, logs and code, are removed.
    pub fn removals(&self) -> String {
        format!("runs/{}/removed", self.run)
    }

    /// Folder of the marks by which the runs of a pipeline are found; `pipeline`: the beginning of the digest of its name.
    pub fn marks(pipeline: &str) -> String {
        format!("pipelines/{pipeline}")
    }

    /// Folder of the log objects.
    pub fn logs(&self) -> String {
        format!("runs/{}/logs", self.run)
    }

    /// Key of one attempt's output; `item` is -1 for an unmapped step.
    pub fn data(&self, step: u32, item: i64, attempt: u32, nonce: &str) -> String {
        format!("runs/{}/data/{step}/{item}-{attempt}-{nonce}", self.run)
    }

    /// Key of a code archive too large for the journal.
    pub fn code(&self, digest: &[u8]) -> String {
        let mut key = format!("runs/{}/code/", self.run);
        for byte in digest {
            let _ = write!(key, "{byte:02x}");
        }
        key + ".zip"
    }

    /// Key of the object a handle's path names: below the run, or, with a leading slash, below the storage url (an output
    /// with a declared path).
    pub fn object(&self, path: &str) -> Result<String, KeyError> {
        let key = match path.strip_prefix('/') {
            Some(from_root) => from_root.to_owned(),
            None => format!("runs/{}/{path}", self.run),
        };
        check_key(&key)?;
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_their_documented_form() {
        let layout = Layout::new("3f0c-1").unwrap();
        assert_eq!(layout.segment(7), "runs/3f0c-1/journal/0000000007.seg");
        assert_eq!(layout.data(2, -1, 3, "abcd"), "runs/3f0c-1/data/2/-1-3-abcd");
        assert_eq!(layout.code(&[0xab, 0x01]), "runs/3f0c-1/code/ab01.zip");
        assert_eq!(layout.object("data/0/0-1-x").unwrap(), "runs/3f0c-1/data/0/0-1-x");
        assert_eq!(layout.object("/models/a.json").unwrap(), "models/a.json");
    }

    #[test]
    fn a_path_cannot_leave_the_run() {
        let layout = Layout::new("r").unwrap();
        for path in ["../other/journal", "a//b", "", "//x", "/", "a/../../b", "a\nb", "a\\b", "a/.", ".tmp-1"] {
            assert!(layout.object(path).is_err(), "{path:?}");
        }
        assert!(layout.object(&"x".repeat(1018)).is_err());
        assert!(layout.object(&"x".repeat(1017)).is_ok());
    }

    #[test]
    fn a_run_is_a_uid() {
        for run in ["", "a/b", "..", ".hidden", "a b", "é", &"x".repeat(64)] {
            assert!(Layout::new(run).is_err(), "{run:?}");
        }
    }
}
