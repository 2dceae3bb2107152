//! How many items mapped steps have.
//!
//! A length that depends on an output is taken from the *committed* output: what was finished only may be lost and
//! come back longer, and then items would exist that belong to nothing.

use super::action::FailReason;
use super::dag::Dag;
use super::state::{Phase, RunState};
use super::types::{MapSource, StepIx};

/// What is known about the length of one source.
enum Length {
    Unknown,
    Known(u64),
    NotAList(StepIx),
}

impl RunState {
    /// Works out the lengths of these steps and, where that succeeds, of those mapped over them.
    pub(super) fn resolve_lengths(&mut self, dag: &Dag, mut work: Vec<u32>) {
        while let Some(ix) = work.pop() {
            let node = &dag.nodes[ix as usize];
            let step = &self.steps[ix as usize];
            let Some(sources) = &node.spec.map else { continue };
            if step.len_problem.is_some() || step.ended {
                continue;
            }
            let known = step.len;
            match self.build_length(sources) {
                Ok(None) => {}
                Ok(Some(len)) if known == Some(len) => {}
                // An output that it was taken from is another one now.
                Ok(Some(_)) if known.is_some() && self.is_over_changed(sources) => {
                    self.resized.insert(ix);
                    self.mark_step(ix);
                }
                Ok(Some(len)) => match known {
                    // The journal said otherwise. Its items may exist, but they no longer pair with their inputs.
                    Some(recorded) => {
                        let lens = vec![u64::from(recorded), u64::from(len)];
                        self.steps[ix as usize].len_problem = Some(FailReason::UnequalLengths(lens));
                        self.mark_step(ix);
                    }
                    None => {
                        self.steps[ix as usize].len = Some(len);
                        self.mark_step(ix);
                        work.extend(node.length_dependents.iter().map(|dependent| dependent.0));
                    }
                },
                Err(problem) => {
                    self.steps[ix as usize].len_problem = Some(problem);
                    self.mark_step(ix);
                }
            }
        }
    }

    fn is_over_changed(&self, sources: &[MapSource]) -> bool {
        sources.iter().filter_map(|source| source.step()).any(|up| self.changed.contains(&up.0))
    }

    fn build_length(&mut self, sources: &[MapSource]) -> Result<Option<u32>, FailReason> {
        let mut lens = Vec::with_capacity(sources.len());
        let mut all_known = true;
        for source in sources {
            match self.source_length(*source) {
                Length::Known(len) => lens.push(len),
                Length::Unknown => all_known = false,
                Length::NotAList(step) => return Err(FailReason::NotAList { step }),
            }
        }
        let Some(len) = lens.first().copied().filter(|_| all_known) else { return Ok(None) };
        if lens.iter().any(|other| *other != len) {
            return Err(FailReason::UnequalLengths(lens));
        }
        u32::try_from(len).map(Some).map_err(|_| FailReason::TooManyItems { len, max: u32::MAX })
    }

    fn source_length(&mut self, source: MapSource) -> Length {
        match source {
            MapSource::Len(len) => Length::Known(u64::from(len)),
            MapSource::Recorded => Length::Unknown,
            MapSource::Items(up) => {
                let up = &self.steps[up.0 as usize];
                match up.len.filter(|_| up.len_problem.is_none()) {
                    Some(len) => Length::Known(u64::from(len)),
                    None => Length::Unknown,
                }
            }
            MapSource::Output { step, lens_slot } => {
                let up = &self.steps[step.0 as usize];
                if !up.tasks.first().is_some_and(|task| task.phase == Phase::Committed) {
                    return Length::Unknown;
                }
                match up.lens.get(&0).and_then(|lens| lens.get(lens_slot as usize)) {
                    Some(len) => Length::Known(u64::from(*len)),
                    None => Length::NotAList(step),
                }
            }
            MapSource::Flatten(step) => self.flat_length(step),
        }
    }

    /// Sum of the lengths of a mapped step's lists, once all have ended; allowed holes count as empty lists.
    fn flat_length(&mut self, step: StepIx) -> Length {
        let up = &self.steps[step.0 as usize];
        if !up.ended || up.whole.is_some() || up.bad_tasks > 0 {
            return Length::Unknown;
        }
        let mut sum = 0u64;
        let mut offsets = Vec::with_capacity(up.tasks.len() + 1);
        offsets.push(0);
        for (slot, task) in up.tasks.iter().enumerate() {
            if task.phase == Phase::Committed {
                match up.lens.get(&(slot as u32)).and_then(|lens| lens.first()) {
                    Some(len) => sum += u64::from(*len),
                    None => return Length::NotAList(step),
                }
            }
            offsets.push(u32::try_from(sum).unwrap_or(u32::MAX));
        }
        self.steps[step.0 as usize].offsets = offsets;
        Length::Known(sum)
    }

    /// The item of a flattened step, and the position in its list, that element `index` of the concatenation is.
    pub(super) fn flat_position(&self, step: StepIx, index: u32) -> Option<(u32, u32)> {
        let offsets = &self.steps[step.0 as usize].offsets;
        let item = offsets.partition_point(|begin| *begin <= index).checked_sub(1)?;
        (item + 1 < offsets.len()).then(|| (item as u32, index - offsets[item]))
    }
}
