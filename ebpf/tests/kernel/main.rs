//! The kernel side alone, without a proxy: the agent in this process or in one of its children, real sockets, the real
//! kernel. Programs are attached to cgroups of the tests only, faults are made in network namespaces of the tests only.
//!
//! Tests that need privileges skip loudly without them. One at a time: an agent moves its process to another cgroup.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, clippy::print_stderr)]

mod access;
mod balance;
mod capacity;
mod handoff;
mod load;
mod peer;
mod shim;
mod signals;
mod stale;
mod support;
mod survive;
mod verdicts;
