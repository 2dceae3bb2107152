//! Runs in Kubernetes, with the kubeconfig and the rights of whoever runs the command.

mod connection;
mod show;
mod submit;

pub(super) use self::{
    show::{cancel, runs, status},
    submit::submit,
};
