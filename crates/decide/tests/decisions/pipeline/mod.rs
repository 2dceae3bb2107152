//! What makes runs of a Pipeline: tables of single decisions, and properties of whole histories with crashes in them.

mod change;
mod forged;
mod history;
mod schedule;
mod world;
