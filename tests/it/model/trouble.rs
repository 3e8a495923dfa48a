//! What goes wrong upstream.

use std::time::Duration;

use larder::clock::Timestamp;

use super::history::{Glitch, Trouble};
use super::invariants;
use super::world::{REPOSITORIES, World};
use crate::support::{Fault, Match};

/// What is wrong with the upstream.
#[derive(Default, PartialEq)]
pub(super) struct Ails {
    pub(super) glitches: usize,
    pub(super) corrupt: bool,
    pub(super) lasting: Option<Trouble>,
    /// Until then it must not be asked.
    pub(super) leave_alone: Option<Timestamp>,
}

// === impl Ails ===

impl Ails {
    /// Nothing else is wrong, so that every answer is this one.
    pub(super) fn saying(lasting: Trouble) -> Self {
        Self { lasting: Some(lasting), ..Self::default() }
    }

    pub(super) fn is_well(&self) -> bool {
        self.glitches == 0 && !self.corrupt && self.lasting.is_none()
    }
}

impl World {
    pub(super) fn move_tag(&mut self, repository: usize, version: Option<usize>) {
        let name = REPOSITORIES[repository];
        match version {
            Some(version) => self.upstream.tag(name, "latest", &self.images[repository][version].digest),
            None => self.upstream.untag(name, "latest"),
        }
        let now = self.mirror().clock().now();
        self.tags[repository].moves.push((now, version));
    }

    pub(super) async fn trouble(&mut self, trouble: Trouble) {
        self.stalled.iter_mut().for_each(|stalled| stalled.undisturbed = false);
        match trouble {
            // As many as a transfer bears without progress.
            Trouble::Glitch { times, .. } if self.ails.glitches + times > 4 => {}
            Trouble::Glitch { after, how, times } => {
                self.ails.glitches += times;
                let transfers = Match::get("/blobs/").times(times);
                match how {
                    Glitch::Cut => self.upstream.on(transfers, Fault::Cut { after }),
                    Glitch::Reset => self.upstream.on(transfers, Fault::Reset { after }),
                    Glitch::Stall => self.upstream.on(transfers, Fault::Stall { after }),
                    Glitch::NoLength => self.upstream.on(transfers, Fault::NoLength),
                    Glitch::IgnoreRange => {
                        self.upstream.on(Match::get("/blobs/").times(1), Fault::Cut { after });
                        self.upstream.on(Match::get("/blobs/").ranged().times(times), Fault::IgnoreRange);
                    }
                }
            }
            Trouble::Corrupt { at } => {
                (self.ails.corrupt, self.ever_corrupt) = (true, true);
                self.upstream.on(Match::get("/blobs/").times(1), Fault::Corrupt { at });
            }
            _ if self.ails.lasting.is_some() => {}
            Trouble::Down => {
                self.ails.lasting = Some(trouble);
                self.upstream.stop().await;
            }
            Trouble::Unavailable => {
                self.ails.lasting = Some(trouble);
                self.upstream.on(Match::any("/v2/"), Fault::status(503));
            }
            Trouble::TooManyRequests => {
                self.ails.lasting = Some(trouble);
                self.upstream.on(Match::any("/v2/"), Fault::answer(429, &[("retry-after", "60")], ""));
            }
        }
    }

    /// Lets all be well upstream, and so much time pass that larder may be expected to have noticed.
    pub(super) async fn heal(&mut self) {
        self.upstream.heal();
        self.upstream.release();
        if self.ails.lasting == Some(Trouble::Down) {
            self.upstream.restart().await;
        }
        if self.ails.corrupt {
            // What is wrong already is not made right by this.
            self.stalled.clear();
            if self.is_quiet() {
                invariants::quiet(self).await;
            }
        }
        let was_well = self.ails.lasting.is_none();
        self.ails = Ails::default();
        self.mirror().clock().advance(Duration::from_mins(10));
        let now = self.mirror().clock().now();
        if !was_well {
            self.tags.iter_mut().for_each(|tag| tag.well_since = now);
        }
    }
}
