//! Order and cycles of the step graph. The only file that knows petgraph; its node indices never leave it.

use std::collections::VecDeque;

use petgraph::Direction;
use petgraph::algo::{kosaraju_scc, toposort};
use petgraph::graph::{DiGraph, NodeIndex};

/// For each node the number of edges on the longest path to an end of the graph, or every cycle found.
///
/// Edges go from a step to the one that needs it. One cycle is reported per knot: the shortest through the knot's
/// first node, as the nodes on it in order of dependency, the first node only once. All algorithms are iterative.
pub(super) fn build_ranks(nodes: usize, edges: &[(usize, usize)]) -> Result<Vec<u32>, Vec<Vec<usize>>> {
    let mut graph = DiGraph::<(), ()>::with_capacity(nodes, edges.len());
    for _ in 0..nodes {
        graph.add_node(());
    }
    for &(from, to) in edges {
        graph.add_edge(NodeIndex::new(from), NodeIndex::new(to), ());
    }
    let Ok(order) = toposort(&graph, None) else {
        return Err(build_cycles(&graph));
    };
    let mut ranks = vec![0u32; nodes];
    for node in order.into_iter().rev() {
        let below = graph.neighbors_directed(node, Direction::Outgoing).map(|next| ranks[next.index()] + 1);
        ranks[node.index()] = below.max().unwrap_or(0);
    }
    Ok(ranks)
}

fn build_cycles(graph: &DiGraph<(), ()>) -> Vec<Vec<usize>> {
    let mut knot_of = vec![usize::MAX; graph.node_count()];
    let mut firsts = Vec::new();
    for (number, knot) in kosaraju_scc(graph).into_iter().enumerate() {
        for node in &knot {
            knot_of[node.index()] = number;
        }
        if let Some(first) = knot.iter().min() {
            let is_loop = graph.contains_edge(*first, *first);
            if knot.len() > 1 || is_loop {
                firsts.push(*first);
            }
        }
    }
    firsts.sort_unstable();
    firsts.into_iter().map(|first| build_shortest_cycle(graph, first, &knot_of)).collect()
}

/// Breadth first from `first` inside its knot until an edge leads back.
fn build_shortest_cycle(graph: &DiGraph<(), ()>, first: NodeIndex, knot_of: &[usize]) -> Vec<usize> {
    let mut parent = vec![None; graph.node_count()];
    let mut queue = VecDeque::from([first]);
    while let Some(node) = queue.pop_front() {
        let mut nexts: Vec<NodeIndex> = graph.neighbors_directed(node, Direction::Outgoing).collect();
        nexts.sort_unstable();
        for next in nexts {
            if next == first {
                let mut path = vec![node.index()];
                let mut at = node;
                while let Some(previous) = parent[at.index()] {
                    at = previous;
                    path.push(at.index());
                }
                path.reverse();
                return path;
            }
            if knot_of[next.index()] == knot_of[first.index()] && parent[next.index()].is_none() {
                parent[next.index()] = Some(node);
                queue.push_back(next);
            }
        }
    }
    vec![first.index()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_count_the_longest_way_to_an_end() {
        assert_eq!(build_ranks(4, &[(0, 1), (1, 2), (0, 2), (3, 2)]), Ok(vec![2, 1, 0, 1]));
    }

    #[test]
    fn every_knot_yields_its_shortest_cycle_in_order() {
        let edges = [(0, 1), (1, 2), (2, 0), (1, 0), (3, 4), (4, 3), (2, 3), (5, 5)];
        assert_eq!(build_ranks(6, &edges), Err(vec![vec![0, 1], vec![3, 4], vec![5]]));
    }

    #[test]
    fn a_cycle_of_ten_thousand_does_not_overflow_the_stack() {
        let edges: Vec<_> = (0..10_000).map(|n| (n, (n + 1) % 10_000)).collect();
        let cycles = build_ranks(10_000, &edges).expect_err("it is a cycle");
        assert_eq!(cycles.len(), 1);
        assert_eq!(cycles[0], (0..10_000).collect::<Vec<_>>());
    }
}
