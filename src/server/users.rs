//! Users with passwords, in files as `htpasswd -B` writes them, and their groups.
//!
//! A password costs as much time to check as the operator has chosen, on purpose; so it is checked beside the requests of others, a few
//! at a time at most, and what came of it is remembered for as long as the user has the same hash, as it would come again. Each try is
//! as much work as the hardest hash of the file, whoever it names: the time tells neither who is known, nor whose hash is a weak one.
//! Those who wait for it stand in a line of their address, and of each line one at a time is let in: who tries out passwords lets
//! nobody wait but who is at the same address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::brake::Brake;
use crate::clock::Timestamp;
use crate::flight::Flights;
use crate::mirror::Refusal;
use crate::network::block;
use crate::upstream::{ClientCredential, CredentialKey};

use super::fresh::{Fresh, Look};

/// Those who may come by one listener.
pub(super) struct Users {
    files: Arc<Fresh<Known>>,
    /// The hash that each login fits,
    right: Cache<CredentialKey, Arc<str>>,
    /// and that it does not fit; `None`: there was no such user.
    wrong: Cache<CredentialKey, Option<Arc<str>>>,
    brake: Brake,
    lines: Cache<IpAddr, Arc<Line>>,
    /// By who tries, and by what is tried alone.
    tries: Flights<(CredentialKey, IpAddr), Result<bool, Refusal>>,
    hashing: Flights<CredentialKey, Result<bool, Refusal>>,
}

/// What stands in the files.
struct Known {
    /// Of each user's password.
    hashes: HashMap<String, Hashed>,
    groups: HashMap<String, Arc<[String]>>,
    /// The highest cost of them.
    hardest: u32,
}

/// A password as it is kept: one more of cost is twice the work.
struct Hashed {
    hash: Arc<str>,
    cost: u32,
}

/// Those of one address who wait for their password to be checked.
struct Line {
    places: Semaphore,
    turn: Semaphore,
}

/// How many logins are remembered that were right, and that were wrong; and how many lines.
const REMEMBERED: u64 = 10_000;
/// How many may stand in a line.
const LONGEST_LINE: usize = 64;
/// How long one waits at the head of it.
const PATIENCE: Duration = Duration::from_secs(30);
/// More would take minutes for each password.
const HIGHEST_COST: u32 = 16;
/// Who found no room in line, or waited too long, tries again after this.
const BUSY: Duration = Duration::from_secs(1);

/// So few passwords at a time, of all listeners, that most of the machine is for those who have been let in.
static HASHING: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 4).max(1))));

// === impl Users ===

impl Users {
    /// # Errors
    /// One line that names the option.
    pub(super) fn new(what: &str, users: PathBuf, groups: PathBuf) -> Result<Self, String> {
        let named = [&users, &groups].into_iter().filter(|file| !file.as_os_str().is_empty()).cloned().collect();
        let files = Fresh::new(format!("the users of {what}"), named, move || Known::read(&users, &groups))?;
        Ok(Self {
            files: Arc::new(files),
            right: remembered(),
            wrong: remembered(),
            brake: Brake::default(),
            lines: remembered(),
            tries: Flights::default(),
            hashing: Flights::default(),
        })
    }

    pub(super) fn files(&self) -> Arc<dyn Look> {
        Arc::clone(&self.files) as _
    }

    pub(super) fn groups(&self, user: &str) -> Arc<[String]> {
        self.files.get().groups.get(user).cloned().unwrap_or_default()
    }

    /// Makes sure that a client is who it says. `from`: the address that it comes from.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// It is not, or there were too many tries.
    pub(super) async fn check(self: &Arc<Self>, client: &ClientCredential, from: IpAddr, now: Timestamp) -> Result<(), Refusal> {
        let (known, from) = (self.files.get(), block(from));
        let right = if let Some(right) = self.recall(&known, client) {
            right
        } else {
            let (users, client) = (Arc::clone(self), client.clone());
            self.tries.join((client.key(), from), || users.try_out(known, client, from, now)).await??
        };
        right.then_some(()).ok_or_else(|| Refusal::WrongLogin("no user has this name and this password".into()))
    }

    /// What came of this login when it was tried, if that would come again.
    fn recall(&self, known: &Known, client: &ClientCredential) -> Option<bool> {
        let (key, hash) = (client.key(), known.hash(client));
        if hash.is_some() && self.right.get(&key) == hash {
            return Some(true);
        }
        (self.wrong.get(&key)? == hash).then_some(false)
    }

    /// Tries it out when it is this address's turn.
    async fn try_out(
        self: Arc<Self>,
        known: Arc<Known>,
        client: ClientCredential,
        from: IpAddr,
        now: Timestamp,
    ) -> Result<bool, Refusal> {
        let busy = move || Refusal::TooManyLogins { until: now + BUSY };
        let too_many = |until| Refusal::TooManyLogins { until };
        // Not even the right one is tried where too many were wrong, or who guesses it would learn so.
        self.brake.check(from, now).map_err(too_many)?;
        let line = self.lines.get_with(from, Arc::default);
        let _place = line.places.try_acquire().map_err(|_| busy())?;
        let _turn = line.turn.acquire().await.map_err(|_| Refusal::Interrupted)?;
        self.brake.charge(from, now).map_err(too_many)?;
        let users = Arc::clone(&self);
        let hashed = self.hashing.join(client.key(), || async move {
            let Ok(hashes) = timeout(PATIENCE, HASHING.acquire()).await else { return Err(busy()) };
            let _hashes = hashes.map_err(|_| Refusal::Interrupted)?;
            // It may have been tried for another address meanwhile.
            match users.recall(&known, &client) {
                Some(right) => Ok(right),
                None => users.hash(known, client).await,
            }
        });
        let right = hashed.await?;
        if !matches!(right, Ok(false)) {
            self.brake.refund(from);
        }
        right
    }

    async fn hash(&self, known: Arc<Known>, client: ClientCredential) -> Result<bool, Refusal> {
        let (key, hash) = (client.key(), known.hash(&client));
        let right = tokio::task::spawn_blocking(move || known.is_right(&client)).await.map_err(|_| Refusal::Interrupted)?;
        match hash {
            Some(hash) if right => self.right.insert(key, hash),
            hash => self.wrong.insert(key, hash),
        }
        Ok(right)
    }
}

fn remembered<K: std::hash::Hash + Eq + Send + Sync + 'static, V: Clone + Send + Sync + 'static>() -> Cache<K, V> {
    Cache::builder().eviction_policy(EvictionPolicy::lru()).max_capacity(REMEMBERED).build()
}

// === impl Known ===

impl Known {
    fn read(users: &Path, groups: &Path) -> Result<Self, String> {
        let (mut hashes, mut hardest) = (HashMap::new(), 0);
        for (place, name, hash) in lines("users_file", users)? {
            let parts = bcrypt::HashParts::from_str(&hash).ok().filter(|parts| (4..=HIGHEST_COST).contains(&parts.get_cost()));
            let parts = parts.ok_or_else(|| format!("{place} holds no password as `htpasswd -B` writes it (bcrypt)"))?;
            let cost = parts.get_cost();
            hardest = hardest.max(cost);
            // Of two, Apache and nginx take the first, others the last.
            let shown = name.escape_debug().to_string();
            if hashes.insert(name, Hashed { hash: hash.into(), cost }).is_some() {
                return Err(format!("{place} is one more for {shown}; whose password is meant?"));
            }
        }
        if hashes.is_empty() {
            return Err(format!("users_file {} names nobody", users.display()));
        }
        let mut members: HashMap<String, Vec<String>> = HashMap::new();
        if !groups.as_os_str().is_empty() {
            for (_, group, names) in lines("groups_file", groups)? {
                for name in names.split_whitespace() {
                    members.entry(name.to_owned()).or_default().push(group.clone());
                }
            }
            // What rules deny to groups would be denied to nobody.
            if members.is_empty() {
                return Err(format!("groups_file {} has nobody in any group", groups.display()));
            }
        }
        let groups = members.into_iter().map(|(name, groups)| (name, groups.into())).collect();
        Ok(Self { hashes, groups, hardest })
    }

    /// Of the user whom it names.
    fn hash(&self, client: &ClientCredential) -> Option<Arc<str>> {
        let (name, _) = client.parts()?;
        Some(Arc::clone(&self.hashes.get(name)?.hash))
    }

    fn is_right(&self, client: &ClientCredential) -> bool {
        let Some((name, password)) = client.parts() else { return false };
        let nobodys = Hashed::nobodys(self.hardest);
        let users = self.hashes.get(name);
        let hashed = users.unwrap_or(&nobodys);
        let same = hashed.is_of(password);
        // What is missing to the hardest: the work at each cost from this one on is as much as all before it together.
        for cost in hashed.cost..self.hardest {
            std::hint::black_box(Hashed::nobodys(cost).is_of(password));
        }
        same && users.is_some()
    }
}

// === impl Hashed ===

impl Hashed {
    /// No password's.
    fn nobodys(cost: u32) -> Self {
        Self { hash: format!("$2y${cost:02}${}", ".".repeat(53)).into(), cost }
    }

    fn is_of(&self, password: &str) -> bool {
        bcrypt::verify(password, &self.hash).unwrap_or_default()
    }
}

// === impl Line ===

impl Default for Line {
    fn default() -> Self {
        Self { places: Semaphore::new(LONGEST_LINE), turn: Semaphore::new(1) }
    }
}

/// The lines `name:rest` of a file, each with where it stands. Empty ones and those that begin with # are none.
fn lines(option: &str, file: &Path) -> Result<Vec<(String, String, String)>, String> {
    let place = |line: usize| format!("{option} {}, line {}", file.display(), line + 1);
    let text = std::fs::read_to_string(file).map_err(|error| format!("{option} {} cannot be read: {error}", file.display()))?;
    let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let parted = lines.map(|(number, line)| match line.split_once(':') {
        Some((name, rest)) if !name.trim().is_empty() => Ok((place(number), name.trim().to_owned(), rest.trim().to_owned())),
        _ => Err(format!("{} is no name with a colon after it", place(number))),
    });
    parted.collect()
}
