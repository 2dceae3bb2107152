//! The real binary, as Kubernetes runs it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Method;
use serde_json::Value;
use tokio::process::Child;
use tokio::time::{Instant, timeout};

use crate::LEASE;
use crate::api::{Api, KINDS, Recorded};
use crate::wait::{self, eventually, eventually_or};
use crate::world::{World, plain};

const SOON: Duration = Duration::from_secs(20);

/// A running operator, killed when it goes out of scope.
pub struct Operator {
    child: Child,
    listen: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    _folder: tempfile::TempDir,
}

impl Operator {
    pub fn start(api: &Api, arguments: &[&str]) -> Self {
        let mut operator = Self::start_logging_to(api, arguments, Stdio::piped());
        let stderr = operator.child.stderr.take().expect("its standard error");
        let stderr = File::from(stderr.into_owned_fd().expect("a file"));
        let log = operator.log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                log.lock().expect("no panic").push(line);
                wait::ring();
            }
            wait::ring();
        });
        operator
    }

    fn start_logging_to(api: &Api, arguments: &[&str], log: Stdio) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listen = free_address();
        let mut command = command(&api.kubeconfig(folder.path()));
        command
            .args(["--listen", &listen.to_string(), "--lease-duration", "3s"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = tokio::process::Command::from(command).kill_on_drop(true).spawn().expect("start it");
        Self { child, listen, log: Arc::default(), _folder: folder }
    }

    fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.listen, Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
    }

    fn ready(&self) -> Value {
        self.get("/ready").and_then(|(_, body)| serde_json::from_str(&body).ok()).unwrap_or_default()
    }

    pub fn leads(&self) -> bool {
        self.ready()["role"] == "leader"
    }

    fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics")?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    pub fn process(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.process().to_string()]).status();
        assert!(sent.expect("run kill").success());
    }

    pub fn lines(&self) -> Vec<String> {
        self.log.lock().expect("no panic").clone()
    }

    /// How long it took to end, and its exit code.
    async fn ended(&mut self) -> (Duration, Option<i32>) {
        let begun = Instant::now();
        let status = timeout(SOON, self.child.wait()).await.expect("it ends").expect("its status");
        (begun.elapsed(), status.code())
    }
}

fn command(kubeconfig: &Path) -> Command {
    // Another one, for example one that is optimised.
    let program = std::env::var("DASKADE_TEST_OPERATOR").unwrap_or_else(|_| env!("CARGO_BIN_EXE_daskade").to_owned());
    let mut command = Command::new(program);
    command.arg("operator").env("KUBECONFIG", kubeconfig).envs(environment());
    command
}

/// What the image sets.
fn environment() -> Vec<(String, String)> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("Dockerfile");
    let file = std::fs::read_to_string(file).expect("the Dockerfile");
    let pairs = file.lines().filter_map(|line| line.strip_prefix("ENV ")).flat_map(str::split_whitespace);
    pairs.filter_map(|pair| pair.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Whether a thread of the process waits for a pipe to take what it writes.
fn blocked_writing(process: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("its threads");
    let waits =
        threads.flatten().map(|thread| std::fs::read_to_string(thread.path().join("syscall")).unwrap_or_default());
    // Number of the system call write: 1 on x86-64, 64 on arm64; its first argument is the descriptor.
    waits.into_iter().any(|call| ["1 0x2 ", "64 0x2 "].iter().any(|write| call.starts_with(write)))
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port")
}

/// Successful writes of the lease by one holder.
fn renewals(requests: &[Recorded], holder: &str) -> usize {
    let by = |request: &&Recorded| request.body["spec"]["holderIdentity"] == holder;
    requests.iter().filter(|request| request.method == Method::PUT && request.status == 200).filter(by).count()
}

fn holder(api: &Api) -> String {
    api.object(LEASE).and_then(|lease| Some(lease["spec"]["holderIdentity"].as_str()?.to_owned())).unwrap_or_default()
}

#[test]
fn a_bad_option_ends_it_at_once_with_its_name() {
    for (arguments, part) in [
        (vec!["--listen", "nowhere"], "'--listen <ADDRESS:PORT>'"),
        (vec!["--log-format", "xml"], "'--log-format <LOG_FORMAT>'"),
        (vec!["--log", "a=b=c"], "'--log <FILTER>'"),
        (vec!["--image", "not an image"], "'--image <IMAGE>'"),
        (vec!["--default-storage-url", "file:///data"], "'--default-storage-url <URL>'"),
        (
            vec!["--default-storage-url", "s3://bucket/c", "--default-storage-endpoint", "s3.example.com"],
            "'--default-storage-endpoint <URL>'",
        ),
        (vec!["--default-storage-secret", "s3"], "--default-storage-url <URL>"),
        (vec!["--certificate-lifetime", "1s"], "must be from 1m to 365d"),
        (vec!["--certificate-lifetime", "10 parsecs"], "'--certificate-lifetime <TIME>'"),
        (vec!["--lease-duration", "3500ms"], "must be whole seconds"),
        (vec!["--max-params-size", "0"], "must be at least one byte"),
        (vec!["--max-pipeline-size", "much"], "is not a quantity"),
        (vec!["--max-attempts", "0"], "'--max-attempts <N>'"),
        (vec!["--max-steps-per-run", "none"], "'--max-steps-per-run <N>'"),
        (vec!["--lease-duration", "1s"], "'--lease-duration <TIME>'"),
        (vec!["--lease-name", "Not_a_name"], "'--lease-name <NAME>'"),
        (vec!["--max-concurrent", "0"], "'--max-concurrent <N>'"),
        (vec!["--otlp-endpoint", "collector:4317"], "'--otlp-endpoint <URL>'"),
        (vec!["--own-namespace", "x-"], "'--own-namespace <NAME>'"),
        (vec!["--watch-namespaces", "a,B"], "'--watch-namespaces <NAME>'"),
        (vec!["--namespace-selector", "team data"], "'--namespace-selector <LABELS>'"),
        (vec!["--namespace-selector", "a=b", "--watch-namespaces", "a"], "cannot be used with"),
        (vec!["--no-such-option"], "--no-such-option"),
    ] {
        let done = command(Path::new("/nonexistent")).args(&arguments).output().expect("run it");
        let told = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{arguments:?}: {told}");
        assert!(told.contains(part), "{arguments:?}: {told}");
    }
    let by_environment =
        command(Path::new("/nonexistent")).env("DASKADE_MAX_CONCURRENT", "many").output().expect("run it");
    assert_eq!(by_environment.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&by_environment.stderr).contains("--max-concurrent"));
}

#[test]
fn without_a_cluster_or_its_port_it_ends_and_says_why() {
    let done = command(Path::new("/nonexistent")).args(["--listen", "127.0.0.1:0"]).output().expect("run it");
    assert_eq!(done.status.code(), Some(3));
    let line: Value = serde_json::from_slice(&done.stderr).expect("one JSON line");
    assert!(line["message"].as_str().is_some_and(|text| text.contains("set KUBECONFIG")), "{line}");

    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    let done = command(Path::new("/nonexistent")).args(["--listen", &address]).output().expect("run it");
    assert_eq!(done.status.code(), Some(3));
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(told.contains(&address) && told.contains("--listen"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_tells_what_it_waits_for_then_is_ready_and_gives_the_lease_back_at_the_end() {
    let api = Api::start().await;
    api.set_kinds(&[]);
    let mut operator = Operator::start(&api, &[]);
    eventually("it answers", SOON, || operator.get("/health").is_some()).await;
    assert_eq!(operator.get("/health").expect("an answer").0, 200);
    eventually("it names what is missing", SOON, || {
        operator.ready()["waiting"]["crds"].as_str().is_some_and(|why| why.contains("daskclusters.daskade.dev"))
    })
    .await;
    assert_eq!(operator.get("/ready").expect("an answer").0, 503);
    api.set_kinds(&["daskclusters", "pipelines"]);
    eventually("it names what is still missing", SOON, || {
        let told = operator.ready()["waiting"]["crds"].to_string();
        told.contains("pipelineruns.daskade.dev") && !told.contains("daskclusters")
    })
    .await;
    api.set_kinds(&KINDS);
    eventually("it is ready", SOON, || operator.get("/ready").is_some_and(|(status, _)| status == 200)).await;
    eventually("it leads", SOON, || operator.leads()).await;
    assert_eq!(operator.metric("daskade_leader"), Some(1.0));
    assert!(operator.get("/nothing").is_some_and(|(status, _)| status == 404));

    operator.signal("TERM");
    let (took, code) = operator.ended().await;
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(holder(&api), "", "the lease is free");

    let lines = operator.lines();
    assert!(lines.len() >= 4, "{lines:?}");
    for line in &lines {
        let parsed: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for field in ["timestamp", "level", "message", "target"] {
            assert!(parsed[field].is_string(), "{field} in {line}");
        }
    }
    assert!(
        lines.last().is_some_and(|line| line.contains("released the lease")),
        "the last line is not lost: {lines:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_may_not_be_given_back_is_told_in_the_log() {
    for renewals_fail_before in [false, true] {
        let api = Api::start().await;
        let mut operator = Operator::start(&api, &[]);
        eventually("it leads", SOON, || operator.leads()).await;
        // As when its rights are deleted before it is told to end.
        api.fail("/leases", 403);
        if renewals_fail_before {
            eventually("it is refused", SOON, || operator.ready()["waiting"]["lease"].is_string()).await;
        }
        operator.signal("TERM");
        let (_, code) = operator.ended().await;
        assert_eq!(code, Some(0));
        let is_told =
            |line: &String| ["could not release", "told to fail", "WARN"].iter().all(|part| line.contains(part));
        let what = || format!("it is told, and why: {:?}", operator.lines());
        eventually_or(what, SOON, || operator.lines().iter().any(is_told)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_differs_from_the_api_servers_is_told() {
    let api = Api::start().await;
    api.set_clock(jiff::SignedDuration::from_hours(2));
    let operator = Operator::start(&api, &[]);
    eventually("it leads", SOON, || operator.leads()).await;
    let told = |lines: Vec<String>| lines.iter().any(|line| line.contains("differs from the API server's"));
    eventually("it is told in the log", SOON, || told(operator.lines())).await;
    let skew = operator.metric("daskade_clock_skew_seconds").expect("a metric");
    assert!((-7210.0..-7190.0).contains(&skew), "it is behind: {skew}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_leader_is_killed_the_other_takes_over_after_the_lease_ran_out() {
    let api = Api::start().await;
    let mut first = Operator::start(&api, &[]);
    eventually("the first leads", SOON, || first.leads()).await;
    let second = Operator::start(&api, &[]);
    eventually("the second is ready", SOON, || second.ready()["ready"] == true).await;
    assert_eq!((first.leads(), second.leads()), (true, false));
    assert_eq!(second.metric("daskade_leader"), Some(0.0));
    let transitions = |api: &Api| api.object(LEASE).and_then(|lease| lease["spec"]["leaseTransitions"].as_i64());
    let before = transitions(&api).expect("a count");
    first.child.kill().await.expect("kill it");
    let killed = Instant::now();
    eventually("the second leads", SOON, || second.leads()).await;
    assert!(killed.elapsed() >= Duration::from_secs(2), "not before the lease ran out: {:?}", killed.elapsed());
    assert!(killed.elapsed() < Duration::from_secs(6), "{:?}", killed.elapsed());
    assert_eq!(transitions(&api), Some(before + 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_stopped_for_a_while_writes_nothing_afterwards() {
    let api = Api::start().await;
    let first = Operator::start(&api, &[]);
    eventually("the first leads", SOON, || first.leads()).await;
    let stopped = holder(&api);
    first.signal("STOP");
    let second = Operator::start(&api, &[]);
    eventually("the second leads", SOON, || second.leads()).await;
    let next = holder(&api);
    assert_ne!(stopped, next);
    // A request that was on its way when it stopped belongs to its time.
    let so_far = renewals(&api.requests(), &stopped);
    first.signal("CONT");
    eventually("the first stands by", SOON, || first.ready()["role"] == "standby").await;
    let looks = || api.requests().iter().filter(|read| read.method == Method::GET && read.path == LEASE).count();
    let before = looks();
    eventually("the first has seen several times whose it is", SOON, || looks() >= before + 3).await;
    assert_eq!(renewals(&api.requests(), &stopped), so_far, "no write of the first was taken");
    assert_eq!(holder(&api), next);
    assert!(second.leads() && !first.leads());
    // And it is of use again.
    drop(second);
    eventually("the first leads again", SOON, || first.leads()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_log_holds_up_nothing() {
    let api = Api::start().await;
    // A pipe for some ten lines that nobody reads. What is dropped then: crates/telemetry/tests.
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).expect("a small pipe");
    let mut operator = Operator::start_logging_to(&api, &["--log", "trace"], Stdio::from(writer));
    eventually("it leads", SOON, || operator.leads()).await;
    // The end of a line that is too long for the pipe is still waiting.
    eventually("the pipe is full", SOON, || blocked_writing(operator.process())).await;
    let ours = holder(&api);
    let so_far = renewals(&api.requests(), &ours);
    eventually("it goes on renewing", Duration::from_secs(4), || renewals(&api.requests(), &ours) >= so_far + 3).await;
    assert!(operator.leads());
    operator.signal("TERM");
    let (took, code) = operator.ended().await;
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(holder(&api), "");
    drop(reader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_hangs_does_not_hold_up_the_end() {
    let api = Api::start().await;
    let mut operator = Operator::start(&api, &[]);
    eventually("it leads", SOON, || operator.leads()).await;
    api.set_silent(true);
    eventually("it does not lead", SOON, || operator.ready()["role"] == "standby").await;
    assert_eq!(operator.get("/ready").expect("an answer").0, 503);
    assert_eq!(operator.get("/health").expect("an answer").0, 200);
    operator.signal("TERM");
    let (took, code) = operator.ended().await;
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_open_metrics_and_few() {
    let api = Api::start().await;
    let operator = Operator::start(&api, &[]);
    eventually("it leads", SOON, || operator.leads()).await;
    let (status, text) = operator.get("/metrics").expect("an answer");
    assert_eq!(status, 200);
    let families = open_metrics(&text);
    assert!(families.contains(&"daskade_leader".to_owned()), "{families:?}");
    assert!(families.contains(&"process_resident_memory_bytes".to_owned()), "{families:?}");
    assert!(families.len() < 20 && text.lines().count() < 200, "{text}");
}

#[test]
fn every_metric_is_documented_with_its_labels_and_no_other_is() {
    use telemetry::metrics::{Answer, Controller, Metrics, Outcome, Verb};
    let metrics = Metrics::default();
    let outcomes = [
        Outcome::Settled,
        Outcome::Waiting,
        Outcome::Invalid,
        Outcome::Conflict,
        Outcome::Transient,
        Outcome::Forbidden,
        Outcome::Fenced,
        Outcome::Panicked,
    ];
    for outcome in outcomes {
        metrics.observe_reconcile(Controller::DaskCluster, outcome, Duration::from_secs(1));
    }
    let answers = [
        Answer::Done,
        Answer::Conflict,
        Answer::Forbidden,
        Answer::Refused,
        Answer::Throttled,
        Answer::ServerError,
        Answer::Broken,
        Answer::Fenced,
    ];
    for answer in answers {
        metrics.count_write(Verb::Create, "pods", answer);
    }
    metrics.backlog(Controller::DaskCluster).set(1);
    metrics.set_clusters(1, 1);
    metrics.set_workers(1, 1);
    metrics.set_schedulers(1, 1);
    let text = metrics.encode().expect("metrics");
    open_metrics(&text);

    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let page = std::fs::read_to_string(page).expect("docs");
    let table = page.split_once("\n## Metrics").and_then(|(_, rest)| rest.split_once("\n## ")).expect("the table").0;
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| `")).collect();
    let documented: Vec<&str> =
        rows.iter().flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2)).collect();
    let mut served = 0;
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (family, kind) = line.split_once(' ').expect("a type");
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let name = format!("{family}{suffix}");
        assert!(documented.contains(&name.as_str()), "{name} is not documented");
        served += 1;
    }
    // The limit is known only where there is one.
    let always = documented.iter().filter(|name| **name != "daskade_memory_limit_bytes").count();
    let limit = usize::from(text.contains("daskade_memory_limit_bytes"));
    assert_eq!(always + limit, served, "documented and not served: {documented:?}\n{text}");
    for sample in text.lines().filter(|line| line.starts_with("daskade_") && line.contains('{')) {
        let name = sample.split('{').next().unwrap().trim_end_matches("_bucket").trim_end_matches("_count");
        let row = rows.iter().find(|row| row.contains(&format!("`{}`", name.trim_end_matches("_sum"))));
        let row = row.unwrap_or_else(|| panic!("{sample}"));
        for label in sample.split(['{', ',']).skip(1).filter_map(|part| part.split_once("=\"")) {
            let (key, value) = (label.0, label.1.split('"').next().unwrap());
            let told =
                key == "le" || ["version", "verb", "resource", "controller"].contains(&key) || row.contains(value);
            assert!(told && (key == "le" || row.contains(key)), "{key}={value} is not in {row}");
        }
    }
}

/// The binary, a cluster and a collector of traces: from the object to what is told about it.
#[cfg(feature = "otlp")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_makes_clusters_and_tells_a_collector_what_it_did() {
    let collector = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", collector.local_addr().expect("its address"));
    let received: Arc<Mutex<Vec<u8>>> = Arc::default();
    let sink = received.clone();
    std::thread::spawn(move || {
        for mut stream in collector.incoming().map_while(Result::ok) {
            drop(stream.set_read_timeout(Some(Duration::from_millis(300))));
            let mut buffer = [0; 65_536];
            while let Ok(read @ 1..) = stream.read(&mut buffer) {
                sink.lock().expect("no panic").extend_from_slice(&buffer[..read]);
            }
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"));
        }
    });
    let world = World::new().await;
    let mut operator = Operator::start(&world.api, &["--otlp-endpoint", &endpoint]);
    world.create("team", "c", &plain(1));
    let what = || format!("it is ready: {}\n{}", world.object("team", "c")["status"], operator.lines().join("\n"));
    eventually_or(what, SOON, || world.reason("team", "c") == "Ready").await;
    let ready = || operator.metric("daskade_clusters{ready=\"true\"}") == Some(1.0);
    eventually("it is counted", SOON, ready).await;
    assert_eq!(operator.metric("daskade_workers{state=\"ready\"}"), Some(1.0));
    assert_eq!(operator.metric("daskade_schedulers{state=\"connected\"}"), Some(1.0));
    // What it does is told with the object that it is about.
    let made = operator.lines().into_iter().find(|line| line.contains("c-cpu-0-2")).expect("a line");
    let made: Value = serde_json::from_str(&made).expect("JSON");
    assert_eq!((&made["span"]["namespace"], &made["span"]["object"]), (&"team".into(), &"c".into()), "{made}");
    operator.signal("TERM");
    let (took, code) = operator.ended().await;
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(10), "{took:?}");
    let text = String::from_utf8_lossy(&received.lock().expect("no panic")).into_owned();
    for part in ["POST /v1/traces", "reconcile", "daskcluster", "team"] {
        assert!(text.contains(part), "{part} in {}", text.len());
    }
}

/// Reads a text strictly as OpenMetrics; gives the families' names.
pub fn open_metrics(text: &str) -> Vec<String> {
    let mut families: Vec<(String, String)> = Vec::new();
    let body = text.strip_suffix("# EOF\n").expect("the end is marked");
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (kind, name, value) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap_or_default());
            assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':'), "{line}");
            match kind {
                "TYPE" => {
                    assert!(families.iter().all(|(known, _)| known != name), "twice: {line}");
                    families.push((name.to_owned(), value.to_owned()));
                }
                "HELP" => assert!(value.len() > 10, "a help that helps: {line}"),
                "UNIT" => assert!(name.ends_with(&format!("_{value}")), "{line}"),
                _ => panic!("no such comment: {line}"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("a sample has a value: {line}"));
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let (name, labels) = series.split_once('{').map_or((series, None), |(name, rest)| {
            (name, Some(rest.strip_suffix('}').unwrap_or_else(|| panic!("labels end: {line}"))))
        });
        for label in labels.into_iter().flat_map(|labels| labels.split("\",")) {
            let (key, value) = label.split_once("=\"").unwrap_or_else(|| panic!("a label has a value: {line}"));
            assert!(!key.is_empty() && !value.trim_end_matches('"').contains(['"', '\\']), "{line}");
        }
        let (family, kind) = families.last().unwrap_or_else(|| panic!("a sample without its family: {line}"));
        let suffixes: &[&str] = match kind.as_str() {
            "counter" => &["_total", "_created"],
            "histogram" => &["_bucket", "_count", "_sum", "_created"],
            "info" => &["_info"],
            "gauge" => &[""],
            _ => panic!("no such type: {kind}"),
        };
        assert!(suffixes.iter().any(|suffix| name == format!("{family}{suffix}")), "{line} below {family}");
    }
    families.into_iter().map(|(name, _)| name).collect()
}
