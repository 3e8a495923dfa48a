//! How far something has come, as bars on a terminal. Elsewhere nothing is shown.

use std::collections::HashMap;
use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};

use crate::orders::LayerReport;

use super::said::BARS;
use super::table::short;

/// One for each layer that comes.
#[derive(Default)]
pub(super) struct Layers(HashMap<String, ProgressBar>);

/// A bar of bytes, of so many where that is known. `shown`: unless something else is said to whoever watches.
pub(super) fn bytes(of: Option<u64>, shown: bool) -> ProgressBar {
    if !shown {
        return ProgressBar::hidden();
    }
    let bar = BARS.add(ProgressBar::no_length().with_style(style(of.is_some())));
    of.iter().for_each(|of| bar.set_length(*of));
    bar
}

pub(super) fn are_shown() -> bool {
    std::io::stderr().is_terminal()
}

fn style(sized: bool) -> ProgressStyle {
    let with_size = "{prefix}{wide_bar} {bytes:>11} of {total_bytes:>11}  {bytes_per_sec:>13}  {eta:>4} left";
    let without = "{prefix}{spinner} {bytes:>11}  {bytes_per_sec:>13}";
    ProgressStyle::with_template(if sized { with_size } else { without }).unwrap_or_else(|_| ProgressStyle::default_bar())
}

// === impl Layers ===

impl Layers {
    pub(super) fn show(&mut self, layer: &LayerReport) {
        let LayerReport { digest, bytes: come, size, done, .. } = layer;
        let bar = self.0.entry(digest.clone()).or_insert_with(|| bytes(*size, true).with_prefix(format!("{}  ", short(digest))));
        if let (Some(size), None) = (size, bar.length()) {
            bar.set_style(style(true));
            bar.set_length(*size);
        }
        bar.set_position(*come);
        if *done {
            bar.finish_and_clear();
            self.0.remove(digest);
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.drain().for_each(|(_, bar)| bar.finish_and_clear());
    }
}
