//! Records → what a run has come to. Pure; the same rules as the writer's.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::Value;

use super::closing::Parts;
use super::segment::{Committed, Failed, Final, Lost, Opened, Record, Segment, SegmentError};

/// (step, item); item -1 for an unmapped step.
pub type TaskKey = (u32, i64);

/// The last segment of a chain: what the next one must follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub seg: u64,
    pub epoch: u64,
    pub digest: [u8; 32],
}

/// What the records of a journal add up to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Folded {
    /// Spec and code of the first `opened`; epoch, time and versions of the last.
    pub opened: Opened,
    /// The first commit of each task that was not invalidated.
    pub committed: BTreeMap<TaskKey, Committed>,
    /// Where they stand: nothing stands before what it was made from. A task that was made again and has the same output as
    /// before keeps its place.
    places: BTreeMap<TaskKey, u64>,
    next_place: u64,
    /// Digests of what was invalidated last.
    invalidated: BTreeMap<TaskKey, Option<[u8; 32]>>,
    pub lengths: BTreeMap<u32, u64>,
    /// (reason, message)
    pub skipped: BTreeMap<TaskKey, (String, Option<String>)>,
    pub refused: BTreeMap<TaskKey, (String, Option<String>)>,
    pub failed: Vec<Failed>,
    pub lost: Vec<Lost>,
    /// None while the run is open.
    pub finished: Option<Final>,
    /// Results of an end that has not come yet.
    parts: Parts,
    /// None before the first segment.
    pub last: Option<Position>,
}

impl Folded {
    /// Number of the segment that comes next.
    pub fn next_segment(&self) -> u64 {
        self.last.map_or(0, |last| last.seg + 1)
    }

    /// What is committed, so that nothing stands before what it was made from.
    pub fn in_order(&self) -> Vec<&Committed> {
        let mut found: Vec<_> = self.committed.iter().collect();
        found.sort_by_key(|(task, _)| self.places.get(task));
        found.into_iter().map(|(_, committed)| committed).collect()
    }

    /// Adds the next segment after verifying that it continues the chain; unchanged on error.
    pub fn follow(&mut self, segment: Segment) -> Result<(), SegmentError> {
        let before = self.last.map_or(0, |last| last.epoch);
        if segment.seg != self.next_segment() || segment.prev != self.last.map(|last| last.digest) {
            return Err(SegmentError::Chain);
        }
        if segment.epoch < before {
            return Err(SegmentError::Epoch { found: segment.epoch, before });
        }
        if segment.epoch > before && !matches!(segment.records.first(), Some(Record::Opened(_))) {
            return Err(SegmentError::Unopened(segment.epoch));
        }
        self.last = Some(Position { seg: segment.seg, epoch: segment.epoch, digest: segment.digest });
        for record in segment.records {
            self.apply(record);
        }
        Ok(())
    }

    /// Adds one record. The first commit of a task wins until it is invalidated; an `opened` after `final` reopens the run: commits and lengths
    /// stay, what the closed run had given up counts no more.
    fn apply(&mut self, record: Record) {
        match record {
            Record::Opened(opened) => {
                self.parts = Parts::default();
                if self.finished.take().is_some() {
                    self.failed.clear();
                    self.lost.clear();
                    self.skipped.clear();
                    self.refused.clear();
                }
                let Opened { epoch, t, name, spec, spec_digest, code, runtime, dask, python } = *opened;
                if self.opened.epoch == 0 {
                    self.opened = Opened { name, spec, spec_digest, code, ..Opened::default() };
                }
                self.opened = Opened { epoch, t, runtime, dask, python, ..std::mem::take(&mut self.opened) };
            }
            Record::Length { step, len } => {
                self.lengths.entry(step).or_insert(len);
            }
            Record::Failed(failed) => self.failed.push(*failed),
            Record::Lost(lost) => self.lost.push(lost),
            Record::Committed(committed) => {
                let task = (committed.step, committed.item);
                if let Entry::Vacant(vacant) = self.committed.entry(task) {
                    let same = self.invalidated.get(&task) == Some(&Some(committed.handle.digest));
                    if !same || !self.places.contains_key(&task) {
                        self.places.insert(task, self.next_place);
                        self.next_place += 1;
                    }
                    vacant.insert(*committed);
                }
            }
            Record::Invalidated { step, item, .. } => {
                let task = (step, item);
                if let Some(committed) = self.committed.remove(&task) {
                    self.invalidated.insert(task, Some(committed.handle.digest));
                } else {
                    self.invalidated.entry(task).or_default();
                }
                self.skipped.remove(&task);
                self.refused.remove(&task);
                if item < 0 {
                    self.lengths.remove(&step);
                }
            }
            Record::Skipped { step, item, reason, message } => {
                self.skipped.entry((step, item)).or_insert((reason, message));
            }
            Record::Refused { step, item, reason, message } => {
                self.refused.entry((step, item)).or_insert((reason, message));
            }
            Record::Result { name, index, count, text } => self.parts.add(name, index, count, &text),
            Record::Final(mut finished) => {
                let parts = std::mem::take(&mut self.parts);
                if let Value::Object(fields) = &mut finished.fields {
                    parts.put_into(fields);
                }
                self.finished.get_or_insert(*finished);
            }
            Record::Unknown(_) => {}
        }
    }
}
