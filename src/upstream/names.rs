//! Names by plan: where they lead in tests, in place of the system's resolver. Only in builds with debug assertions.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where names lead that one larder asks for, and where it went. Clones are the same plan.
#[derive(Clone, Default)]
pub struct Names(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    planned: HashMap<String, VecDeque<Vec<IpAddr>>>,
    asked: Vec<String>,
    dialled: Vec<(String, Vec<IpAddr>)>,
}

// === impl Names ===

impl Names {
    /// `host` leads to these addresses: to the first list when it is first asked for, and so on, to the last from then on.
    pub fn lead(&self, host: &str, answers: &[&[&str]]) {
        let addresses = |list: &&[&str]| list.iter().filter_map(|text| text.parse().ok()).collect();
        self.lock().planned.insert(host.into(), answers.iter().map(addresses).collect());
    }

    /// Each name that a resolver was asked for so far, as often as it was.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.lock().asked.clone()
    }

    /// Each name that was dialled so far, and the addresses that it was dialled at.
    #[must_use]
    pub fn dialled(&self) -> Vec<(String, Vec<IpAddr>)> {
        self.lock().dialled.clone()
    }

    /// `None`: it is not in the plan.
    pub(super) fn answer(&self, host: &str) -> Option<Vec<IpAddr>> {
        let mut state = self.lock();
        state.asked.push(host.into());
        let answers = state.planned.get_mut(host)?;
        if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() }
    }

    pub(super) fn dial(&self, host: &str, addresses: &[IpAddr]) {
        self.lock().dialled.push((host.into(), addresses.into()));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names").field("dialled", &self.lock().dialled.len()).finish()
    }
}

/// Two larders of one configuration have nothing else in common.
impl PartialEq for Names {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
