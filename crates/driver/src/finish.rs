//! The end of a run: what it ends with, and its closing record.

use serde_json::Value;

use super::counts::counts;
use super::ended::{Ended, classify};
use super::follow::Follower;
use super::results::Room;
use super::run_engine::Engine;
use api::reason::Reason;
use dask::ops::{Close, ReadOutput};
use engine::{TaskId, TaskStatus};
use lower::{ExprError, Part, ResultSource, ResultSpec};
use run_model::report::{Report, ResultValue, summary};

/// Failures kept for the report.
const MAX_FAILURES: usize = 20;

impl Follower<'_, '_> {
    /// Writes the final record and makes the report.
    pub(super) async fn close(&mut self, outcome: engine::RunOutcome) -> Result<Report, Ended> {
        let plan = self.engine.plan;
        let (mut results, mut room) = (Vec::new(), Room::new());
        let supplier = self.supplier();
        for result in plan.results() {
            let computed = supplier.supply(&mut self.engine, |view| plan.computed_result(result, view)).await;
            let computed = computed.map_err(|error| self.session.ended_by(error))?;
            let value = match computed.and_then(|value| room.take(value)) {
                Ok(value) => ResultValue::Json(value),
                Err(error) => self.stored_result(result, &error).await?,
            };
            results.push((result.name.clone(), value));
        }
        let Engine { state, facts, .. } = &mut self.engine;
        let failures = facts.terminal_failures(MAX_FAILURES);
        let (outcome, reason, message) = summary(outcome, &failures, facts.passed);
        let counts = counts(state, facts);
        let mut closing = serde_json::Map::new();
        closing.insert("state".into(), outcome.as_str().into());
        closing.insert("reason".into(), reason.map(Reason::as_str).into());
        closing.insert("message".into(), message.clone().into());
        closing.insert("steps".into(), serde_json::json!(counts));
        let named = results.iter().map(|(name, value)| (name.clone(), value.to_json())).collect();
        closing.insert("results".into(), Value::Object(named));
        let report =
            Report { outcome, reason, message, counts, results, failures, duration: self.session.started.elapsed() };
        *self.session.closing = Some(report.clone());
        let close = Close { run: &self.session.spec.uid, epoch: self.opened.epoch, closed: &closing };
        self.peer.call(&close).await.map_err(classify)?;
        Ok(Report { duration: self.session.started.elapsed(), ..report })
    }

    /// Where a result is that is no small JSON; `error` says why it could not be computed.
    async fn stored_result(&mut self, result: &ResultSpec, error: &ExprError) -> Result<ResultValue, Ended> {
        let missing = || Ok(ResultValue::Missing { why: Some(error.to_string()) });
        let ResultSource::Step { step, item, path, .. } = &result.source else { return missing() };
        let (spec, plan) = (self.session.spec, self.engine.plan);
        if plan.part(*step) == Part::LeftOut {
            return Ok(ResultValue::Missing { why: None });
        }
        let run = format!("{}/runs/{}", spec.storage.url, spec.uid);
        if plan.is_mapped(*step) && item.is_none() {
            return Ok(ResultValue::Stored { uri: run, size: 0, serializer: "list".to_owned() });
        }
        let task = TaskId { step: *step, item: *item };
        if !matches!(self.engine.status(task), Some(TaskStatus::Committed { .. })) {
            return Ok(ResultValue::Missing { why: None });
        }
        if !path.is_empty() && self.engine.facts.has_result(task) {
            return missing();
        }
        let read = ReadOutput::new(&spec.uid, step.0, *item, 0);
        let output = self.peer.call(&read).await.map_err(classify)?;
        let uri = match output.path {
            None => format!("{run}/journal"),
            // Of an earlier run.
            Some(path) if path.starts_with('/') => format!("{}{path}", spec.storage.url),
            Some(path) => format!("{run}/{path}"),
        };
        Ok(ResultValue::Stored { uri, size: output.size, serializer: output.serializer })
    }
}
