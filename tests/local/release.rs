//! How a scheduler is told to forget a run that its driver has left, and when it has confirmed that.

use ::driver::{DriveError, release};
use run_model::Released;
use serde_json::{Value, json};

use crate::driver::{Scheduler, endpoint, ok, usual};

/// A scheduler on which run `uid` is open under epoch 4; its first answer has these fields too, or others in place of those.
async fn scheduler(fields: Value, forget: Value) -> Scheduler {
    Scheduler::new(move |op, _| {
        Some(match op {
            "daskade-hello" => {
                let mut hello = usual(op, &[]);
                hello["runs"] = json!({"uid": 4, "other": 9});
                let fields = fields.as_object().cloned().unwrap_or_default();
                fields.into_iter().for_each(|(name, value)| hello[name] = value);
                hello
            }
            "daskade-forget" => forget.clone(),
            _ => Value::Null,
        })
    })
    .await
}

async fn released(scheduler: &Scheduler) -> Result<Released, DriveError> {
    release("uid", &endpoint(scheduler, 1, 7).expect("a endpoint")).await
}

#[tokio::test]
async fn it_is_told_the_epoch_under_which_the_run_is_open_there() {
    // A runtime of an older release does not say who opened it.
    for fields in [json!({"led": ["uid"], "opening": []}), json!({})] {
        let scheduler = scheduler(fields, ok()).await;
        assert_eq!(released(&scheduler).await.expect("it has forgotten it"), Released::Forgotten);
        let asked = scheduler.asked("daskade-forget");
        assert_eq!(asked.len(), 1);
        assert_eq!([&asked[0]["run"], &asked[0]["epoch"], &asked[0]["lead"]], [&json!("uid"), &json!(4), &json!(7)]);
    }
}

#[tokio::test]
async fn a_scheduler_without_the_run_has_confirmed() {
    let without = scheduler(json!({"runs": {"other": 9}}), Value::Null).await;
    assert_eq!(released(&without).await.expect("it is not open there"), Released::Forgotten);
    assert!(without.asked("daskade-forget").is_empty());
    // One that has just started, or is of other people, has no runtime.
    let plain = Scheduler::new(|_, _| Some(Value::Null)).await;
    assert_eq!(released(&plain).await.expect("no run is open there"), Released::Forgotten);
}

#[tokio::test]
async fn what_a_command_has_opened_is_left_alone() {
    let scheduler = scheduler(json!({"led": ["other"]}), ok()).await;
    assert_eq!(released(&scheduler).await.expect("it is known"), Released::TakenOver);
    assert!(scheduler.asked("daskade-forget").is_empty());
}

#[tokio::test]
async fn it_is_not_confirmed_while_the_run_is_opened_or_the_scheduler_refuses_or_is_silent() {
    let refusal = |reason: &str| json!({"status": "error", "reason": reason, "message": "it says no"});
    for (fields, forget, words) in [
        (json!({"runs": {}, "opening": ["uid"]}), ok(), "the scheduler is opening the run"),
        (json!({}), refusal("StaleEpoch"), "reopened in the meantime"),
        (json!({}), refusal("StaleLeader"), "StaleLeader: it says no"),
    ] {
        let scheduler = scheduler(fields, forget).await;
        let error = released(&scheduler).await.expect_err("it has not confirmed");
        assert!(error.to_string().contains(words), "{error}");
    }
    let silent = Scheduler::new(|_, _| None).await;
    let error = released(&silent).await.expect_err("nobody answers");
    assert!(error.to_string().starts_with("failed to "), "{error}");
}
