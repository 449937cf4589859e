//! Writes: read, prepare, compare-and-set, and again when someone was quicker.

use std::sync::Arc;

use api::prepare::Body;
use api::said::Said;
use api::{Change, Context, Prepared, Request};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::header::CONTENT_TYPE;
use objects::field::Fields as _;
use objects::{Kind, Status, kind};
use serde_json::Value;
use store::{Expect, Head, Item, Write, WriteError, Written};

use crate::admit;
use crate::audit;
use crate::claim::Claims;
use crate::convert;
use crate::handle::{Call, user_agent};
use crate::object;
use crate::read::{form_of, list_answer, object_answer, selection, value_answer};
use crate::respond::{self, Answer};
use crate::server::{Server, name_suffix, now, own_user};
use crate::storage;
use crate::token;
use crate::webhook;

/// How often a write without a version of its own is tried again; each round someone else won.
const ROUNDS_MAX: usize = 32;
/// Removals of a collection on their way to the disk together.
const REMOVALS_AT_A_TIME: usize = 64;
/// How often a generated name may be taken already.
const NAME_ROUNDS_MAX: usize = 8;
/// Where nodes keep their leases, by one renewal each every ten seconds.
const LEASES_OF_NODES: &str = "kube-node-lease";

/// Answers POST to a collection, and to the binding of a pod.
pub(crate) async fn create(call: &Call<'_>, bytes: &Bytes) -> Result<Answer, Status> {
    if call.request.subresource == "binding" {
        return bind(call, bytes).await;
    }
    if !call.request.is_main() {
        return Err(Status::method_not_allowed(
            "the server does not allow this method on the requested resource",
        ));
    }
    let form = form_of(call)?;
    for round in 1..=NAME_ROUNDS_MAX {
        let prepared = api::prepare_create(&call.request, &body(call, bytes), &context(call))?;
        let generated = call.request.name.is_empty() && is_generated(&prepared.object);
        match commit(call, prepared, None).await? {
            Outcome::Lost(_) if generated && round < NAME_ROUNDS_MAX => {}
            Outcome::Lost(object) => {
                return Err(taken(call, name_of(&object), generated));
            }
            Outcome::Done(done) => return Ok(done.answer(call, form, 201)),
        }
    }
    Err(Status::timeout("no free name was found for metadata.generateName", 1))
}

/// 409: the name is taken, perhaps by an object that is going.
fn taken(call: &Call<'_>, name: &str, generated: bool) -> Status {
    let request = &call.request;
    let mut status = Status::already_exists(request.kind, name);
    if generated {
        status.message += ", the server was not able to generate a unique name for the object";
    }
    let there = call.server.item(request.kind, &request.namespace, name);
    let going = there
        .is_some_and(|item| object::decode(&item, 0).field("metadata.deletionTimestamp").is_some());
    if going {
        status.message = format!("object is being deleted: {}", status.message);
    }
    status
}

/// Answers PUT.
pub(crate) async fn update(call: &Call<'_>, bytes: &Bytes) -> Result<Answer, Status> {
    let request = &call.request;
    let creates = request.kind.put_creates && request.is_main();
    change(call, creates, |old| match old {
        Some(old) => api::prepare_update(request, &body(call, bytes), old, &context(call)),
        None => api::prepare_create(request, &body(call, bytes), &context(call)),
    })
    .await
}

/// Answers PATCH of every kind, server-side apply included.
///
/// A patch that lost a race is made again on the newer object; one that names a version then
/// finds out by itself that it is stale.
pub(crate) async fn patch(call: &Call<'_>, bytes: &Bytes) -> Result<Answer, Status> {
    let request = &call.request;
    change(call, true, |old| {
        let prepared = api::prepare_patch(request, &body(call, bytes), old, &context(call))?;
        Ok(Prepared { conditional: false, ..prepared })
    })
    .await
}

async fn bind(call: &Call<'_>, bytes: &Bytes) -> Result<Answer, Status> {
    let request = &call.request;
    change(call, false, |old| match old {
        Some(old) => api::prepare_binding(request, &body(call, bytes), old, &context(call)),
        None => Err(Status::not_found(request.kind, &request.name)),
    })
    .await
}

/// Prepares and commits until it is done, or the client's own version is out of date.
async fn change(
    call: &Call<'_>,
    creates: bool,
    prepare: impl Fn(Option<&Value>) -> Result<Prepared, Status>,
) -> Result<Answer, Status> {
    let request = &call.request;
    let form = form_of(call)?;
    for _ in 0..ROUNDS_MAX {
        let item = call.server.item(request.kind, &request.namespace, &request.name);
        if item.is_none() && !creates {
            return Err(Status::not_found(request.kind, &request.name));
        }
        let old = match &item {
            Some(item) => {
                let old = object::decode(item, item.modified());
                Some(convert::to_served(call.server, request, old).await?)
            }
            None => None,
        };
        let prepared = prepare(old.as_ref())?;
        let conditional = prepared.conditional;
        let created = prepared.change == Change::Create;
        match commit(call, prepared, item.as_ref()).await? {
            Outcome::Done(done) => {
                let code = if created { 201 } else { success_code(request) };
                return Ok(done.answer(call, form, code));
            }
            Outcome::Lost(_) if conditional => {
                return Err(Status::stale(request.kind, &request.name));
            }
            Outcome::Lost(_) => {}
        }
    }
    Err(Status::stale(request.kind, &request.name))
}

fn success_code(request: &Request) -> u16 {
    if request.subresource == "binding" { 201 } else { 200 }
}

/// Answers DELETE.
pub(crate) async fn delete(call: &Call<'_>, bytes: &Bytes) -> Result<Answer, Status> {
    let body = body(call, bytes);
    let mut request = call.request.clone();
    request.options.dry_run |= api::prepare::is_dry_run(&body)?;
    let (change, object) = delete_one(call, &request, &body).await?;
    // 200 even when finalizers or a grace period keep the object for a while, as upstream says.
    Ok(respond::json(200, &api::answer_deletion(&call.request, change, &object)))
}

async fn delete_one(
    call: &Call<'_>,
    request: &Request,
    body: &Body<'_>,
) -> Result<(Change, Value), Status> {
    for _ in 0..ROUNDS_MAX {
        let item = call.server.item(request.kind, &request.namespace, &request.name);
        let item = item.ok_or_else(|| Status::not_found(request.kind, &request.name))?;
        let old = object::decode(&item, item.modified());
        let mut prepared = api::prepare_delete(request, body, &old, &context(call))?;
        let warnings = webhook::admit_deletion(call, request, &old).await?;
        prepared.warnings.extend(warnings);
        let (change, conditional) = (prepared.change, prepared.conditional);
        let outcome = commit_as(call.server, request, prepared, Some(&item)).await?;
        settle(call, &outcome).await;
        match outcome {
            Outcome::Done(done) => {
                let object = convert::to_served(call.server, request, done.into_value()).await?;
                return Ok((change, object));
            }
            Outcome::Lost(_) if conditional => {
                return Err(Status::stale(request.kind, &request.name));
            }
            Outcome::Lost(_) => {}
        }
    }
    Err(Status::stale(request.kind, &request.name))
}

/// Answers DELETE of a collection: each selected object by itself, several at a time; what was
/// selected is answered as a list.
pub(crate) async fn delete_collection(call: &Call<'_>, bytes: &Bytes) -> Result<Answer, Status> {
    if *call.request.kind == kind::NAMESPACE {
        return Err(api::not_allowed());
    }
    let form = form_of(call)?;
    let body = body(call, bytes);
    let mut each = call.request.clone();
    each.options.dry_run |= api::prepare::is_dry_run(&body)?;
    let (selected, meta) = selection(call).await?;
    let mut removals = FuturesUnordered::new();
    for item in &selected {
        if removals.len() >= REMOVALS_AT_A_TIME {
            removals.next().await.transpose()?;
        }
        let known = object::known(call.request.kind, item);
        let mut one = each.clone();
        known.field("metadata.namespace").unwrap_or_default().clone_into(&mut one.namespace);
        known.field("metadata.name").unwrap_or_default().clone_into(&mut one.name);
        removals.push(remove(call, one, body));
    }
    while let Some(removed) = removals.next().await {
        removed?;
    }
    drop(removals);
    let selected = convert::items(call.server, &call.request, selected).await?;
    Ok(list_answer(call, form, selected, &meta))
}

/// Deletes one of many; one that is gone by then is no failure.
async fn remove(call: &Call<'_>, one: Request, body: Body<'_>) -> Result<(), Status> {
    match delete_one(call, &one, &body).await {
        Err(status) if !status.is("NotFound") => Err(status),
        _ => Ok(()),
    }
}

/// Answers POST to the eviction of a pod.
///
/// A disruption budget may refuse it for now.
pub(crate) async fn evict(call: &Call<'_>, bytes: &Bytes) -> Result<Answer, Status> {
    let eviction = match body(call, bytes).media_type() {
        api::protobuf::MEDIA_TYPE => api::protobuf::decode(bytes)?,
        _ => serde_json::from_slice(bytes)
            .map_err(|err| Status::bad_request(format!("the eviction cannot be read: {err}")))?,
    };
    let options = eviction.get("deleteOptions").cloned().unwrap_or_else(|| serde_json::json!({}));
    let options = serde_json::to_vec(&options).unwrap_or_default();
    let mut request = call.request.clone();
    request.subresource.clear();
    let named = eviction.field("metadata.name").and_then(Value::as_str).unwrap_or("");
    if !named.is_empty() && named != request.name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let item = call.server.item(request.kind, &request.namespace, &request.name);
    let item = item.ok_or_else(|| Status::not_found(request.kind, &request.name))?;
    admit::charge_budget(call.server, &request, &object::decode(&item, item.modified())).await?;
    delete_one(call, &request, &Body { bytes: &options, content_type: "application/json" }).await?;
    let done = Status { status: "Success".to_owned(), ..Status::failure(201, "", "") };
    Ok(respond::json(201, &done))
}

/// What became of a prepared write.
enum Outcome {
    Done(Done),
    /// Someone else was quicker; the object that was not written.
    Lost(Value),
}

/// A write that happened, or that there was no need for.
struct Done {
    /// What the store holds now; `None` after a removal or a dry run.
    item: Option<Arc<Item>>,
    /// The object as prepared, with its revision when it was removed.
    object: Value,
    warnings: Vec<String>,
}

impl Done {
    /// As the client's version has it.
    async fn served(self, call: &Call<'_>) -> Result<Self, Status> {
        let (server, request) = (call.server, &call.request);
        let item = match self.item {
            Some(item) => Some(convert::item(server, request, item).await?),
            None => None,
        };
        let object = match item {
            None => convert::to_served(server, request, self.object).await?,
            // What the store holds is answered.
            Some(_) => self.object,
        };
        Ok(Self { item, object, warnings: self.warnings })
    }

    fn answer(self, call: &Call<'_>, form: api::Form, code: u16) -> Answer {
        let mut answer = match &self.item {
            Some(item) => object_answer(call, form, code, item),
            None => value_answer(call, form, code, &self.object),
        };
        respond::warn(&mut answer, &self.warnings);
        answer
    }

    fn into_value(self) -> Value {
        match &self.item {
            Some(item) => object::decode(item, item.modified()),
            None => self.object,
        }
    }
}

async fn commit(
    call: &Call<'_>,
    prepared: Prepared,
    old: Option<&Arc<Item>>,
) -> Result<Outcome, Status> {
    let concerned = webhook::concerned(call.server, call.request.kind);
    let before = old.filter(|_| concerned).map(|item| object::decode(item, item.modified()));
    let mut prepared = webhook::admit(call, prepared, before.as_ref(), &context(call)).await?;
    if call.caught.is_some() && call.request.custom.is_none() {
        let before = old.map(|item| object::decode(item, item.modified()));
        let (view, mut said) = (call.server.as_ref(), Said::default());
        let (old, object) = (before.as_ref(), &prepared.object);
        api::admission::annotate(view, &call.request, old, object, &mut said);
        audit::catch_annotations(call.caught, &said);
    }
    check_grant(call, &prepared, old)?;
    if prepared.change == Change::Create && *call.request.kind == kind::SECRET {
        token::fill_secret(call.server, &mut prepared.object)?;
    }
    if !call.request.options.dry_run {
        let stored = convert::to_stored(call.server, &call.request, prepared.object);
        prepared.object = stored.await?;
    }
    let outcome = commit_as(call.server, &call.request, prepared, old).await?;
    settle(call, &outcome).await;
    match outcome {
        Outcome::Done(done) => Ok(Outcome::Done(done.served(call).await?)),
        lost @ Outcome::Lost(_) => Ok(lost),
    }
}

/// What a definition adds is there before its writer is answered.
async fn settle(call: &Call<'_>, outcome: &Outcome) {
    let defines = *call.request.kind == kind::CUSTOM_RESOURCE_DEFINITION;
    if defines && !call.request.options.dry_run && matches!(outcome, Outcome::Done(_)) {
        crate::custom::settle(call.server).await;
    }
}

/// Nobody may write a role, binding or approval that gives away what it does not hold.
fn check_grant(
    call: &Call<'_>,
    prepared: &Prepared,
    old: Option<&Arc<Item>>,
) -> Result<(), Status> {
    if !api::authority::grant::concerns(&call.request) {
        return Ok(());
    }
    let old = old.map(|item| object::decode(item, item.modified()));
    let roles = call.server.roles.now(call.server);
    let (request, server) = (&call.request, call.server.as_ref());
    api::authority::grant::check(call.user, request, old.as_ref(), &prepared.object, &roles, server)
}

/// Stores what was prepared, if nobody was quicker.
async fn commit_as(
    server: &Server,
    request: &Request,
    mut prepared: Prepared,
    old: Option<&Arc<Item>>,
) -> Result<Outcome, Status> {
    if prepared.change == Change::Create && request.kind.namespaced {
        let namespace = server.item(&kind::NAMESPACE, "", &request.namespace);
        let namespace = namespace.map(|item| object::decode(&item, item.modified()));
        api::check_namespace(request, name_of(&prepared.object), namespace.as_ref())?;
    }
    let change = prepared.change;
    let claims = Claims::take(server, request, change, old, &mut prepared.object).await?;
    let outcome = store(server, request, prepared, old).await;
    claims.conclude(server, matches!(outcome, Ok(Outcome::Done(_)))).await;
    outcome
}

/// Stores what was prepared and claimed, charged to its quotas.
async fn store(
    server: &Server,
    request: &Request,
    prepared: Prepared,
    old: Option<&Arc<Item>>,
) -> Result<Outcome, Status> {
    let Prepared { change, mut object, warnings, .. } = prepared;
    let stores = matches!(change, Change::Create | Change::Update);
    let charge = if stores { admit::charge(server, request, old, &object).await? } else { None };
    if request.options.dry_run && change == Change::Create {
        // A try fails where the write would.
        let there = server.item(request.kind, &request.namespace, name_of(&object)).is_some();
        if there {
            return Ok(Outcome::Lost(object));
        }
    }
    if change == Change::Nothing || request.options.dry_run {
        let item = old.filter(|_| change == Change::Nothing).map(Arc::clone);
        if let (Some(old), None) = (old, &item) {
            set_revision(&mut object, old.modified());
        }
        return Ok(Outcome::Done(Done { item, object, warnings }));
    }
    let (value, head) = object::render_stored(request.kind, &object);
    let removes = change == Change::Remove;
    let place = object::place(&request.namespace, name_of(&object));
    let value = if removes { value } else { server.seals.seal(request.kind, &place, value)? };
    let write = Write {
        shelf: server.shelf(request.kind),
        name: place.into(),
        expect: old.map_or(Expect::Absent, |item| Expect::Revision(item.modified())),
        value: (!removes).then_some(value),
        head: Some(head),
    };
    let written = if change == Change::Update && is_heartbeat(request) {
        server.store.write_soon(write).await
    } else {
        server.store.write(write).await
    };
    match written {
        Ok(Written { revision, item }) => {
            server.written(request.kind);
            set_revision(&mut object, revision);
            Ok(Outcome::Done(Done { item, object, warnings }))
        }
        Err(err) => {
            if let Some(charge) = charge {
                charge.refund(server).await;
            }
            match err {
                WriteError::Conflict { .. } => Ok(Outcome::Lost(object)),
                err => Err(storage::refusal(&err)),
            }
        }
    }
}

/// Is it a sign of life, of which a large cluster sends hundreds each second?
fn is_heartbeat(request: &Request) -> bool {
    *request.kind == kind::LEASE && request.namespace == LEASES_OF_NODES
}

fn set_revision(object: &mut Value, revision: u64) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".to_owned(), Value::from(revision.to_string()));
    }
}

fn name_of(object: &Value) -> &str {
    object.field("metadata.name").and_then(Value::as_str).unwrap_or_default()
}

fn is_generated(object: &Value) -> bool {
    let prefix = object.field("metadata.generateName").and_then(Value::as_str);
    prefix.is_some_and(|prefix| !prefix.is_empty())
}

fn body<'a>(call: &'a Call<'_>, bytes: &'a Bytes) -> Body<'a> {
    Body { bytes, content_type: call.header(CONTENT_TYPE) }
}

fn context<'a>(call: &'a Call<'_>) -> Context<'a> {
    Context {
        now: now(),
        uid: uuid::Uuid::new_v4().to_string(),
        name_suffix: name_suffix(),
        user: call.user,
        user_agent: user_agent(call),
        view: call.server.as_ref(),
    }
}

/// Creates an object of the server's own, as `user`; whether it was not there before.
///
/// # Errors
///
/// As for a client's request.
pub(crate) async fn create_own(
    server: &Server,
    user: &str,
    path: &str,
    object: &Value,
) -> Result<bool, Status> {
    let request = own_request(server, "POST", path)?;
    let user = own_user(user);
    let bytes = serde_json::to_vec(object).unwrap_or_default();
    let prepared = api::prepare_create(&request, &own_body(&bytes), &own_context(server, &user))?;
    match commit_as(server, &request, prepared, None).await? {
        Outcome::Done(_) => Ok(true),
        Outcome::Lost(_) => Ok(false),
    }
}

/// An object of the server's own without namespace, as `user`, as the store is to have it.
///
/// # Errors
///
/// As for a client's request.
pub(crate) fn own_creation(
    server: &Server,
    user: &str,
    kind: &Kind,
    object: &Value,
) -> Result<(Bytes, Head), Status> {
    let request = own_request(server, "POST", &kind.path(None, None))?;
    let user = own_user(user);
    let bytes = serde_json::to_vec(object).unwrap_or_default();
    let prepared = api::prepare_create(&request, &own_body(&bytes), &own_context(server, &user))?;
    let (value, head) = object::render_stored(kind, &prepared.object);
    Ok((server.seals.seal(kind, name_of(&prepared.object), value)?, head))
}

/// Replaces an object of the server's own, as `user`; whether nobody was quicker.
///
/// # Errors
///
/// As for a client's request.
pub(crate) async fn replace_own(
    server: &Server,
    user: &str,
    path: &str,
    object: &Value,
) -> Result<bool, Status> {
    let request = own_request(server, "PUT", path)?;
    let user = own_user(user);
    let item = server.item(request.kind, &request.namespace, &request.name);
    let item = item.ok_or_else(|| Status::not_found(request.kind, &request.name))?;
    let old = object::decode(&item, item.modified());
    let bytes = serde_json::to_vec(object).unwrap_or_default();
    let prepared =
        api::prepare_update(&request, &own_body(&bytes), &old, &own_context(server, &user))?;
    match commit_as(server, &request, prepared, Some(&item)).await? {
        Outcome::Done(_) => Ok(true),
        Outcome::Lost(_) => Ok(false),
    }
}

/// Deletes an object of the server's own, or of others that must go with it, as `user`.
///
/// # Errors
///
/// As for a client's request.
pub(crate) async fn delete_own(
    server: &Server,
    user: &str,
    path: &str,
    options: &Value,
) -> Result<(), Status> {
    let request = own_request(server, "DELETE", path)?;
    let user = own_user(user);
    let item = server.item(request.kind, &request.namespace, &request.name);
    let item = item.ok_or_else(|| Status::not_found(request.kind, &request.name))?;
    let old = object::decode(&item, item.modified());
    let bytes = options.to_string();
    let body = own_body(bytes.as_bytes());
    let prepared = api::prepare_delete(&request, &body, &old, &own_context(server, &user))?;
    commit_as(server, &request, prepared, Some(&item)).await.map(|_| ())
}

fn own_request(server: &Server, method: &str, path: &str) -> Result<Box<Request>, Status> {
    match api::parse_request_in(&server.customs.registry(), method, path, "")? {
        api::Route::Resource(request) => Ok(request),
        _ => Err(Status::internal(format!("{path} is no resource"))),
    }
}

fn own_body(bytes: &[u8]) -> Body<'_> {
    Body { bytes, content_type: "application/json" }
}

fn own_context<'a>(server: &'a Server, user: &'a api::User) -> Context<'a> {
    Context {
        now: now(),
        uid: uuid::Uuid::new_v4().to_string(),
        name_suffix: name_suffix(),
        user,
        user_agent: "muster",
        view: server,
    }
}
