//! What clients, registries and other users of the machine may try, and what comes of it, by subject.

mod access;
mod content;
mod credentials;
mod host;
mod urls;
