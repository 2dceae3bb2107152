//! Earlier runs of a pipeline: which there are, what they committed, and what of it is still there.
//!
//! The runtime reads the same when a run begins (`earlier.py`), and it decides which runs count. This reader is for telling
//! beforehand what a run would do: it keeps to the same order and the same bounds.

use std::collections::HashMap;

use sha2::{Digest as _, Sha256};

use super::error::StoreError;
use super::fold::{Folded, TaskKey};
use super::layout::Layout;
use super::reader::Reader;

/// Earlier runs that are read at most, newest first.
const RUNS: usize = 16;
/// Bytes of their journals together.
const JOURNAL_BYTES: u64 = 64 << 20;
/// Outputs of these runs together, beyond those of the newest, as the runtime counts them.
const OUTPUTS: usize = 100_000;
/// Marks of runs that are looked through for one of a given name.
const MARKS: usize = 10_000;
/// Bytes of a mark of removal.
const MARK_LIMIT: u64 = 4096;

/// An earlier run as its journal tells.
#[derive(Debug)]
pub struct PastRun {
    pub uid: String,
    pub folded: Folded,
    /// Tasks whose output cannot be taken over: its object is not there any more or has another size, or its result, with
    /// those of newer runs, is more than is told of earlier runs.
    pub gone: Vec<TaskKey>,
    /// When its outputs were removed, in seconds since 1970: nothing is told of them then.
    pub removed: Option<f64>,
}

impl Reader {
    /// Earlier runs of `pipeline`, newest first; with `wanted` the newest of that name or uid alone. Of runs whose outputs
    /// were removed the newest is told, without outputs. One that cannot be read is left out.
    pub async fn earlier(&self, pipeline: &str, wanted: Option<&str>) -> Result<Vec<PastRun>, StoreError> {
        let (mut found, mut cleared): (Vec<PastRun>, Option<PastRun>) = (Vec::new(), None);
        let (mut room, most) = (JOURNAL_BYTES, if wanted.is_none() { RUNS } else { 1 });
        let mut outputs = OUTPUTS;
        for uid in self.candidates(pipeline, wanted).await? {
            if found.len() == most {
                break;
            }
            let Ok(layout) = Layout::new(&uid) else { continue };
            if let Some(removed) = self.removed(&layout).await? {
                if cleared.is_none() {
                    cleared = Some(self.cleared(uid, removed).await?);
                }
                continue;
            }
            let size = self.list(&layout.journal(), None).await?.iter().map(|(_, size)| size).sum();
            if size > room && !found.is_empty() {
                break;
            }
            room = room.saturating_sub(size);
            if let Some(folded) = readable(self.read_journal(&uid).await)? {
                let count = folded.committed.len() + folded.skipped.len();
                if count > outputs && !found.is_empty() {
                    break;
                }
                outputs = outputs.saturating_sub(count);
                found.push(PastRun { uid, folded, gone: Vec::new(), removed: None });
            }
        }
        self.look_for_objects(&mut found).await?;
        leave_results_out(&mut found);
        found.extend(cleared);
        Ok(found)
    }

    /// Uids, in the order in which they are looked at.
    async fn candidates(&self, pipeline: &str, wanted: Option<&str>) -> Result<Vec<String>, StoreError> {
        let mut uids: Vec<String> =
            wanted.filter(|uid| Layout::new(uid).is_ok()).map(str::to_owned).into_iter().collect();
        let name = wanted.map(short);
        let marks = self.list(&Layout::marks(&short(pipeline)), None).await?;
        for (seen, (key, _)) in marks.iter().enumerate() {
            let mark = key.rsplit('/').next().unwrap_or(key);
            let mut parts = mark.splitn(3, '-');
            if let (Some(_), Some(named), Some(uid)) = (parts.next(), parts.next(), parts.next())
                && !uids.iter().any(|known| known == uid)
                && name.as_deref().is_none_or(|name| name == named)
            {
                uids.push(uid.to_owned());
            }
            if seen >= MARKS || uids.len() > 4 * RUNS {
                break;
            }
        }
        Ok(uids)
    }

    /// When the removal of a run's outputs or records began.
    async fn removed(&self, layout: &Layout) -> Result<Option<f64>, StoreError> {
        let mut first: Option<f64> = None;
        for (key, _) in self.list(&layout.removals(), None).await? {
            let mark = self.get(&key, MARK_LIMIT).await?;
            let mark: serde_json::Value = serde_json::from_slice(&mark).unwrap_or_default();
            let at = mark.get("t").and_then(serde_json::Value::as_f64).unwrap_or(0.0);
            first = Some(first.map_or(at, |first| first.min(at)));
        }
        Ok(first)
    }

    /// A run whose outputs are removed: its name at most, for its journal may be gone too.
    async fn cleared(&self, uid: String, removed: f64) -> Result<PastRun, StoreError> {
        let mut folded = Folded::default();
        folded.opened.name = readable(self.read_journal(&uid).await)?.and_then(|folded| folded.opened.name);
        Ok(PastRun { uid, folded, gone: Vec::new(), removed: Some(removed) })
    }

    /// Notes outputs whose object is gone or has another size: one listing per folder of data.
    async fn look_for_objects(&self, found: &mut [PastRun]) -> Result<(), StoreError> {
        let mut folders: HashMap<String, HashMap<String, u64>> = HashMap::new();
        for past in found {
            let Ok(layout) = Layout::new(&past.uid) else { continue };
            for (task, committed) in &past.folded.committed {
                let Some(path) = committed.handle.path.as_ref().filter(|_| committed.handle.bytes.is_none()) else {
                    continue;
                };
                let Ok(key) = layout.object(path) else {
                    past.gone.push(*task);
                    continue;
                };
                let folder = key.splitn(4, '/').take(3).collect::<Vec<_>>().join("/");
                if !folders.contains_key(&folder) {
                    let sizes = self.list(&folder, None).await?.into_iter().collect();
                    folders.insert(folder.clone(), sizes);
                }
                if folders[&folder].get(&key) != Some(&committed.handle.size) {
                    past.gone.push(*task);
                }
            }
        }
        Ok(())
    }
}

/// Notes outputs whose results are more than is told: of all runs, or of one.
fn leave_results_out(found: &mut [PastRun]) {
    let mut told = 0;
    for PastRun { folded, gone, .. } in found {
        let mut of_run = 0;
        for done in folded.in_order() {
            let Some(json) = &done.json else { continue };
            told += json.len();
            of_run += json.len();
            if told > limits::EARLIER_RESULTS_OF_COMMAND || of_run > limits::RESULTS_KEPT {
                gone.push((done.step, done.item));
            }
        }
    }
}

/// `None` for a journal that is no reason not to run.
fn readable(read: Result<Folded, StoreError>) -> Result<Option<Folded>, StoreError> {
    match read {
        Ok(folded) => Ok(Some(folded)),
        Err(error @ (StoreError::Failed { .. } | StoreError::Invalid(_) | StoreError::NotFound { .. })) => Err(error),
        Err(_) => Ok(None),
    }
}

/// As names stand in the keys of marks.
fn short(text: &str) -> String {
    hex::encode(&Sha256::digest(text.as_bytes())[..8])
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{Committed, Handle};

    fn committed(item: i64, result: Option<usize>) -> Committed {
        let handle = Handle {
            path: None,
            size: 1,
            digest: [0; 32],
            serializer: "json".to_owned(),
            bytes: Some(Bytes::from_static(b"1")),
            worker: None,
            container: None,
            named: Vec::new(),
            made: None,
        };
        let json = result.map(|size| Bytes::from(vec![b'1'; size]));
        Committed { step: 0, item, attempt: 1, handle, worker: None, t0: 1.0, t1: 2.0, lens: None, json }
    }

    fn past(results: &[Option<usize>]) -> PastRun {
        let mut folded = Folded::default();
        for (item, result) in results.iter().enumerate() {
            folded.committed.insert((0, item as i64), committed(item as i64, *result));
        }
        PastRun { uid: "u".to_owned(), folded, gone: Vec::new(), removed: None }
    }

    #[test]
    fn results_of_earlier_runs_are_told_up_to_a_limit_the_newest_first() {
        let most = limits::RESULTS_KEPT;
        assert_eq!(limits::EARLIER_RESULTS_OF_COMMAND, 2 * most);
        let mut runs = [past(&[Some(most), None, Some(1), Some(2)]), past(&[Some(most - 4), Some(1), Some(1), None])];
        leave_results_out(&mut runs);
        assert_eq!(runs[0].gone, [(0, 2), (0, 3)], "no result of a run is told after one that is left out");
        assert_eq!(runs[1].gone, [(0, 2)], "nor more of all than fit");
    }
}
