//! Tables: the columns kubectl prints.
//!
//! Columns and their words follow upstream's printers, so that people and scripts find what they
//! are used to; the kinds of `muster.dev` have their own.

mod columns;

mod cells;
mod pod;
mod rare;

use jiff::Timestamp;
use objects::Kind;
use serde_json::{Value, json};

use crate::{
    accept::MetaVersion,
    convert::to_stored,
    custom::{render_cells, render_columns},
    json::put,
    list::{ListMeta, partial_object, served},
    request::Request,
};

/// A column: name, type, and whether it is shown only with `-o wide`.
type Column = (&'static str, &'static str, bool);

/// Fills a row.
type Cells = fn(&Value, Timestamp) -> Vec<Value>;

/// Everything but the first column and `Age` of a kind: the columns, and how a row is filled.
struct Layout {
    columns: &'static [Column],
    cells: Cells,
}

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
    let layout = layout(request.kind);
    let custom = request.custom.as_deref();
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            // Cells are cut from the stored form, whichever form the caller holds.
            let stored;
            let shown = if request.is_alias() && custom.is_none() {
                stored = to_stored(request, object.clone());
                &stored
            } else {
                object
            };
            let cells = match custom {
                Some(custom) => render_cells(custom, shown, now),
                None => (layout.cells)(shown, now),
            };
            let mut row = json!({"cells": cells});
            put(
                &mut row,
                "object",
                match request.options.include_object.as_str() {
                    "None" => Value::Null,
                    "Object" => served(request, object),
                    _ => partial_object(object, version),
                },
            );
            row
        })
        .collect();
    let columns: Vec<Value> = if let (true, Some(custom)) = (with_columns, custom) {
        render_columns(custom)
    } else if with_columns {
        layout.columns.iter().map(|column| render_column(*column)).collect()
    } else {
        Vec::new()
    };
    json!({
        "kind": "Table",
        "apiVersion": version.api_version(),
        "metadata": meta.to_value(),
        "columnDefinitions": columns,
        "rows": rows,
    })
}

fn render_column((name, kind, wide): Column) -> Value {
    json!({
        "name": name,
        "type": kind,
        "format": if name == "Name" { "name" } else { "" },
        "description": "",
        "priority": i32::from(wide),
    })
}

/// How long ago a time was, as tables say it.
pub(crate) fn age_since(then: Timestamp, now: Timestamp) -> String {
    cells::human_duration(objects::time::seconds_between(then, now))
}

/// The layout of a kind; name and age for those without one of their own.
fn layout(kind: &Kind) -> Layout {
    if let Some(layout) = rare::layout(kind.kind).filter(|_| kind.group != "muster.dev") {
        return layout;
    }
    let (columns, cells): (&'static [Column], Cells) = match kind.kind {
        "Pod" => (pod::COLUMNS, pod::cells),
        "Node" => (columns::NODE, cells::node),
        "Namespace" => (columns::NAMESPACE, cells::namespace),
        "Service" => (columns::SERVICE, cells::service),
        "Endpoints" => (columns::ENDPOINTS, cells::endpoints),
        "EndpointSlice" => (columns::ENDPOINT_SLICE, cells::endpoint_slice),
        "ConfigMap" => (columns::CONFIG_MAP, cells::config_map),
        "Secret" => (columns::SECRET, cells::secret),
        "ServiceAccount" => (columns::SERVICE_ACCOUNT, cells::service_account),
        "Event" => (columns::EVENT, cells::event),
        "Deployment" => (columns::DEPLOYMENT, cells::deployment),
        "ReplicaSet" | "ReplicationController" => (columns::REPLICA_SET, cells::replica_set),
        "DaemonSet" => (columns::DAEMON_SET, cells::daemon_set),
        "StatefulSet" => (columns::STATEFUL_SET, cells::stateful_set),
        "Lease" => (columns::LEASE, cells::lease),
        "CertificateSigningRequest" => (columns::CSR, cells::csr),
        "PersistentVolume" => (columns::VOLUME, cells::volume),
        "PersistentVolumeClaim" => (columns::CLAIM, cells::claim),
        "Role" | "ClusterRole" => (columns::ROLE, cells::role),
        "RoleBinding" | "ClusterRoleBinding" => (columns::BINDING, cells::binding),
        "Machine" => (columns::MACHINE, cells::machine),
        "Rack" => (columns::RACK, cells::rack),
        "NodeImage" => (columns::NODE_IMAGE, cells::node_image),
        _ => (columns::PLAIN, cells::plain),
    };
    Layout { columns, cells }
}

#[cfg(test)]
mod tests;
