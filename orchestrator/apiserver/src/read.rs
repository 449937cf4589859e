//! GET and LIST: bytes are copied from the store, nothing is parsed unless a table is asked for.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use api::accept::{Form, MetaVersion};
use api::list::{self, ListMeta};
use api::protobuf::{self, EncodeError};
use api::table::render_table;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::ACCEPT;
use objects::Status;
use objects::field::Fields as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::{Item, Page, Query, RangeError};

use crate::convert;
use crate::handle::Call;
use crate::object;
use crate::respond::{self, Answer};
use crate::server::{now, prefix};

/// How long a list may be continued at its first revision: upstream's time between compactions.
const TOKEN_SECONDS: i64 = 300;
/// How long a reader waits for a revision that another server has already seen.
const FRESHNESS_LIMIT: Duration = Duration::from_secs(3);
/// Items taken from the store at a time while selectors throw some away.
const CHUNK_ITEMS: usize = 1000;
/// A list longer than this is sent in pieces of this size, so that its memory is bounded.
const PIECE_BYTES: usize = 128 << 10;

/// Answers GET of one object or of its status or scale.
pub(crate) async fn get(call: &Call<'_>) -> Result<Answer, Status> {
    let request = &call.request;
    let form = form_of(call)?;
    wait_until_fresh(call, &request.options.resource_version).await?;
    let item = call.server.item(request.kind, &request.namespace, &request.name);
    let item = item.ok_or_else(|| Status::not_found(request.kind, &request.name))?;
    let item = convert::item(call.server, request, item).await?;
    Ok(object_answer(call, form, 200, &item))
}

/// The form the client wants its answer in.
pub(crate) fn form_of(call: &Call<'_>) -> Result<Form, Status> {
    api::negotiate_resource(&call.request, call.header(ACCEPT))
}

/// Answers with one stored object in the form the client wants.
pub(crate) fn object_answer(call: &Call<'_>, form: Form, code: u16, item: &Item) -> Answer {
    let request = &call.request;
    let as_stored = matches!(request.subresource.as_str(), "" | "status" | "approval" | "finalize");
    if as_stored && !request.is_alias() && !request.options.pretty {
        match form {
            Form::Json => return respond::json_bytes(code, object::render(item)),
            Form::Protobuf => {
                let json = object::render(item);
                let mut out = Vec::with_capacity(json.len());
                let (version, kind) = (request.api_version(), request.kind.kind);
                match protobuf::encode(&mut out, &version, kind, &json) {
                    Ok(()) => return respond::protobuf_bytes(code, out),
                    Err(err) => unencodable(&err),
                }
            }
            _ => {}
        }
    }
    value_answer(call, form, code, &object::decode(item, item.modified()))
}

/// An object that will not go into protobuf is answered as JSON; clients read both.
fn unencodable(err: &EncodeError) {
    tracing::warn!(err = runtime::report(err), "an object is answered as JSON, not as protobuf");
}

/// Answers with an object that is at hand as a value.
pub(crate) fn value_answer(call: &Call<'_>, form: Form, code: u16, stored: &Value) -> Answer {
    let request = &call.request;
    let shown = api::answer(request, stored);
    let shown = match form {
        Form::Json | Form::Yaml => shown,
        Form::Protobuf => match protobuf::encode_value(&shown) {
            Ok(bytes) => return respond::protobuf_bytes(code, bytes),
            Err(err) => {
                unencodable(&err);
                shown
            }
        },
        Form::PartialProtobuf(version) => {
            let bytes = serde_json::to_vec(&shown).unwrap_or_default();
            let mut out = Vec::new();
            match protobuf::encode_partial(&mut out, version.api_version(), &bytes) {
                Ok(()) => return respond::protobuf_bytes(code, out),
                Err(err) => unencodable(&err),
            }
            list::partial_object(&shown, version)
        }
        Form::Partial(version) => list::partial_object(&shown, version),
        Form::Table(_) if !request.is_main() => shown,
        Form::Table(version) => {
            let meta = ListMeta { revision: revision_of(stored), ..ListMeta::default() };
            render_table(request, [&shown], &meta, version, true, now())
        }
    };
    json(call, code, &shown)
}

fn json(call: &Call<'_>, code: u16, value: &Value) -> Answer {
    let pretty = call.request.options.pretty;
    let bytes = if pretty { serde_json::to_vec_pretty(value) } else { serde_json::to_vec(value) };
    // Writing a value into memory cannot fail.
    respond::json_bytes(code, bytes.unwrap_or_default())
}

fn revision_of(object: &Value) -> u64 {
    let version = object.field("metadata.resourceVersion").and_then(Value::as_str);
    version.and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// Answers LIST.
pub(crate) async fn list(call: &Call<'_>) -> Result<Answer, Status> {
    let form = form_of(call)?;
    let (items, meta) = selection(call).await?;
    let items = convert::items(call.server, &call.request, items).await?;
    Ok(list_answer(call, form, items, &meta))
}

/// The objects a request about a collection selects, with the list's metadata.
pub(crate) async fn selection(call: &Call<'_>) -> Result<(Vec<Arc<Item>>, ListMeta), Status> {
    let start = start_of(call).await?;
    select(call, &start)
}

/// Answers with a list of stored objects in the form the client wants.
pub(crate) fn list_answer(
    call: &Call<'_>,
    form: Form,
    items: Vec<Arc<Item>>,
    meta: &ListMeta,
) -> Answer {
    let request = &call.request;
    let slow = request.is_alias() || request.options.pretty;
    match form {
        Form::Json if !slow => bytes_answer(list::list_head(request, meta), items, append_whole),
        Form::Json | Form::Yaml => json(call, 200, &whole_list(call, &items, meta)),
        Form::Partial(version) => {
            let head = list::partial_list_head(meta, version);
            bytes_answer(head, items, move |out, item| {
                object::append_partial(out, item, item.modified(), version.api_version());
            })
        }
        Form::Table(version) => {
            let objects = decode_all(call, &items);
            json(call, 200, &table(call, &objects, meta, version))
        }
        Form::Protobuf | Form::PartialProtobuf(_) => {
            let (version, kind) = (request.api_version(), request.kind.kind);
            let json = items.iter().map(|item| {
                Cow::Owned(if slow {
                    let shown = list::served(request, &object::decode(item, item.modified()));
                    serde_json::to_vec(&shown).unwrap_or_default()
                } else {
                    object::render(item).to_vec()
                })
            });
            let bytes = match form {
                Form::PartialProtobuf(version) => {
                    protobuf::encode_partial_list(version.api_version(), meta, json)
                }
                _ => protobuf::encode_list(&version, kind, meta, json),
            };
            bytes.map(|bytes| respond::protobuf_bytes(200, bytes)).unwrap_or_else(|err| {
                unencodable(&err);
                json_list(call, &items, meta)
            })
        }
    }
}

fn json_list(call: &Call<'_>, items: &[Arc<Item>], meta: &ListMeta) -> Answer {
    json(call, 200, &whole_list(call, items, meta))
}

fn whole_list(call: &Call<'_>, items: &[Arc<Item>], meta: &ListMeta) -> Value {
    let head = list::list_head(&call.request, meta) + "]}";
    let mut whole: Value = serde_json::from_str(&head).unwrap_or_default();
    if let Some(members) = whole.as_object_mut() {
        members.insert("items".to_owned(), Value::Array(decode_all(call, items)));
    }
    whole
}

fn table(call: &Call<'_>, objects: &[Value], meta: &ListMeta, version: MetaVersion) -> Value {
    render_table(&call.request, objects, meta, version, true, now())
}

fn decode_all(call: &Call<'_>, items: &[Arc<Item>]) -> Vec<Value> {
    let decode =
        |item: &Arc<Item>| list::served(&call.request, &object::decode(item, item.modified()));
    items.iter().map(decode).collect()
}

fn append_whole(out: &mut Vec<u8>, item: &Item) {
    object::append(out, item, item.modified());
}

/// A list in JSON: head, items, end; long ones in pieces.
fn bytes_answer(
    head: String,
    items: Vec<Arc<Item>>,
    append: impl Fn(&mut Vec<u8>, &Item) + Send + 'static,
) -> Answer {
    let mut out = head.into_bytes();
    let size: usize = items.iter().map(|item| item.value().len() + 24).sum();
    let mut rest = items.into_iter();
    if size <= PIECE_BYTES {
        out.reserve(size + 2);
        append_items(&mut out, &mut rest, true, usize::MAX, &append);
        out.extend_from_slice(b"]}");
        return respond::json_bytes(200, out);
    }
    let mut first = true;
    let mut ended = false;
    let pieces = std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let mut piece = std::mem::take(&mut out);
        append_items(&mut piece, &mut rest, first, PIECE_BYTES, &append);
        first = false;
        if rest.len() == 0 {
            ended = true;
            piece.extend_from_slice(b"]}");
        }
        Some(Bytes::from(piece))
    });
    respond::pieces("application/json", futures_util::stream::iter(pieces))
}

fn append_items(
    out: &mut Vec<u8>,
    items: &mut std::vec::IntoIter<Arc<Item>>,
    mut first: bool,
    enough_bytes: usize,
    append: &impl Fn(&mut Vec<u8>, &Item),
) {
    while out.len() < enough_bytes
        && let Some(item) = items.next()
    {
        if !first {
            out.push(b',');
        }
        first = false;
        append(out, &item);
    }
}

/// Where a list begins: at which revision, after which name.
#[derive(Debug, Default)]
struct Start {
    at: Option<u64>,
    since: Option<i64>,
    after: Option<String>,
}

/// What a continue token says. A token without a revision goes on with the present.
#[derive(Serialize, Deserialize)]
struct Token {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rv: Option<u64>,
    /// When the list began, in seconds of the epoch; its revision is not kept for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<i64>,
    after: String,
}

impl Token {
    fn render(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn parse(text: &str) -> Result<Self, Status> {
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('='));
        let token = bytes.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        token.ok_or_else(|| Status::bad_request("continue key is not valid"))
    }
}

async fn start_of(call: &Call<'_>) -> Result<Start, Status> {
    let options = &call.request.options;
    list::check_list(options)?;
    let (version, matching) = (&*options.resource_version, &*options.resource_version_match);
    if !options.continue_token.is_empty() {
        if !version.is_empty() && version != "0" {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let Token { rv, since, after } = Token::parse(&options.continue_token)?;
        let age = since.map_or(0, |since| now().as_second().saturating_sub(since));
        if rv.is_some() && age > TOKEN_SECONDS {
            return Err(too_old_token(&after));
        }
        return Ok(Start { at: rv, since, after: Some(after) });
    }
    match version {
        "" | "0" => Ok(Start::default()),
        version => {
            let at = parse_version(version)?;
            wait_until_fresh(call, version).await?;
            let exact = matching == "Exact" || (matching.is_empty() && options.limit.is_some());
            Ok(Start { at: exact.then_some(at), ..Start::default() })
        }
    }
}

/// Reads a resourceVersion.
pub(crate) fn parse_version(version: &str) -> Result<u64, Status> {
    version.parse().map_err(|_| {
        Status::bad_request(format!(
            "resourceVersion: Invalid value: {version:?}: strconv.ParseUint: parsing {version:?}: \
             invalid syntax"
        ))
    })
}

/// Waits until the store has reached the version the client has already seen.
pub(crate) async fn wait_until_fresh(call: &Call<'_>, version: &str) -> Result<(), Status> {
    if version.is_empty() {
        return Ok(());
    }
    let wanted = parse_version(version)?;
    let store = &call.server.store;
    if wanted <= store.revision() {
        return Ok(());
    }
    tokio::time::timeout(FRESHNESS_LIMIT, store.wait_for(wanted))
        .await
        .map_err(|_| list::too_new(wanted, store.revision()))
}

/// The items the request selects, up to its limit.
fn select(call: &Call<'_>, start: &Start) -> Result<(Vec<Arc<Item>>, ListMeta), Status> {
    let request = &call.request;
    let options = &request.options;
    let shelf = call.server.shelf(request.kind);
    let prefix = selected_prefix(request);
    let limit = options.limit.filter(|limit| *limit > 0);
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let everything = options.label_selector.is_empty() && options.field_selector.is_empty();
    let chunk = match (limit, everything) {
        (usize::MAX, _) => usize::MAX,
        (limit, true) => limit,
        (limit, false) => limit.max(CHUNK_ITEMS),
    };
    let mut found: Vec<Arc<Item>> = Vec::new();
    let mut at = start.at;
    let mut after = start.after.clone();
    let since = Some(start.since.unwrap_or_else(|| now().as_second()));
    loop {
        let query =
            Query { shelf: &shelf, prefix: &prefix, after: after.as_deref(), at, limit: chunk };
        let Page { items, revision, more } =
            call.server.store.range(&query).map_err(|err| gone(err, start))?;
        at = Some(revision);
        let last = items.last().map(|item| item.name().to_owned());
        let matches = |item: &Arc<Item>| {
            object::known(request.kind, item)
                .matches(&options.label_selector, &options.field_selector)
        };
        found.extend(items.into_iter().filter(|item| everything || matches(item)));
        let cut = found.len() > limit || (found.len() == limit && more);
        if cut || !more {
            found.truncate(limit);
            let token = found.last().filter(|_| cut).map(|item| Token {
                rv: Some(revision),
                since,
                after: item.name().to_owned(),
            });
            let remaining = token.as_ref().filter(|_| everything).map(|token| {
                let rest = Query { after: Some(&token.after), limit: usize::MAX, ..query };
                let rest = call.server.store.range(&rest).map_or(0, |page| page.items.len());
                u64::try_from(rest).unwrap_or(u64::MAX)
            });
            let continue_token = token.map(|token| token.render()).unwrap_or_default();
            return Ok((found, ListMeta { revision, continue_token, remaining }));
        }
        after = last;
    }
}

/// What the names of all selected items begin with; as narrow as the selectors allow.
pub(crate) fn selected_prefix(request: &api::Request) -> String {
    let placed = request.kind.namespaced != request.namespace.is_empty();
    let single = request.options.field_selector.required("metadata.name").filter(|_| placed);
    prefix(&request.namespace, single.unwrap_or(""))
}

/// 410 for a list that asks for a past nobody remembers; a continued one may go on in the present.
fn gone(err: RangeError, start: &Start) -> Status {
    match err {
        RangeError::Future { at, newest } => list::too_new(at, newest),
        RangeError::Compacted { .. } => match &start.after {
            None => Status::expired("The resourceVersion for the provided list is too old."),
            Some(after) => too_old_token(after),
        },
    }
}

/// 410 with a token that goes on in the present.
fn too_old_token(after: &str) -> Status {
    let mut status = Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can \
         start a new list without the continue parameter, or use the continue token in this \
         response to retrieve the remainder of the results. Continuing with the provided token \
         results in an inconsistent list - objects that were created, modified, or deleted \
         between the time the first chunk was returned and now may show up in the list.",
    );
    let token = Token { rv: None, since: None, after: after.to_owned() };
    status.metadata.continue_token = token.render();
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_on_where_it_says() {
        for token in [
            Token { rv: Some(7), since: Some(8), after: "default/a".to_owned() },
            Token { rv: None, since: None, after: String::new() },
        ] {
            let again = Token::parse(&token.render()).unwrap();
            assert_eq!((again.rv, again.after), (token.rv, token.after));
        }
    }

    #[test]
    fn made_up_tokens_are_refused() {
        bolero::check!().with_iterations(10_000).for_each(|bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            let _outcome = (Token::parse(&text), Token::parse(&URL_SAFE_NO_PAD.encode(bytes)));
        });
    }
}
