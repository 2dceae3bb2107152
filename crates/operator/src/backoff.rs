//! When to come back: delays that grow, each object with its own.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

/// First delay after something that may pass by itself.
const FIRST: Duration = Duration::from_millis(500);
/// An API server that comes back after a long time is served within this time.
const LONGEST: Duration = Duration::from_secs(300);

/// The delay before try number `attempt` (from 1): doubles up to five minutes, moved by up to a quarter so that many that
/// failed together do not come back together. The same for the same input.
pub fn delay(of: &impl Hash, attempt: u32) -> Duration {
    let doubled = FIRST.saturating_mul(1_u32 << attempt.saturating_sub(1).min(10)).min(LONGEST);
    jittered(doubled, &(of, attempt))
}

/// A span that differs by up to a quarter, depending on `of`.
pub fn jittered(span: Duration, of: &impl Hash) -> Duration {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    // -1/4 to +1/4 in steps of a thousandth.
    let thousandths = 750 + u32::try_from(hasher.finish() % 501).unwrap_or(0);
    span / 1000 * thousandths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_up_to_a_bound_and_differ_between_objects() {
        let near = |delay: Duration, of: f64| (0.74 * of..=1.26 * of).contains(&delay.as_secs_f64());
        for (attempt, seconds) in [(0, 0.5), (1, 0.5), (2, 1.0), (5, 8.0), (10, 256.0), (11, 300.0), (u32::MAX, 300.0)]
        {
            assert!(near(delay(&"a", attempt), seconds), "{attempt}: {:?}", delay(&"a", attempt));
        }
        assert_eq!(delay(&"a", 3), delay(&"a", 3));
        let others: std::collections::BTreeSet<_> = (0..100).map(|n| delay(&n, 5)).collect();
        assert!(others.len() > 50, "{}", others.len());
    }
}
