//! Tables: the columns kubectl prints.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{accept::MetaVersion, list::ListMeta, request::Request};

/// Renders objects as a `Table`.
///
/// `with_columns` is false for all but the first event of a watch.
#[must_use]
pub fn render_table<'a>(
    request: &Request,
    objects: impl IntoIterator<Item = &'a Value>,
    meta: &ListMeta,
    version: MetaVersion,
    with_columns: bool,
    now: Timestamp,
) -> Value {
    let _ = (request, now, with_columns, objects.into_iter().count());
    json!({"kind": "Table", "apiVersion": version.api_version(), "metadata": meta.to_value(), "columnDefinitions": [], "rows": []})
}
