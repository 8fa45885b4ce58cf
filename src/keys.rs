//! Who asks: the keys of callers, and what each of them may see and do. What a request needs is in memory.
//!
//! Never keeps a key: only its SHA-256, which is compared in constant time. Knows nothing of HTTP.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::{
    clock::{Clock, Time},
    config::{Callers, Secret},
    store::{
        Sees, StoreError,
        keys::{KeyRecord, KeyStore},
    },
};

/// How often a process reads what others have changed, besides when they announce it.
pub const FOLLOW_EVERY: Duration = Duration::from_secs(1);
/// How often it is written which keys were used, and how exactly.
pub const NOTE_EVERY: Duration = Duration::from_secs(60);
/// Keys at most: they are all in memory.
pub const MOST_KEYS: usize = 10_000;
/// The names of callers without a key of the store. No key of the store can have one of them.
pub const RESERVED_NAMES: [&str; 2] = ["anonymous", "admin_key"];
/// What every key that is made here begins with, so that scanners of leaked secrets can find it.
const PREFIX: &str = "fg_";
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 24;

type Hash = [u8; 32];

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Jobs in; cancel, replay and erase.
    Submit,
    /// Jobs and vendors.
    Read,
    /// `/metrics` alone.
    Metrics,
    /// Pauses, limits, the audit; all tenants.
    Operate,
    /// Keys; all tenants.
    Admin,
}

impl Scope {
    pub const ALL: [Scope; 5] = [Scope::Submit, Scope::Read, Scope::Metrics, Scope::Operate, Scope::Admin];

    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Submit => "submit",
            Scope::Read => "read",
            Scope::Metrics => "metrics",
            Scope::Operate => "operate",
            Scope::Admin => "admin",
        }
    }

    pub fn from_text(text: &str) -> Option<Scope> {
        Scope::ALL.into_iter().find(|scope| scope.as_str() == text)
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The name of its key, for records of who did something.
    pub by: Arc<str>,
    pub sees: Sees,
    scopes: Vec<Scope>,
    /// The id of its key; nothing for one that is not in the store and so cannot end.
    key: Option<String>,
}

impl Caller {
    fn with_every_scope(by: &str) -> Arc<Caller> {
        Arc::new(Caller { by: by.into(), sees: Sees::All, scopes: Scope::ALL.to_vec(), key: None })
    }

    /// The id of its key, if that can end.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }
}

/// The keys, and the callers that they stand for.
pub struct Keys {
    store: Arc<dyn KeyStore>,
    clock: Clock,
    mode: Mode,
    known: RwLock<Known>,
}

enum Mode {
    /// Everybody is this caller.
    Open(Arc<Caller>),
    /// The hash of the admin key, and its caller, if there is one.
    Keys(Option<(Hash, Arc<Caller>)>),
}

#[derive(Default)]
struct Known {
    keys: HashMap<String, Arc<Key>>,
    /// Changes made in this process: what was read before one must not undo it.
    changes: u64,
}

/// A key in memory. Its times are milliseconds; 0: never.
struct Key {
    record: KeyRecord,
    caller: Arc<Caller>,
    used_at: AtomicI64,
    /// What of `used_at` is stored.
    noted: AtomicI64,
}

/// A key to be made. The API has checked it.
pub struct NewKey {
    pub name: String,
    pub tenant: Option<String>,
    pub scopes: Vec<Scope>,
    pub expires_in: Option<Duration>,
}

/// Why a key was not made.
#[derive(Debug, thiserror::Error)]
pub enum NotMade {
    #[error("there are as many keys as can be; delete some that are not used")]
    TooMany,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Keys {
    /// Reads the keys before the first request is answered.
    pub async fn open(store: Arc<dyn KeyStore>, clock: Clock, callers: &Callers) -> Result<Keys, StoreError> {
        let mode = match callers {
            Callers::Anybody => Mode::Open(Caller::with_every_scope(RESERVED_NAMES[0])),
            Callers::Keys { admin_key } => Mode::Keys(
                admin_key.as_ref().map(|key| (hash(key.reveal()), Caller::with_every_scope(RESERVED_NAMES[1]))),
            ),
        };
        let keys = Keys { store, clock, mode, known: RwLock::default() };
        keys.refresh().await?;
        Ok(keys)
    }

    /// Whether requests need a key.
    pub fn are_needed(&self) -> bool {
        matches!(self.mode, Mode::Keys(_))
    }

    /// Whose key this is; nobody's if it is unknown or has expired. What is done, and how long it takes, is the same for every text.
    pub fn caller(&self, presented: &str) -> Option<Arc<Caller>> {
        let admin = match &self.mode {
            Mode::Open(anybody) => return Some(anybody.clone()),
            Mode::Keys(admin) => admin,
        };
        let presented_hash = hash(presented);
        let id = presented.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')).map_or("", |(id, _)| id);
        let found = self.read().keys.get(id).cloned();
        let no_hash = [0; 32];
        let stored = found.as_ref().map_or(&no_hash, |key| &key.record.hash);
        let is_stored = bool::from(presented_hash.as_slice().ct_eq(stored));
        let admin_hash = admin.as_ref().map_or(&no_hash, |(hash, _)| hash);
        let is_admin = bool::from(presented_hash.as_slice().ct_eq(admin_hash));
        let now = self.clock.now();
        if let Some(key) = found.filter(|key| is_stored && key.is_good(now)) {
            key.note_use(now);
            return Some(key.caller.clone());
        }
        admin.as_ref().filter(|_| is_admin).map(|(_, caller)| caller.clone())
    }

    /// Whether the key of a caller is still good: it may have been deleted, or have expired, while its request waited.
    pub fn is_still_good(&self, caller: &Caller) -> bool {
        let Some(id) = &caller.key else { return true };
        self.read().keys.get(id).is_some_and(|key| key.is_good(self.clock.now()))
    }

    /// Makes a key; gives it this once, with what is stored of it.
    pub async fn create(&self, new: NewKey, by: &str) -> Result<(KeyRecord, Secret), NotMade> {
        if self.store.keys().await?.len() >= MOST_KEYS {
            return Err(NotMade::TooMany);
        }
        let id = random_text::<ID_BYTES>()?;
        let key = format!("{PREFIX}{id}_{}", random_text::<SECRET_BYTES>()?);
        let created_at = self.clock.now();
        let scopes: Vec<&str> = new.scopes.iter().map(|scope| scope.as_str()).collect();
        let record = KeyRecord {
            id,
            hash: hash(&key),
            name: new.name,
            tenant: new.tenant,
            scopes: scopes.join(" "),
            created_at,
            created_by: by.to_owned(),
            expires_at: new.expires_in.map(|time| created_at.plus(time)),
            last_used_at: None,
        };
        self.store.add_key(&record).await?;
        let mut known = self.write();
        known.keys.insert(record.id.clone(), Arc::new(Key::new(record.clone())));
        known.changes += 1;
        Ok((record, Secret::new(key)))
    }

    /// Deletes a key; says whether there was one.
    pub async fn delete(&self, id: &str) -> Result<bool, StoreError> {
        let deleted = self.store.delete_key(id).await?;
        let mut known = self.write();
        known.keys.remove(id);
        known.changes += 1;
        Ok(deleted)
    }

    /// All keys, in the order in which they were made.
    pub async fn list(&self) -> Result<Vec<KeyRecord>, StoreError> {
        let mut keys = self.store.keys().await?;
        let known = self.read();
        for record in &mut keys {
            let used_at = known.keys.get(&record.id).map(|key| Time(key.used_at.load(Ordering::Relaxed)));
            record.last_used_at = record.last_used_at.max(used_at.filter(|at| at.0 > 0));
        }
        Ok(keys)
    }

    /// Learns what other processes have changed.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let changes = self.read().changes;
        let records = self.store.keys().await?;
        let mut known = self.write();
        if known.changes != changes {
            return Ok(()); // the next look will see it all
        }
        let before = std::mem::take(&mut known.keys);
        for record in records {
            // A key never changes, but for its last use.
            let key = before.get(&record.id).filter(|key| key.record.hash == record.hash).cloned();
            known.keys.insert(record.id.clone(), key.unwrap_or_else(|| Arc::new(Key::new(record))));
        }
        Ok(())
    }

    /// Writes which keys were used since the last time.
    pub async fn note_uses(&self) -> Result<(), StoreError> {
        let used: Vec<(Arc<Key>, i64)> = {
            let known = self.read();
            let used = known.keys.values().map(|key| (key.clone(), key.used_at.load(Ordering::Relaxed)));
            used.filter(|(key, at)| *at > key.noted.load(Ordering::Relaxed)).collect()
        };
        if used.is_empty() {
            return Ok(());
        }
        self.store.note_uses(used.iter().map(|(key, at)| (key.record.id.clone(), Time(*at))).collect()).await?;
        used.iter().for_each(|(key, at)| key.noted.store(*at, Ordering::Relaxed));
        Ok(())
    }

    /// A panic elsewhere does not make a list of keys wrong.
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Key {
    fn new(record: KeyRecord) -> Key {
        let sees = record.tenant.as_deref().map_or(Sees::All, |tenant| Sees::Tenant(tenant.into()));
        // A newer version may know more scopes: here they mean nothing.
        let scopes = record.scopes.split(' ').filter_map(Scope::from_text).collect();
        let caller = Arc::new(Caller { by: record.name.as_str().into(), sees, scopes, key: Some(record.id.clone()) });
        let noted = record.last_used_at.map_or(0, |at| at.0);
        Key { record, caller, used_at: AtomicI64::new(noted), noted: AtomicI64::new(noted) }
    }

    fn is_good(&self, now: Time) -> bool {
        self.record.expires_at.is_none_or(|at| at > now)
    }

    /// Writes memory that all requests share only once in a while.
    fn note_use(&self, now: Time) {
        let last = self.used_at.load(Ordering::Relaxed);
        if now.0.saturating_sub(last) >= NOTE_EVERY.as_millis() as i64 {
            self.used_at.fetch_max(now.0, Ordering::Relaxed);
        }
    }
}

fn hash(key: &str) -> Hash {
    Sha256::digest(key).into()
}

/// Random bytes, as hexadecimal digits.
fn random_text<const N: usize>() -> Result<String, StoreError> {
    let mut bytes = [0; N];
    let no_bytes = |_| StoreError::Unavailable("the operating system gave no random bytes".into());
    getrandom::fill(&mut bytes).map_err(no_bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
