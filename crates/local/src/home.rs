//! Where the command keeps its own files: environments, the unpacked runtime, and a note per run.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use serde::{Deserialize, Serialize};

/// The command's own folders. `DASKADE_HOME` names the data folder; environments and the unpacked runtime, which can be
/// made again at any time, lie under `DASKADE_CACHE`.
#[derive(Debug, Clone)]
pub struct Home {
    data: PathBuf,
    cache: PathBuf,
}

/// What the command notes of a run on this machine, so that `logs`, `runs` and `resume` find it by name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunNote {
    /// The uid of the run.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Storage of the run, without credentials.
    pub storage: StorageNote,
    /// Seconds since 1970.
    pub created: f64,
    /// Running, Succeeded, Failed, Cancelled, or Interrupted if the command died.
    pub state: String,
    /// Why it ended so.
    #[serde(default)]
    pub message: Option<String>,
    /// How many steps came to which end.
    #[serde(default)]
    pub steps: Option<serde_json::Value>,
    /// Process of the command while it runs.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Processes and addresses while the run is live.
    #[serde(default)]
    pub scheduler: Option<SchedulerNote>,
    /// Its worker processes.
    #[serde(default)]
    pub workers: Vec<WorkerNote>,
}

/// Where a run is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageNote {
    /// As `s3://bucket/prefix` or `file:///folder`.
    pub url: String,
    /// Of an S3 service that is not AWS.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Of the bucket.
    #[serde(default)]
    pub region: Option<String>,
}

/// The scheduler of a live run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SchedulerNote {
    /// Where it listens.
    pub address: String,
    /// Its process, if this command started it.
    pub pid: Option<u32>,
    /// The address of Dask's dashboard.
    pub dashboard: Option<String>,
}

/// A worker of a live run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkerNote {
    /// Its name.
    pub name: String,
    /// Its group.
    pub group: String,
    /// Its process.
    pub pid: u32,
}

impl Home {
    /// The folders by the environment: `DASKADE_HOME` and `DASKADE_CACHE`, else the XDG base directories.
    pub fn from_env() -> io::Result<Self> {
        let user = |variable: &str, below_home: &str| -> io::Result<PathBuf> {
            if let Some(path) = env::var_os(variable).filter(|path| !path.is_empty()) {
                return Ok(PathBuf::from(path).join("daskade"));
            }
            let home = env::var_os("HOME").filter(|home| !home.is_empty()).ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, "neither DASKADE_HOME nor HOME is set: nowhere to keep runs")
            })?;
            Ok(PathBuf::from(home).join(below_home).join("daskade"))
        };
        let named = |variable: &str| env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from);
        let data = match named("DASKADE_HOME") {
            Some(path) => path,
            None => user("XDG_DATA_HOME", ".local/share")?,
        };
        let cache = match named("DASKADE_CACHE") {
            Some(path) => path,
            None => user("XDG_CACHE_HOME", ".cache")?,
        };
        Ok(Self { data: std::path::absolute(data)?, cache: std::path::absolute(cache)? })
    }

    /// The directory store that runs use when no storage is named.
    pub fn default_storage(&self) -> PathBuf {
        self.data.join("storage")
    }

    /// Python environments.
    pub fn environments(&self) -> PathBuf {
        self.cache.join("environments")
    }

    /// The unpacked runtimes, one folder per digest.
    pub fn runtimes(&self) -> PathBuf {
        self.cache.join("runtimes")
    }

    /// Working folder of a run's processes: their logs, and what workers keep on disk.
    pub fn scratch(&self, uid: &str) -> PathBuf {
        self.data.join("scratch").join(uid)
    }

    fn notes(&self) -> PathBuf {
        self.data.join("runs")
    }

    /// Writes the note of a run (replaced as a whole, so that a reader never sees half of it).
    pub fn write_note(&self, note: &RunNote) -> io::Result<()> {
        let folder = self.notes();
        let text = serde_json::to_vec_pretty(note).map_err(io::Error::other)?;
        let partial = folder.join(format!(".{}.{}", note.uid, std::process::id()));
        fs::create_dir_all(&folder)
            .and_then(|()| fs::write(&partial, text))
            .and_then(|()| fs::rename(partial, folder.join(format!("{}.json", note.uid))))
            .map_err(|error| at(&folder, error))
    }

    /// Keeps what a run was asked for, so that it can be resumed even if it dies before its journal exists.
    pub fn write_request(&self, uid: &str, spec: &[u8], code: &[u8]) -> io::Result<()> {
        let folder = self.requests().join(uid);
        let partial = folder.join("spec.partial");
        fs::create_dir_all(&folder)
            .and_then(|()| fs::write(folder.join("code.zip"), code))
            .and_then(|()| fs::write(&partial, spec))
            .and_then(|()| fs::rename(&partial, folder.join("spec.json")))
            .map_err(|error| at(&folder, error))
    }

    /// Specification and code of a run that was asked for here and whose journal does not exist.
    pub fn read_request(&self, uid: &str) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
        let folder = self.requests().join(uid);
        match fs::read(folder.join("spec.json")) {
            Ok(spec) => Ok(Some((spec, fs::read(folder.join("code.zip"))?))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The journal has it now.
    pub fn remove_request(&self, uid: &str) -> io::Result<()> {
        fs::remove_dir_all(self.requests().join(uid))
    }

    fn requests(&self) -> PathBuf {
        self.data.join("requests")
    }

    /// All notes, oldest first. A file that is not a note is left out.
    pub fn read_notes(&self) -> io::Result<Vec<RunNote>> {
        let folder = match fs::read_dir(self.notes()) {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut notes: Vec<RunNote> = folder
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
            .filter_map(|path| read_note(&path))
            .collect();
        notes.sort_by(|a, b| a.created.total_cmp(&b.created).then_with(|| a.uid.cmp(&b.uid)));
        Ok(notes)
    }

    /// The note of the run with this uid, the beginning of one (8 characters at least), or the newest of this name.
    pub fn find_note(&self, wanted: &str) -> io::Result<Option<RunNote>> {
        let notes = self.read_notes()?;
        let matches = |note: &&RunNote| {
            note.uid == wanted || note.name == wanted || (wanted.len() >= 8 && note.uid.starts_with(wanted))
        };
        Ok(notes.iter().rev().find(matches).cloned())
    }
}

impl RunNote {
    /// The state to show: a run whose command died without an end was interrupted.
    pub fn shown_state(&self) -> &str {
        let alive = self.pid.is_some_and(is_daskade);
        if self.state == "Running" && !alive { "Interrupted" } else { &self.state }
    }
}

/// `error` with the folder that it is about.
fn at(folder: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", folder.display()))
}

/// True if `pid` is a live process of this program (a number may have been given to another one since).
fn is_daskade(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == "daskade")
}

fn read_note(path: &Path) -> Option<RunNote> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(uid: &str, name: &str, created: f64) -> RunNote {
        RunNote {
            uid: uid.into(),
            name: name.into(),
            storage: StorageNote { url: "file:///x".into(), endpoint: None, region: None },
            created,
            state: "Running".into(),
            message: None,
            steps: None,
            pid: None,
            scheduler: None,
            workers: vec![],
        }
    }

    #[test]
    fn a_run_is_found_by_uid_by_its_beginning_and_by_name_the_newest_first() {
        let folder = env::temp_dir().join(format!("daskade-home-{}", uuid::Uuid::new_v4()));
        let home = Home { data: folder.clone(), cache: folder.clone() };
        assert!(home.read_notes().is_ok_and(|notes| notes.is_empty()));
        for (uid, created) in [("aaaaaaaa-1", 1.0), ("bbbbbbbb-2", 2.0)] {
            home.write_note(&note(uid, "diamond", created)).unwrap();
        }
        let uid = |wanted: &str| home.find_note(wanted).unwrap().map(|note| note.uid);
        assert_eq!(uid("diamond").as_deref(), Some("bbbbbbbb-2"));
        assert_eq!(uid("aaaaaaaa").as_deref(), Some("aaaaaaaa-1"));
        assert_eq!(uid("aaaa"), None);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_run_without_its_command_is_shown_as_interrupted() {
        assert_eq!(note("a", "b", 0.0).shown_state(), "Interrupted");
    }
}
