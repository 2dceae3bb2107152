use serde_json::{Value, json};

use super::*;
use crate::frame::{FrameDecoder, Limits};

/// A session with a scripted peer and a clock that stands still.
struct Script {
    session: Session,
    now: Instant,
}

impl Script {
    fn new() -> Script {
        let now = Instant::now();
        Script { session: Session::new(&Deadlines::default(), now), now }
    }

    fn ready() -> Script {
        let mut script = Script::new();
        assert_eq!(script.sent().len(), 1);
        script.peer(&json!({"compression": null, "python": [3, 11, 7], "pickle-protocol": 5}));
        assert_eq!(script.seen(), ["ready"]);
        script
    }

    fn following(beat: f64) -> Script {
        let mut script = Script::ready();
        let mut follow = FollowEvents::new("run", 1, 0, "me");
        follow.beat = beat;
        assert!(script.session.handle_command(Command::Follow(follow), script.now).is_ok());
        let sent = script.sent();
        assert_eq!(sent[0]["op"], "daskade-events");
        assert_eq!(sent[0]["reply"], false);
        script
    }

    fn peer(&mut self, value: &Value) {
        let body = rmp_serde::to_vec(value).unwrap_or_default();
        let message = Message::new(vec![body.into()], &Limits::default()).unwrap_or_else(|e| panic!("{e}"));
        self.session.handle_message(&message, self.now);
    }

    fn call(&mut self, id: u64, op: &str, within: u64) {
        let request = message::encode_request(op, true, &json!({})).unwrap_or_default();
        let within = Duration::from_secs(within);
        assert!(self.session.handle_command(Command::Call { id: CallId(id), request, within }, self.now).is_ok());
    }

    fn sent(&mut self) -> Vec<Value> {
        let mut sent = vec![];
        while let Some(bytes) = self.session.poll_transmit() {
            let frames = FrameDecoder::new(Limits::default()).decode(&mut (&bytes[..]).into());
            let frame = frames.ok().flatten().and_then(|mut f| f.pop()).unwrap_or_default();
            sent.push(message::decode(&frame).unwrap_or(Value::Null));
        }
        sent
    }

    /// A word for each event: `ready`, `reply 1`, `batch 5`, or the category of the failure.
    fn seen(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.session.poll_event())
            .map(|event| match event {
                Event::Ready => "ready".to_owned(),
                Event::Reply(id, _) => format!("reply {}", id.0),
                Event::Batch(batch) => format!("batch {}", batch.cursor),
                Event::Failed(error) => error.category().to_owned(),
            })
            .collect()
    }

    /// Lets the clock run to just before the next deadline, then past it.
    fn expire(&mut self) -> Duration {
        let at = self.session.poll_timeout().unwrap_or_else(|| panic!("nothing is waited for"));
        let waited = at.duration_since(self.now);
        self.session.handle_timeout(at - Duration::from_millis(1));
        assert!(self.seen().is_empty());
        self.session.handle_timeout(at);
        waited
    }
}

fn stopped(n: u64) -> Value {
    json!({"k": "stopped", "n": n, "s": 0, "i": 0, "a": 1})
}

#[test]
fn both_sides_introduce_themselves() {
    let mut script = Script::new();
    let ours = script.sent();
    assert_eq!(ours, [json!({"compression": null, "python": [3, 12, 0], "pickle-protocol": 5})]);
    script.peer(&json!({"compression": "lz4", "python": [3, 8, 0], "pickle-protocol": 4, "more": 1}));
    assert_eq!(script.seen(), ["ready"]);
    assert_eq!(script.session.poll_timeout(), None);
}

#[test]
fn a_peer_that_is_no_dask_server_is_refused() {
    for hello in [
        json!(null),
        json!([]),
        json!("HTTP/1.1"),
        json!({}),
        json!({"compression": null}),
        json!({"compression": null, "pickle-protocol": 3}),
        json!({"compression": 1, "pickle-protocol": 5}),
    ] {
        let mut script = Script::new();
        script.peer(&hello);
        assert_eq!(script.seen(), ["handshake"], "{hello}");
    }
}

#[test]
fn a_silent_peer_is_given_up_at_the_handshake() {
    let mut script = Script::new();
    assert_eq!(script.expire(), Deadlines::default().handshake);
    assert_eq!(script.seen(), ["timeout"]);
}

#[test]
fn calls_wait_for_each_other_and_for_the_handshake() {
    let mut script = Script::new();
    script.call(1, "a", 10);
    script.call(2, "b", 10);
    assert_eq!(script.sent().len(), 1, "only our introduction");
    script.peer(&json!({"compression": null, "pickle-protocol": 5}));
    assert_eq!(script.sent(), [json!({"op": "a", "reply": true})]);
    script.peer(&json!("answer"));
    assert_eq!(script.sent(), [json!({"op": "b", "reply": true})]);
    script.peer(&json!(null));
    assert_eq!(script.seen(), ["ready", "reply 1", "reply 2"]);
    assert_eq!(script.session.poll_timeout(), None);
}

#[test]
fn an_answer_that_is_late_ends_the_session() {
    let mut script = Script::ready();
    script.call(1, "a", 7);
    script.sent();
    assert_eq!(script.expire(), Duration::from_secs(7));
    script.peer(&json!("late"));
    script.call(2, "b", 7);
    assert_eq!(script.seen(), ["timeout"]);
    assert!(script.sent().is_empty());
}

#[test]
fn nothing_is_sent_after_a_failure() {
    let mut script = Script::new();
    // Our introduction is not even written yet when the connection ends.
    script.session.handle_end(Error::Closed);
    assert!(script.sent().is_empty());
    script.session.handle_end(Error::Shutdown);
    assert_eq!(script.seen(), ["closed"], "the first reason stays, and is told once");
}

#[test]
fn waiting_in_the_queue_counts() {
    let mut script = Script::ready();
    script.call(1, "a", 7);
    script.call(2, "b", 8);
    script.now += Duration::from_secs(6);
    script.peer(&json!(null));
    assert_eq!(script.seen(), ["reply 1"]);
    assert_eq!(script.expire(), Duration::from_secs(2));
}

#[test]
fn what_nobody_asked_for_ends_the_session() {
    let mut script = Script::ready();
    script.peer(&json!({"status": "OK"}));
    assert_eq!(script.seen(), ["protocol"]);
    let mut script = Script::ready();
    script.session.handle_partial();
    assert_eq!(script.seen(), ["protocol"]);
    let mut script = Script::ready();
    script.call(1, "a", 7);
    script.session.handle_partial();
    script.peer(&json!(1));
    script.peer(&json!(2));
    assert_eq!(script.seen(), ["reply 1", "protocol"]);
}

#[test]
fn events_are_delivered_and_acknowledged() {
    let mut script = Script::following(5.0);
    script.peer(&json!({"instance": "me", "events": [], "seq": 0}));
    script.peer(&json!({"instance": "me", "events": [stopped(1), stopped(2)], "seq": 2}));
    assert_eq!(script.seen(), ["batch 2"]);
    assert!(script.session.handle_command(Command::Acknowledge(1), script.now).is_ok());
    assert!(script.session.handle_command(Command::Acknowledge(1), script.now).is_ok());
    // Nothing is acknowledged that did not come.
    assert!(script.session.handle_command(Command::Acknowledge(9), script.now).is_ok());
    assert_eq!(script.sent(), [json!({"ack": 1}), json!({"ack": 2})]);
}

#[test]
fn three_silent_beats_end_the_stream_and_an_empty_batch_is_a_sign_of_life() {
    let mut script = Script::following(2.0);
    script.now += Duration::from_secs(5);
    script.peer(&json!({"instance": "me", "events": [], "seq": 0}));
    assert_eq!(script.expire(), Duration::from_secs(6));
    assert_eq!(script.seen(), ["silent"]);
}

#[test]
fn time_in_which_we_did_not_read_is_no_silence() {
    let mut script = Script::following(2.0);
    script.now += Duration::from_secs(60);
    script.session.handle_resumed(script.now);
    assert_eq!(script.expire(), Duration::from_secs(6));
}

#[test]
fn a_stream_may_be_refused_or_unknown_or_of_another_instance() {
    for (answer, category) in [
        (json!({"status": "error", "reason": "Gap", "message": "m"}), "refused"),
        (json!({"status": "uncaught-error", "exception_text": "TypeError()"}), "remote"),
        (json!(null), "unknown-op"),
        (json!({"instance": "other", "events": [], "seq": 0}), "instance-changed"),
        (json!({"instance": "me", "events": [stopped(3)], "seq": 0}), "protocol"),
        (json!("OK"), "protocol"),
    ] {
        let mut script = Script::following(5.0);
        script.peer(&answer);
        assert_eq!(script.seen(), [category], "{answer}");
    }
}

#[test]
fn a_stream_takes_no_calls() {
    let mut script = Script::following(5.0);
    let request = message::encode_request("a", true, &json!({})).unwrap_or_default();
    let call = Command::Call { id: CallId(1), request, within: Duration::from_secs(1) };
    assert!(script.session.handle_command(call, script.now).is_err());
    assert!(script.session.handle_command(Command::Follow(FollowEvents::new("r", 1, 0, "me")), script.now).is_err());
    assert!(script.seen().is_empty());
}

#[test]
fn endless_deadlines_and_strange_beats_do_not_overflow() {
    let mut script = Script::ready();
    let request = message::encode_request("a", true, &json!({})).unwrap_or_default();
    let call = Command::Call { id: CallId(1), request, within: Duration::MAX };
    assert!(script.session.handle_command(call, script.now).is_ok());
    assert!(script.session.poll_timeout().is_some());
    for beat in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
        let script = Script::following(beat);
        let patience = script.session.poll_timeout().map(|at| at - script.now);
        assert!(patience.is_some_and(|p| p >= Duration::from_millis(300) && p <= Duration::from_secs(3600)), "{beat}");
    }
}
