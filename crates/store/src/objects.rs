//! Objects that a manifest names, below the storage or by whole URLs: which version of them is there. The versions are those
//! that the runtime notes (`storage.py`, `s3.py`), since they are compared with what journals say.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use futures_util::{StreamExt as _, stream};
use object_store::GetOptions;

use super::config::{StorageConfig, folder_of, percent_decoded};
use super::error::{StoreError, clean};
use super::reader::Reader;
use api::keys::{KeyError, check_key};
use api::reason::Reason;

/// Requests to the storage at a time.
const AT_ONCE: usize = 16;

/// Looks at objects on behalf of the runs in one storage.
#[derive(Debug)]
pub struct Objects {
    storage: StorageConfig,
    pins: BTreeMap<String, String>,
}

/// Where an object is.
enum Place {
    File(PathBuf),
    Key { store: String, key: String },
}

impl Objects {
    /// `pins`: versions that are looked for in place of what is there, by path.
    pub fn new(storage: StorageConfig, pins: BTreeMap<String, String>) -> Self {
        Self { storage, pins }
    }

    /// The versions of what is at `paths`, in their order; `None`: nothing.
    pub async fn versions(&self, paths: &[String]) -> Vec<Result<Option<String>, StoreError>> {
        let places: Vec<Result<Place, StoreError>> = paths.iter().map(|path| self.place(path)).collect();
        let stores: BTreeSet<&str> = places
            .iter()
            .filter_map(|place| match place {
                Ok(Place::Key { store, .. }) => Some(store.as_str()),
                _ => None,
            })
            .collect();
        let mut open: HashMap<String, Reader> = HashMap::new();
        for url in stores {
            if let Ok(reader) = Reader::open(&self.config(url)).await {
                open.insert(url.to_owned(), reader);
            }
        }
        let pins = paths.iter().map(|path| self.pins.get(path));
        let looks = places.into_iter().zip(pins).map(|(place, pin)| look(place, pin, &open));
        stream::iter(looks).buffered(AT_ONCE).collect().await
    }

    /// Service and identity of a URL are those of the storage if both are of one kind.
    fn config(&self, url: &str) -> StorageConfig {
        let scheme = |url: &str| url.split("://").next().unwrap_or_default().to_owned();
        if url == self.storage.url || scheme(url) == scheme(&self.storage.url) {
            return StorageConfig { url: url.to_owned(), ..self.storage.clone() };
        }
        StorageConfig { url: url.to_owned(), ..StorageConfig::default() }
    }

    fn place(&self, path: &str) -> Result<Place, StoreError> {
        let Some((scheme, rest)) = path.split_once("://") else {
            check_key(path)?;
            return Ok(match folder_of(&self.storage.url) {
                Some(folder) => Place::File(folder.join(path)),
                None => Place::Key { store: self.storage.url.clone(), key: path.to_owned() },
            });
        };
        let (bucket, key) = rest.split_once('/').ok_or_else(|| StoreError::from(KeyError::Length(0)))?;
        let key = percent_decoded(key)?;
        check_key(&key)?;
        Ok(match scheme {
            "file" => Place::File(Path::new("/").join(key)),
            _ => Place::Key { store: format!("{scheme}://{bucket}"), key },
        })
    }
}

async fn look(
    place: Result<Place, StoreError>,
    pin: Option<&String>,
    open: &HashMap<String, Reader>,
) -> Result<Option<String>, StoreError> {
    match place? {
        Place::File(path) => in_folder(&path),
        Place::Key { store, key } => {
            let Some(reader) = open.get(&store) else {
                return Err(StoreError::Invalid(format!("{} cannot be opened", clean(&store))));
            };
            let options = GetOptions { head: true, version: pin.cloned(), ..GetOptions::default() };
            let found = match reader.client.get_opts(&reader.path(&key)?, options).await {
                Ok(found) => found.meta,
                Err(error) => {
                    return match reader.failed("look at", &key, &error) {
                        StoreError::NotFound { .. } => Ok(None),
                        error => Err(error),
                    };
                }
            };
            let tag = found.e_tag.as_ref().map(|tag| tag.trim_matches('"')).filter(|tag| !tag.is_empty());
            let dated = || format!("{}-{:x}", found.last_modified.timestamp(), found.size);
            Ok(Some(tag.map_or_else(dated, str::to_owned)))
        }
    }
}

/// Time of change and size. Without the inode: it is another one on each mount of some volumes.
fn in_folder(path: &Path) -> Result<Option<String>, StoreError> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            Err(StoreError::Key(KeyError::Part(path.file_name().unwrap_or_default().to_string_lossy().into_owned())))
        }
        Ok(found) => {
            let nanoseconds = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
            Ok(Some(format!("{nanoseconds:x}-{:x}", found.size())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::Failed {
            reason: Reason::StorageUnreachable,
            transient: false,
            what: format!("look at {}", clean(&path.to_string_lossy())),
            detail: clean(&error.to_string()),
        }),
    }
}
