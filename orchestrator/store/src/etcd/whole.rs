//! The store in etcd as a whole: read, filled, retired.

use tokio::task::JoinSet;

use crate::contents::Contents;
use crate::etcd::client::{CallError, Client, Repeat};
use crate::etcd::key::Keys;
use crate::etcd::message::{
    Compared, DeleteRangeRequest, PutRequest, RangeRequest, Request, RequestOp, TxnRequest,
    TxnResponse,
};
use crate::etcd::{
    EtcdError, EtcdOptions, Meta, State, client, follow, header_revision, range, read_meta,
    transact,
};
use crate::transfer::Over;

/// Writes under way at a time while a store is filled.
const FILL_WRITES: usize = 128;

pub(crate) async fn contents(options: &EtcdOptions) -> Result<Contents, EtcdError> {
    let (client, keys) = (client(options)?, Keys::new(&options.prefix));
    let (meta, _) = read_meta(&client, &keys).await?.ok_or(EtcdError::Missing)?;
    if meta.state == State::Loading {
        return Err(EtcdError::Unfinished);
    }
    let newest = newest(&client, &keys).await?;
    let (revision, items) = follow::load(&client, &keys, meta.offset, newest).await?;
    Ok(Contents { revision, items })
}

async fn newest(client: &Client, keys: &Keys) -> Result<i64, CallError> {
    let request = RangeRequest { key: keys.meta(), count_only: true, ..RangeRequest::default() };
    header_revision(range(client, request).await?.header)
}

async fn set_meta(client: &Client, keys: &Keys, at: i64, meta: Meta) -> Result<i64, EtcdError> {
    let put = Request::Put(PutRequest { key: keys.meta(), value: meta.render() });
    let with = if at == 0 { Compared::Create(0) } else { Compared::Mod(at) };
    let (done, revision) = transact(client, &keys.meta(), with, put, Repeat::Harmful).await?;
    if done { Ok(revision) } else { Err(EtcdError::Busy) }
}

/// Servers that use the store notice, and no write of theirs comes through afterwards.
pub(crate) async fn retire(options: &EtcdOptions, retired: bool) -> Result<(), EtcdError> {
    let (client, keys) = (client(options)?, Keys::new(&options.prefix));
    let (meta, at) = read_meta(&client, &keys).await?.ok_or(EtcdError::Missing)?;
    let state = if retired { State::Moved } else { State::Ready };
    if meta.state == State::Loading {
        return Err(EtcdError::Unfinished);
    }
    set_meta(&client, &keys, at, Meta { state, ..meta }).await?;
    Ok(())
}

pub(crate) async fn fill(
    options: &EtcdOptions,
    contents: &Contents,
    revision: u64,
    over: Over,
) -> Result<u64, EtcdError> {
    let (client, keys) = (client(options)?, Keys::new(&options.prefix));
    let found = read_meta(&client, &keys).await?;
    let everything = |count_only| RangeRequest {
        key: keys.start(),
        range_end: keys.end(),
        count_only,
        ..RangeRequest::default()
    };
    let own = i64::from(found.is_some());
    let items = range(&client, everything(true)).await?.count - own;
    let free = found.is_none_or(|(meta, _)| meta.state != State::Ready);
    if over == Over::Nothing && items > 0 && !(free && found.is_some()) {
        return Err(EtcdError::NotEmpty);
    }
    // All revisions of etcd are at least 1, so what is written from here on is newer.
    let before = found.map_or(0, |(meta, _)| meta.offset);
    let offset = before.max(revision).max(contents.revision);
    let loading = Meta { offset, state: State::Loading };
    let at = set_meta(&client, &keys, found.map_or(0, |(_, at)| at), loading).await?;
    clear(&client, &keys).await?;
    put_all(&client, &keys, contents).await?;
    let at = set_meta(&client, &keys, at, Meta { state: State::Ready, ..loading }).await?;
    Ok(u64::try_from(at).unwrap_or(0) + offset)
}

/// Deletes all items: what lies before and behind the key that says how to read the store.
async fn clear(client: &Client, keys: &Keys) -> Result<(), CallError> {
    let mut behind = keys.meta().to_vec();
    behind.push(0);
    for (key, range_end) in [(keys.start(), keys.meta()), (behind.into(), keys.end())] {
        let request = Request::DeleteRange(DeleteRangeRequest { key, range_end });
        let success = vec![RequestOp { request: Some(request) }];
        let request = TxnRequest { compare: Vec::new(), success };
        let path = "/etcdserverpb.KV/Txn";
        let _done: TxnResponse = client.call("Txn", path, request, Repeat::Harmless).await?;
    }
    Ok(())
}

/// One transaction for each, so that each has its own revision.
async fn put_all(client: &Client, keys: &Keys, contents: &Contents) -> Result<(), EtcdError> {
    let mut writes = JoinSet::new();
    for (shelf, item) in &contents.items {
        if writes.len() >= FILL_WRITES
            && let Some(done) = writes.join_next().await
        {
            written(done)?;
        }
        let name = item.name();
        let key = keys
            .render(shelf, name)
            .ok_or_else(|| EtcdError::Name { shelf: shelf.to_string(), name: name.to_owned() })?;
        let (client, value) = (client.clone(), item.value().clone());
        writes.spawn(async move {
            let put = Request::Put(PutRequest { key: key.clone(), value });
            // Nobody else writes here, so a second time does no harm.
            transact(&client, &key, Compared::Create(0), put, Repeat::Harmless).await
        });
    }
    while let Some(done) = writes.join_next().await {
        written(done)?;
    }
    Ok(())
}

fn written(
    done: Result<Result<(bool, i64), CallError>, tokio::task::JoinError>,
) -> Result<(), EtcdError> {
    match done {
        Ok(outcome) => outcome.map(drop).map_err(EtcdError::Call),
        Err(_) => Err(EtcdError::Busy),
    }
}
