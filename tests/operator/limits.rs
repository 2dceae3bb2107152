//! What a tenant's scheduler can make the operator take, and what that is to others.

use std::sync::Arc;

use crate::memory::{Flood, alone, assert_bounded, forget_peak, peak};
use crate::wait::eventually_or;
use crate::world::{SOON, World, plain};

/// Times that a cluster's scheduler was asked for news.
fn asked(world: &World, namespace: &str, name: &str) -> usize {
    world.scheduler(namespace, name).calls("daskade-cluster").len()
}

/// A scheduler that answers with 120 MiB is disconnected. The status says why, it is asked again ever less often, and the
/// clusters of others are looked after meanwhile.
/// Issue 13, point 1.
#[test]
fn a_scheduler_that_says_too_much_costs_only_its_own_cluster() {
    alone("limits::a_scheduler_that_says_too_much_costs_only_its_own_cluster", async {
        let world = World::new().await;
        let operator = world.operator();
        world.create("bad", "c", &plain(1));
        world.until_ready("bad", "c").await;
        forget_peak();
        let before = peak();
        let scheduler = world.scheduler("bad", "c");
        scheduler.change(|state| state.flood = Some(Arc::new(Flood::text(120))));
        let says = || {
            let condition = world.condition("bad", "c", "SchedulerReady");
            condition["message"].as_str().is_some_and(|message| {
                message.contains("refuses: daskade-cluster: a message of 125829") && message.contains("docs/limits.md")
            })
        };
        eventually_or(|| format!("{:#}", world.object("bad", "c")["status"]), SOON, says).await;
        let count = asked(&world, "bad", "c");
        for name in ["a", "b", "c"] {
            world.create("good", name, &plain(2));
            world.until_ready("good", name).await;
        }
        let again = asked(&world, "bad", "c") - count;
        assert!(again <= 3, "it was asked {again} times more");
        assert_bounded(before);
        // It is heard again once it says no more than others.
        scheduler.change(|state| state.flood = None);
        world.until_ready("bad", "c").await;
        operator.end().await;
    });
}
