//! What the watches have shown, by the object that it belongs to: as little of each as a reconciliation needs, so that a thousand
//! clusters fit into a few megabytes. Each kind that is looked at for itself has a cache of its own.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::apiserver::record::{Body, Kind, PodBody, Record, Text};
use crate::apiserver::room::OBJECTS;
use crate::apiserver::shown;
use crate::queue::Key;

/// How long an object that we wrote may be missing in a list without counting as gone: the list may be older.
const UNSEEN: Duration = Duration::from_secs(10);

/// Whether both are of the same object, whatever is kept of it.
fn is_same(one: &Body, other: &Body) -> bool {
    match (one, other) {
        (Body::Part(one), Body::Part(other)) => one.digest == other.digest,
        (Body::Part(part), Body::Json(text)) | (Body::Json(text), Body::Part(part)) => {
            part.digest == shown::digest_of(&text.json)
        }
        (one, other) => one == other,
    }
}

/// What is kept of it: a part, if there is no room for the whole.
fn fit(body: Body, kind: Kind) -> Body {
    match body {
        Body::Json(text) if kind != Kind::RunOf && text.charge.is_none() => {
            let Some(charge) = OBJECTS.charge(text.json.len()) else {
                return shown::reduce(kind, &text.json).unwrap_or(Body::Nothing);
            };
            let json = Arc::try_unwrap(text).map_or_else(|text| text.json.clone(), |text| text.json);
            Body::Json(Arc::new(Text { json, charge: Some(charge) }))
        }
        kept => kept,
    }
}

/// An object and all that belongs to it.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    pub root: Option<Record>,
    /// By kind and name.
    pub children: BTreeMap<(Kind, String), Record>,
    /// Grows with every change.
    pub revision: u64,
}

/// All objects of one kind, with what belongs to them.
#[derive(Debug, Default)]
pub struct Cache {
    entries: Mutex<HashMap<Key, Entry>>,
}

/// Objects that a list has shown, each with what it belongs to.
pub type Listed = HashSet<(Key, String)>;

impl Cache {
    /// Everything of one object; none if nothing is known of it.
    pub fn entry(&self, key: &Key) -> Option<Entry> {
        self.lock().get(key).cloned()
    }

    /// Whether anything has changed since a revision.
    pub fn revision(&self, key: &Key) -> u64 {
        self.lock().get(key).map_or(0, |entry| entry.revision)
    }

    /// What it takes to have an object as a whole, if it has to be read for that.
    pub fn weight(&self, key: &Key) -> usize {
        self.lock().get(key).and_then(|entry| entry.root.as_ref()).map_or(0, Record::weight)
    }

    /// All objects, and all that something is left of.
    pub fn keys(&self) -> Vec<Key> {
        self.lock().keys().cloned().collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Uids of all objects.
    pub fn uids(&self) -> HashSet<String> {
        self.lock().values().filter_map(|entry| Some(entry.root.as_ref()?.uid.clone())).collect()
    }

    /// A watch showed an object, or the API server answered a write of ours with it (`record.unseen`). Tells whether that
    /// is news; an older version than the known one never is.
    pub fn put(&self, kind: Kind, key: &Key, name: &str, record: Record) -> bool {
        store(self.lock().entry(key.clone()).or_default(), kind, name, record)
    }

    /// The API server answered a write of ours to an object that is looked at for itself. The answer may come after the
    /// watch has shown its end, or another object of its name: then it is about the past, and must not bring it back.
    pub fn renew(&self, kind: Kind, key: &Key, record: Record) {
        let mut entries = self.lock();
        if let Some(entry) = entries.get_mut(key)
            && entry.root.as_ref().is_some_and(|known| known.uid == record.uid)
        {
            store(entry, kind, &key.name, record);
        }
    }

    /// Records that we deleted this root object. It counts as terminating until a watch reports its end.
    pub fn mark_deleted(&self, key: &Key, uid: &str) {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(key) else { return };
        let root = entry.root.as_mut().filter(|root| root.uid == uid);
        if root.is_some_and(|root| !std::mem::replace(&mut root.deleted, true)) {
            entry.revision += 1;
        }
    }

    /// An object is gone; tells whether it was known. With a uid: only if it is that one.
    pub fn remove(&self, kind: Kind, key: &Key, name: &str, uid: Option<&str>) -> bool {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(key) else { return false };
        let is_it = |record: &Record| uid.is_none_or(|uid| record.uid == uid);
        let removed = if kind.is_root() {
            entry.root.take_if(|record| is_it(record)).is_some()
        } else {
            let at = (kind, name.to_owned());
            entry.children.get(&at).is_some_and(is_it) && entry.children.remove(&at).is_some()
        };
        entry.revision += u64::from(removed);
        if entry.root.is_none() && entry.children.is_empty() {
            entries.remove(key);
        }
        removed
    }

    /// It may be gone: whoever looks next asks the API server. Tells whether it was known.
    pub fn doubt(&self, kind: Kind, key: &Key, name: &str, uid: Option<&str>) -> bool {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(key) else { return false };
        let known = entry.children.get_mut(&(kind, name.to_owned()));
        let Some(known) = known.filter(|record| uid.is_none_or(|uid| record.uid == uid)) else { return false };
        let Some(long_ago) = Instant::now().checked_sub(UNSEEN) else { return false };
        known.unseen = Some(long_ago);
        entry.revision += 1;
        true
    }

    /// The object to which one of a kind and name belongs.
    pub fn parent(&self, kind: Kind, namespace: &str, name: &str) -> Option<Key> {
        let at = (kind, name.to_owned());
        let entries = self.lock();
        let found = entries.iter().find(|(key, entry)| key.namespace == namespace && entry.children.contains_key(&at));
        found.map(|(key, _)| key.clone())
    }

    /// A list of a kind, in one namespace or all, is complete: what it did not show is gone. Gives the objects that
    /// lost something.
    pub fn complete(&self, kind: Kind, namespace: Option<&str>, listed: &Listed) -> Vec<Key> {
        let mut lost = Vec::new();
        self.lock().retain(|key, entry| {
            if namespace.is_some_and(|namespace| namespace != key.namespace) {
                return true;
            }
            let gone = |name: &str, record: &Record| {
                !listed.contains(&(key.clone(), name.to_owned())) && (record.deleted || !is_fresh(record))
            };
            let before = entry.children.len() + usize::from(entry.root.is_some());
            if kind.is_root() {
                entry.root.take_if(|record| gone(&key.name, record));
            } else {
                entry.children.retain(|(of, name), record| *of != kind || !gone(name, record));
            }
            let after = entry.children.len() + usize::from(entry.root.is_some());
            if after < before {
                entry.revision += 1;
                lost.push(key.clone());
            }
            after > 0
        });
        lost
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        // Each change is whole before anything in it can panic.
        self.entries.lock()
    }
}

impl Entry {
    /// Names and uids of what we wrote long enough ago that a watch should have shown it: either the watch lags, or it is
    /// gone already.
    pub fn doubtful(&self) -> Vec<(Kind, String, String)> {
        let doubtful = self.children.iter().filter(|(_, record)| record.unseen.is_some() && !is_fresh(record));
        doubtful.map(|((kind, name), record)| (*kind, name.clone(), record.uid.clone())).collect()
    }

    /// The pods that a DaskCluster owns.
    pub fn pods<'a>(&'a self, owner: &'a str) -> impl Iterator<Item = (&'a Record, &'a PodBody)> {
        self.children.values().filter_map(move |record| match &record.body {
            Body::Pod(pod) if record.owner == owner => Some((record, &**pod)),
            _ => None,
        })
    }
}

fn is_fresh(record: &Record) -> bool {
    record.unseen.is_some_and(|since| since.elapsed() < UNSEEN)
}

/// Puts a record into an entry; tells whether that is news.
fn store(entry: &mut Entry, kind: Kind, name: &str, record: Record) -> bool {
    let known = match kind {
        kind if kind.is_root() => entry.root.as_mut(),
        _ => entry.children.get_mut(&(kind, name.to_owned())),
    };
    if let Some(known) = known {
        if known.uid == record.uid && is_older(&record.version, &known.version) {
            return false;
        }
        if record.unseen.is_none() && known.uid == record.uid {
            known.unseen = None;
        }
        if known.uid == record.uid && known.version == record.version {
            return false;
        }
        let deleted = record.deleted || known.deleted && known.uid == record.uid;
        let same = known.uid == record.uid && known.owner == record.owner && is_same(&known.body, &record.body);
        // What it was makes room for what it is.
        let body = if same { std::mem::replace(&mut known.body, Body::Nothing) } else { record.body };
        known.body = Body::Nothing;
        *known = Record { deleted, body: fit(body, kind), ..record };
        if same {
            return false;
        }
    } else {
        let record = Record { body: fit(record.body, kind), ..record };
        if kind.is_root() {
            entry.root = Some(record);
        } else {
            entry.children.insert((kind, name.to_owned()), record);
        }
    }
    entry.revision += 1;
    true
}

/// Versions of one object can be compared as numbers since Kubernetes 1.35, and could be in fact ever since.
pub(crate) fn is_older(version: &str, known: &str) -> bool {
    matches!((version.parse::<u64>(), known.parse::<u64>()), (Ok(version), Ok(known)) if version < known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::room::Charge;

    fn record(uid: &str, version: &str, text: &str) -> Record {
        Record {
            uid: uid.to_owned(),
            version: version.to_owned(),
            owner: "u".to_owned(),
            body: Body::json(text.as_bytes().to_vec()),
            unseen: None,
            deleted: false,
        }
    }

    fn written(uid: &str, version: &str, text: &str) -> Record {
        Record { unseen: Some(Instant::now()), ..record(uid, version, text) }
    }

    fn put(cache: &Cache, record: Record) -> bool {
        cache.put(Kind::Service, &key(), "s", record)
    }

    fn key() -> Key {
        Key::new("n", "c")
    }

    #[test]
    fn what_is_older_or_the_same_is_no_news() {
        let cache = Cache::default();
        assert!(put(&cache, record("1", "10", "a")));
        assert!(!put(&cache, record("1", "9", "old")));
        assert!(!put(&cache, record("1", "10", "a")));
        assert!(!put(&cache, record("1", "11", "a")), "others wrote what we do not look at");
        assert!(put(&cache, record("1", "12", "b")));
        assert!(put(&cache, record("2", "3", "b")), "another object with the name");
        assert_eq!(cache.revision(&key()), 3);
        assert!(!cache.remove(Kind::Service, &key(), "s", Some("1")), "the deletion of the one before comes late");
        assert!(cache.remove(Kind::Service, &key(), "s", Some("2")));
        assert!(cache.keys().is_empty());
    }

    #[test]
    fn a_late_answer_brings_nothing_back() {
        let cache = Cache::default();
        let root =
            |cache: &Cache| cache.entry(&key()).and_then(|entry| entry.root).map(|root| (root.uid, root.version));
        cache.put(Kind::Cluster, &key(), "c", record("1", "10", "a"));
        cache.renew(Kind::Cluster, &key(), written("1", "11", "b"));
        assert_eq!(root(&cache), Some(("1".to_owned(), "11".to_owned())));
        cache.remove(Kind::Cluster, &key(), "c", Some("1"));
        cache.renew(Kind::Cluster, &key(), written("1", "12", "c"));
        assert!(cache.keys().is_empty(), "it is gone");
        cache.put(Kind::Cluster, &key(), "c", record("2", "14", "a"));
        cache.renew(Kind::Cluster, &key(), written("1", "13", "d"));
        assert_eq!(root(&cache), Some(("2".to_owned(), "14".to_owned())), "another one has its name");
    }

    #[test]
    fn what_we_deleted_goes_whatever_a_watch_that_lags_shows() {
        let cache = Cache::default();
        let goes = |cache: &Cache| cache.entry(&key()).and_then(|entry| entry.root).map(|root| root.deleted);
        cache.put(Kind::Cluster, &key(), "c", written("1", "10", "a"));
        cache.mark_deleted(&key(), "2");
        assert_eq!(goes(&cache), Some(false), "another one was deleted");
        let before = cache.revision(&key());
        cache.mark_deleted(&key(), "1");
        assert_eq!((goes(&cache), cache.revision(&key())), (Some(true), before + 1));
        cache.put(Kind::Cluster, &key(), "c", record("1", "11", "written before"));
        assert_eq!(goes(&cache), Some(true));
        cache.put(Kind::Cluster, &key(), "c", record("2", "14", "a"));
        assert_eq!(goes(&cache), Some(false), "another one has its name");
        cache.renew(Kind::Cluster, &key(), written("2", "15", "b"));
        cache.mark_deleted(&key(), "2");
        assert_eq!(cache.complete(Kind::Cluster, None, &Listed::new()), [key()], "no list is older than its end");
    }

    #[tokio::test(start_paused = true)]
    async fn what_we_wrote_is_there_before_a_watch_shows_it_and_is_no_news_then() {
        let cache = Cache::default();
        assert!(put(&cache, written("1", "10", "a")));
        cache.complete(Kind::Service, None, &Listed::new());
        assert!(cache.entry(&key()).is_some_and(|entry| entry.doubtful().is_empty()), "the list may be older");
        assert!(!put(&cache, record("1", "10", "a")));
        assert_eq!(cache.complete(Kind::Service, None, &Listed::new()), [key()]);

        assert!(put(&cache, written("1", "10", "a")));
        tokio::time::advance(UNSEEN).await;
        let doubtful = cache.entry(&key()).map(|entry| entry.doubtful());
        assert_eq!(doubtful, Some(vec![(Kind::Service, "s".to_owned(), "1".to_owned())]));
    }

    #[test]
    fn a_complete_list_takes_away_what_it_does_not_show_of_its_kind_and_namespace() {
        let cache = Cache::default();
        let other = Key::new("m", "c");
        for (kind, key, name) in [
            (Kind::Service, key(), "gone"),
            (Kind::Service, key(), "here"),
            (Kind::NetworkPolicy, key(), "gone"),
            (Kind::Service, other.clone(), "gone"),
        ] {
            cache.put(kind, &key, name, record("1", "1", "a"));
        }
        let listed = Listed::from([(key(), "here".to_owned())]);
        assert_eq!(cache.complete(Kind::Service, Some("n"), &listed), [key()]);
        let left = cache.entry(&key()).map(|entry| entry.children.into_keys().collect::<Vec<_>>());
        let expected = [(Kind::Service, "here".to_owned()), (Kind::NetworkPolicy, "gone".to_owned())];
        assert_eq!(left.as_deref(), Some(&expected[..]));
        assert!(cache.entry(&other).is_some());
    }

    #[test]
    fn what_there_is_no_room_for_is_kept_in_part_and_is_no_news_when_it_is_seen_again() {
        let cache = Cache::default();
        let text =
            |suspend: bool| format!(r#"{{"metadata":{{"name":"c"}},"spec":{{"suspend":{suspend}}},"status":null}}"#);
        let body = || cache.entry(&key()).and_then(|entry| entry.root).expect("it is known").body;
        let is_part = || matches!(body(), Body::Part(_));
        let mut all: Vec<Charge> = Vec::new();
        for size in (0..=24).rev().map(|bits| 1 << bits) {
            all.extend(std::iter::from_fn(|| OBJECTS.charge(size)));
        }
        assert!(cache.put(Kind::Cluster, &key(), "c", record("1", "10", &text(false))));
        assert!(is_part(), "{:?}", body());
        assert!(!cache.put(Kind::Cluster, &key(), "c", record("1", "11", &text(false))));
        assert!(cache.put(Kind::Cluster, &key(), "c", record("1", "12", &text(true))));
        assert!(is_part());
        all.clear();
        assert!(cache.put(Kind::Cluster, &key(), "c", record("1", "13", &text(false))));
        assert!(!is_part(), "there is room again");
    }
}
