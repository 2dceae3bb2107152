//! Objects that have their turn, as a whole: small ones are in the cache, the others are read from the API server then.

use kube::api::{DynamicObject, GetParams};
use kube::core::Request;
use kube::{Client, Resource};
use serde_json::Value;

use crate::apiserver::error::ReconcileError;
use crate::apiserver::record::{Body, Kind, Record};
use crate::apiserver::room::{self, Held};
use crate::apiserver::shown::{self, Read};
use crate::apiserver::wire;
use crate::queue::Key;

/// An object in hand.
pub(crate) struct Whole {
    pub record: Record,
    pub value: Value,
    /// Why its spec is not unpacked.
    pub refused: Option<String>,
    /// To be held until the turn ends.
    pub room: Held,
}

/// An object that the cache knows, as a whole. `more`: the weight of what its turn needs besides. Waits until there is room.
pub(crate) async fn read(
    client: &Client,
    kind: Kind,
    key: &Key,
    record: &Record,
    more: usize,
) -> Result<Whole, ReconcileError> {
    let room = room::turn(record.weight().saturating_add(more)).await;
    if !matches!(record.body, Body::Part(_)) {
        return Ok(Whole { record: record.clone(), value: record.json(), refused: None, room });
    }
    let failed = |error| ReconcileError::api("read", kind, &key.name, error);
    // What is gone, or another one by now, the watch will show.
    let found = fetch(client, kind, key).await.map_err(failed)?;
    let Some(Read { meta, value, refused }) = found.filter(|found| found.meta.uid.as_ref() == Some(&record.uid)) else {
        return Err(ReconcileError::Behind);
    };
    let version = meta.resource_version.unwrap_or_default();
    Ok(Whole { record: Record { version, ..record.clone() }, value, refused, room })
}

/// An object as the API server has it now; none if it is not there.
pub(crate) async fn fetch(client: &Client, kind: Kind, key: &Key) -> Result<Option<Read>, kube::Error> {
    let url = DynamicObject::url_path(&kind.resource(), Some(&key.namespace));
    let request = Request::new(url).get(&key.name, &GetParams::default()).map_err(kube::Error::BuildRequest)?;
    let text = match wire::text(client, request).await {
        Ok(text) => text,
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
        Err(error) => return Err(error),
    };
    shown::read_whole(kind, &text).map(Some).map_err(kube::Error::SerdeError)
}
