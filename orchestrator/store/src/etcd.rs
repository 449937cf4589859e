//! The store on etcd 3.5 (3.5.8 or newer): the same tree in memory, fed by etcd's watch.
//!
//! Several servers may share one cluster; each holds the whole tree. A write is one transaction
//! that compares the key's revision; it is answered once the own tree has it, so that whoever
//! wrote sees it. The tree learns of writes from the watch alone, in etcd's order. A reader who
//! needs the newest state calls `sync`: the cluster is asked for its revision, and the tree waits
//! until it is there.
//!
//! Our revision is etcd's plus a constant that is written beside the items. It lets a store move
//! here from elsewhere without revisions going back.
//!
//! Tasks: one follows the watch, one asks for the newest revision on behalf of all who wait, one
//! lets etcd forget the past.

mod client;
mod follow;
mod key;
mod message;
mod whole;

pub use client::{CallError, EndpointError};
pub(crate) use whole::{contents, fill, retire};

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::Store;
use crate::backend::{Answer, Backend, Fault, Haste, SyncError, Trouble, WriteError};
use crate::etcd::client::{Client, Repeat};
use crate::etcd::key::Keys;
use crate::etcd::message::{
    CompactionRequest, CompactionResponse, Compare, CompareTarget, Compared, DeleteRangeRequest,
    PutRequest, RangeRequest, RangeResponse, Request, RequestOp, ResponseHeader, TxnRequest,
    TxnResponse,
};
use crate::item::{Expect, Head, Item, Write, Written};
use crate::tree::Tree;

/// The layout of the keys.
const FORMAT: u64 = 1;
/// Items read at a time while the tree is filled.
const PAGE_ITEMS: i64 = 500;
/// A new tree begins this many revisions in the past, so that clients who come from another
/// server, or from before a restart, may go on watching where they were.
const REPLAYED_REVISIONS: i64 = 10_000;
/// The past is forgotten at this pace; what is younger than one beat stays.
const COMPACT_EVERY: Duration = Duration::from_secs(300);
/// How long a write waits to be seen in the own tree before it is answered all the same.
const VISIBLE_LIMIT: Duration = Duration::from_secs(5);
/// How long a reader waits for the tree to reach the newest revision.
const SYNC_LIMIT: Duration = Duration::from_secs(5);
/// A tree that is behind asks for a sign of progress at this pace: the newest revision may
/// belong to keys that are not ours.
const PROGRESS_EVERY: Duration = Duration::from_millis(25);
/// Readers that may wait for one question.
const QUEUE_SYNCS_MAX: usize = 4096;

/// How an etcd cluster is reached.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// Its members: `https://HOST:PORT`, `http://HOST:PORT` or `unix://PATH`.
    pub endpoints: Vec<String>,
    /// The authority that signed the members' certificates.
    pub ca_cert: Option<PathBuf>,
    /// Our certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// What all keys begin with.
    pub prefix: String,
}

impl EtcdOptions {
    /// What all keys begin with when nobody says otherwise.
    pub const PREFIX: &'static str = "/muster";

    /// Members without TLS.
    #[must_use]
    pub fn plain(endpoints: Vec<String>) -> Self {
        Self { endpoints, ca_cert: None, identity: None, prefix: Self::PREFIX.to_owned() }
    }
}

/// Why the store on etcd cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// An endpoint cannot be used.
    #[error("cannot use the endpoints")]
    Endpoint(#[from] EndpointError),
    /// A certificate or key cannot be read.
    #[error("cannot read {path}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// TLS cannot be set up with the certificates.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// etcd does not answer or refuses.
    #[error("cannot read the store")]
    Call(#[from] CallError),
    /// What says how the store is to be read cannot be understood.
    #[error("the key {key} says {found:?}, which this program does not understand")]
    Meta {
        /// The key.
        key: String,
        /// Its value.
        found: String,
    },
    /// There is no store.
    #[error("there is no store in etcd")]
    Missing,
    /// A move into this store was begun and not finished.
    #[error("a move into this store was not finished; move or restore again")]
    Unfinished,
    /// The store was moved away.
    #[error("the store was moved away from etcd")]
    Moved,
    /// Somebody else changes the store as a whole.
    #[error("the store in etcd is being moved or restored by somebody else")]
    Busy,
    /// An item has no place in etcd.
    #[error("{shelf}/{name} cannot be kept in etcd")]
    Name {
        /// The shelf.
        shelf: String,
        /// The name.
        name: String,
    },
    /// The store has items already.
    #[error("the store in etcd is not empty")]
    NotEmpty,
}

/// How the keys of a store are to be read; the value of [`Keys::meta`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Added to etcd's revision.
    pub(crate) offset: u64,
    pub(crate) state: State,
}

/// What may be done with a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Everything is there.
    Ready,
    /// It is being filled.
    Loading,
    /// What is here is old; the store lives elsewhere.
    Moved,
}

const STATES: [(State, &str); 3] =
    [(State::Ready, "ready"), (State::Loading, "loading"), (State::Moved, "moved")];

impl Meta {
    fn render(self) -> Bytes {
        let state = STATES.iter().find(|(state, _)| *state == self.state).map_or("", |(_, s)| s);
        Bytes::from(format!("format {FORMAT}\noffset {}\nstate {state}\n", self.offset))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().map(|line| line.split_once(' '));
        let mut word =
            |key: &str| lines.next().flatten().filter(|(k, _)| *k == key).map(|(_, v)| v);
        let format = word("format")?.parse::<u64>().ok()?;
        let offset = word("offset")?.parse().ok()?;
        let said = word("state")?;
        let (state, _) = *STATES.iter().find(|(_, name)| *name == said)?;
        (format == FORMAT).then_some(Self { offset, state })
    }
}

/// What the parts of one store on etcd share.
#[derive(Debug)]
pub(crate) struct Shared {
    client: Client,
    keys: Keys,
    offset: u64,
    /// etcd's revision of the key that says how to read the store. Every write compares it: once
    /// the store is moved or restored, no server writes to it by the old reading.
    meta_revision: i64,
    tree: Arc<Tree>,
    /// What writers under way know of their values, so that it is not worked out twice.
    heads: Mutex<BTreeMap<Bytes, Vec<(Bytes, Head)>>>,
    /// Asks the watch for a sign of progress.
    nudge: Notify,
    following: AtomicBool,
    full: AtomicBool,
    lost: CancellationToken,
}

impl Shared {
    fn ours(&self, revision: i64) -> u64 {
        u64::try_from(revision).unwrap_or(0) + self.offset
    }

    fn theirs(&self, revision: u64) -> i64 {
        i64::try_from(revision.saturating_sub(self.offset)).unwrap_or(i64::MAX)
    }

    /// etcd's own newest revision, agreed on by its members.
    async fn newest(&self) -> Result<i64, CallError> {
        let request =
            RangeRequest { key: self.keys.meta(), count_only: true, ..RangeRequest::default() };
        let found: RangeResponse = range(&self.client, request).await?;
        header_revision(found.header)
    }

    fn heads(&self) -> std::sync::MutexGuard<'_, BTreeMap<Bytes, Vec<(Bytes, Head)>>> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer's own copy of a value, with what it knows about it.
    fn known(&self, key: &[u8], value: &[u8]) -> Option<(Bytes, Head)> {
        self.heads().get(key)?.iter().find(|(bytes, _)| bytes == value).cloned()
    }

    fn remember(&self, key: &Bytes, value: &Bytes, head: &Head) {
        let entry = (value.clone(), Arc::clone(head));
        self.heads().entry(key.clone()).or_default().push(entry);
    }

    fn forget(&self, key: &Bytes, value: &Bytes) {
        let mut heads = self.heads();
        if let Some(entries) = heads.get_mut(key) {
            if let Some(at) = entries.iter().position(|(bytes, _)| bytes.as_ptr() == value.as_ptr())
            {
                entries.swap_remove(at);
            }
            if entries.is_empty() {
                heads.remove(key);
            }
        }
    }
}

/// Takes what a writer knows back when it no longer waits, whatever the reason.
struct Known<'a> {
    shared: &'a Shared,
    key: Bytes,
    value: Bytes,
}

impl Drop for Known<'_> {
    fn drop(&mut self) {
        self.shared.forget(&self.key, &self.value);
    }
}

async fn range(client: &Client, request: RangeRequest) -> Result<RangeResponse, CallError> {
    client.call("Range", "/etcdserverpb.KV/Range", request, Repeat::Harmless).await
}

fn header_revision(header: Option<ResponseHeader>) -> Result<i64, CallError> {
    let missing = || CallError::local("any", Code::Internal, "an answer has no header");
    header.map(|header| header.revision).ok_or_else(missing)
}

/// Connects to the cluster, fills the tree and follows the watch.
pub(crate) async fn open(options: &EtcdOptions) -> Result<Store, EtcdError> {
    let (client, keys) = (client(options)?, Keys::new(&options.prefix));
    let (meta, meta_revision) = read_or_make_meta(&client, &keys).await?;
    match meta.state {
        State::Ready => {}
        State::Loading => return Err(EtcdError::Unfinished),
        State::Moved => return Err(EtcdError::Moved),
    }
    let newest = RangeRequest { key: keys.meta(), count_only: true, ..RangeRequest::default() };
    let newest = header_revision(range(&client, newest).await?.header)?;
    let start = newest.saturating_sub(REPLAYED_REVISIONS).max(meta_revision);
    let loaded = follow::load(&client, &keys, meta.offset, start).await;
    let (revision, items) = match loaded {
        Err(err) if err.is_compacted() => follow::load(&client, &keys, meta.offset, newest).await?,
        loaded => loaded?,
    };
    let shared = Arc::new(Shared {
        client,
        keys,
        offset: meta.offset,
        meta_revision,
        tree: Arc::new(Tree::since(revision, items)),
        heads: Mutex::default(),
        nudge: Notify::new(),
        following: AtomicBool::new(true),
        full: AtomicBool::new(false),
        lost: CancellationToken::new(),
    });
    let mut tasks = JoinSet::new();
    let (asking, inbox) = mpsc::channel(QUEUE_SYNCS_MAX);
    tasks.spawn(follow::follow(Arc::clone(&shared)));
    tasks.spawn(answer_syncs(Arc::clone(&shared), inbox));
    tasks.spawn(compact(Arc::clone(&shared)));
    let backend = Etcd { shared: Arc::clone(&shared), asking, _tasks: tasks };
    // What was replayed is part of the present: nobody may read before it is there.
    let ready = backend.sync().await;
    ready.map_err(|err| CallError::local("Watch", Code::Unavailable, &err.to_string()))?;
    Ok(Store::on(Arc::clone(&shared.tree), Arc::new(backend)))
}

fn client(options: &EtcdOptions) -> Result<Client, EtcdError> {
    let tls = options.ca_cert.as_ref().map(|ca_cert| tls(options, ca_cert)).transpose()?;
    Ok(Client::new(&options.endpoints, tls.as_ref())?)
}

fn tls(options: &EtcdOptions, ca_cert: &PathBuf) -> Result<Arc<rustls::ClientConfig>, EtcdError> {
    let pem = |path: &PathBuf| {
        let path = path.clone();
        move |source| EtcdError::Pem { path, source }
    };
    let read = |path: &PathBuf| -> Result<Vec<CertificateDer<'static>>, EtcdError> {
        let found = CertificateDer::pem_file_iter(path).map_err(pem(path))?;
        found.collect::<Result<_, _>>().map_err(pem(path))
    };
    let mut roots = rustls::RootCertStore::empty();
    for cert in read(ca_cert)? {
        roots.add(cert).map_err(EtcdError::Tls)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(EtcdError::Tls)?
        .with_root_certificates(roots);
    let mut config = match &options.identity {
        None => config.with_no_client_auth(),
        Some((cert, key)) => {
            let key_der = PrivateKeyDer::from_pem_file(key).map_err(pem(key))?;
            config.with_client_auth_cert(read(cert)?, key_der).map_err(EtcdError::Tls)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// With etcd's revision of its key.
async fn read_meta(client: &Client, keys: &Keys) -> Result<Option<(Meta, i64)>, EtcdError> {
    let request = RangeRequest { key: keys.meta(), ..RangeRequest::default() };
    let found = range(client, request).await?;
    let Some(kv) = found.kvs.first() else { return Ok(None) };
    let text = String::from_utf8_lossy(&kv.value).into_owned();
    let key = String::from_utf8_lossy(&kv.key).into_owned();
    let meta = Meta::parse(&text).ok_or(EtcdError::Meta { key, found: text })?;
    Ok(Some((meta, kv.mod_revision)))
}

/// The first server of a cluster writes it; all others find it.
async fn read_or_make_meta(client: &Client, keys: &Keys) -> Result<(Meta, i64), EtcdError> {
    loop {
        if let Some(meta) = read_meta(client, keys).await? {
            return Ok(meta);
        }
        let fresh = Meta { offset: 0, state: State::Ready };
        let put = Request::Put(PutRequest { key: keys.meta(), value: fresh.render() });
        // If another was quicker, its word counts; the next round reads it.
        transact(client, &keys.meta(), Compared::Create(0), put, Repeat::Harmless).await?;
    }
}

async fn transact(
    client: &Client,
    key: &Bytes,
    with: Compared,
    request: Request,
    repeat: Repeat,
) -> Result<(bool, i64), CallError> {
    transact_if(client, vec![compare(key, with)], request, repeat).await
}

fn compare(key: &Bytes, with: Compared) -> Compare {
    let target = match with {
        Compared::Create(_) => CompareTarget::Create,
        Compared::Mod(_) => CompareTarget::Mod,
    };
    Compare { target: i32::from(target), key: key.clone(), with: Some(with) }
}

/// Whether all comparisons held and the request was carried out, and etcd's revision.
async fn transact_if(
    client: &Client,
    compare: Vec<Compare>,
    request: Request,
    repeat: Repeat,
) -> Result<(bool, i64), CallError> {
    let success = vec![RequestOp { request: Some(request) }];
    let request = TxnRequest { compare, success };
    let done: TxnResponse = client.call("Txn", "/etcdserverpb.KV/Txn", request, repeat).await?;
    Ok((done.succeeded, header_revision(done.header)?))
}

/// Asks for the newest revision once for all who wait: a question that is on its way already
/// does not count for those who come later.
async fn answer_syncs(
    shared: Arc<Shared>,
    mut inbox: mpsc::Receiver<oneshot::Sender<Result<u64, CallError>>>,
) {
    let mut waiting = Vec::new();
    while inbox.recv_many(&mut waiting, QUEUE_SYNCS_MAX).await > 0 {
        let newest = shared.newest().await.map(|revision| shared.ours(revision));
        for reply in waiting.drain(..) {
            // Whoever no longer waits needs no answer.
            let _heard = reply.send(newest.clone()).is_ok();
        }
    }
}

/// Lets etcd forget what is older than one beat. Every server does, and none minds that another
/// was quicker.
async fn compact(shared: Arc<Shared>) {
    let mut beat = interval(COMPACT_EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = 0;
    loop {
        beat.tick().await;
        let now = shared.tree.revision();
        let revision = shared.theirs(before);
        if before > 0 && revision > 0 {
            let outcome = compact_to(&shared.client, revision).await;
            if let Err(err) = outcome
                && !err.is_compacted()
            {
                tracing::warn!(%err, "etcd does not forget the past");
            }
        }
        before = now;
    }
}

async fn compact_to(client: &Client, revision: i64) -> Result<(), CallError> {
    let request = CompactionRequest { revision };
    let path = "/etcdserverpb.KV/Compact";
    let _done: CompactionResponse = client.call("Compact", path, request, Repeat::Harmless).await?;
    Ok(())
}

/// The store on etcd, as [`Store`] sees it.
#[derive(Debug)]
struct Etcd {
    shared: Arc<Shared>,
    asking: mpsc::Sender<oneshot::Sender<Result<u64, CallError>>>,
    /// Ended when the store is dropped.
    _tasks: JoinSet<()>,
}

impl Etcd {
    async fn write(&self, write: Write) -> Result<Written, WriteError> {
        let shared = &*self.shared;
        if shared.lost.is_cancelled() {
            return Err(WriteError::Closed);
        }
        let key = shared.keys.render(&write.shelf, &write.name).ok_or_else(|| {
            WriteError::Storage(Fault::Shelf { shelf: write.shelf.as_ref().to_owned() })
        })?;
        let with = match write.expect {
            Expect::Absent => Compared::Create(0),
            Expect::Revision(revision) => Compared::Mod(shared.theirs(revision)),
        };
        let request = match &write.value {
            Some(value) => Request::Put(PutRequest { key: key.clone(), value: value.clone() }),
            None => Request::DeleteRange(DeleteRangeRequest {
                key: key.clone(),
                ..DeleteRangeRequest::default()
            }),
        };
        let _known = write.value.as_ref().zip(write.head.as_ref()).map(|(value, head)| {
            shared.remember(&key, value, head);
            Known { shared, key: key.clone(), value: value.clone() }
        });
        let before = shared.tree.get(&write.shelf, &write.name);
        let still = compare(&shared.keys.meta(), Compared::Mod(shared.meta_revision));
        let compares = vec![compare(&key, with), still];
        let outcome = transact_if(&shared.client, compares, request, Repeat::Harmful).await;
        let (succeeded, revision) = outcome.map_err(|err| self.failure(err))?;
        shared.full.store(false, Ordering::SeqCst);
        let revision = shared.ours(revision);
        self.wait_until_visible(revision).await;
        let current = shared.tree.get(&write.shelf, &write.name);
        if !succeeded {
            let moved = shared.lost.is_cancelled();
            return Err(if moved { WriteError::Closed } else { WriteError::Conflict { current } });
        }
        let Some(value) = write.value else { return Ok(Written { revision, item: None }) };
        let item = current.filter(|item| item.modified() == revision).unwrap_or_else(|| {
            // Somebody was quick to write again, or the tree is behind.
            let created = match write.expect {
                Expect::Absent => revision,
                Expect::Revision(_) => before.map_or(revision, |before| before.created()),
            };
            Arc::new(Item::new(&write.name, value, created, revision, write.head))
        });
        Ok(Written { revision, item: Some(item) })
    }

    fn failure(&self, err: CallError) -> WriteError {
        if err.is_full() {
            self.shared.full.store(true, Ordering::SeqCst);
            return WriteError::Full(err.into());
        }
        if err.is_too_large() {
            return WriteError::TooLarge(err.into());
        }
        WriteError::Storage(err.into())
    }

    /// What is durable is answered for, even if the watch is too slow to show it.
    async fn wait_until_visible(&self, revision: u64) {
        if timeout(VISIBLE_LIMIT, self.shared.tree.wait_for(revision)).await.is_err() {
            tracing::warn!(revision, "a write is durable but not yet seen by its own server");
        }
    }

    async fn sync(&self) -> Result<(), SyncError> {
        let (reply, answer) = oneshot::channel();
        self.asking.send(reply).await.map_err(|_| SyncError::Closed)?;
        let wanted = answer.await.map_err(|_| SyncError::Closed)?;
        let wanted = wanted.map_err(|err| SyncError::Storage(err.into()))?;
        let tree = &self.shared.tree;
        let reached = async {
            while timeout(PROGRESS_EVERY, tree.wait_for(wanted)).await.is_err() {
                self.shared.nudge.notify_one();
            }
        };
        let reached = timeout(SYNC_LIMIT, reached).await;
        reached.map_err(|_| SyncError::Behind { wanted, at: tree.revision() })
    }
}

impl Backend for Etcd {
    /// etcd groups writes by itself.
    fn write(&self, write: Write, _haste: Haste) -> Answer<'_, Result<Written, WriteError>> {
        Box::pin(self.write(write))
    }

    fn sync(&self) -> Answer<'_, Result<(), SyncError>> {
        Box::pin(self.sync())
    }

    fn trouble(&self) -> Option<Trouble> {
        let shared = &self.shared;
        if shared.lost.is_cancelled() {
            return Some(Trouble::Failed);
        }
        if !shared.following.load(Ordering::SeqCst) {
            return Some(Trouble::Unreachable);
        }
        shared.full.load(Ordering::SeqCst).then_some(Trouble::Full)
    }

    fn failed(&self) -> Answer<'_, ()> {
        Box::pin(self.shared.lost.cancelled())
    }
}

#[cfg(test)]
mod tests;
