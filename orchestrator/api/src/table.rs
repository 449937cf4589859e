//! Tables: the columns kubectl prints.
//!
//! Columns and their words follow upstream's printers, so that people and scripts find what they
//! are used to; the kinds of `muster.dev` have their own.

mod cells;
mod pod;

use jiff::Timestamp;
use objects::Kind;
use serde_json::{Value, json};

use crate::{
    accept::MetaVersion,
    list::{ListMeta, partial_object, served},
    request::Request,
};

/// A column: name, type, and whether it is shown only with `-o wide`.
type Column = (&'static str, &'static str, bool);

/// Everything but the first column and `Age` of a kind: the columns, and how a row is filled.
struct Layout {
    columns: &'static [Column],
    cells: fn(&Value, Timestamp) -> Vec<Value>,
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
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            let mut row = json!({"cells": (layout.cells)(object, now)});
            row["object"] = match request.options.include_object.as_str() {
                "None" => Value::Null,
                "Object" => served(request, object),
                _ => partial_object(object, version),
            };
            row
        })
        .collect();
    let columns: Vec<Value> = if with_columns {
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

/// The layout of a kind; name and age for those without one of their own.
fn layout(kind: &Kind) -> Layout {
    let (columns, cells): (&'static [Column], fn(&Value, Timestamp) -> Vec<Value>) = match kind.kind
    {
        "Pod" => (pod::COLUMNS, pod::cells),
        "Node" => (cells::NODE, cells::node),
        "Namespace" => (cells::NAMESPACE, cells::namespace),
        "Service" => (cells::SERVICE, cells::service),
        "Endpoints" => (cells::ENDPOINTS, cells::endpoints),
        "EndpointSlice" => (cells::ENDPOINT_SLICE, cells::endpoint_slice),
        "ConfigMap" => (cells::CONFIG_MAP, cells::config_map),
        "Secret" => (cells::SECRET, cells::secret),
        "ServiceAccount" => (cells::SERVICE_ACCOUNT, cells::service_account),
        "Event" => (cells::EVENT, cells::event),
        "Deployment" => (cells::DEPLOYMENT, cells::deployment),
        "ReplicaSet" | "ReplicationController" => (cells::REPLICA_SET, cells::replica_set),
        "DaemonSet" => (cells::DAEMON_SET, cells::daemon_set),
        "StatefulSet" => (cells::STATEFUL_SET, cells::stateful_set),
        "Lease" => (cells::LEASE, cells::lease),
        "CertificateSigningRequest" => (cells::CSR, cells::csr),
        "PersistentVolume" => (cells::VOLUME, cells::volume),
        "PersistentVolumeClaim" => (cells::CLAIM, cells::claim),
        "Role" | "ClusterRole" => (cells::ROLE, cells::role),
        "RoleBinding" | "ClusterRoleBinding" => (cells::BINDING, cells::binding),
        "Machine" => (cells::MACHINE, cells::machine),
        "Rack" => (cells::RACK, cells::rack),
        "NodeImage" => (cells::NODE_IMAGE, cells::node_image),
        _ => (cells::PLAIN, cells::plain),
    };
    Layout { columns, cells }
}

#[cfg(test)]
mod tests;
