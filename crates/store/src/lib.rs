//! Reads what a run keeps in object storage: journal, outputs, logs. The runtime writes it, in Python.
//!
//! `layout` (keys), `segment` (bytes → records) and `fold` (records → state) are pure; `reader` does the I/O over
//! `config`. The byte format is documented in `docs/storage.md`; golden files in `tests/golden/journal` are read by the
//! tests of both sides. All input is hostile: sizes are checked before anything is allocated for them.

mod closing;
mod config;
mod cursor;
mod earlier;
mod error;
mod fold;
pub mod layout;
mod logs;
mod objects;
mod reader;
mod segment;

pub use closing::Parts;
pub use config::{StorageConfig, check_url, folder_of, folder_url};
pub use earlier::PastRun;
pub use error::StoreError;
pub use fold::{Folded, Position, TaskKey};
pub use logs::{LogFilter, LogLine, Logs};
pub use objects::Objects;
pub use reader::{JournalReader, Reader};
pub use segment::{
    Code, Committed, Container, Failed, Final, Handle, Limits, Lost, Opened, Record, Segment, SegmentError,
    decode_segment,
};
