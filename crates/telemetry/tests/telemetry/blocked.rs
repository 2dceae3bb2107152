//! A log whose pipe nobody reads: lines are dropped and counted, and nothing waits. The writer is this test itself, run
//! once more as a process of its own.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use telemetry::log::{self, Format, Settings};

const WRITER: &str = "DASKADE_TEST_WRITER";
const LINES: u32 = 50_000;

#[test]
fn lines_for_a_blocked_pipe_are_dropped_and_counted_and_nothing_waits() {
    if std::env::var_os(WRITER).is_some() {
        return write();
    }
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    let own = std::env::current_exe().expect("this program");
    let name = "blocked::lines_for_a_blocked_pipe_are_dropped_and_counted_and_nothing_waits";
    let done = Command::new(own)
        .args(["--exact", name, "--nocapture"])
        .env(WRITER, "1")
        .stderr(Stdio::from(writer))
        .output()
        .expect("run it");
    let told = String::from_utf8_lossy(&done.stdout);
    let numbers: Vec<u64> = told
        .lines()
        .find_map(|line| line.split_once("numbers: ").map(|(_, rest)| rest))
        .unwrap_or_else(|| panic!("no numbers in {told}"))
        .split(' ')
        .map(|number| number.parse().expect("a number"))
        .collect();
    let [logging, dropped, finish] = numbers.as_slice() else { panic!("three numbers: {told}") };
    assert!(*dropped > u64::from(LINES) / 2 && *dropped < u64::from(LINES), "{told}");
    assert!(*logging < 10_000, "it took {logging} ms to log");
    assert!(*finish < 2_500, "it took {finish} ms to end");
    drop(reader);
}

fn write() {
    let settings = Settings { format: Format::Json, filter: "info".into(), otlp: None };
    let telemetry = log::start(&settings).expect("telemetry");
    let dropped = telemetry.dropped();
    let begun = Instant::now();
    for number in 0..LINES {
        tracing::info!(number, "a line that is about as long as those of the operator are, more or less");
    }
    let logging = begun.elapsed();
    let begun = Instant::now();
    telemetry.finish();
    let finish = begun.elapsed();
    assert!(finish < Duration::from_secs(60));
    println!("numbers: {} {} {}", logging.as_millis(), dropped.dropped_lines(), finish.as_millis());
}
