//! A collection of objects: its list, in pages as large as its objects allow, and its watch.

use std::borrow::Cow;
use std::fmt;

use kube::api::{ApiResource, DynamicObject, ListParams, WatchParams};
use kube::core::{Request, Status};
use kube::{Client, Resource};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::apiserver::room::{self, Held};
use crate::apiserver::wire::{self, Lines};

/// A watch that is silent for so long (and five seconds) is opened anew, in seconds: the longest time for which a dead
/// connection goes unnoticed.
pub(crate) const SILENCE: u32 = 120;

/// Of one kind, in one namespace or in all.
#[derive(Clone)]
pub(crate) struct Collection {
    client: Client,
    url: String,
    labels: Option<String>,
    /// Only metadata is asked for.
    metadata: bool,
}

/// What went wrong with a list or a watch.
#[derive(Debug)]
pub(crate) enum WatchError {
    List(kube::Error),
    Watch(kube::Error),
    /// Told by the API server in the middle of a watch.
    Told(Box<Status>),
    NoVersion,
}

/// A part of a list.
struct Page {
    text: String,
    /// Until the page is dropped.
    _room: Held,
}

/// What a page says.
#[derive(Deserialize)]
struct Listing<'a> {
    #[serde(default)]
    metadata: Mark,
    /// The objects, each as its text. The API server writes `null` for none, where it gives metadata alone.
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Mark {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    next: Option<String>,
}

/// Walks through the pages of a list.
pub(crate) struct Walk<'a> {
    collection: &'a Collection,
    size: PageSize,
    next: Option<String>,
    version: Option<String>,
    ended: bool,
}

/// What a line of a watch says.
pub(crate) enum News<T> {
    Applied(T),
    Deleted(T),
    /// Everything up to this version was shown.
    Bookmark(String),
}

/// How many objects to ask for at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PageSize(u32);

impl PageSize {
    /// After a page with so many objects and bytes: pages grow while they are small, and shrink when they are large.
    fn after(self, objects: usize, bytes: usize) -> Self {
        let each = bytes / objects.max(1);
        let fit = u32::try_from(limits::LIST_PAGE / 2 / each.max(1)).unwrap_or(u32::MAX);
        Self(fit.min(self.0.saturating_mul(4)).clamp(1, limits::LIST_MOST))
    }

    /// After a page that was too large; none if it had one object.
    fn slower(self) -> Option<Self> {
        (self.0 > 1).then_some(Self((self.0 / 4).max(1)))
    }
}

impl Collection {
    pub fn new(client: &Client, kind: &ApiResource, namespace: Option<&str>, labels: Option<&str>) -> Self {
        let url = DynamicObject::url_path(kind, namespace);
        Self { client: client.clone(), url, labels: labels.map(ToOwned::to_owned), metadata: false }
    }

    /// Of its objects only the metadata.
    pub fn metadata(self) -> Self {
        Self { metadata: true, ..self }
    }

    /// Begins a list.
    pub fn walk(&self) -> Walk<'_> {
        let size = PageSize(limits::LIST_FIRST);
        Walk { collection: self, size, next: None, version: None, ended: false }
    }

    /// Begins a watch behind a version.
    pub async fn watch(&self, version: &str) -> Result<Lines, WatchError> {
        let params = WatchParams {
            label_selector: self.labels.clone(),
            timeout: Some(SILENCE),
            bookmarks: true,
            ..WatchParams::default()
        };
        let request = Request::new(self.url.as_str());
        let request = match self.metadata {
            true => request.watch_metadata(&params, version),
            false => request.watch(&params, version),
        };
        let request = request.map_err(|error| WatchError::Watch(kube::Error::BuildRequest(error)))?;
        Ok(wire::ask(&self.client, request).await.map_err(WatchError::Watch)?.lines())
    }

    async fn page(&self, limit: u32, next: Option<&str>) -> Result<Option<Page>, WatchError> {
        let params = ListParams {
            label_selector: self.labels.clone(),
            limit: Some(limit),
            continue_token: next.map(ToOwned::to_owned),
            ..ListParams::default()
        };
        let request = Request::new(self.url.as_str());
        let request = match self.metadata {
            true => request.list_metadata(&params),
            false => request.list(&params),
        };
        let request = request.map_err(|error| WatchError::List(kube::Error::BuildRequest(error)))?;
        let room = room::listed(limits::LIST_PAGE).await;
        let most = if limit == 1 { limits::OBJECT } else { limits::LIST_PAGE };
        let read = async { wire::ask(&self.client, request).await?.read(most).await };
        let Some(bytes) = read.await.map_err(WatchError::List)? else { return Ok(None) };
        let text = String::from_utf8(bytes).map_err(|error| WatchError::List(kube::Error::FromUtf8(error)))?;
        Ok(Some(Page { text, _room: room }))
    }
}

impl Walk<'_> {
    /// Shows each object of the next page, as its text; false after the last one.
    pub async fn next(&mut self, mut show: impl FnMut(&str) -> serde_json::Result<()>) -> Result<bool, WatchError> {
        let unreadable = |error| WatchError::List(kube::Error::SerdeError(error));
        while !self.ended {
            let Some(page) = self.collection.page(self.size.0, self.next.as_deref()).await? else {
                let why = || std::io::Error::other("an object is larger than the API server stores");
                self.size = self.size.slower().ok_or_else(|| WatchError::List(kube::Error::ReadEvents(why())))?;
                continue;
            };
            let Listing { metadata, items } = serde_json::from_str(&page.text).map_err(unreadable)?;
            let items = items.unwrap_or_default();
            self.size = self.size.after(items.len(), page.text.len());
            for item in items {
                show(item.get()).map_err(unreadable)?;
            }
            let is_given = |text: &String| !text.is_empty();
            (self.version, self.next) = (metadata.resource_version.filter(is_given), metadata.next.filter(is_given));
            self.ended = self.next.is_none();
            return Ok(true);
        }
        Ok(false)
    }

    /// The version of the list, after its last page.
    pub fn version(self) -> Result<String, WatchError> {
        self.version.ok_or(WatchError::NoVersion)
    }
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Marked {
    metadata: Mark,
}

impl<T> News<T> {
    /// Reads a line of a watch; its object by `read`.
    pub fn read(line: &[u8], read: impl FnOnce(&str) -> serde_json::Result<T>) -> Result<Self, WatchError> {
        let failed = |error| WatchError::Watch(kube::Error::SerdeError(error));
        let Line { kind, object } = match serde_json::from_slice(line) {
            Ok(line) => line,
            // An error that is no event.
            Err(error) => return Err(serde_json::from_slice(line).map_or_else(|_| failed(error), WatchError::Told)),
        };
        match kind.as_ref() {
            "DELETED" => read(object.get()).map(Self::Deleted).map_err(failed),
            "BOOKMARK" => {
                let Marked { metadata } = serde_json::from_str(object.get()).map_err(failed)?;
                metadata.resource_version.map(Self::Bookmark).ok_or(WatchError::NoVersion)
            }
            "ERROR" => Err(serde_json::from_str(object.get()).map_or_else(failed, WatchError::Told)),
            _ => read(object.get()).map(Self::Applied).map_err(failed),
        }
    }
}

impl WatchError {
    /// The versions that were asked for are not known any more: everything has to be listed anew.
    pub fn is_expired(&self) -> bool {
        match self {
            Self::Told(status) => status.code == 410,
            Self::List(kube::Error::Api(status)) | Self::Watch(kube::Error::Api(status)) => status.code == 410,
            Self::NoVersion => true,
            Self::List(_) | Self::Watch(_) => false,
        }
    }
}

/// What it says, without the object that it may quote.
impl fmt::Display for WatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List(error) => write!(f, "list: {error}"),
            Self::Watch(error) => write!(f, "watch: {error}"),
            Self::Told(status) => write!(f, "watch: {} ({})", status.message, status.code),
            Self::NoVersion => f.write_str("the answer has no resource version"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_grow_while_they_are_small_and_shrink_with_their_objects() {
        let mut size = PageSize(limits::LIST_FIRST);
        let mut seen = Vec::new();
        for each in [2_000, 2_000, 2_000, 1 << 20, 1 << 20, 3 << 20, 900, 0] {
            let objects = size.0 as usize;
            size = size.after(objects, objects * each);
            seen.push(size.0);
        }
        assert_eq!(seen, [16, 64, 100, 2, 2, 1, 4, 16]);
        assert_eq!(PageSize(16).after(0, 200), PageSize(64), "no object has the label");
    }

    #[test]
    fn a_page_that_was_too_large_is_asked_for_in_smaller_ones() {
        let mut size = PageSize(limits::LIST_MOST);
        let mut seen = Vec::new();
        while let Some(slower) = size.slower() {
            size = slower;
            seen.push(size.0);
        }
        assert_eq!(seen, [25, 6, 1]);
    }

    #[test]
    fn lines_of_a_watch_are_read() {
        let read = |line: &str| News::read(line.as_bytes(), |object| Ok(object.to_owned()));
        let told = |line: &str| read(line).err().map(|issue| (issue.to_string(), issue.is_expired()));
        assert!(
            matches!(read(r#"{"type":"ADDED","object":{"a":1}}"#), Ok(News::Applied(text)) if text == r#"{"a":1}"#)
        );
        assert!(matches!(read(r#"{"object":{"a":1},"type":"MODIFIED"}"#), Ok(News::Applied(_))));
        assert!(matches!(read(r#"{"type":"DELETED","object":{}}"#), Ok(News::Deleted(_))));
        let bookmark = r#"{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"12"}}}"#;
        assert!(matches!(read(bookmark), Ok(News::Bookmark(version)) if version == "12"));
        let expired = r#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}"#;
        assert_eq!(told(expired), Some(("watch: too old (410)".to_owned(), true)));
        let bare = r#"{"kind":"Status","status":"Failure","code":500,"message":"no"}"#;
        assert_eq!(told(bare), Some(("watch: no (500)".to_owned(), false)));
        assert!(matches!(told("]]]"), Some((text, false)) if text.starts_with("watch: ")));
    }
}
