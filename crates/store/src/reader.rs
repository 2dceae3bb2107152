//! Reads runs from a store. Nothing here writes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use sha2::{Digest as _, Sha256};

use super::config::StorageConfig;
use super::error::{StoreError, clean};
use super::fold::Folded;
use super::layout::Layout;
use super::logs::{LogFilter, Logs, OBJECT_LIMIT};
use super::segment::{Handle, Limits, SegmentError, decode_segment};
use api::keys::check_key;

/// Largest archive of code that is read, in bytes.
const CODE_LIMIT: u64 = 80 << 20;

/// Bytes of a mark.
const MARK_LIMIT: u64 = 4096;

/// Segments fetched ahead of the one being folded.
const AHEAD: usize = 8;

/// How often the segments are listed before one counts as missing, and the time between two listings.
const LISTINGS: u32 = 3;
const LIST_AGAIN: Duration = Duration::from_millis(300);

/// A store opened for reading.
#[derive(Clone)]
pub struct Reader {
    pub(super) client: Arc<dyn ObjectStore>,
    prefix: String,
    url: String,
    limits: Limits,
}

/// Segments in order, and the first that is missing.
type Listed = (Vec<(u64, String, u64)>, Option<(u64, String)>);

/// Follows the journal of one run: `state` is what has been read so far.
pub struct JournalReader {
    reader: Reader,
    layout: Layout,
    state: Folded,
}

impl Reader {
    /// Opens the store; finds out whether it can be reached with the first read. A directory must exist.
    pub async fn open(config: &StorageConfig) -> Result<Self, StoreError> {
        let opened = config.open()?;
        Ok(Self { client: opened.client, prefix: opened.prefix, url: opened.url, limits: Limits::default() })
    }

    /// The storage url, without anything secret.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Uids of all runs, in order.
    pub async fn list_runs(&self) -> Result<Vec<String>, StoreError> {
        let folder = self.path(Layout::runs())?;
        let listed = self.client.list_with_delimiter(Some(&folder)).await;
        let listed = match listed {
            Err(error) => match self.failed("list", Layout::runs(), &error) {
                StoreError::NotFound { .. } => return Ok(Vec::new()),
                error => return Err(error),
            },
            Ok(listed) => listed,
        };
        let names = listed
            .common_prefixes
            .iter()
            .filter_map(|path| path.parts().next_back().map(|part| part.as_ref().to_owned()));
        let mut runs: Vec<String> = names.filter(|run| Layout::new(run).is_ok()).collect();
        runs.sort_unstable();
        Ok(runs)
    }

    /// A run's whole journal, verified and folded.
    pub async fn read_journal(&self, run: &str) -> Result<Folded, StoreError> {
        let mut journal = self.follow_journal(run)?;
        journal.advance().await?;
        if journal.state.last.is_none() {
            return Err(match self.get(&journal.layout.removed(), MARK_LIMIT).await {
                Ok(_) => StoreError::Removed(run.to_owned()),
                Err(_) => StoreError::RunNotFound(run.to_owned()),
            });
        }
        Ok(journal.state)
    }

    /// A reader of a run's journal that can be asked for more as it grows.
    pub fn follow_journal(&self, run: &str) -> Result<JournalReader, StoreError> {
        Ok(JournalReader { reader: self.clone(), layout: Layout::new(run)?, state: Folded::default() })
    }

    /// The output of a handle, size and digest verified. `limit` is the most bytes the caller is ready to hold.
    pub async fn read_object(&self, run: &str, handle: &Handle, limit: u64) -> Result<Bytes, StoreError> {
        let layout = Layout::new(run)?;
        let (key, data) = match (&handle.bytes, &handle.path) {
            (Some(bytes), _) => ("an inline output".to_owned(), bytes.clone()),
            (None, Some(path)) => {
                let key = layout.object(path)?;
                if handle.size > limit {
                    return Err(StoreError::TooLarge { what: clean(&key), size: handle.size, limit });
                }
                let data = self.get(&key, handle.size).await.map_err(|error| match error {
                    StoreError::TooLarge { .. } => StoreError::Corrupt { key: clean(&key), why: "it has another size" },
                    error => error,
                })?;
                (clean(&key), data)
            }
            (None, None) => {
                return Err(StoreError::Corrupt { key: "a handle".into(), why: "it names nothing" });
            }
        };
        if data.len() as u64 != handle.size {
            return Err(StoreError::Corrupt { key, why: "it has another size" });
        }
        if Sha256::digest(&data)[..] != handle.digest {
            return Err(StoreError::Corrupt { key, why: "its digest does not match" });
        }
        Ok(data)
    }

    /// The archive of a run's code, digest verified.
    pub async fn read_code(&self, run: &str, journal: &Folded) -> Result<Bytes, StoreError> {
        let code = &journal.opened.code;
        let digest = code.digest.as_deref().unwrap_or_default();
        let (key, data) = match &code.zip {
            Some(zip) => ("the code in the journal".to_owned(), zip.clone()),
            None => {
                let bytes = hex::decode(digest).map_err(|_| StoreError::Corrupt {
                    key: "the code's digest".into(),
                    why: "it is not hexadecimal",
                })?;
                let key = Layout::new(run)?.code(&bytes);
                (key.clone(), self.get(&key, CODE_LIMIT).await?)
            }
        };
        if hex::encode(Sha256::digest(&data)) != digest {
            return Err(StoreError::Corrupt { key: clean(&key), why: "its digest does not match" });
        }
        Ok(data)
    }

    /// The run's log lines that `filter` wants, at most `limit` of them.
    pub async fn logs(&self, run: &str, filter: &LogFilter, limit: usize) -> Result<Logs, StoreError> {
        let layout = Layout::new(run)?;
        let mut logs = Logs::default();
        for (key, size) in self.list(&layout.logs(), None).await? {
            if !key.ends_with(".jsonl") || size > OBJECT_LIMIT {
                logs.unreadable += 1;
                continue;
            }
            match self.get(&key, OBJECT_LIMIT).await {
                Ok(data) => logs.add(&data, filter, limit),
                // Retention took it since it was listed.
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        logs.sort();
        Ok(logs)
    }

    /// Keys and sizes below a folder, in order, greater than `after`.
    pub(super) async fn list(&self, folder: &str, after: Option<&str>) -> Result<Vec<(String, u64)>, StoreError> {
        let path = self.path(folder)?;
        let stream = match after {
            Some(key) => self.client.list_with_offset(Some(&path), &self.path(key)?),
            None => self.client.list(Some(&path)),
        };
        let found: Vec<_> = match stream.try_collect().await {
            Ok(found) => found,
            Err(error) => match self.failed("list", folder, &error) {
                StoreError::NotFound { .. } => Vec::new(),
                error => return Err(error),
            },
        };
        let keys = found.into_iter().filter_map(|object: object_store::ObjectMeta| {
            let key = object.location.as_ref().strip_prefix(&self.prefix)?.to_owned();
            check_key(&key).ok().map(|()| (key, object.size))
        });
        let mut keys: Vec<(String, u64)> = keys.collect();
        keys.sort_unstable();
        Ok(keys)
    }

    /// An object of at most `limit` bytes.
    pub(super) async fn get(&self, key: &str, limit: u64) -> Result<Bytes, StoreError> {
        let path = self.path(key)?;
        let answer = self.client.get(&path).await.map_err(|error| self.failed("read", key, &error))?;
        if answer.meta.size > limit {
            return Err(StoreError::TooLarge { what: clean(key), size: answer.meta.size, limit });
        }
        let mut data = Vec::with_capacity(answer.meta.size as usize);
        let mut stream = answer.into_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| self.failed("read", key, &error))?;
            if (data.len() + chunk.len()) as u64 > limit {
                return Err(StoreError::TooLarge { what: clean(key), size: (data.len() + chunk.len()) as u64, limit });
            }
            data.extend_from_slice(&chunk);
        }
        Ok(data.into())
    }

    /// The size of an object; `None` if it is not there.
    async fn size(&self, key: &str) -> Result<Option<u64>, StoreError> {
        match self.client.head(&self.path(key)?).await {
            Ok(found) => Ok(Some(found.size)),
            Err(error) => match self.failed("look at", key, &error) {
                StoreError::NotFound { .. } => Ok(None),
                error => Err(error),
            },
        }
    }

    pub(super) fn path(&self, key: &str) -> Result<Path, StoreError> {
        let key = format!("{}{key}", self.prefix);
        check_key(&key)?;
        Path::parse(&key).map_err(|error| StoreError::Invalid(clean(&error.to_string())))
    }

    pub(super) fn failed(&self, action: &str, key: &str, error: &object_store::Error) -> StoreError {
        StoreError::from_client(format!("{action} {}/{}", self.url, clean(key)), error)
    }
}

impl JournalReader {
    /// What the segments read so far add up to.
    pub fn state(&self) -> &Folded {
        &self.state
    }

    /// Reads the segments that were added since, and gives their number. On an error the state holds what was good.
    pub async fn advance(&mut self) -> Result<u64, StoreError> {
        let (wanted, gap) = self.segments().await?;
        let gap = gap.map(|(seg, found)| self.unreadable(seg, SegmentError::Gap(clean(&found))));
        let count = wanted.len() as u64;
        let (reader, limits) = (self.reader.clone(), self.reader.limits);
        let mut fetched = futures_util::stream::iter(wanted)
            .map(|(seg, key, size)| {
                let reader = reader.clone();
                async move {
                    if size > limits.bytes {
                        return (seg, Ok(Err(SegmentError::TooLarge { size, limit: limits.bytes })));
                    }
                    (seg, reader.get(&key, limits.bytes).await.map(Ok))
                }
            })
            .buffered(AHEAD);
        while let Some((seg, data)) = fetched.next().await {
            let followed = data?
                .and_then(|data| decode_segment(&data, self.layout.run(), seg, &limits))
                .and_then(|segment| self.state.follow(segment));
            followed.map_err(|why| self.unreadable(seg, why))?;
        }
        match gap {
            Some(error) => Err(error),
            None => Ok(count),
        }
    }

    /// Number, key and size of the segments that were added since, up to the first that is missing. Of that one the number,
    /// and the key that is there instead.
    ///
    /// A listing may leave out what is there, where a server lags behind or an answer was cut: what it leaves out is asked
    /// for by its name, and the listing is asked for again, before a segment counts as missing.
    async fn segments(&self) -> Result<Listed, StoreError> {
        let mut listing = 1;
        loop {
            let found = self.list_segments().await?;
            if found.1.is_none() || listing == LISTINGS {
                return Ok(found);
            }
            listing += 1;
            tokio::time::sleep(LIST_AGAIN).await;
        }
    }

    async fn list_segments(&self) -> Result<Listed, StoreError> {
        let after = self.state.last.map(|last| self.layout.segment(last.seg));
        let listed = self.reader.list(&self.layout.journal(), after.as_deref()).await?;
        let mut wanted = Vec::with_capacity(listed.len());
        let mut seg = self.state.next_segment();
        for (key, size) in listed {
            loop {
                let expected = self.layout.segment(seg);
                if key == expected {
                    break;
                }
                match self.reader.size(&expected).await? {
                    Some(size) => wanted.push((seg, expected, size)),
                    None => return Ok((wanted, Some((seg, key)))),
                }
                seg += 1;
            }
            wanted.push((seg, key, size));
            seg += 1;
        }
        Ok((wanted, None))
    }

    fn unreadable(&self, seg: u64, why: SegmentError) -> StoreError {
        StoreError::Unreadable { run: self.layout.run().to_owned(), seg, why }
    }
}
