//! Tells the scheduler what a run will have use for beyond what was handed over, so that workers come just before they are
//! needed.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::run_engine::Engine;
use dask::ops::{Ask, Demand};
use dask::{Error, Peer};
use engine::Limits;
use lower::Plan;

/// Between two looks: a pod takes longer to come.
const LOOK: Duration = Duration::from_secs(1);
/// Above this many tasks the exact number matters to nobody.
const EXACT: u64 = 16;

/// Group and resources: tasks with the same are asked for together. Amounts as bits, since they have no order.
type Like = (Option<String>, Vec<(String, u64)>);

/// What was told of one run on one scheduler.
#[derive(Debug)]
pub(super) struct DemandReporter {
    told: Vec<Ask>,
    next: Instant,
}

impl DemandReporter {
    pub(super) fn new() -> Self {
        Self { told: Vec::new(), next: Instant::now() }
    }

    /// Reports it if it is news; when to look again if it is too early for a look.
    pub(super) async fn report(
        &mut self,
        peer: &Peer,
        (run, epoch): (&str, u64),
        known: &Engine<'_>,
        limits: &Limits,
    ) -> Result<Option<Instant>, Error> {
        if Instant::now() < self.next {
            return Ok(Some(self.next));
        }
        self.next = Instant::now() + LOOK;
        let asks = asks(known.plan, &engine::demand(&known.plan.dag, &known.state, limits));
        if asks != self.told {
            match peer.call(&Demand { run: run.to_owned(), epoch, asks: asks.clone() }).await {
                // A runtime of an older release: workers come when they are needed.
                Ok(_) | Err(Error::UnknownOp { .. }) => self.told = asks,
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// In all, by what is asked for; without what the runtime knows by itself, since all of it was handed over.
pub(super) fn asks(plan: &Plan, demand: &[engine::Demand]) -> Vec<Ask> {
    let mut sums: BTreeMap<Like, (Ask, bool)> = BTreeMap::new();
    for engine::Demand { step, now, soon, later } in demand {
        let Some(def) = plan.step_def(*step) else { continue };
        let resources: BTreeMap<String, f64> = def
            .resources
            .iter()
            .filter(|(_, amount)| **amount > 0.0)
            .map(|(name, amount)| (name.clone(), *amount))
            .collect();
        let bits = resources.iter().map(|(name, amount)| (name.clone(), amount.to_bits())).collect();
        let entry = sums.entry((def.group.clone(), bits));
        let (ask, any) =
            entry.or_insert_with(|| (Ask { group: def.group.clone(), resources, count: 0, later: 0 }, false));
        ask.count += u64::from(*now) + u64::from(*soon) + u64::from(*later);
        ask.later += u64::from(*later);
        *any |= *soon > 0 || *later > 0;
    }
    let told = sums.into_values().filter(|(_, any)| *any);
    let rounded = told.map(|(ask, _)| {
        let (count, rest) = (coarse(ask.count), coarse(ask.count - ask.later));
        Ask { count, later: count.saturating_sub(rest), ..ask }
    });
    rounded.collect()
}

/// Rounded up, so that not every task that ends is news.
fn coarse(count: u64) -> u64 {
    let step = (count.next_power_of_two() / EXACT).max(1);
    count.div_ceil(step) * step
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;
    use engine::{Demand, StepIx};
    use lower::{RunInfo, validate};

    #[test]
    fn numbers_are_exact_where_a_worker_more_matters() {
        assert!((0..=EXACT).all(|count| coarse(count) == count));
        for count in [17, 100, 1000, 12_345] {
            let told = coarse(count);
            assert!(told >= count && told <= count + count / 7, "{count}: {told}");
        }
    }

    #[test]
    fn only_what_comes_on_top_is_told_and_then_the_whole_of_it() {
        let spec = serde_json::from_value(json!({
            "steps": [
                {"name": "a", "call": "m:f"},
                {"name": "b", "call": "m:f", "resources": {"GPU": 1}},
                {"name": "c", "call": "m:f", "resources": {"GPU": 1}},
                {"name": "d", "call": "m:f", "workerGroup": "big"},
            ],
            "cluster": {"template": {"workers": [
                {"name": "cpu"}, {"name": "gpu", "gpu": {"count": 1}}, {"name": "big"},
            ]}},
        }))
        .expect("a spec");
        let info = RunInfo { name: "run".to_owned(), uid: "uid".to_owned() };
        let plan = validate(&spec, "spec").and_then(|flow| flow.bind(&Map::new(), &info)).expect("no mistakes");
        let of = |step, now, soon, later| Demand { step: StepIx(step), now, soon, later };
        let told = asks(&plan, &[of(0, 5, 0, 0), of(1, 2, 0, 0), of(2, 0, 1, 0), of(3, 0, 2, 3)]);
        let gpu = BTreeMap::from([("GPU".to_owned(), 1.0)]);
        let wanted = [
            Ask { group: None, resources: gpu, count: 3, later: 0 },
            Ask { group: Some("big".to_owned()), resources: BTreeMap::new(), count: 5, later: 3 },
        ];
        assert_eq!(told, wanted);
        assert!(asks(&plan, &[of(0, 5, 0, 0)]).is_empty());
        // Numbers are rounded up, and what is needed before the others never down.
        let told = asks(&plan, &[of(0, 100, 1, 1000)]);
        assert!(told[0].count >= 1101 && told[0].count - told[0].later >= 101, "{told:?}");
    }
}
