//! `[log]`

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[log]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogOptions {
    /// How log lines are written: `text` or `json`.
    pub format: LogFormat,
    /// The least that is logged: `error`, `warn`, `info`, `debug`, `trace`. Requests are logged at `info`.
    pub level: LogLevel,
    /// The audit log: a line of JSON for each access of a client and each order of an operator, appended to this file; `-`: to standard
    /// output. Empty: none. On SIGHUP it is opened anew.
    pub audit_file: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}
