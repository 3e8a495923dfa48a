//! The behaviour of larder as clients and registries see it: the real thing on loopback, a module per behaviour.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test that cannot go on has failed")]

#[path = "../support/mod.rs"]
mod support;

mod dependencies;
mod keeping;
mod layers;
mod pulls;
mod starting;
mod tls;
