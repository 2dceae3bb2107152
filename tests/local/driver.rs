//! The driver of a run against a scheduler that follows a script: when it gives up, when it goes on, what it refuses.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ::driver::{ConnectionPool, DriveError, Fabric, SchedulerEndpoint, drive};
use api::pipeline::PipelineSpec;
use lower::{RunInfo, validate};
use run_model::{
    CodeSource, Counts, Moment, Note, Observer, Patience, Report, Requirements, Reuse, RunOutcome, RunSpec, Start,
    StorageSpec, archive,
};
use runtime_bundle::RUNTIME;
use serde_json::{Map, Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::peer::{greet, receive, send};

/// A scheduler's behaviour: what it answers to an operation; `None` hangs up.
type Script = dyn Fn(&str, &Value) -> Option<Value> + Send + Sync;

pub struct Scheduler {
    pub address: String,
    task: JoinHandle<()>,
    asked: watch::Sender<Vec<Value>>,
    /// Connections that are open.
    connections: watch::Sender<usize>,
}

impl Scheduler {
    pub async fn new(script: impl Fn(&str, &Value) -> Option<Value> + Send + Sync + 'static) -> Scheduler {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = format!("tcp://{}", listener.local_addr().expect("an address"));
        let script: Arc<Script> = Arc::new(script);
        let asked = watch::Sender::new(Vec::new());
        let heard = asked.clone();
        let connections = watch::Sender::new(0);
        let counted = connections.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let (script, heard, counted) = (Arc::clone(&script), heard.clone(), counted.clone());
                tokio::spawn(async move {
                    counted.send_modify(|count| *count += 1);
                    serve(stream, script, heard).await;
                    counted.send_modify(|count| *count -= 1);
                });
            }
        });
        Scheduler { address, task, asked, connections }
    }

    /// The requests for an operation, in order.
    pub fn asked(&self, op: &str) -> Vec<Value> {
        self.asked.borrow().iter().filter(|request| request["op"] == op).cloned().collect()
    }

    /// Waits until so many requests for an operation have come.
    async fn until_asked(&self, op: &str, times: usize) {
        let mut asked = self.asked.subscribe();
        let enough = asked.wait_for(|asked| asked.iter().filter(|request| request["op"] == op).count() >= times);
        timeout(Duration::from_secs(10), enough).await.expect("it is asked in time").expect("it lives");
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, script: Arc<Script>, asked: watch::Sender<Vec<Value>>) {
    greet(&mut stream).await;
    while let Some(request) = receive(&mut stream).await {
        let Some(op) = request["op"].as_str().map(str::to_owned) else { continue }; // an acknowledgement
        asked.send_modify(|asked| asked.push(request.clone()));
        match script(&op, &request) {
            Some(Value::Array(messages)) => {
                // The first message opens the stream. A task has events once it was submitted, and has stopped once it
                // was told to.
                for (at, message) in messages.iter().enumerate() {
                    if at > 0 {
                        let cause =
                            if message["events"][0]["k"] == "stopped" { "daskade-stop" } else { "daskade-submit" };
                        let came = |asked: &Vec<Value>| asked.iter().any(|old| old["op"] == cause);
                        drop(asked.subscribe().wait_for(came).await);
                    }
                    send(&mut stream, message).await;
                }
            }
            Some(answer) => send(&mut stream, &answer).await,
            None => return,
        }
    }
}

fn hello(protocol: [u32; 2]) -> Value {
    json!({"status": "OK", "protocol": protocol, "runtime": "r", "instance": "me", "dask": "2026.8.0",
           "python": "3.11.7", "runs": {}})
}

fn opened() -> Value {
    json!({"status": "OK", "epoch": 1, "instance": "me", "cursor": 0, "snapshot": {}})
}

pub fn ok() -> Value {
    json!({"status": "OK"})
}

/// The usual answers; the stream of events tells `events`.
pub fn usual(op: &str, events: &[Value]) -> Value {
    match op {
        "daskade-hello" => hello([1, 1]),
        "daskade-open" => opened(),
        "daskade-events" => json!([
            {"instance": "me", "events": [], "seq": 0},
            {"instance": "me", "events": events, "seq": events.len()},
        ]),
        "daskade-read" => json!({"status": "OK", "serializer": "json", "size": 90, "digest": "d", "path": "data/0",
                                 "bytes": null, "json": null}),
        _ => ok(),
    }
}

pub fn finished() -> Vec<Value> {
    vec![
        json!({"k": "started", "n": 1, "s": 0, "i": -1, "a": 1, "w": "w", "t": 1.0}),
        json!({"k": "finished", "n": 2, "s": 0, "i": -1, "a": 1, "w": "w", "t0": 1.0, "t1": 2.0, "z": 1}),
        json!({"k": "committed", "n": 3, "tasks": [[0, -1, 1]], "seg": 1}),
    ]
}

#[derive(Default)]
struct Notes(Vec<Note>);

impl Observer for Notes {
    fn note(&mut self, note: Note) {
        self.0.push(note);
    }

    fn counts(&mut self, _: Counts) {}
}

pub fn run_of_one_step(start: Start, patience: Patience) -> RunSpec {
    run_of(&json!({"name": "a", "call": "m:f"}), start, patience)
}

pub fn run_of(step: &Value, start: Start, patience: Patience) -> RunSpec {
    run_of_pipeline(json!({ "steps": [step] }), start, patience)
}

pub fn run_of_pipeline(spec: Value, start: Start, patience: Patience) -> RunSpec {
    let spec: PipelineSpec = serde_json::from_value(spec).expect("a spec");
    let info = RunInfo { name: "run".to_owned(), uid: "uid".to_owned() };
    let plan = validate(&spec, "spec").and_then(|flow| flow.bind(&Map::new(), &info)).expect("no mistakes");
    RunSpec {
        uid: "uid".to_owned(),
        name: "run".to_owned(),
        plan,
        spec: b"{}".to_vec(),
        spec_digest: "digest".to_owned(),
        image: None,
        pipeline: None,
        reuse: Reuse::default(),
        code: CodeSource::Packed(archive::pack_files(&Default::default()).expect("no code")),
        requirements: Requirements::default(),
        storage: StorageSpec { url: "file:///nowhere".to_owned(), ..StorageSpec::default() },
        start,
        reopen: true,
        logs: false,
        ignore_resources: false,
        deadline: None,
        start_deadline: None,
        finally_deadline: None,
        patience,
        time: Moment::here(),
    }
}

pub async fn driven(spec: &RunSpec, address: &str) -> (Result<Report, DriveError>, Vec<Note>, Duration) {
    driven_on(spec, Fabric::Remote { address: address.to_owned(), tls: None, runtime: RUNTIME }).await
}

pub async fn driven_on(spec: &RunSpec, mut fabric: Fabric) -> (Result<Report, DriveError>, Vec<Note>, Duration) {
    let (_keep, cancel) = watch::channel(false);
    let mut notes = Notes::default();
    let began = Instant::now();
    let ended = timeout(Duration::from_secs(20), drive(spec, &mut fabric, &mut notes, cancel)).await;
    (ended.expect("it ends in time"), notes.0, began.elapsed())
}

fn short() -> Patience {
    Patience { open: Duration::from_secs(4), first: Duration::from_millis(900) }
}

#[tokio::test]
async fn a_run_goes_from_open_to_close() {
    let scheduler = Scheduler::new(|op, _| Some(usual(op, &finished()))).await;
    let (ended, _, _) = driven(&run_of_one_step(Start::New, Patience::default()), &scheduler.address).await;
    assert_eq!(ended.expect("a report").outcome, RunOutcome::Succeeded);
    let closed = scheduler.asked("daskade-close");
    assert_eq!((closed.len(), &closed[0]["final"]["state"]), (1, &json!("Succeeded")));
    assert_eq!(scheduler.asked("daskade-open")[0]["create"], json!(true));
}

#[tokio::test]
async fn a_run_that_another_has_taken_over_stops_for_ever() {
    let fenced = [json!({"k": "fenced", "n": 1, "epoch": 7})];
    let scheduler = Scheduler::new(move |op, _| Some(usual(op, &fenced))).await;
    let (ended, _, _) = driven(&run_of_one_step(Start::New, Patience::default()), &scheduler.address).await;
    let error = ended.expect_err("another has it");
    assert_eq!(error.reason(), "Fenced");
    assert!(error.to_string().contains("another command took this run over (epoch 7)"), "{error}");
    assert_eq!(scheduler.asked("daskade-open").len(), 1, "it is not opened again");
    assert!(scheduler.asked("daskade-close").is_empty());
}

#[tokio::test]
async fn a_stale_epoch_is_the_same() {
    let scheduler = Scheduler::new(|op, _| match op {
        "daskade-submit" => Some(json!({"status": "error", "reason": "StaleEpoch", "message": "open under epoch 9"})),
        _ => Some(usual(op, &[])),
    })
    .await;
    let (ended, _, _) = driven(&run_of_one_step(Start::New, Patience::default()), &scheduler.address).await;
    let error = ended.expect_err("another has it");
    assert_eq!(error.reason(), "Fenced");
    assert!(error.to_string().contains("another command took this run over (open under epoch 9)"), "{error}");
    assert_eq!(scheduler.asked("daskade-open").len(), 1);
}

#[tokio::test]
async fn an_epoch_that_is_not_known_is_not_told() {
    for fenced in [json!({"k": "fenced", "n": 1, "epoch": 0}), json!({"k": "fenced", "n": 1})] {
        let scheduler = Scheduler::new(move |op, _| Some(usual(op, std::slice::from_ref(&fenced)))).await;
        let (ended, _, _) = driven(&run_of_one_step(Start::New, Patience::default()), &scheduler.address).await;
        let error = ended.expect_err("another has it");
        assert_eq!(error.to_string(), "Fenced: another command took this run over; this one has stopped");
    }
}

/// A scheduler that answers `op` with a refusal so many times; its epochs count the openings.
async fn refusing(op: &'static str, reason: &'static str, times: usize) -> Scheduler {
    let (refused, opens) = (AtomicUsize::new(0), AtomicUsize::new(0));
    Scheduler::new(move |asked, _| {
        if asked == op && refused.fetch_add(1, Ordering::Relaxed) < times {
            return Some(json!({"status": "error", "reason": reason, "message": "open the run again"}));
        }
        let mut answer = usual(asked, &finished());
        if asked == "daskade-open" {
            answer["epoch"] = json!(opens.fetch_add(1, Ordering::Relaxed) + 1);
        }
        Some(answer)
    })
    .await
}

/// Issue 13, point 11.
#[tokio::test]
async fn a_run_that_the_scheduler_does_not_have_as_it_was_opened_is_opened_again() {
    for (op, reason) in [
        ("daskade-events", "InstanceChanged"),
        ("daskade-events", "Gap"),
        ("daskade-events", "RunNotFound"),
        ("daskade-submit", "RunNotFound"),
    ] {
        let scheduler = refusing(op, reason, 2).await;
        let (ended, notes, _) = driven(&run_of_one_step(Start::New, Patience::default()), &scheduler.address).await;
        assert_eq!(ended.expect("it goes on").outcome, RunOutcome::Succeeded, "{op} {reason}");
        let opens = scheduler.asked("daskade-open");
        let create: Vec<&Value> = opens.iter().map(|open| &open["create"]).collect();
        assert_eq!(create, [&json!(true), &json!(false), &json!(false)], "{op} {reason}");
        assert_eq!(scheduler.asked("daskade-close")[0]["epoch"], json!(3), "{op} {reason}");
        let told = notes.iter().any(|note| matches!(note, Note::SchedulerLost { cause } if cause.contains(reason)));
        assert!(told, "{op} {reason}: {notes:?}");
    }
}

#[tokio::test]
async fn a_run_is_not_opened_again_for_ever() {
    let scheduler = refusing("daskade-events", "Gap", usize::MAX).await;
    let (ended, _, _) = driven(&run_of_one_step(Start::New, Patience::default()), &scheduler.address).await;
    let error = ended.expect_err("it comes to nothing");
    assert_eq!(error.reason(), "Gap");
    assert!(error.to_string().contains("reopening the run failed 4 times"), "{error}");
    assert_eq!(scheduler.asked("daskade-open").len(), 5);
}

#[tokio::test]
async fn an_address_that_never_answers_is_given_up_soon() {
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a free port").local_addr().expect("an address");
    let (ended, _, took) = driven(&run_of_one_step(Start::New, short()), &format!("tcp://{free}")).await;
    let error = ended.expect_err("nobody is there");
    assert_eq!(error.reason(), "ClusterFailed");
    assert!(error.to_string().contains(&free.to_string()), "{error}");
    assert!(took < Duration::from_secs(4), "the patience is that of a first attempt: {took:?}");
}

#[tokio::test]
async fn a_scheduler_lost_during_the_run_is_waited_for_longer_and_then_given_up() {
    let opens = AtomicUsize::new(0);
    let scheduler = Scheduler::new(move |op, _| match op {
        // Once it was open; afterwards the scheduler hangs up on everybody.
        "daskade-open" if opens.fetch_add(1, Ordering::Relaxed) == 0 => Some(opened()),
        "daskade-hello" if opens.load(Ordering::Relaxed) == 0 => Some(hello([1, 1])),
        _ => None,
    })
    .await;
    let (ended, notes, took) = driven(&run_of_one_step(Start::New, short()), &scheduler.address).await;
    let error = ended.expect_err("it does not come back");
    assert!(error.to_string().starts_with("lost the scheduler"), "{error}");
    assert!(took > Duration::from_secs(4) && took < Duration::from_secs(20), "{took:?}");
    assert!(notes.iter().any(|note| matches!(note, Note::SchedulerLost { .. })), "a person is told");
}

#[tokio::test]
async fn a_scheduler_that_comes_back_is_gone_on_with_and_the_journal_is_not_made_twice() {
    let opens = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&opens);
    let scheduler = Scheduler::new(move |op, request| match op {
        // The first answer is lost: nobody knows whether the journal was made.
        "daskade-open" if counted.fetch_add(1, Ordering::Relaxed) == 0 => None,
        "daskade-open" => {
            assert_eq!(request["create"], json!(false));
            Some(opened())
        }
        _ => Some(usual(op, &finished())),
    })
    .await;
    let (ended, _, _) = driven(&run_of_one_step(Start::New, Patience::default()), &scheduler.address).await;
    assert_eq!(ended.expect("a report").outcome, RunOutcome::Succeeded);
    assert_eq!(opens.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_journal_that_was_not_made_after_all_is_made_then() {
    let opens = AtomicUsize::new(0);
    let scheduler = Scheduler::new(move |op, request| match op {
        "daskade-open" => match (opens.fetch_add(1, Ordering::Relaxed), request["create"] == json!(true)) {
            (0, true) => None,
            (_, false) => Some(json!({"status": "error", "reason": "RunNotFound", "message": "no journal"})),
            (_, true) => Some(opened()),
        },
        _ => Some(usual(op, &finished())),
    })
    .await;
    let (ended, _, _) = driven(&run_of_one_step(Start::New, Patience::default()), &scheduler.address).await;
    assert_eq!(ended.expect("a report").outcome, RunOutcome::Succeeded);
    let create: Vec<Value> = scheduler.asked("daskade-open").iter().map(|open| open["create"].clone()).collect();
    assert_eq!(create, [json!(true), json!(false), json!(true)]);
}

#[tokio::test]
async fn a_run_to_be_resumed_is_never_made_anew() {
    let scheduler = Scheduler::new(|op, _| match op {
        "daskade-open" => Some(json!({"status": "error", "reason": "RunNotFound", "message": "no journal"})),
        _ => Some(usual(op, &[])),
    })
    .await;
    let (ended, _, _) = driven(&run_of_one_step(Start::Again, Patience::default()), &scheduler.address).await;
    let error = ended.expect_err("there is no such run");
    assert_eq!((error.reason(), error.to_string().as_str()), ("RunNotFound", "RunNotFound: no journal"));
    assert_eq!(scheduler.asked("daskade-open").len(), 1);
}

#[tokio::test]
async fn a_journal_that_is_gone_from_the_storage_ends_the_run_and_is_not_made_anew() {
    for start in [Start::New, Start::Either] {
        let opens = AtomicUsize::new(0);
        let lost = [json!({"k": "closing", "n": 1, "reason": "RecordUnreadable", "message": "a segment is missing"})];
        let scheduler = Scheduler::new(move |op, _| match op {
            "daskade-open" if opens.fetch_add(1, Ordering::Relaxed) > 0 => {
                Some(json!({"status": "error", "reason": "RunNotFound", "message": "there is no journal"}))
            }
            _ => Some(usual(op, &lost)),
        })
        .await;
        let (ended, _, _) = driven(&run_of_one_step(start, Patience::default()), &scheduler.address).await;
        let error = ended.expect_err("what was committed is lost");
        assert_eq!(error.reason(), "RecordUnreadable");
        assert!(error.to_string().contains("segment 0 of the journal of run uid"), "{error}");
        let made = scheduler.asked("daskade-open").iter().filter(|open| open["create"] == json!(true)).count();
        assert_eq!(made, usize::from(start == Start::New), "a new journal would run everything again");
    }
}

#[tokio::test]
async fn storage_that_cannot_be_reached_is_told_at_once_before_the_run_was_ever_open() {
    let scheduler = Scheduler::new(|op, _| match op {
        "daskade-open" => Some(json!({"status": "error", "reason": "StorageUnreachable", "message": "no route"})),
        _ => Some(usual(op, &[])),
    })
    .await;
    let (ended, _, took) = driven(&run_of_one_step(Start::New, Patience::default()), &scheduler.address).await;
    let error = ended.expect_err("no storage");
    assert_eq!((error.reason(), error.to_string().as_str()), ("StorageUnreachable", "StorageUnreachable: no route"));
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn a_runtime_of_another_protocol_is_refused_before_anything_starts() {
    let scheduler = Scheduler::new(|op, _| match op {
        "daskade-hello" => Some(hello([2, 3])),
        _ => Some(usual(op, &[])),
    })
    .await;
    let (ended, _, _) = driven(&run_of_one_step(Start::New, Patience::default()), &scheduler.address).await;
    let error = ended.expect_err("another protocol");
    assert_eq!(error.reason(), "RuntimeVersion");
    assert!(error.to_string().contains("2 to 3"), "{error}");
    assert!(scheduler.asked("daskade-open").is_empty());
}

#[tokio::test]
async fn a_runtime_that_knows_no_objects_is_refused_before_anything_starts() {
    for field in [json!({"inputs": {"x": {"path": "x.json"}}}), json!({"output": {"path": "x.pkl"}})] {
        let mut step = json!({"name": "a", "call": "m:f"});
        for (name, value) in field.as_object().into_iter().flatten() {
            step[name] = value.clone();
        }
        let scheduler = Scheduler::new(|op, _| match op {
            "daskade-look" => Some(Value::Null),
            _ => Some(usual(op, &[])),
        })
        .await;
        let (ended, _, _) = driven(&run_of(&step, Start::New, Patience::default()), &scheduler.address).await;
        let error = ended.expect_err("it would be ignored");
        assert_eq!(error.reason(), "RuntimeVersion", "{step}");
        assert!(error.to_string().contains("a release that does not know inputs and output.path"), "{error}");
        assert!(scheduler.asked("daskade-open").is_empty(), "{step}");
    }
}

/// What the driver does with a step that keeps its output where something is: the report and what was submitted.
async fn kept(if_exists: &str, there: Value) -> (Report, usize) {
    let answer = move |request: &Value| {
        let asked = request["keeps"].as_array().map_or(0, Vec::len);
        json!({"status": "OK", "reads": [], "keeps": vec![there.clone(); asked]})
    };
    let scheduler = Scheduler::new(move |op, request| match op {
        "daskade-look" => Some(answer(request)),
        _ => Some(usual(op, &finished())),
    })
    .await;
    let step = json!({"name": "a", "call": "m:f", "output": {"path": "m/x.pkl", "ifExists": if_exists}});
    let mut spec = run_of(&step, Start::New, short());
    spec.deadline = Some(Duration::from_secs(10));
    let (ended, _, _) = driven(&spec, &scheduler.address).await;
    let looked = scheduler.asked("daskade-look").iter().any(|asked| asked["keeps"] == json!([["m/x.pkl", 0, -1]]));
    assert_eq!(looked, if_exists != "Replace", "{if_exists}");
    (ended.expect("a report"), scheduler.asked("daskade-submit").len())
}

#[tokio::test]
async fn what_is_where_an_output_would_be_kept_is_seen_before_the_step_runs() {
    for (if_exists, there, submitted) in [
        ("Fail", json!(null), 1),
        ("Fail", json!(["v", true]), 1),
        ("Fail", json!(["v", false]), 0),
        ("Replace", json!(["v", false]), 1),
        ("Skip", json!(["v", false]), 1),
    ] {
        let (report, submits) = kept(if_exists, there.clone()).await;
        let outcome = if submitted == 1 { RunOutcome::Succeeded } else { RunOutcome::Failed };
        assert_eq!((report.outcome, submits), (outcome, submitted), "{if_exists} {there}");
        if submitted == 0 {
            let [failure] = &report.failures[..] else { panic!("{report:?}") };
            assert!(failure.message.contains("OutputExists") && failure.message.contains("m/x.pkl"), "{failure:?}");
            assert_eq!(failure.class, "data");
        }
    }
}

#[tokio::test]
async fn a_full_disk_ends_the_run_and_a_full_bucket_is_waited_for() {
    let full = json!({"k": "storage", "n": 1, "state": "down", "reason": "StorageFull", "message": "no space in /x"});
    let up = json!({"k": "storage", "n": 2, "state": "up", "reason": "", "message": ""});
    let events: Vec<Value> = [full, up].into_iter().chain(finished()).collect();
    let scheduler = Scheduler::new(move |op, _| Some(usual(op, &events))).await;
    let mut spec = run_of_one_step(Start::New, short());
    let (ended, _, _) = driven(&spec, &scheduler.address).await;
    let error = ended.expect_err("the disk is full");
    assert_eq!(error.reason(), "StorageFull");
    assert!(error.to_string().contains("no space in /x"), "{error}");

    spec.storage.url = "s3://bucket".to_owned();
    let (ended, notes, _) = driven(&spec, &scheduler.address).await;
    assert_eq!(ended.expect("it goes on").outcome, RunOutcome::Succeeded);
    assert!(notes.iter().any(|note| matches!(note, Note::StorageDown { .. })));
}

#[tokio::test]
async fn a_run_of_which_no_step_starts_in_time_has_failed() {
    let blocked = json!({"k": "blocked", "n": 1, "s": 0, "count": 1, "reason": "NoWorkers", "message": "no worker"});
    let stopped = json!({"k": "stopped", "n": 2, "s": 0, "i": -1, "a": 1});
    // Neither the other deadline nor the 9 s of silence after which a scheduler counts as hung, if it says that the step has
    // stopped; also if it does not.
    for (confirms, within) in [(true, 5), (false, 10)] {
        let (blocked, stopped) = (blocked.clone(), stopped.clone());
        let scheduler = Scheduler::new(move |op, _| {
            let mut answer = usual(op, std::slice::from_ref(&blocked));
            if let Some(messages) = answer.as_array_mut().filter(|_| confirms) {
                messages.push(json!({"instance": "me", "events": [&stopped], "seq": 2}));
            }
            Some(answer)
        })
        .await;
        let mut spec = run_of_one_step(Start::New, short());
        spec.start_deadline = Some(Duration::from_millis(300));
        spec.deadline = Some(Duration::from_secs(60));
        let (ended, _, took) = driven(&spec, &scheduler.address).await;
        let report = ended.expect("an end");
        assert_eq!(
            (report.outcome, report.reason.map(|reason| reason.as_str())),
            (RunOutcome::Failed, Some("DeadlineExceeded"))
        );
        assert_eq!(report.message.as_deref(), Some("no step had started within deadlines.start"));
        assert_eq!(report.counts.kept_back, 1, "who waits for its end sees that it is near");
        assert!(took < Duration::from_secs(within), "{took:?}");
    }
}

#[tokio::test]
async fn an_end_that_was_written_although_its_answer_was_lost_is_not_written_again() {
    let closes = AtomicUsize::new(0);
    let scheduler = Scheduler::new(move |op, asked| match op {
        "daskade-close" => {
            closes.fetch_add(1, Ordering::SeqCst);
            None
        }
        "daskade-open" if closes.load(Ordering::SeqCst) > 0 => {
            assert_eq!((&asked["create"], &asked["reopen"]), (&json!(false), &json!(false)));
            let mut answer = opened();
            answer["snapshot"]["final"] = json!({"state": "Succeeded"});
            Some(answer)
        }
        _ => Some(usual(op, &finished())),
    })
    .await;
    let (ended, _, _) = driven(&run_of_one_step(Start::New, short()), &scheduler.address).await;
    assert_eq!(ended.expect("the end is known").outcome, RunOutcome::Succeeded);
    assert_eq!((scheduler.asked("daskade-close").len(), scheduler.asked("daskade-open").len()), (1, 2));
}

/// A scheduler as an operator has found it.
pub fn endpoint(scheduler: &Scheduler, generation: u64, lead: u64) -> Option<SchedulerEndpoint> {
    Some(SchedulerEndpoint {
        address: scheduler.address.clone(),
        tls: None,
        generation,
        lead: lead.into(),
        install: None,
        connections: ConnectionPool::default(),
    })
}

#[tokio::test]
async fn a_run_of_which_nobody_knows_whether_it_was_opened_is_looked_for_and_then_made() {
    let scheduler = Scheduler::new(|op, message| {
        if op == "daskade-open" && message["create"] == false {
            return Some(json!({"status": "error", "reason": "RunNotFound", "message": "there is no journal"}));
        }
        Some(usual(op, &finished()))
    })
    .await;
    let (_seats, endpoints) = watch::channel(endpoint(&scheduler, 1, 7));
    let spec = RunSpec { reopen: false, ..run_of_one_step(Start::Either, short()) };
    let (ended, _, _) = driven_on(&spec, Fabric::Followed(endpoints)).await;
    assert_eq!(ended.expect("it ends").outcome, RunOutcome::Succeeded);
    let opens = scheduler.asked("daskade-open");
    let asked: Vec<Value> = opens.iter().map(|open| json!([open["create"], open["reopen"], open["lead"]])).collect();
    assert_eq!(asked, [json!([false, false, 7]), json!([true, false, 7])]);
}

#[tokio::test]
async fn how_a_run_was_closed_is_all_that_is_told_of_it_unless_it_is_to_go_on() {
    let scheduler = Scheduler::new(|op, _| {
        let mut answer = usual(op, &finished());
        if op == "daskade-open" {
            answer["snapshot"]["final"] = json!({
                "state": "Failed", "reason": "StepFailed", "message": "step a failed",
                "steps": {"total": 1, "done": 1, "failed": 1}, "results": {"x": 1},
            });
        }
        Some(answer)
    })
    .await;
    let (_seats, endpoints) = watch::channel(endpoint(&scheduler, 1, 7));
    let spec = RunSpec { reopen: false, ..run_of_one_step(Start::Either, short()) };
    let (ended, _, _) = driven_on(&spec, Fabric::Followed(endpoints)).await;
    let report = ended.expect("it ends");
    assert_eq!((report.outcome, report.message.as_deref()), (RunOutcome::Failed, Some("step a failed")));
    assert_eq!((report.counts.total, report.counts.failed, report.results.len()), (1, 1, 1));
    assert!(scheduler.asked("daskade-submit").is_empty() && scheduler.asked("daskade-close").is_empty());
}

#[tokio::test]
async fn a_run_follows_its_scheduler_to_another_pod() {
    let silent = Scheduler::new(|op, _| (op == "daskade-hello").then(|| usual(op, &finished()))).await;
    let next = Scheduler::new(|op, _| Some(usual(op, &finished()))).await;
    let (endpoints, followed) = watch::channel(None);
    let spec = RunSpec {
        patience: Patience { open: Duration::MAX, first: Duration::MAX },
        ..run_of_one_step(Start::Either, short())
    };
    let moving = tokio::spawn({
        let (first, second) = (endpoint(&silent, 1, 7), endpoint(&next, 2, 7));
        async move {
            endpoints.send_replace(first);
            silent.until_asked("daskade-open", 2).await;
            endpoints.send_replace(None);
            // There is none for a while.
            tokio::time::sleep(Duration::from_millis(100)).await;
            endpoints.send_replace(second);
            // As long as somebody looks after the cluster.
            std::future::pending::<()>().await
        }
    });
    let (ended, _, _) = driven_on(&spec, Fabric::Followed(followed)).await;
    moving.abort();
    assert_eq!(ended.expect("it ends").outcome, RunOutcome::Succeeded);
    assert!(!next.asked("daskade-close").is_empty());
}

#[tokio::test]
async fn runs_on_one_scheduler_have_a_connection_each_and_share_all_others() {
    let scheduler = Scheduler::new(|op, _| {
        let stream = json!([{"instance": "me", "events": [], "seq": 0}]);
        Some(if op == "daskade-events" { stream } else { usual(op, &[]) })
    })
    .await;
    let (endpoints, followed) = watch::channel(endpoint(&scheduler, 1, 7));
    let mut runs = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let followed = followed.clone();
        runs.spawn(async move {
            driven_on(&run_of_one_step(Start::New, Patience::default()), Fabric::Followed(followed)).await
        });
    }
    scheduler.until_asked("daskade-submit", 20).await;
    // Their streams, one that feels the heartbeat, and a few that wait for the next call. Others end now.
    let mut connections = scheduler.connections.subscribe();
    let few = timeout(Duration::from_secs(10), connections.wait_for(|open| (21..=25).contains(open))).await.is_ok();
    assert!(few, "{} connections", *scheduler.connections.borrow());
    // And it stays so.
    let more =
        timeout(Duration::from_millis(300), connections.wait_for(|open| !(21..=25).contains(open))).await.is_ok();
    assert!(!more, "{} connections", *scheduler.connections.borrow());
    runs.shutdown().await;
    let ended = timeout(Duration::from_secs(10), connections.wait_for(|open| *open <= 4)).await.is_ok();
    assert!(ended, "{} connections are left", *scheduler.connections.borrow());
    drop(endpoints);
}

#[tokio::test]
async fn what_a_run_needs_soon_is_told_while_the_step_before_it_runs_and_taken_back() {
    let event = |n: u32, s: u32, kind: &str| match kind {
        "started" => json!({"k": kind, "n": n, "s": s, "i": -1, "a": 1, "w": "w", "t": 1.0}),
        "finished" => json!({"k": kind, "n": n, "s": s, "i": -1, "a": 1, "w": "w", "t0": 1.0, "t1": 2.0, "z": 1}),
        _ => json!({"k": kind, "n": n, "tasks": [[s, -1, 1]], "seg": n}),
    };
    let kinds = ["started", "finished", "committed"];
    let events: Vec<Value> = (0..9).map(|n| event(n + 1, n / 3, kinds[n as usize % 3])).collect();
    let scheduler = Scheduler::new(move |op, _| Some(usual(op, &events))).await;
    let steps = json!({"steps": [
        {"name": "a", "call": "m:f"},
        {"name": "b", "call": "m:f", "args": ["$(steps.a.output)"]},
        {"name": "train", "call": "m:f", "args": ["$(steps.b.output)"], "resources": {"GPU": 1}},
    ], "cluster": {"template": {"workers": [{"name": "cpu"}, {"name": "gpu", "gpu": {"count": 1}}]}}});
    let spec: PipelineSpec = serde_json::from_value(steps).expect("a spec");
    let info = RunInfo { name: "run".to_owned(), uid: "uid".to_owned() };
    let plan = validate(&spec, "spec").and_then(|flow| flow.bind(&Map::new(), &info)).expect("no mistakes");
    let spec = RunSpec { plan, ..run_of_one_step(Start::New, Patience::default()) };
    let (_seats, endpoints) = watch::channel(endpoint(&scheduler, 1, 7));
    let (ended, _, _) = driven_on(&spec, Fabric::Followed(endpoints)).await;
    assert_eq!(ended.expect("a report").outcome, RunOutcome::Succeeded);
    // All three were handed over at once; of these `b` comes next, and the GPU does not.
    let told = scheduler.asked("daskade-demand");
    let asks = told[0]["asks"].as_array().expect("asks");
    assert_eq!((asks.len(), &asks[0]["group"], &asks[0]["resources"]), (1, &Value::Null, &json!({})), "{told:?}");
    assert_eq!(asks[0]["count"], 2, "{told:?}");
    assert_eq!((&told[0]["run"], &told[0]["epoch"]), (&json!("uid"), &json!(1)));
}

#[tokio::test]
async fn a_run_ends_when_nobody_looks_after_its_cluster_any_more() {
    let (endpoints, followed) = watch::channel(None);
    drop(endpoints);
    let (ended, _, _) = driven_on(&run_of_one_step(Start::Either, short()), Fabric::Followed(followed)).await;
    assert!(matches!(ended, Err(DriveError::Cluster(_))), "{ended:?}");
}
