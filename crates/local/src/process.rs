//! One child process: its log file, its first line of output if that is waited for, and its end.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, oneshot};

/// A running child. Dropping it kills the process.
#[derive(Debug)]
pub(super) struct Process {
    pub name: String,
    pub pid: u32,
    pub log: PathBuf,
    kill: Option<oneshot::Sender<()>>,
    stdout: Option<ChildStdout>,
    /// The child ends when this pipe does: only we hold its other end.
    _stdin: Option<ChildStdin>,
}

/// The end of a process, as its watcher reports it.
#[derive(Debug)]
pub(super) struct Exit {
    pub name: String,
    pub pid: u32,
    pub status: io::Result<ExitStatus>,
}

impl Process {
    /// Starts `command` in a process group of its own, so that Ctrl-C on the terminal reaches only us. Standard error
    /// goes to `log`; standard output too, unless `read_stdout`.
    pub fn spawn(
        name: &str,
        command: &mut Command,
        log: &Path,
        read_stdout: bool,
        exits: mpsc::UnboundedSender<Exit>,
    ) -> io::Result<Self> {
        let file = append(log)?;
        let stdout = if read_stdout { Stdio::piped() } else { Stdio::from(file.try_clone()?) };
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(Stdio::from(file))
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().ok_or_else(|| io::Error::other("the process ended at once"))?;
        // Taken out, since waiting for the child would close it.
        let stdin = child.stdin.take();
        let stdout = child.stdout.take();
        let (kill, mut killed) = oneshot::channel::<()>();
        let owned = name.to_owned();
        tokio::spawn(async move {
            let status = tokio::select! {
                status = child.wait() => status,
                _ = &mut killed => {
                    // The error can only be that it has ended already, which wait reports.
                    drop(child.start_kill());
                    child.wait().await
                }
            };
            // Nobody listens any more once the fleet is gone.
            drop(exits.send(Exit { name: owned, pid, status }));
        });
        Ok(Self { name: name.to_owned(), pid, log: log.to_owned(), kill: Some(kill), stdout, _stdin: stdin })
    }

    /// Ends it by SIGKILL; its exit is reported as any other.
    pub fn kill(&mut self) {
        if let Some(kill) = self.kill.take() {
            // The watcher is gone only if the process is.
            let _ = kill.send(());
        }
    }

    /// Lines of its standard output that begin with `{`; the others go to the log.
    pub fn json_lines(&mut self) -> Option<mpsc::Receiver<String>> {
        let stdout = self.stdout.take()?;
        let log = self.log.clone();
        let (lines, received) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut reader = BufReader::new(stdout).lines();
            let mut file = append(&log).ok();
            while let Ok(Some(line)) = reader.next_line().await {
                if line.starts_with('{') && !lines.is_closed() {
                    drop(lines.send(line).await);
                } else if let Some(file) = file.as_mut() {
                    use std::io::Write;
                    if writeln!(file, "{line}").is_err() {
                        break;
                    }
                }
            }
        });
        Some(received)
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// The last lines of a log, for a message about why a process did not start.
pub(super) fn tail(path: &Path, count: usize) -> String {
    let text = std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
