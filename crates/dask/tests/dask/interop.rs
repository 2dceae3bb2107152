//! Against a real scheduler. Needs an interpreter with `distributed`:
//!
//! ```text
//! DASKADE_TEST_PYTHON=…/python cargo test --test dask interop:: -- --ignored
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::peer::{Authority, category};
use dask::ops::{
    Close, Code, Final, FollowEvents, FunctionResult, Hello, Identity, Open, Processing, ReadOutput, RetireWorkers,
    RunFunction, Settings, Storage, Submit, SubmitItem, TaskAddr, TaskDep, Versions,
};
use dask::pickle::Constant;
use dask::{Address, Connection, Deadlines, Error, RuntimeEvent, Tls, TlsFiles};
use wire::StepDef;

const PATIENCE: Duration = Duration::from_secs(120);

fn python() -> PathBuf {
    std::env::var_os("DASKADE_TEST_PYTHON").expect("DASKADE_TEST_PYTHON names a python with distributed").into()
}

/// A process of Dask that ends with the test.
struct Dask {
    _child: Child,
    found: String,
}

impl Dask {
    /// Starts a process and waits for a line of its log that contains `word`; keeps what follows it.
    async fn start(module: &str, arguments: &[&str], tls: Option<&TlsFiles>, word: &str) -> Dask {
        let mut command = Command::new(python());
        command.args(["-m", module]).args(arguments);
        if let Some(files) = tls {
            command.arg("--tls-ca-file").arg(&files.ca);
            command.arg("--tls-cert").arg(&files.cert);
            command.arg("--tls-key").arg(&files.key);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("DASKADE_TEST_PYTHON can be run");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let found = timeout(PATIENCE, async {
            let mut log = String::new();
            while let Some(line) = lines.next_line().await.expect("a log") {
                if let Some((_, rest)) = line.split_once(word) {
                    return rest.trim().to_owned();
                }
                log.push_str(&line);
                log.push('\n');
            }
            panic!("it ended: {log}");
        });
        let found = found.await.expect("it starts in time");
        // Somebody must read on, or the process blocks when the pipe is full.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Dask { _child: child, found }
    }

    async fn scheduler(tls: Option<&TlsFiles>) -> Dask {
        let host = if tls.is_some() { "tls://127.0.0.1" } else { "tcp://127.0.0.1" };
        let arguments = ["--host", host, "--port", "0", "--no-dashboard"];
        Dask::start("distributed.cli.dask_scheduler", &arguments, tls, "Scheduler at:").await
    }

    async fn worker(scheduler: &str, folder: &Path, tls: Option<&TlsFiles>) -> Dask {
        let folder = folder.to_string_lossy();
        let arguments = [
            scheduler,
            "--name",
            "cpu-0-1",
            "--nthreads",
            "2",
            "--no-nanny",
            "--no-dashboard",
            "--local-directory",
            &folder,
        ];
        Dask::start("distributed.cli.dask_worker", &arguments, tls, "Registered to:").await
    }

    fn address(&self) -> Address {
        self.found.parse().expect("an address")
    }
}

async fn converse(connection: &Connection) {
    let identity = connection.call(&Identity::default()).await.expect("an identity");
    assert_eq!(identity.kind, "Scheduler");
    let versions = connection.call(&Versions {}).await.expect("versions");
    assert!(versions.packages.contains_key("distributed"));
    assert!(connection.call(&Processing::default()).await.expect("a map").is_empty());
    assert!(connection.call(&RetireWorkers::drain(vec!["nobody".into()])).await.expect("a map").is_empty());
    assert_eq!(category(connection.call(&Hello {}).await), "unknown-op");

    let source = "async def main(a, b, dask_scheduler=None):\n    return (a + b'!' + dask_scheduler.id[:9].encode())\n";
    let arguments = [Constant::Bytes(b"bytes"), Constant::Text("é".repeat(200).leak())];
    let call = RunFunction::from_source(source, "main", "<test>", &arguments);
    let answer = connection.exchange(&call, PATIENCE).await.expect("an answer");
    let result: FunctionResult = answer.decode().expect("a result");
    let bytes = answer.payload(&result.result).and_then(|p| p.into_bytes());
    assert_eq!(bytes.as_deref(), Ok(&b"bytes!Scheduler"[..]));

    let raising = RunFunction::named("builtins", "int", &[Constant::Text("x")]);
    let raised = connection.call(&raising).await;
    assert!(matches!(raised, Err(Error::Remote { ref text, .. }) if text.contains("ValueError")), "{raised:?}");
    connection.call(&Versions {}).await.expect("the connection goes on");
}

#[tokio::test]
#[ignore = "needs python with distributed: DASKADE_TEST_PYTHON"]
async fn a_real_scheduler_is_spoken_to_over_tcp() {
    let scheduler = Dask::scheduler(None).await;
    let connection = Connection::connect(&scheduler.address(), None, Deadlines::default()).await.expect("a connection");
    converse(&connection).await;
    drop(scheduler);
    let gone = category(timeout(PATIENCE, connection.call(&Versions {})).await.expect("in time"));
    assert!(matches!(gone, "closed" | "lost"), "{gone}");
}

#[tokio::test]
#[ignore = "needs python with distributed: DASKADE_TEST_PYTHON"]
async fn a_real_scheduler_is_spoken_to_over_tls() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new(folder.path(), "ca");
    let scheduler = Dask::scheduler(Some(&authority.files("scheduler"))).await;
    let tls = Tls::from_files(&authority.files("client")).expect("TLS");
    let address = scheduler.address();
    let connection = Connection::connect(&address, Some(&tls), Deadlines::default()).await.expect("a connection");
    converse(&connection).await;

    let stranger = Authority::new(folder.path(), "stranger");
    let (cert, key) = stranger.issue(|_| {});
    let tls = Tls::from_pem(authority.pem().as_bytes(), cert.as_bytes(), key.as_bytes()).expect("TLS");
    assert_eq!(category(Connection::connect(&address, Some(&tls), Deadlines::default()).await), "tls");
    let tls = Tls::from_files(&stranger.files("stranger-client")).expect("TLS");
    assert_eq!(category(Connection::connect(&address, Some(&tls), Deadlines::default()).await), "tls");
    let plain: Address = address.to_string().replace("tls://", "tcp://").parse().expect("an address");
    let found = category(Connection::connect(&plain, None, Deadlines::default()).await);
    assert!(matches!(found, "frame" | "torn" | "closed" | "lost"), "{found}");
}

fn step(name: &str, call: &str, args: Vec<u8>, result: u8) -> StepDef {
    StepDef {
        name: name.into(),
        call: Some(call.into()),
        script: None,
        args,
        serializer: "pickle".into(),
        container: false,
        lens: vec![],
        result,
        resources: BTreeMap::new(),
        group: None,
        gpu_ok: false,
        isolation: "thread".into(),
        timeout: None,
        env: BTreeMap::new(),
        inputs: Vec::new(),
        target: None,
    }
}

/// The archive of the runtime, as its own tool packs it, and its digest.
async fn archive(folder: &Path) -> (Vec<u8>, String) {
    let path = folder.join("runtime.zip");
    let runtime = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../runtime");
    let runtime = std::env::var_os("DASKADE_TEST_RUNTIME").map_or(runtime, PathBuf::from);
    let output = Command::new(python())
        .args(["-m", "daskade_runtime.install"])
        .arg(&path)
        .env("PYTHONPATH", runtime)
        .output()
        .await
        .expect("DASKADE_TEST_PYTHON can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (std::fs::read(path).expect("the archive"), String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Twenty squares and their sum, from the first message to the last, over TLS, on a scheduler without our runtime.
#[tokio::test]
#[ignore = "needs python with distributed: DASKADE_TEST_PYTHON"]
#[expect(clippy::too_many_lines, reason = "one story")]
async fn a_run_goes_from_installation_to_its_closing_record() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new(folder.path(), "ca");
    let files = authority.files("dask");
    let scheduler = Dask::scheduler(Some(&files)).await;
    let _worker = Dask::worker(&scheduler.found, folder.path(), Some(&files)).await;
    let tls = Tls::from_files(&authority.files("client")).expect("TLS");
    let connection =
        Connection::connect(&scheduler.address(), Some(&tls), Deadlines::default()).await.expect("connected");

    let (zip, digest) = archive(folder.path()).await;
    let wrong = connection.install_runtime(&zip, &"0".repeat(64)).await;
    assert!(matches!(wrong, Err(Error::Refused { ref message, .. }) if message.contains("digest")), "{wrong:?}");
    connection.install_runtime(&zip, &digest).await.expect("installed");
    connection.install_runtime(&zip, &digest).await.expect("installed already");
    let hello = connection.call(&Hello {}).await.expect("the runtime answers");
    assert_eq!((hello.protocol, &hello.runtime), ((1, 1), &digest));

    // pow(values[0], 2) for each item, then sum of the list; references are ExtType 1.
    let slot = [&b"\x92\x92"[..], b"\xc7\x03\x01\x92\x02\x00", b"\x02\x80"].concat();
    let list = [&b"\x92\x91"[..], b"\xd6\x01\x93\x01\x00\x00", b"\x80"].concat();
    let open = Open {
        lead: None,
        lease: None,
        pipeline: None,
        requirements: Vec::new(),
        same_image: false,
        run: "interop".into(),
        name: "interop".into(),
        epoch: None,
        create: true,
        reopen: false,
        spec: b"{}".to_vec(),
        spec_digest: "d".into(),
        pages: false,
        storage: Storage { url: format!("file://{}", folder.path().join("store").display()), ..Storage::default() },
        code: empty_code(),
        steps: vec![step("square", "builtins:pow", slot, 0), step("total", "builtins:sum", list, 2)],
        settings: Settings {
            inline_max: 65_536,
            cache_bytes: 1 << 20,
            log_cap: 1 << 20,
            tasks_per_slot: 2,
            pins: BTreeMap::new(),
        },
    };
    let opened = connection.call(&open).await.expect("opened");
    assert_eq!((opened.instance.as_str(), opened.epoch), (hello.instance.as_str(), 1));
    let again = connection.call(&open).await;
    assert_eq!(again.err().and_then(|e| e.refusal().map(str::to_owned)).as_deref(), Some("RunExists"));

    let mut follow = FollowEvents::new("interop", opened.epoch, opened.cursor, &opened.instance);
    (follow.beat, follow.window) = (0.5, 7);
    let mut events = connection.follow(&follow).await.expect("a stream");
    let mut items: Vec<SubmitItem> = (0..20)
        .map(|n| SubmitItem {
            task: TaskAddr::new(0, Some(n), 1),
            priority: 0,
            values: Some(bytes::Bytes::from(vec![0x91, n as u8])),
            data_deps: vec![],
            after_deps: vec![],
        })
        .collect();
    items.push(SubmitItem {
        task: TaskAddr::new(1, None, 1),
        priority: 1,
        values: None,
        data_deps: vec![TaskDep::All { step: 0, len: 20 }],
        after_deps: vec![],
    });
    connection.call(&Submit { run: "interop", epoch: opened.epoch, items: &items }).await.expect("submitted");

    let (mut committed, mut total, mut reconnected) = (0, None, false);
    while committed < 21 {
        let batch = timeout(PATIENCE, events.next()).await.expect("in time").expect("events");
        for event in batch.events {
            match event {
                RuntimeEvent::Committed { tasks, .. } => committed += tasks.len(),
                RuntimeEvent::Finished { task: TaskAddr { step: 1, .. }, json, .. } => total = json,
                RuntimeEvent::Failed { message, traceback, .. } => panic!("{message}\n{traceback}"),
                _ => {}
            }
        }
        if !reconnected {
            reconnected = true;
            let again = FollowEvents { since: Some(events.cursor()), ..follow.clone() };
            events = connection.follow(&again).await.expect("a second stream");
        }
    }
    assert_eq!(total, Some(serde_json::Value::from((0..20).map(|n| n * n).sum::<i64>()).into()));
    let output = connection.call(&ReadOutput::new("interop", 1, None, 1000)).await.expect("an output");
    assert_eq!((output.serializer.as_str(), output.json), ("pickle", total));

    let mut closed = Final::new();
    closed.insert("state".into(), "Succeeded".into());
    connection.call(&Close { run: "interop", epoch: opened.epoch, closed: &closed }).await.expect("closed");
    let last = timeout(PATIENCE, async {
        loop {
            match events.next().await {
                Ok(batch) if batch.events.iter().any(|e| matches!(e, RuntimeEvent::Closing { .. })) => break "closing",
                Ok(_) => {}
                Err(error) => break error.category(),
            }
        }
    });
    assert_eq!(last.await.expect("in time"), "closing");
    let reread = connection.call(&Open { create: false, ..open }).await.expect("a closed run can be looked at");
    assert_eq!(reread.snapshot.committed.len(), 21);
    assert_eq!(reread.snapshot.closed.and_then(|f| f.get("state").cloned()), Some("Succeeded".into()));
}

/// A zip archive with nothing in it.
fn empty_code() -> Code {
    let zip = [&b"PK\x05\x06"[..], &[0; 18]].concat();
    Code { digest: "8739c76e681f900923b900c9df0ef75cf421d39cabb54650c4b9ad19b6a76d85".into(), zip: Some(zip) }
}
