//! HTTP in: connections, requests, answers, drain.
//!
//! Listeners for clients, each with its own doors, one for the operator, and a socket for the operator's commands. Floor 3. It
//! turns requests into questions to the mirror and its answers
//! into responses, and decides nothing else.

mod admin;
mod audit;
mod body;
mod buffers;
mod certificate;
mod connections;
mod conversation;
mod data;
mod door;
mod files;
mod forwarded;
mod fresh;
mod gathered;
mod handler;
mod holders;
mod line_ends;
mod log;
mod login;
mod metrics;
mod options;
mod pace;
mod passage;
mod place;
mod proxy;
mod range;
mod respond;
mod rules;
mod shares;
mod socket;
mod streams;
mod tls;
mod users;
mod wire;

use std::future::Future;
use std::sync::Arc;

use crate::clock::Clock;
use crate::mirror::Mirror;
use crate::traces::Tracer;
use crate::upstream::Hop;

use buffers::Buffers;
use connections::{Limits, accept_all};
use files::Files;
use handler::Handler;
use pace::Least;

pub use admin::{AdminOptions, Guide, Office, serve_admin};
pub use audit::Audit;
pub use door::{Door, Listener, Terms};
pub use forwarded::Network;
pub use options::{ClientCert, ListenerOptions, Options};
pub use place::Place;
pub use rules::{Rule, Who};
pub use shares::Shares;
pub use socket::serve_orders;

/// What clients are served with.
pub struct Service {
    pub mirror: Mirror,
    /// What each of them may take.
    pub shares: Shares,
    pub audit: Audit,
    pub tracer: Tracer,
    pub hop: Hop,
    pub clock: Clock,
}

/// Serves who comes by `doors` until `stop` resolves, then lets answers under way end for as long as the options say.
/// Returns how many connections were cut off.
pub async fn serve(doors: Vec<Door>, options: &Options, service: Service, stop: impl Future<Output = ()>) -> usize {
    let Service { mirror, shares, audit, tracer, hop, clock } = service;
    let limits = Limits {
        connections: options.max_connections,
        least: Least { idle: options.write_idle, rate: options.min_rate.as_u64() },
        buffers: Buffers::new(options.max_buffers.as_u64(), mirror.metrics().clone()),
        grace: options.shutdown_grace,
        shares: shares.clone(),
        metrics: mirror.metrics().clone(),
    };
    let (buffers, files) = (limits.buffers.clone(), Files::new(options.max_files));
    let handler = Arc::new(Handler { mirror, hop, clock, buffers, files, shares, audit, tracer });
    let handle = move |request, client| {
        let handler = Arc::clone(&handler);
        async move { handler.handle(request, client).await }
    };
    accept_all(doors, limits, handle, stop).await
}
