//! Where what the watches show goes: what is kept, and who is told.

use std::sync::Arc;

use crate::apiserver::cache::Cache;
use crate::queue::Queue;
use telemetry::metrics::Backlog;

/// Where the watches of one kind, and of what belongs to it, lead.
#[derive(Clone)]
pub(crate) struct Sink {
    pub cache: Arc<Cache>,
    pub queue: Arc<Queue>,
}

impl Sink {
    pub fn new(backlog: Backlog) -> Self {
        Self { cache: Arc::default(), queue: Arc::new(Queue::new(backlog)) }
    }
}
