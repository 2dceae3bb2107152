//! Rules about the repository itself: generated files, source layout, supported versions.

mod circles;
mod generated;
mod reasons;
mod stages;
mod supported;
mod tidy;
