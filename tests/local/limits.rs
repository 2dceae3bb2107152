//! What a scheduler can make the driver of a run take: the driver is the same in a command and in the operator.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::driver::{ConnectionPool, Fabric, SchedulerEndpoint};
use dask::frame;
use run_model::{Note, Patience, RunOutcome, Start};
use runtime_bundle::RUNTIME;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::driver::{self, driven_on, finished, ok, run_of, run_of_one_step};
use crate::memory::{Flood, alone, assert_bounded, forget_peak, peak};
use crate::peer::{greet, packed, receive};

/// What is answered to each operation; `OK` to others. Pages are answered one after the other.
type Answers = HashMap<&'static str, Vec<Flood>>;
const PAGES: &str = "daskade-snapshot";

/// A scheduler that answers with bytes, made beforehand. Its address.
async fn scheduler(answers: Answers) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("tcp://{}", listener.local_addr().expect("an address"));
    let (answers, page) = (Arc::new(answers), Arc::new(AtomicUsize::new(0)));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (answers, page) = (answers.clone(), page.clone());
            tokio::spawn(async move {
                greet(&mut stream).await;
                while let Some(request) = receive(&mut stream).await {
                    let Some(op) = request["op"].as_str() else { continue }; // an acknowledgement
                    match answers.get(op) {
                        Some(pages) if op == PAGES => {
                            let page = page.fetch_add(1, Ordering::Relaxed) % pages.len();
                            pages[page].send(&mut stream).await;
                        }
                        Some(answers) => {
                            for answer in answers {
                                answer.send(&mut stream).await;
                            }
                        }
                        None => plain(&ok()).send(&mut stream).await,
                    }
                }
            });
        }
    });
    address
}

fn plain(value: &Value) -> Flood {
    Flood { head: packed(value), ..Flood::default() }
}

/// A run that goes from one end to the other, without events.
fn usual() -> Answers {
    ["daskade-hello", "daskade-open", "daskade-read"].map(|op| (op, vec![plain(&driver::usual(op, &[]))])).into()
}

fn followed(address: &str) -> (watch::Sender<Option<SchedulerEndpoint>>, Fabric) {
    let (address, connections) = (address.to_owned(), ConnectionPool::default());
    let endpoint = SchedulerEndpoint { address, tls: None, generation: 1, lead: 7.into(), install: None, connections };
    let (keep, endpoints) = watch::channel(Some(endpoint));
    (keep, Fabric::Followed(endpoints))
}

/// A message of the stream with packed events, the last of them of this number.
fn stream(events: &[Vec<u8>], last: u64) -> Flood {
    let count = u32::try_from(events.len()).expect("not so many");
    let mut body = b"\x83\xa8instance\xa2me\xa6events\xdd".to_vec();
    body.extend_from_slice(&count.to_be_bytes());
    events.iter().for_each(|event| body.extend_from_slice(event));
    body.extend_from_slice(b"\xa3seq\xcf");
    body.extend_from_slice(&last.to_be_bytes());
    Flood { head: frame::encode(&[&body]), ..Flood::default() }
}

/// Packed JSON that ends in a list of so many small numbers in place of its last value, which is null.
fn with_numbers(value: &Value, numbers: u32) -> Vec<u8> {
    let mut packed = rmp_serde::to_vec(value).expect("it can be packed");
    assert_eq!(packed.pop(), Some(0xc0));
    packed.push(0xdd);
    packed.extend_from_slice(&numbers.to_be_bytes());
    packed.resize(packed.len() + numbers as usize, 1);
    packed
}

/// Messages of events of tasks that the run does not have, 12 MB together, and then those of the run.
fn of_others() -> Vec<Flood> {
    let (mut messages, mut n) = (vec![stream(&[], 0)], 0);
    for _ in 0..4 {
        let events: Vec<Vec<u8>> = (0..375)
            .map(|item| {
                n += 1;
                let event = json!({"k": "finished", "n": n, "s": 7, "i": item, "a": 1, "w": "w", "t0": 1.0, "t1": 2.0,
                                   "z": 1, "json": null});
                with_numbers(&event, 8000)
            })
            .collect();
        messages.push(stream(&events, n));
    }
    let own = finished().into_iter().enumerate().map(|(at, mut event)| {
        event["n"] = json!(n + 1 + at as u64);
        rmp_serde::to_vec(&event).expect("it can be packed")
    });
    messages.push(stream(&own.collect::<Vec<_>>(), n + 3));
    messages
}

/// Twelve megabytes of events of tasks that do not exist cost next to nothing, and the run goes on.
#[test]
fn events_of_unknown_tasks_are_dropped_unread() {
    alone("limits::events_of_unknown_tasks_are_dropped_unread", async {
        for operator in [false, true] {
            let mut answers = usual();
            answers.insert("daskade-events", of_others());
            let address = scheduler(answers).await;
            let spec = run_of_one_step(Start::New, Patience::default());
            forget_peak();
            let before = peak();
            let (ended, _, _) = match operator {
                true => {
                    let (_keep, fabric) = followed(&address);
                    driven_on(&spec, fabric).await
                }
                false => driven_on(&spec, Fabric::Remote { address, tls: None, runtime: RUNTIME }).await,
            };
            assert_eq!(ended.expect("it ends").outcome, RunOutcome::Succeeded);
            assert_bounded(before);
        }
    });
}

/// All of it in one message is more than is taken: the scheduler is disconnected, and a person is told why.
#[test]
fn a_message_of_events_that_is_too_large_is_not_read() {
    alone("limits::a_message_of_events_that_is_too_large_is_not_read", async {
        let event = json!({"k": "finished", "n": 1, "s": 0, "i": -1, "a": 1, "w": "w", "t0": 1.0, "t1": 2.0, "z": 1,
                           "json": null});
        let mut answers = usual();
        answers.insert("daskade-events", vec![stream(&[], 0), stream(&[with_numbers(&event, 12_000_000)], 1)]);
        let address = scheduler(answers).await;
        let spec = run_of_one_step(Start::New, Patience { open: Duration::ZERO, first: Duration::ZERO });
        forget_peak();
        let before = peak();
        let (ended, notes, _) = driven_on(&spec, Fabric::Remote { address, tls: None, runtime: RUNTIME }).await;
        let error = ended.expect_err("nothing of it is read").to_string();
        assert!(
            error.contains("read daskade-events: a message of 12000") && error.contains("docs/limits.md"),
            "{error}"
        );
        assert!(notes.iter().all(|note| !matches!(note, Note::AttemptFailed(_))));
        assert_bounded(before);
    });
}

/// The same of the first answer; and the scheduler is not asked again at once.
#[test]
fn a_hello_of_120_mib_is_not_read() {
    alone("limits::a_hello_of_120_mib_is_not_read", async {
        let mut answers = usual();
        answers.insert("daskade-hello", vec![Flood::text(120)]);
        let address = scheduler(answers).await;
        let spec = run_of_one_step(Start::New, Patience { open: Duration::ZERO, first: Duration::from_secs(1) });
        forget_peak();
        let before = peak();
        let (ended, notes, took) = driven_on(&spec, Fabric::Remote { address, tls: None, runtime: RUNTIME }).await;
        let error = ended.expect_err("nothing of it is read").to_string();
        assert!(error.contains("read daskade-hello: a message of 125829") && error.contains("1048576"), "{error}");
        assert!(took >= Duration::from_secs(4), "{took:?}");
        assert!(notes.iter().any(|note| matches!(note, Note::SchedulerLost { cause } if cause.contains("1048576"))));
        assert_bounded(before);
    });
}

/// An answer to `daskade-open` with the rows of a packed list in its snapshot.
fn opened_with(field: &str, rows: &[Vec<u8>]) -> Flood {
    with_rows(json!({"status": "OK", "epoch": 1, "instance": "me", "cursor": 0}), field, rows)
}

/// An answer with a snapshot that has one list of packed rows.
fn with_rows(mut answer: Value, field: &str, rows: &[Vec<u8>]) -> Flood {
    answer["snapshot"] = Value::Null;
    let mut body = rmp_serde::to_vec(&answer).expect("it can be packed");
    assert_eq!(body.pop(), Some(0xc0));
    body.push(0x81);
    rmp_serde::encode::write(&mut body, field).expect("it can be packed");
    body.push(0xdd);
    body.extend_from_slice(&u32::try_from(rows.len()).expect("not so many").to_be_bytes());
    rows.iter().for_each(|row| body.extend_from_slice(row));
    Flood { head: frame::encode(&[&body]), ..Flood::default() }
}

/// The operator goes on with a run of 100 000 tasks that have results.
#[test]
fn a_run_of_100_000_tasks_is_gone_on_with() {
    alone("limits::a_run_of_100_000_tasks_is_gone_on_with", async {
        let result = json!([{"rows": 1000, "mean": 0.5, "name": "part"}]);
        let row = |item: u32| rmp_serde::to_vec(&json!([0, item, 1, null, result])).expect("it can be packed");
        let mut answers = usual();
        answers.insert("daskade-open", vec![opened_with("committed", &(0..100_000).map(row).collect::<Vec<_>>())]);
        answers.insert("daskade-events", vec![stream(&[], 0)]);
        let address = scheduler(answers).await;
        let step = json!({"name": "a", "call": "m:f", "map": {"x": "$(range(100000))"}});
        let spec = run_of(&step, Start::Again, Patience::default());
        forget_peak();
        let before = peak();
        let (_keep, fabric) = followed(&address);
        let (ended, _, _) = driven_on(&spec, fabric).await;
        let report = ended.expect("it ends");
        assert_eq!(
            (report.outcome, report.counts.total, report.counts.done),
            (RunOutcome::Succeeded, 100_000, 100_000)
        );
        println!("rose by {} MiB", (peak() - before) >> 20);
    });
}

/// Results of 16 MiB, of small numbers, stay as small as they came.
#[test]
fn results_in_a_snapshot_stay_packed() {
    alone("limits::results_in_a_snapshot_stay_packed", async {
        let row = |item: u32| {
            let mut row = with_numbers(&json!([0, item, 1, null, null]), 1);
            // In place of the list of one number: a list of one result, which has 8000.
            row.truncate(row.len() - 6);
            row.extend_from_slice(b"\x91\xdc\x1f\x40");
            row.resize(row.len() + 8000, 1);
            row
        };
        let mut answers = usual();
        answers.insert("daskade-open", vec![opened_with("committed", &(0..2000).map(row).collect::<Vec<_>>())]);
        answers.insert("daskade-events", vec![stream(&[], 0)]);
        let address = scheduler(answers).await;
        let step = json!({"name": "a", "call": "m:f", "map": {"x": "$(range(2000))"}});
        let spec = run_of(&step, Start::Again, Patience::default());
        forget_peak();
        let before = peak();
        let (_keep, fabric) = followed(&address);
        let (ended, _, _) = driven_on(&spec, fabric).await;
        let report = ended.expect("it ends");
        assert_eq!((report.outcome, report.counts.done), (RunOutcome::Succeeded, 2000));
        assert_bounded(before);
    });
}

/// A task with a result of 16 KiB.
fn large_row(item: u32) -> Vec<u8> {
    let result = json!(["x".repeat(16_000)]);
    rmp_serde::to_vec(&json!([0, item, 1, null, result])).expect("it can be packed")
}

/// The operator goes on with a run whose snapshot is larger than it takes in one message, and holds no more than a part of it.
#[test]
fn a_snapshot_of_any_size_is_read_in_pages() {
    alone("limits::a_snapshot_of_any_size_is_read_in_pages", async {
        const ITEMS: u32 = 6000;
        let rows: Vec<Vec<u8>> = (0..ITEMS).map(large_row).collect();
        let mut pages: Vec<Flood> = Vec::new();
        for (number, rows) in rows.chunks(100).enumerate() {
            let more = if number < ITEMS as usize / 100 - 1 { json!("token") } else { Value::Null };
            pages.push(with_rows(json!({"status": "OK", "more": more}), "committed", rows));
        }
        drop(rows);
        let mut answers = usual();
        let first = json!({"status": "OK", "epoch": 1, "instance": "me", "cursor": 0, "more": "token", "keeps": true});
        answers.insert("daskade-open", vec![with_rows(first, "committed", &[])]);
        answers.insert(PAGES, pages);
        answers.insert("daskade-events", vec![stream(&[], 0)]);
        let address = scheduler(answers).await;
        let step = json!({"name": "a", "call": "m:f", "map": {"x": format!("$(range({ITEMS}))")}});
        let spec = run_of(&step, Start::Again, Patience::default());
        forget_peak();
        let before = peak();
        let (_keep, fabric) = followed(&address);
        let (ended, _, _) = driven_on(&spec, fabric).await;
        let report = ended.expect("it ends");
        assert_eq!((report.outcome, report.counts.done), (RunOutcome::Succeeded, u64::from(ITEMS)));
        assert_bounded(before);
    });
}

/// A scheduler of an earlier release answers all at once; what is more than one message may have is not read.
#[test]
fn a_snapshot_of_96_mib_in_one_message_is_not_read() {
    alone("limits::a_snapshot_of_96_mib_in_one_message_is_not_read", async {
        let rows: Vec<Vec<u8>> = (0..6000).map(large_row).collect();
        let mut answers = usual();
        answers.insert("daskade-open", vec![opened_with("committed", &rows)]);
        drop(rows);
        let address = scheduler(answers).await;
        let step = json!({"name": "a", "call": "m:f", "map": {"x": "$(range(6000))"}});
        let spec = run_of(&step, Start::Again, Patience { open: Duration::ZERO, first: Duration::ZERO });
        forget_peak();
        let before = peak();
        let (_keep, fabric) = followed(&address);
        let (ended, _, _) = driven_on(&spec, fabric).await;
        let error = ended.expect_err("nothing of it is read").to_string();
        assert!(error.contains("read daskade-open: a message of") && error.contains("25165824"), "{error}");
        assert_bounded(before);
    });
}
