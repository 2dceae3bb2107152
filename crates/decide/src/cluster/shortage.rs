//! What Kubernetes' scheduler says that a pod lacks.

use std::collections::BTreeMap;

use super::group::Amounts;

/// Resources of which a pod may lack some that are looked at; further ones are left out. A group names at most 16.
const SHORT: usize = 17;
/// Bytes of a resource's name: a prefix, a slash and a name.
const NAME: usize = 253 + 1 + 63;

/// What no node has enough of for a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// Names of resources, `pods` among them.
    pub of: Vec<String>,
    /// Each of them is short on every node that the pod may use. Otherwise at least one of them is, on each.
    pub all: bool,
}

impl Shortage {
    /// Reads what Kubernetes' scheduler says of a pod, such as `0/3 nodes are available: 1 Insufficient cpu, 2 node(s)
    /// had untolerated taint {a: b}. preemption: …`. None if room helps on no node.
    pub fn read(message: &str) -> Option<Self> {
        let (nodes, reasons) = message.strip_prefix("0/")?.split_once(" nodes are available: ")?;
        let mut open: u64 = nodes.parse().ok()?;
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        // What comes after the first sentence is about preemption.
        let reasons = reasons.split(". ").next()?.trim_end_matches('.');
        for (count, words) in reasons.split(", ").filter_map(|reason| reason.split_once(' ')) {
            let Ok(count) = count.parse::<u64>() else { continue };
            let resource = match words.strip_prefix("Insufficient ") {
                Some(words) => words.split(' ').next().filter(|name| name.len() <= NAME),
                None => (words == "Too many pods").then_some("pods"),
            };
            match resource {
                Some(resource) => *counts.entry(resource).or_default() += count,
                None => open = open.saturating_sub(count),
            }
        }
        if open == 0 || counts.is_empty() {
            return None;
        }
        // One node may lack several.
        let all = counts.values().any(|count| *count >= open);
        let short = counts.into_iter().filter(|(_, count)| !all || *count >= open).take(SHORT);
        Some(Self { of: short.map(|(name, _)| name.to_owned()).collect(), all })
    }

    fn is_met(&self, by: impl FnMut(&String) -> bool) -> bool {
        if self.all { self.of.iter().all(by) } else { self.of.iter().any(by) }
    }

    pub(super) fn is_eased_by(&self, held: &Amounts) -> bool {
        self.is_met(|name| amount(held, name) > 0.0)
    }

    pub(super) fn is_over(&self, free: &Amounts, wanted: &Amounts) -> bool {
        self.is_met(|name| amount(free, name) + 1e-9 >= amount(wanted, name))
    }
}

pub(super) fn amount(amounts: &Amounts, name: &str) -> f64 {
    amounts.get(name).copied().unwrap_or(0.0)
}
