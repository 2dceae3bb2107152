//! When a failed attempt is repeated.

use super::state::Key;
use super::types::{Attempt, FailureClass, RetryPolicy};

/// Whether a failure of this class may be repeated after `charged` retries.
pub(super) fn may_retry(policy: &RetryPolicy, charged: u32, class: FailureClass) -> bool {
    charged < policy.limit && policy.classes.as_ref().is_none_or(|classes| classes.contains(&class))
}

/// How long to wait before retry number `retry` (from 1). Depends on nothing but its arguments, so that a restored
/// state plans the same. Jitter only shortens, so the cap holds.
pub(super) fn backoff_ms(policy: &RetryPolicy, seed: u64, key: Key, attempt: Attempt, retry: u32) -> u64 {
    let factor = if policy.factor.is_finite() { policy.factor.max(1.0) } else { 1.0 };
    let exponent = i32::try_from(retry.saturating_sub(1)).unwrap_or(i32::MAX);
    let full = (policy.initial_ms as f64 * factor.powi(exponent)).min(policy.cap_ms as f64);
    let jitter = if policy.jitter.is_nan() { 0.0 } else { policy.jitter.clamp(0.0, 1.0) };
    let place = (u64::from(key.step) << 32) | u64::from(key.slot);
    let draw = mix(mix(mix(seed) ^ place) ^ u64::from(attempt));
    let share = (draw >> 11) as f64 / (1u64 << 53) as f64;
    (full * (1.0 - jitter * share)) as u64
}

/// SplitMix64: one step of a small generator whose every output depends on all bits of the input.
fn mix(state: u64) -> u64 {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key { step: 3, slot: 7 };

    fn policy(initial_ms: u64, factor: f64, cap_ms: u64, jitter: f64) -> RetryPolicy {
        RetryPolicy { limit: 5, initial_ms, factor, cap_ms, jitter, classes: None }
    }

    #[test]
    fn delays_grow_by_the_factor_up_to_the_cap() {
        let policy = policy(100, 2.0, 350, 0.0);
        let delays: Vec<u64> = (1..5).map(|retry| backoff_ms(&policy, 1, KEY, retry, retry)).collect();
        assert_eq!(delays, [100, 200, 350, 350]);
    }

    #[test]
    fn jitter_shortens_by_at_most_its_share_and_differs_between_tasks_attempts_and_seeds() {
        let policy = policy(1_000_000, 1.0, 1_000_000, 0.5);
        let base = backoff_ms(&policy, 1, KEY, 1, 1);
        assert!((500_000..=1_000_000).contains(&base));
        assert_eq!(base, backoff_ms(&policy, 1, KEY, 1, 1));
        assert_ne!(base, backoff_ms(&policy, 2, KEY, 1, 1));
        assert_ne!(base, backoff_ms(&policy, 1, KEY, 2, 1));
        assert_ne!(base, backoff_ms(&policy, 1, Key { step: 3, slot: 8 }, 1, 1));
        assert_ne!(base, backoff_ms(&policy, 1, Key { step: 4, slot: 7 }, 1, 1));
    }

    #[test]
    fn absurd_policies_give_a_delay_within_the_cap() {
        for (factor, jitter) in [(f64::NAN, f64::NAN), (f64::INFINITY, 2.0), (-3.0, -1.0), (1e300, 0.0)] {
            let delay = backoff_ms(&policy(u64::MAX, factor, 5_000, jitter), 1, KEY, 1, u32::MAX);
            assert!(delay <= 5_000, "factor {factor}, jitter {jitter}: {delay}");
        }
    }

    #[test]
    fn only_the_listed_classes_are_retried_and_only_up_to_the_limit() {
        let mut policy = policy(1, 1.0, 1, 0.0);
        assert!(may_retry(&policy, 4, FailureClass::Data));
        assert!(!may_retry(&policy, 5, FailureClass::Data));
        policy.classes = Some(vec![FailureClass::Oom]);
        assert!(may_retry(&policy, 0, FailureClass::Oom));
        assert!(!may_retry(&policy, 0, FailureClass::App));
    }
}
