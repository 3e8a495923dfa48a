//! Users with passwords, in files as `htpasswd -B` writes them, and their groups.
//!
//! A password costs as much time to check as the operator has chosen, on purpose; so it is checked beside the requests of others, one
//! at a time, and one that was right is remembered for a while. Each try is as much work as the hardest hash of the file, whoever it
//! names: the time tells neither who is known, nor whose hash is a weak one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::sync::Semaphore;

use crate::clock::Timestamp;
use crate::flight::Flights;
use crate::mirror::{Brake, Refusal};
use crate::upstream::{ClientCredential, CredentialKey};

use super::fresh::{Fresh, Look};

/// Those who may come by one listener.
pub(super) struct Users {
    files: Arc<Fresh<Known>>,
    brake: Brake,
    checking: Flights<(CredentialKey, IpAddr), Result<(), Refusal>>,
}

/// What stands in the files.
struct Known {
    /// Of each user's password.
    hashes: HashMap<String, Hashed>,
    groups: HashMap<String, Arc<[String]>>,
    /// The highest cost of them.
    hardest: u32,
    /// Until when each login that was right is believed.
    right: Cache<CredentialKey, Timestamp>,
}

/// A password as it is kept: one more of cost is twice the work.
struct Hashed {
    hash: String,
    cost: u32,
}

/// For how long a login is believed to be right. When the file changes, for no longer.
const BELIEVED: Duration = Duration::from_mins(5);
/// How many are.
const REMEMBERED: u64 = 10_000;
/// How many passwords may wait to be checked.
const MOST_WAITING: usize = 64;
/// More would take minutes for each password.
const HIGHEST_COST: u32 = 16;
/// Nobody is kept out by these: they are known by then, or try again in a second.
const BUSY: Duration = Duration::from_secs(1);

/// One password at a time, of all listeners, so that most of the machine is for those who have been let in.
static HASHING: Semaphore = Semaphore::const_new(1);
static WAITING: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(MOST_WAITING)));

// === impl Users ===

impl Users {
    /// # Errors
    /// One line that names the option.
    pub(super) fn new(what: &str, users: PathBuf, groups: PathBuf) -> Result<Self, String> {
        let named = [&users, &groups].into_iter().filter(|file| !file.as_os_str().is_empty()).cloned().collect();
        let files = Fresh::new(format!("the users of {what}"), named, move || Known::read(&users, &groups))?;
        Ok(Self { files: Arc::new(files), brake: Brake::default(), checking: Flights::default() })
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
        let known = self.files.get();
        let believed = known.right.get(&client.key());
        if believed.is_some_and(|until| now < until) {
            return Ok(());
        }
        let (users, client) = (Arc::clone(self), client.clone());
        let checked = self.checking.join((client.key(), from), || async move {
            // Who was right a while ago does not try out passwords.
            if believed.is_none() {
                users.brake.charge(from, now)?;
            }
            let checked = known.check(&client).await;
            match checked {
                Ok(()) => known.right.insert(client.key(), now + BELIEVED),
                Err(Refusal::WrongLogin(_)) => return checked,
                Err(_) => {}
            }
            if believed.is_none() {
                users.brake.refund(from);
            }
            checked.map_err(|busy| match busy {
                Refusal::TooManyLogins { .. } => Refusal::TooManyLogins { until: now + BUSY },
                other => other,
            })
        });
        checked.await?
    }
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
            hashes.insert(name, Hashed { hash, cost });
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
        }
        let groups = members.into_iter().map(|(name, groups)| (name, groups.into())).collect();
        let right = Cache::builder().eviction_policy(EvictionPolicy::lru()).max_capacity(REMEMBERED).build();
        Ok(Self { hashes, groups, hardest, right })
    }

    async fn check(self: &Arc<Self>, client: &ClientCredential) -> Result<(), Refusal> {
        let wrong = || Refusal::WrongLogin("no user has this name and this password".into());
        // Who comes when there is much to do hears so; when is for the caller to say, who knows the time.
        let busy = || Refusal::TooManyLogins { until: Timestamp::from_unix_millis(0) };
        let _waits = WAITING.try_acquire().map_err(|_| busy())?;
        let _hashes = HASHING.acquire().await.map_err(|_| Refusal::Interrupted)?;
        let (known, client) = (Arc::clone(self), client.clone());
        let right = tokio::task::spawn_blocking(move || {
            let (name, password) = client.parts()?;
            let nobodys = Hashed::nobodys(known.hardest);
            let users = known.hashes.get(name);
            let hashed = users.unwrap_or(&nobodys);
            let same = hashed.is_of(password);
            // What is missing to the hardest: the work at each cost from this one on is as much as all before it together.
            for cost in hashed.cost..known.hardest {
                std::hint::black_box(Hashed::nobodys(cost).is_of(password));
            }
            (same && users.is_some()).then_some(())
        });
        right.await.map_err(|_| Refusal::Interrupted)?.ok_or_else(wrong)
    }
}

// === impl Hashed ===

impl Hashed {
    /// No password's.
    fn nobodys(cost: u32) -> Self {
        Self { hash: format!("$2y${cost:02}${}", ".".repeat(53)), cost }
    }

    fn is_of(&self, password: &str) -> bool {
        bcrypt::verify(password, &self.hash).unwrap_or_default()
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
