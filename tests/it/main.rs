//! The behaviour of larder as clients and registries see it: the real thing on loopback, a module per behaviour.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test that cannot go on has failed")]

#[path = "../support/mod.rs"]
mod support;

mod access;
mod accounts;
mod admin;
mod attacks;
mod breaking;
mod budget;
mod credentials;
mod damage;
mod dependencies;
mod disk_faults;
mod disk_sweeps;
mod fallbacks;
mod filling;
mod freshness;
mod gates;
mod health;
mod hedging;
mod http2;
mod keeping;
mod layers;
mod lazy;
mod leaving;
mod likes;
mod lists;
mod logins;
mod loops;
mod model;
mod names;
mod negotiation;
mod overload;
mod passthrough;
mod places;
mod proofs;
mod proxies;
mod public;
mod pulls;
mod quirks;
mod ranges;
mod reaching;
mod refusals;
mod registries;
mod resuming;
mod returning;
mod rights;
mod secrets;
mod serving;
mod sizes;
mod slow;
mod stale;
mod starting;
mod stopping;
mod sweep;
mod tags;
mod tls;
mod tokens;
mod upstreams;
mod warming;
mod wire;
mod wrong_bytes;
