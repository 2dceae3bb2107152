//! What makes runs of a Pipeline: changes of its spec and its schedule. Pure: facts and the time in, actions out.
//!
//! [`plan`] is asked again after each action, with what is there then. It keeps nothing between two calls but what the
//! Pipeline's status and its runs say, so that a process may end between any two actions and the next one goes on.

mod accept;
mod action;
mod build;
mod facts;
mod hash;
mod history;
mod moments;
mod names;
mod plan;
mod status;
mod validate;

pub use self::{
    accept::accept,
    action::{Action, Cause},
    build::build_run,
    facts::{End, FROZEN_HASH, Facts, Origin, RunFact, Subject, frozen_hash, read_run},
    hash::hash,
    moments::{ScheduleError, Timing},
    names::{
        GENERATION_ANNOTATION, HASH_ANNOTATION, MOMENT_ANNOTATION, PIPELINE_LABEL, QUEUED_ANNOTATION, TRIGGER_LABEL,
        UID_ANNOTATION, change_name, moment_name,
    },
    plan::{CHANGES_MAX, Marks, Note, Plan, QUEUE_MAX, plan},
    status::{build_status, invalid_status},
    validate::validate,
};
