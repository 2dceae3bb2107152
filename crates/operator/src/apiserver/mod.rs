//! What talks to the API server: watches and what they show, reads of whole objects, writes. Not named `kube`, as the crate is.

pub(crate) mod apply;
pub(crate) mod cache;
pub(crate) mod collection;
pub(crate) mod compare;
pub mod crds;
pub(crate) mod error;
pub(crate) mod follow;
pub mod own;
pub(crate) mod record;
pub(crate) mod room;
pub(crate) mod scope;
pub(crate) mod shown;
pub(crate) mod sink;
pub(crate) mod waiters;
pub(crate) mod watch;
pub(crate) mod whole;
pub(crate) mod wire;
