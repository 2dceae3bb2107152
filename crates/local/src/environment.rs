//! A Python environment with Dask for local runs: made once per set of requirements, or one the user names.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use sha2::{Digest, Sha256};

use super::Home;
use run_model::Runtime;

/// What every local environment holds besides the pipeline's own requirements.
const BASE_REQUIREMENTS: &str = include_str!("../../../runtime/requirements-local.txt");
/// Written last: an environment without it was left half made and is made again.
const READY: &str = "daskade-ready";

/// A Python that has Dask, and the folder of the runtime to put on its path.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The interpreter.
    pub python: PathBuf,
    /// The folder of the runtime.
    pub runtime: PathBuf,
}

/// Why there is no Python for a run; reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// There is no interpreter.
    #[error("find Python: {tried} does not run ({cause}); install Python 3.10 or newer, or name one by --python")]
    NoPython {
        /// What was tried.
        tried: String,
        /// How that ended.
        cause: String,
    },
    /// It is too old.
    #[error("use {python}: it is Python {version}, and 3.10 or newer is needed")]
    OldPython {
        /// The interpreter.
        python: String,
        /// Its version.
        version: String,
    },
    /// It lacks a package, or has one that is too old.
    #[error("use {python}: {problem}; install it there, or leave out --python to have an environment made")]
    Lacks {
        /// The interpreter.
        python: String,
        /// What is missing.
        problem: String,
    },
    /// A command that makes the environment failed.
    #[error("make the Python environment {path}: {what} ended with {status}\n{tail}")]
    Step {
        /// The environment.
        path: String,
        /// The command.
        what: &'static str,
        /// How it ended.
        status: String,
        /// The end of its output.
        tail: String,
    },
    /// Its files could not be written.
    #[error("make the Python environment {path}: {source}")]
    Files {
        /// The environment.
        path: String,
        /// What the system says.
        source: io::Error,
    },
}

/// The user's own environment at `python`, once it is seen to have what a run needs.
pub fn existing(
    home: &Home,
    runtime: Runtime,
    python: &Path,
    requirements: &[String],
) -> Result<Environment, EnvironmentError> {
    python_version(python)?;
    let check = Command::new(python)
        .args(["-c", CHECK])
        .args(BASE_REQUIREMENTS.lines().filter(|line| is_needed(line)))
        .args(requirements)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| no_python(python, &error.to_string()))?;
    if !check.status.success() {
        let problem = last_lines(&check, 3);
        return Err(EnvironmentError::Lacks { python: python.display().to_string(), problem });
    }
    Ok(Environment { python: python.to_owned(), runtime: unpack_runtime(home, runtime)? })
}

/// An environment with Dask and `requirements`, made now if there is none yet. `say` hears what takes long.
pub fn prepared(
    home: &Home,
    runtime: Runtime,
    requirements: &[String],
    say: &dyn Fn(&str),
) -> Result<Environment, EnvironmentError> {
    let base = std::env::var_os("DASKADE_PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
    let version = python_version(&base)?;
    let mut wanted: Vec<&str> = BASE_REQUIREMENTS.lines().filter(|line| !line.trim().is_empty()).collect();
    let mut own: Vec<&str> = requirements.iter().map(String::as_str).collect();
    own.sort_unstable();
    wanted.extend(own);
    let digest = hex::encode(Sha256::digest(format!("{version}\n{}", wanted.join("\n"))));
    let path = home.environments().join(&digest[..16]);
    let python = path.join("bin").join("python");

    let files = |source| EnvironmentError::Files { path: path.display().to_string(), source };
    fs::create_dir_all(home.environments()).map_err(files)?;
    let lock = File::create(home.environments().join(format!("{}.lock", &digest[..16]))).map_err(files)?;
    if lock.try_lock().is_err() {
        say("waiting for another command that makes the same Python environment");
        lock.lock().map_err(files)?;
    }
    if !path.join(READY).exists() {
        if path.exists() {
            fs::remove_dir_all(&path).map_err(files)?;
        }
        say(&format!("making a Python environment with Dask in {} (once)", path.display()));
        let step = |what: &'static str, command: &mut Command| -> Result<(), EnvironmentError> {
            let output = command.stdin(Stdio::null()).output().map_err(files)?;
            if output.status.success() {
                return Ok(());
            }
            let tail = last_lines(&output, 8);
            let status = output.status.to_string();
            Err(EnvironmentError::Step { path: path.display().to_string(), what, status, tail })
        };
        step("python -m venv", Command::new(&base).args(["-c", MORTAL, "venv"]).arg(&path))?;
        let list = path.join("requirements.txt");
        fs::write(&list, wanted.join("\n")).map_err(files)?;
        step(
            "pip install",
            Command::new(&python)
                .args(["-c", MORTAL, "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "-r"])
                .arg(&list),
        )?;
        fs::write(path.join(READY), "").map_err(files)?;
    }
    Ok(Environment { python, runtime: unpack_runtime(home, runtime)? })
}

/// The requirements an environment must have to run steps; the others (the dashboard's) are comforts.
fn is_needed(line: &str) -> bool {
    !line.trim().is_empty() && !line.starts_with("bokeh")
}

/// Runs a module as `python -m` does, in a process that the kernel kills when the command dies (`PR_SET_PDEATHSIG`).
const MORTAL: &str = r#"
import ctypes, runpy, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"#;

/// Checks each requirement given as an argument, prints the first problem and exits with 1.
const CHECK: &str = r#"
import sys
from importlib.metadata import PackageNotFoundError, version
try:
    from packaging.requirements import Requirement
except ImportError:
    sys.exit("the package packaging is missing (Dask needs it too)")
for text in sys.argv[1:]:
    wanted = Requirement(text)
    if wanted.marker is not None and not wanted.marker.evaluate():
        continue
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        sys.exit(f"{wanted.name} is missing (wanted: {text})")
    strict = wanted.name not in ("distributed", "dask")
    if strict and not wanted.specifier.contains(found, prereleases=True):
        sys.exit(f"{wanted.name} {found} does not meet {text}")
"#;

fn python_version(python: &Path) -> Result<String, EnvironmentError> {
    let output = Command::new(python)
        .args(["-c", "import sys; print('%d.%d.%d' % sys.version_info[:3], sys.executable)"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| no_python(python, &error.to_string()))?;
    if !output.status.success() {
        return Err(no_python(python, &last_lines(&output, 1)));
    }
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let version = text.split(' ').next().unwrap_or_default();
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    if (numbers.next(), numbers.next()) < (Some(3), Some(10)) {
        let version = version.to_owned();
        return Err(EnvironmentError::OldPython { python: python.display().to_string(), version });
    }
    Ok(text)
}

fn no_python(python: &Path, cause: &str) -> EnvironmentError {
    EnvironmentError::NoPython { tried: python.display().to_string(), cause: cause.to_owned() }
}

/// Unpacks the embedded runtime once per digest; the last step is a rename, so that nobody sees half of it. The archive stays
/// beside what was in it: a scheduler sends it to workers that others started.
fn unpack_runtime(home: &Home, runtime: Runtime) -> Result<PathBuf, EnvironmentError> {
    let target = home.runtimes().join(&runtime.digest[..16]);
    if target.exists() {
        return Ok(target);
    }
    let unpack = || -> io::Result<()> {
        let partial = home.runtimes().join(format!("{}.{}", &runtime.digest[..16], std::process::id()));
        fs::create_dir_all(&partial)?;
        let mut archive = zip::ZipArchive::new(io::Cursor::new(runtime.zip)).map_err(io::Error::other)?;
        archive.extract(&partial).map_err(io::Error::other)?;
        fs::write(partial.join("daskade_runtime.zip"), runtime.zip)?;
        match fs::rename(&partial, &target) {
            Err(_) if target.exists() => fs::remove_dir_all(&partial),
            renamed => renamed,
        }
    };
    unpack().map_err(|source| EnvironmentError::Files { path: target.display().to_string(), source })?;
    Ok(target)
}

fn last_lines(output: &Output, count: usize) -> String {
    let both = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let text = String::from_utf8_lossy(&both);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
