//! Rules about the repository itself: generated files, source layout, supported versions.

mod generated;
mod supported;
mod tidy;
