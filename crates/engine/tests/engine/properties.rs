//! Random graphs on a simulated runtime: whatever the order of events, losses, failures and restarts, what must hold
//! holds after each event, and every run ends the same way.

use crate::reference::check_against_reference;
use crate::sim::{Sim, build_steps, shapes};
use engine::*;
use proptest::prelude::*;

/// `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let asked = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { asked.cases } else { 400 };
    ProptestConfig { cases, max_shrink_iters: 4_000, failure_persistence: None, ..asked }
}

fn limits() -> impl Strategy<Value = Limits> {
    (prop_oneof![Just(None), (1u32..4).prop_map(Some)], 1u32..8, any::<bool>()).prop_map(
        |(parallelism, window, gpu)| Limits {
            parallelism,
            window,
            resources: if gpu { [("GPU".to_owned(), 2.0)].into() } else { Default::default() },
            losses: 10_000,
            ..Limits::default()
        },
    )
}

proptest! {
    #![proptest_config(config())]

    /// Failures, losses, lost runtimes, restarts and doubled events change nothing about how a run ends.
    #[test]
    fn any_order_of_events_ends_the_run_as_the_definition_says(
        shapes in shapes(), limits in limits(), choices in prop::collection::vec(any::<u16>(), 0..200), seed in any::<u64>(),
    ) {
        let mut steps = build_steps(&shapes);
        // How often time runs out depends on when things happen.
        steps.iter_mut().for_each(|step| step.timeout_ms = None);
        let mut sim = Sim::new(steps, limits, seed);
        sim.play(&choices);
        sim.drain();
        check_against_reference(&sim);
    }

    /// Cancellation, fail-fast and small budgets for losses: how much ran depends on the order, but it ends.
    #[test]
    fn a_run_that_is_cut_short_ends_too(
        shapes in shapes(), limits in limits(), choices in prop::collection::vec(any::<u16>(), 0..200), seed in any::<u64>(),
        fail_fast in any::<bool>(), losses in 0u32..3, cancel_at in 0usize..60, deadline in any::<bool>(), last in any::<bool>(),
    ) {
        let (deadline_ms, finally_ms) = (deadline.then_some(5_000), last.then_some(50));
        let limits = Limits { fail_fast, losses, deadline_ms, finally_ms, ..limits };
        let mut sim = Sim::new(build_steps(&shapes), limits, seed);
        let cut = cancel_at.min(choices.len());
        sim.play(&choices[..cut]);
        if cancel_at % 3 > 0 {
            sim.cancel();
        }
        sim.play(&choices[cut..]);
        sim.drain();
    }

    /// A run that is thrown away at any point and restored from its journal plans what the old one would have, had it
    /// only lost its runtime.
    #[test]
    fn restoring_from_the_journal_plans_the_same(
        shapes in shapes(), limits in limits(), choices in prop::collection::vec(any::<u16>(), 0..120), seed in any::<u64>(),
        fail_fast in any::<bool>(), cancel in any::<bool>(),
    ) {
        let mut sim = Sim::new(build_steps(&shapes), Limits { fail_fast, ..limits }, seed);
        sim.play(&choices);
        if cancel {
            sim.cancel();
        }
        sim.check_restore();
        sim.drain();
    }
}
