//! Who leads: against an API server that conflicts, fails, hangs, and whose lease others write.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use jiff::SignedDuration;
use kube::client::ClientBuilder;
use operator::leader::clock::Clock;
use operator::leader::lead::Lead;
use operator::leader::lease::{LeaseSettings, candidate};
use serde_json::json;
use telemetry::health::Health;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::LEASE;
use crate::api::Api;
use crate::wait::{self, eventually};

/// Short, so that the tests are: others may take over after 2 s, the holder gives up after 1.3 s, a turn is each 0.4 s.
const DURATION: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_secs(10);

struct Running {
    lead: Lead,
    health: Arc<Health>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Running {
    fn start(api: &Api, identity: &str) -> Self {
        let health = Arc::new(Health::default());
        let settings = LeaseSettings {
            namespace: "daskade".into(),
            name: "daskade-operator".into(),
            identity: identity.into(),
            duration: DURATION,
        };
        let clock = Clock::default();
        let client = ClientBuilder::try_from(api.config()).expect("a client").with_layer(&clock).build();
        let (candidate, lead) = candidate(client, clock, settings, health.clone());
        wait::hear_the_operator();
        wait::follow(lead.epochs());
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(candidate.run(async move { drop(stopped.await) }));
        Self { lead, health, stop: Some(stop), task }
    }

    fn leads(&self) -> bool {
        self.lead.check().is_ok()
    }

    async fn until_it_leads(&self) -> u64 {
        eventually("it leads", SOON, || self.leads()).await;
        self.lead.check().expect("it leads")
    }

    async fn stop(mut self) {
        drop(self.stop.take());
        (&mut self.task).await.expect("it ends well");
    }
}

fn holder(api: &Api) -> Option<String> {
    api.object(LEASE)?["spec"]["holderIdentity"].as_str().map(str::to_owned)
}

/// How often the lease was read, which its holder does not do.
fn looks(api: &Api) -> usize {
    api.requests().iter().filter(|request| request.method == Method::GET && request.path == LEASE).count()
}

fn foreign(holder: &str, seconds: i64, renewed: &str) -> serde_json::Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": "daskade-operator", "namespace": "daskade" },
        "spec": { "holderIdentity": holder, "leaseDurationSeconds": seconds, "renewTime": renewed, "leaseTransitions": 7 },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_leads_and_a_released_lease_is_taken_at_once_with_the_next_epoch() {
    let api = Api::start().await;
    let mut all: Vec<Running> = ["a", "b", "c"].iter().map(|name| Running::start(&api, name)).collect();
    eventually("one leads", SOON, || all.iter().any(Running::leads)).await;
    let others = looks(&api);
    eventually("the others have looked at it several times", SOON, || {
        assert!(all.iter().filter(|one| one.leads()).count() <= 1);
        looks(&api) >= others + 5
    })
    .await;
    let at = all.iter().position(Running::leads).expect("one leads");
    let first = all.swap_remove(at);
    let epoch = first.lead.check().expect("it leads");
    let lead = first.lead.clone();
    let released = Instant::now();
    first.stop().await;
    assert!(lead.check().is_err(), "who gave the lease back does not lead");
    assert_eq!(*lead.epochs().borrow(), None);
    eventually("another leads", SOON, || all.iter().any(Running::leads)).await;
    assert!(released.elapsed() < DURATION, "a released lease is not waited for");
    let next = all.iter().find_map(|one| one.lead.check().ok()).expect("one leads");
    assert_eq!(next, epoch + 1);
}

#[tokio::test]
async fn clocks_of_others_do_not_matter() {
    let api = Api::start().await;
    // Renewed an hour ago by its holder's clock, and yet alive: it is written again and again.
    api.put(LEASE, foreign("other", 2, "2001-01-01T00:00:00.000000Z"));
    let ours = Running::start(&api, "ours");
    let begun = Instant::now();
    for round in 0.. {
        let before = looks(&api);
        eventually("it is looked at", SOON, || looks(&api) > before).await;
        assert!(!ours.leads());
        if begun.elapsed() > DURATION * 3 / 2 {
            break;
        }
        api.edit(LEASE, |lease| lease["spec"]["renewTime"] = json!(format!("2001-01-01T00:00:{round:02}.000000Z")));
    }
    // And renewed in the far future, but silent from now on.
    api.edit(LEASE, |lease| lease["spec"]["renewTime"] = json!("2999-01-01T00:00:00.000000Z"));
    let silent = Instant::now();
    let epoch = ours.until_it_leads().await;
    assert!(
        silent.elapsed() >= Duration::from_millis(1_900),
        "it waits for the whole duration: {:?}",
        silent.elapsed()
    );
    assert_eq!(epoch, 9, "8 transitions");
    assert_eq!(holder(&api).as_deref(), Some("ours"));
}

#[tokio::test]
async fn the_right_ends_without_an_answer_and_comes_back_with_the_same_epoch() {
    let api = Api::start().await;
    let ours = Running::start(&api, "ours");
    let epoch = ours.until_it_leads().await;
    let mut epochs = ours.lead.epochs();
    epochs.borrow_and_update();
    api.set_silent(true);
    let silent = Instant::now();
    eventually("it may not write", SOON, || !ours.leads()).await;
    assert!(silent.elapsed() < DURATION - Duration::from_millis(400), "well before others: {:?}", silent.elapsed());
    tokio::time::timeout(Duration::from_millis(500), epochs.changed()).await.expect("told").expect("told");
    assert_eq!(*epochs.borrow_and_update(), None);
    assert!(!ours.health.report().0, "/ready tells of it");
    api.set_silent(false);
    assert_eq!(ours.until_it_leads().await, epoch, "nobody else had it");
    eventually("it is ready", SOON, || ours.health.report().0).await;
}

#[tokio::test]
async fn a_foreign_edit_is_no_loss_and_a_deleted_lease_goes_on_with_a_higher_epoch() {
    let api = Api::start().await;
    let ours = Running::start(&api, "ours");
    let epoch = ours.until_it_leads().await;
    let mut epochs = ours.lead.epochs();
    epochs.borrow_and_update();
    api.edit(LEASE, |lease| lease["metadata"]["annotations"] = json!({ "note": "from a person" }));
    let renewals = || api.requests().iter().filter(|write| write.method == Method::PUT && write.status == 200).count();
    let before = renewals();
    eventually("it was renewed since", SOON, || renewals() >= before + 2).await;
    assert_eq!(ours.lead.check(), Ok(epoch));
    assert!(!epochs.has_changed().expect("alive"), "it never was lost");
    let kept = api.object(LEASE).expect("the lease");
    assert_eq!(kept["metadata"]["annotations"]["note"], "from a person");
    let uid = || api.object(LEASE).and_then(|lease| lease["metadata"]["uid"].as_str().map(str::to_owned));
    let told = || ours.lead.leader().expect("it leads").lease;
    let former = uid();
    assert_eq!(told(), former, "schedulers are told whose epoch it is");
    api.delete(LEASE);
    eventually("it is there again", SOON, || api.object(LEASE).is_some()).await;
    eventually("a higher epoch", SOON, || ours.lead.check().is_ok_and(|now| now > epoch)).await;
    assert!(former.is_some() && told() != former && told() == uid(), "{:?}", told());
}

#[tokio::test]
async fn the_epoch_of_a_new_lease_is_above_those_of_one_that_was_deleted() {
    let api = Api::start().await;
    let first = Running::start(&api, "first");
    let epoch = first.until_it_leads().await;
    first.stop().await;
    let second = Running::start(&api, "second");
    let later = second.until_it_leads().await;
    assert!(later > epoch);
    second.stop().await;
    api.delete(LEASE);
    // Counted in minutes: the same minute would give the same count, which an hour's worth of hand-overs reaches only once.
    let minutes = u64::try_from(jiff::Timestamp::now().as_second()).expect("after 1970") / 60;
    let third = Running::start(&api, "third");
    assert!(third.until_it_leads().await >= minutes, "it goes on from the clock, not from one");
}

#[tokio::test]
async fn the_epoch_of_a_new_lease_is_the_api_servers_time_and_not_that_of_this_machine() {
    let api = Api::start().await;
    // This machine is ten days ahead; a count from there would keep all who come later from their schedulers.
    api.set_clock(SignedDuration::from_hours(-240));
    let minutes = |at: jiff::Timestamp| u64::try_from(at.as_second()).expect("after 1970") / 60;
    let before = minutes(api.now());
    let ours = Running::start(&api, "ours");
    let epoch = ours.until_it_leads().await;
    let after = minutes(api.now());
    assert!((before + 1..=after + 1).contains(&epoch), "{epoch} is not between {before} and {after}");
    let renewed = api.object(LEASE).expect("the lease")["spec"]["renewTime"].clone();
    let renewed: jiff::Timestamp = renewed.as_str().and_then(|at| at.parse().ok()).expect("a time");
    assert!(api.now().duration_since(renewed).abs() < SignedDuration::from_secs(30), "{renewed}");
}

#[tokio::test]
async fn one_that_slept_through_its_lease_does_not_write_over_the_next_leader() {
    let api = Api::start().await;
    let ours = Running::start(&api, "ours");
    ours.until_it_leads().await;
    // While it hears nothing, another takes over.
    api.set_silent(true);
    eventually("it may not write", SOON, || !ours.leads()).await;
    api.put(LEASE, foreign("other", 60, "2999-01-01T00:00:00.000000Z"));
    api.set_silent(false);
    let before = looks(&api);
    eventually("it has seen whose it is", SOON, || looks(&api) >= before + 2).await;
    assert!(!ours.leads());
    assert_eq!(holder(&api).as_deref(), Some("other"));
    ours.stop().await;
    assert_eq!(holder(&api).as_deref(), Some("other"), "what is another's is not given back");
}

#[tokio::test]
async fn nonsense_in_a_lease_does_no_harm() {
    for (spec, expected) in [
        (json!(null), None),
        (json!({}), None),
        (json!({ "holderIdentity": "", "leaseTransitions": -5 }), None),
        (json!({ "holderIdentity": "other", "leaseDurationSeconds": -1, "leaseTransitions": 3 }), Some(5)),
        (json!({ "leaseTransitions": i32::MAX }), Some(1 << 31)),
    ] {
        let api = Api::start().await;
        api.put(LEASE, json!({ "metadata": { "name": "daskade-operator" }, "spec": spec }));
        let ours = Running::start(&api, "ours");
        let epoch = ours.until_it_leads().await;
        assert!(expected.is_none_or(|expected| epoch == expected), "{spec}: {epoch}");
        assert!(epoch > 1, "{spec}: {epoch}");
    }
}

#[tokio::test]
async fn a_lease_that_may_not_be_written_is_told_by_ready() {
    let api = Api::start().await;
    api.fail("/leases", 403);
    let ours = Running::start(&api, "ours");
    eventually("it is told", SOON, || ours.health.report().1.to_string().contains("told to fail")).await;
    assert!(!ours.leads());
    api.fail("/leases", 0);
    ours.until_it_leads().await;
    eventually("it is ready", SOON, || ours.health.report().0).await;
}
