//! The end of a run: what it ends with, and its closing record.

use serde_json::Value;

use super::counts::counts;
use super::ended::{Ended, classify};
use super::facts::{Facts, View};
use super::results::Room;
use super::session::Session;
use super::supply::Supplier;
use api::reason::Reason;
use dask::Peer;
use dask::ops::{Close, Opened, ReadOutput};
use engine::{RunState, TaskId, TaskStatus};
use lower::{ExprError, Part, ResultSource, ResultSpec};
use run_model::report::{Report, ResultValue, summary};

/// Failures kept for the report.
const MAX_FAILURES: usize = 20;

impl Session<'_> {
    /// Writes the final record and makes the report.
    pub(super) async fn close(
        &mut self,
        peer: &Peer,
        opened: &Opened,
        (state, facts): (&RunState, &mut Facts),
        outcome: engine::RunOutcome,
    ) -> Result<Report, Ended> {
        let plan = &self.spec.plan;
        let (mut results, mut room) = (Vec::new(), Room::new());
        let supplier = Supplier { peer, run: &self.spec.uid, epoch: opened.epoch };
        for result in plan.results() {
            let computed = supplier.supply((state, facts), &plan.dag, |view| plan.computed_result(result, view)).await;
            let value = match computed.map_err(|error| self.ended_by(error))?.and_then(|value| room.take(value)) {
                Ok(value) => ResultValue::Json(value),
                Err(error) => {
                    let view = View { facts, state, dag: &plan.dag };
                    self.stored_result(peer, &view, result, &error).await?
                }
            };
            results.push((result.name.clone(), value));
        }
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
        let report = Report { outcome, reason, message, counts, results, failures, duration: self.started.elapsed() };
        *self.closing = Some(report.clone());
        let close = Close { run: &self.spec.uid, epoch: opened.epoch, closed: &closing };
        peer.call(&close).await.map_err(classify)?;
        Ok(Report { duration: self.started.elapsed(), ..report })
    }

    /// Where a result is that is no small JSON; `error` says why it could not be computed.
    async fn stored_result(
        &mut self,
        peer: &Peer,
        View { facts, state, dag }: &View<'_>,
        result: &ResultSpec,
        error: &ExprError,
    ) -> Result<ResultValue, Ended> {
        let missing = || Ok(ResultValue::Missing { why: Some(error.to_string()) });
        let ResultSource::Step { step, item, path, .. } = &result.source else { return missing() };
        let plan = &self.spec.plan;
        if plan.part(*step) == Part::LeftOut {
            return Ok(ResultValue::Missing { why: None });
        }
        let run = format!("{}/runs/{}", self.spec.storage.url, self.spec.uid);
        if plan.is_mapped(*step) && item.is_none() {
            return Ok(ResultValue::Stored { uri: run, size: 0, serializer: "list".to_owned() });
        }
        let task = TaskId { step: *step, item: *item };
        let committed =
            state.task_view(dag, task).is_some_and(|view| matches!(view.status, TaskStatus::Committed { .. }));
        if !committed {
            return Ok(ResultValue::Missing { why: None });
        }
        if !path.is_empty() && facts.has_result(task) {
            return missing();
        }
        let read = ReadOutput::new(&self.spec.uid, step.0, *item, 0);
        let output = peer.call(&read).await.map_err(classify)?;
        let uri = match output.path {
            None => format!("{run}/journal"),
            // Of an earlier run.
            Some(path) if path.starts_with('/') => format!("{}{path}", self.spec.storage.url),
            Some(path) => format!("{run}/{path}"),
        };
        Ok(ResultValue::Stored { uri, size: output.size, serializer: output.serializer })
    }
}
