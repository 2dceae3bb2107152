//! The engine: the meaning of each kind of step, demand, scale, and properties of random runs.

extern crate daskade_engine as engine;

mod demand;
mod properties;
mod reference;
mod reruns;
mod scale;
mod semantics;
mod sim;
mod support;
