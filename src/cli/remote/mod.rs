//! Runs in Kubernetes, with the kubeconfig and the rights of whoever runs the command.

mod connection;
mod dashboard;
mod logs;
mod resume;
mod retry;
mod scheduler;
mod show;
mod submit;
mod tunnel;

pub(super) use self::{
    dashboard::dashboard,
    logs::logs,
    resume::resume,
    retry::retry,
    show::{cancel, runs, status},
    submit::submit,
};
