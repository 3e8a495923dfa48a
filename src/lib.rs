//! larder: a pull-through caching mirror for container registries.
//!
//! # Floors
//!
//! A file uses what is on floors below its own, never above; `tests/it/layers.rs` holds everyone to it.
//!
//! ```text
//! floor 4   cli  app  config         wiring; may use all below
//! floor 3   server                   HTTP in: parse, ask the mirror, respond; connections, drain
//! floor 2   dashboard                what the operator's page shows; above the others of this floor
//!           orders                   what the operator tells a cache to do, beside a running larder or without one
//!           mirror                   the pull-through policy: who answers, how fresh, one fill for all
//! floor 1   store      upstream      mechanisms, which never use each other
//! floor 0   oci  clock  flight       words and small tools: no I/O
//!           metrics  traces  sync  allowance  brake  network  room  current  lines  setup  heavy  background
//! ```
//!
//! # A hit
//!
//! `server::handler` parses the request into an `oci::Route` and asks `mirror::blob`. The repository has been proven to hold
//! the digest, so it takes the blob from `store`, and `server::respond` streams what its `BlobReader` reads from the file.
//! Where clients bring their own credentials, `mirror::logins` has told who asks, and `mirror::rights` has asked the upstream
//! whether this client may, before anything else was looked at.
//!
//! A file that an unclean stop may have damaged is verified when it is first read (`store::verify`), all of them now and then. What
//! is damaged, or cannot be read, leaves the cache (`store::quarantine`), and who was reading it goes on from a new fill.
//!
//! # An order
//!
//! `cli` gives an `orders::Order` to the larder that holds the cache directory, by the socket in it, where `server::socket` takes
//! it. Where none holds it, `cli` opens the cache by `app` and carries the order out itself. Either way it reads
//! `orders::Report`s. An archive that is brought in follows the order; one that is given out comes with the reports.
//!
//! # A miss
//!
//! `mirror::blob` starts a `mirror::fill`, a task of its own, on the threads of `background`. It asks `upstream` and pushes
//! what comes into a `store::BlobWriter`, which hashes and writes it and says how far it has come. Every client, whether it
//! came first or joined at the end, reads the growing file, up to the tail: that is withheld until the digest is verified.
//! Then the file is synced and renamed, and the next request is a hit. Clients may leave as they please, once it has its turn: the
//! fill is nobody's.

mod allowance;
pub mod app;
mod background;
mod brake;
pub mod cli;
pub mod clock;
pub mod config;
pub mod current;
pub mod dashboard;
pub mod flight;
mod heavy;
mod lines;
pub mod metrics;
pub mod mirror;
mod network;
pub mod oci;
pub mod orders;
mod room;
pub mod server;
pub mod setup;
pub mod store;
mod sync;
pub mod traces;
pub mod upstream;
