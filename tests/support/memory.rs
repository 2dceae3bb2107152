//! How much memory something takes. Such a test has a process of its own: what else has run in one leaves its traces.

use std::future::Future;
use std::process::Command;

use tokio::runtime::Builder;

/// Names the test that a process is for.
const ALONE: &str = "DASKADE_TEST_ALONE";

/// What a peer may make a process take, whatever it sends.
pub const RISE: usize = 64 << 20;

/// Runs `test` in a process of its own; `name` is the path of the test that calls this.
pub fn alone(name: &str, test: impl Future<Output = ()>) {
    if std::env::var(ALONE).is_ok_and(|alone| alone == name) {
        Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime").block_on(test);
        return;
    }
    let own = std::env::current_exe().expect("this program");
    let ended = Command::new(own).args(["--exact", name, "--nocapture"]).env(ALONE, name).output().expect("it runs");
    let told = format!("{}{}", String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success() && told.contains("1 passed"), "{told}");
}

/// The most memory that this process has had since [`forget_peak`], in bytes.
pub fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let kibibytes: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kibibytes * 1024
}

/// From here on the peak counts anew.
pub fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").expect("the peak can be forgotten");
}

/// Asserts that `peak` has not risen above what it was by more than a peer may make it.
pub fn assert_bounded(before: usize) {
    let rise = peak().saturating_sub(before);
    assert!(rise <= RISE, "it rose by {} MiB", rise >> 20);
    println!("rose by {} MiB", rise >> 20);
}

/// Bytes to be sent without holding all of them.
#[derive(Debug, Default)]
pub struct Flood {
    pub head: Vec<u8>,
    /// Sent so often, after the head.
    pub piece: Vec<u8>,
    pub times: usize,
}

impl Flood {
    /// A message of one map with one text of so many mebibytes.
    pub fn text(mebibytes: usize) -> Self {
        let length = u32::try_from(mebibytes << 20).expect("it is not that long");
        let body = [b"\x81\xa7runtime\xdb".to_vec(), length.to_be_bytes().to_vec()].concat();
        let frame = body.len() as u64 + u64::from(length);
        let words = [frame + 16, 1, frame];
        let head = words.iter().flat_map(|word| word.to_le_bytes()).chain(body).collect();
        Self { head, piece: vec![b'x'; 1 << 20], times: mebibytes }
    }

    /// Sends it, or as much as the other side takes.
    pub async fn send<S: tokio::io::AsyncWrite + Unpin>(&self, stream: &mut S) {
        use tokio::io::AsyncWriteExt;
        if stream.write_all(&self.head).await.is_err() {
            return;
        }
        for _ in 0..self.times {
            if stream.write_all(&self.piece).await.is_err() {
                return;
            }
        }
    }
}
