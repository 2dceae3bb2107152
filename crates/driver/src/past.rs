//! Earlier runs as the runtime tells of them, read from the storage without one.

use std::collections::HashSet;

use dask::ops::{Decided, Done, EarlierRun, EarlierRuns, Item, NamedObjects, TaskAddr};
use store::{PastRun, Reader, StorageConfig, StoreError, TaskKey, folder_of};

/// Earlier runs of `pipeline`. A folder that is not there yet has none: a run would make it.
pub(super) async fn read(
    storage: &StorageConfig,
    pipeline: &str,
    wanted: Option<&str>,
) -> Result<EarlierRuns, StoreError> {
    if folder_of(&storage.url).is_some_and(|folder| matches!(folder.try_exists(), Ok(false))) {
        return Ok(EarlierRuns::default());
    }
    let found = Reader::open(storage).await?.earlier(pipeline, wanted).await?;
    Ok(EarlierRuns { runs: found.into_iter().filter_map(told).collect() })
}

/// `None` if its numbers are none that a run can have.
fn told(past: PastRun) -> Option<EarlierRun> {
    let PastRun { uid, folded, gone, removed } = past;
    let (mut committed, mut named, mut made) = (Vec::new(), Vec::new(), Vec::new());
    let without: HashSet<TaskKey> = gone.iter().copied().collect();
    for done in folded.in_order() {
        let task = item((done.step, done.item))?;
        let lens = done.lens.as_ref().map(|lens| lens.iter().map(|len| u32::try_from(*len)).collect());
        committed.push(Done {
            task: TaskAddr::new(task.step, task.item, done.attempt),
            lens: lens.transpose().ok()?,
            json: done
                .json
                .as_ref()
                .filter(|_| !without.contains(&(done.step, done.item)))
                .map(|text| serde_json::from_slice(text))
                .transpose()
                .ok()?,
            away: None,
        });
        if !done.handle.named.is_empty() {
            named.push(NamedObjects { task, versions: done.handle.named.clone() });
        }
        made.push(done.handle.made.unwrap_or(done.t1));
    }
    let skipped = folded.skipped.into_iter().map(|(task, (reason, message))| {
        let Item { step, item } = item(task)?;
        Some(Decided { step, item, reason, message: message.unwrap_or_default() })
    });
    let lengths = folded.lengths.into_iter().map(|(step, len)| Some((step, u32::try_from(len).ok()?)));
    Some(EarlierRun {
        uid,
        name: folded.opened.name.unwrap_or_default(),
        spec: folded.opened.spec.unwrap_or_default(),
        code: folded.opened.code.digest.unwrap_or_default(),
        committed,
        lengths: lengths.collect::<Option<_>>()?,
        skipped: skipped.collect::<Option<_>>()?,
        gone: gone.into_iter().map(item).collect::<Option<_>>()?,
        named,
        made,
        removed,
    })
}

fn item((step, item): TaskKey) -> Option<Item> {
    let item = if item < 0 { None } else { Some(u32::try_from(item).ok()?) };
    Some(Item { step, item })
}
