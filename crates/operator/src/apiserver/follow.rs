//! Runs, as what belongs to their Pipeline: what the watch of runs shows is told to Pipelines too, reduced to what they
//! decide by, so that the progress of a run is no news to its Pipeline.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::apiserver::cache::Listed;
use crate::apiserver::record::{Kind, Record};
use crate::apiserver::sink::Sink;
use crate::queue::Key;
use decide::pipeline::PIPELINE_LABEL;

/// Tells Pipelines of their runs.
pub(crate) struct Follow {
    sink: Sink,
    namespace: Option<String>,
    /// While a list comes in: what it has shown.
    listed: Option<Listed>,
}

impl Follow {
    pub fn new(sink: Sink, namespace: Option<String>) -> Self {
        Self { sink, namespace, listed: None }
    }

    /// A list begins.
    pub fn begin(&mut self) {
        self.listed = Some(Listed::new());
    }

    /// A run is like this, of the Pipeline with this key.
    pub fn put(&mut self, name: String, (key, slim): (Key, Record)) {
        if let Some(listed) = &mut self.listed {
            listed.insert((key.clone(), name.clone()));
        }
        if self.sink.cache.put(Kind::RunOf, &key, &name, slim) {
            self.sink.queue.add(key);
        }
    }

    /// A run is gone.
    pub fn remove(&self, meta: &ObjectMeta) {
        let name = meta.name.as_deref().unwrap_or_default();
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let label = meta.labels.as_ref().and_then(|labels| labels.get(PIPELINE_LABEL));
        // A run that only its spec says a Pipeline of has to be looked for.
        let key = match label {
            Some(pipeline) => Some(Key::new(namespace, pipeline)),
            None => self.sink.cache.parent(Kind::RunOf, namespace, name),
        };
        if let Some(key) = key
            && self.sink.cache.remove(Kind::RunOf, &key, name, meta.uid.as_deref())
        {
            self.sink.queue.add(key);
        }
    }

    /// The list is complete.
    pub fn complete(&mut self) {
        let listed = self.listed.take().unwrap_or_default();
        for key in self.sink.cache.complete(Kind::RunOf, self.namespace.as_deref(), &listed) {
            self.sink.queue.add(key);
        }
    }
}
