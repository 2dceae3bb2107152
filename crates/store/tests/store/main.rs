//! A run's storage: golden journals, damaged ones, what the runtime accepts, and a real S3 server.

extern crate daskade_store as store;

mod golden;
mod listing;
mod reader;
mod s3;
mod written;
