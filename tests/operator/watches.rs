//! Watches of the double of the API server, and what can be wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use axum::body::{Body, Bytes};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::api::{Api, failure};
use crate::{objects, pages, wait};

/// Bytes after which a reader has to ask for more.
const BURST: usize = 4 << 20;

/// Moves all watches.
#[derive(Debug)]
pub struct Switch {
    /// Changes when there is something to look at.
    news: watch::Sender<u64>,
    disturbance: watch::Sender<(u64, Disturbance)>,
    oldest: AtomicU64,
    readers: Mutex<Readers>,
}

/// Who watches, and how far each has read.
#[derive(Debug, Default)]
struct Readers {
    /// Parts of the paths of those that get nothing for now.
    held: BTreeSet<String>,
    /// Collections that were watched since the last operator began.
    known: BTreeSet<String>,
    /// Of each watch that is open: its collection, and the version up to which its reader has taken everything; none as
    /// long as it has something to take.
    open: BTreeMap<u64, (String, Option<u64>)>,
    next: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disturbance {
    None,
    /// Nothing comes any more, and the connection stays.
    Frozen,
    /// The versions are too old: an error in the stream.
    Expired,
    /// What comes cannot be read.
    Garbage,
    /// The connection is closed in the middle of a line.
    Torn,
}

impl Default for Switch {
    fn default() -> Self {
        Self {
            news: watch::Sender::new(0),
            disturbance: watch::Sender::new((0, Disturbance::None)),
            oldest: AtomicU64::new(0),
            readers: Mutex::default(),
        }
    }
}

impl Readers {
    fn holds(&self, path: &str) -> bool {
        self.held.iter().any(|part| path.contains(part))
    }
}

impl Switch {
    pub fn tell(&self) {
        self.news.send_modify(|count| *count += 1);
        wait::ring();
    }

    /// How often there was something to look at.
    pub fn count(&self) -> u64 {
        *self.news.borrow()
    }

    /// An operator is about to begin: the watches of those before it do not matter.
    pub fn begin(&self) {
        self.readers().known.clear();
    }

    /// The readers of watches on collections with this part in their path get nothing from now on.
    pub fn hold_back(&self, part: &str) {
        self.readers().held.insert(part.to_owned());
    }

    /// They get what they have missed.
    pub fn let_go_of(&self, part: &str) {
        self.readers().held.remove(part);
        self.tell();
    }

    /// Whether everything up to a version was taken by an operator that watches at least so many collections. Watches that
    /// are held back, or frozen, count as read.
    pub fn are_read(&self, version: u64, collections: usize) -> bool {
        if self.disturbance.borrow().1 == Disturbance::Frozen {
            return true;
        }
        let readers = self.readers();
        let is_read = |path: &String| {
            readers.holds(path)
                || readers.open.values().any(|(open, read)| open == path && read.is_some_and(|read| read >= version))
        };
        readers.known.len() >= collections && readers.known.iter().all(is_read)
    }

    fn readers(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().expect("no panic while it was held")
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    pub fn oldest(&self) -> u64 {
        self.oldest.load(Ordering::Relaxed)
    }
}

impl Api {
    /// What happens to the watches that are open now; those that are opened afterwards work, unless they are frozen.
    pub fn disturb(&self, how: Disturbance) {
        if how == Disturbance::Expired {
            self.watches.oldest.store(self.lock().version, Ordering::Relaxed);
        }
        self.watches.disturbance.send_modify(|(count, known)| {
            *count += 1;
            *known = how;
        });
    }
}

struct Watch {
    api: Api,
    number: u64,
    path: String,
    selector: Vec<(String, String)>,
    metadata: bool,
    since: u64,
    /// Objects that it has shown.
    shown: BTreeSet<String>,
    news: watch::Receiver<u64>,
    disturbance: watch::Receiver<(u64, Disturbance)>,
    ended: bool,
}

pub fn stream(api: Api, path: String, query: String, metadata: bool) -> Body {
    let since = objects::parameter(&query, "resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
    let selector = objects::selector(&query);
    let shown = {
        let inner = api.lock();
        // What it was before, it had in its list.
        let known = inner.objects.iter().filter(|(at, object)| {
            objects::is_in(at, &path) && objects::matches(&object["metadata"]["labels"], &selector)
        });
        known.map(|(at, _)| at.clone()).collect()
    };
    let (news, mut disturbance) = (api.watches.news.subscribe(), api.watches.disturbance.subscribe());
    disturbance.borrow_and_update();
    let number = {
        let mut readers = api.watches.readers();
        readers.next += 1;
        readers.known.insert(path.clone());
        let number = readers.next;
        readers.open.insert(number, (path.clone(), None));
        number
    };
    let watch = Watch { api, number, path, selector, metadata, since, shown, news, disturbance, ended: false };
    Body::from_stream(stream::unfold(watch, |mut watch| async move {
        let chunk = watch.next().await?;
        Some((Ok::<Bytes, std::io::Error>(chunk.into()), watch))
    }))
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.api.watches.readers().open.remove(&self.number);
    }
}

impl Watch {
    /// Its reader has asked for more than there is, and so has taken all before.
    fn is_read(&self) {
        self.read_up_to(Some(self.since));
        wait::ring();
    }

    fn read_up_to(&self, version: Option<u64>) {
        if let Some((_, read)) = self.api.watches.readers().open.get_mut(&self.number) {
            *read = version;
        }
    }

    async fn next(&mut self) -> Option<String> {
        if self.ended {
            return None;
        }
        loop {
            let frozen = self.disturbance.borrow().1 == Disturbance::Frozen;
            let held = self.api.watches.readers().holds(&self.path);
            if !frozen && !held {
                let lines = self.lines();
                if !lines.is_empty() {
                    self.read_up_to(None);
                    return Some(lines);
                }
                self.is_read();
            }
            tokio::select! {
                _ = self.news.changed() => {}
                _ = self.disturbance.changed() => {
                    let how = self.disturbance.borrow_and_update().1;
                    match how {
                        Disturbance::None | Disturbance::Frozen => {}
                        Disturbance::Expired => {
                            self.ended = true;
                            let error = json!({"type": "ERROR", "object": failure(410, "too old resource version")});
                            return Some(format!("{error}\n"));
                        }
                        Disturbance::Garbage => {
                            self.ended = true;
                            return Some("{\"type\": \"ADDED\", \"object\": 7}\n\u{0}]]]\n".to_owned());
                        }
                        Disturbance::Torn => {
                            self.ended = true;
                            return Some("{\"type\": \"ADDED\", \"obj".to_owned());
                        }
                    }
                }
            }
        }
    }

    fn lines(&mut self) -> String {
        let mut lines = String::new();
        let inner = self.api.lock();
        // They are in the order of their versions.
        let new = inner.events.partition_point(|(version, ..)| *version <= self.since);
        let events = inner.events[new..].iter().filter(|(_, _, path, _)| objects::is_in(path, &self.path));
        for (version, kind, path, object) in events {
            let fits = objects::matches(&object["metadata"]["labels"], &self.selector);
            let kind = match (*kind, fits, self.shown.contains(path)) {
                ("DELETED", true, _) | (_, false, true) => "DELETED",
                (_, true, false) if *kind != "DELETED" => "ADDED",
                (_, true, true) => "MODIFIED",
                _ => continue,
            };
            if kind == "DELETED" {
                self.shown.remove(path);
            } else {
                self.shown.insert(path.clone());
            }
            let mut object: Value = if self.metadata { objects::metadata_of(object.clone()) } else { object.clone() };
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            let line = json!({ "type": kind, "object": object });
            lines.push_str(&format!("{}\n", pages::fill(line.to_string())));
            if lines.len() > BURST {
                self.since = *version;
                return lines;
            }
        }
        self.since = inner.version;
        lines
    }
}
