//! Sizes that are refused before anything is made of them.

use std::io;

use serde::Serialize;

/// Steps of a pipeline, `finally` included.
pub const STEPS: usize = 10_000;
/// Bytes of a pipeline as JSON.
pub const PIPELINE_BYTES: usize = 1 << 20;
/// Bytes of a parameter's value as JSON.
pub const PARAMETER_BYTES: usize = 256 << 10;
/// Bytes of the arguments of all steps, with parameters filled in.
pub const TEMPLATE_BYTES: usize = 64 << 20;
/// Bytes of the known lists of all maps.
pub const KNOWN_BYTES: usize = 64 << 20;
/// Entries of the known lists of all maps.
pub const TOTAL_ITEMS: usize = 1_000_000;
/// Items of a mapped step unless the pipeline sets another limit.
pub const ITEMS: u32 = 100_000;
/// Most that a pipeline may set it to.
pub const ITEMS_MAX: u32 = 1_000_000;

/// Bytes of `value` as JSON; counting stops soon after `enough`.
pub fn json_size(value: &impl Serialize, enough: usize) -> usize {
    struct Counter {
        bytes: usize,
        enough: usize,
    }
    impl io::Write for Counter {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            self.bytes += buffer.len();
            if self.bytes > self.enough { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(buffer.len()) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter { bytes: 0, enough };
    match serde_json::to_writer(&mut counter, value) {
        Ok(()) => counter.bytes,
        Err(_) => counter.bytes.max(enough + 1),
    }
}
