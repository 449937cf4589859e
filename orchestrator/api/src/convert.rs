//! Between the version a client speaks and the version that is stored.
//!
//! Events are stored as core/v1 and also spoken as events.k8s.io/v1, autoscalers are stored as
//! autoscaling/v2 and also spoken as v1. All other aliases (batch/v1beta1, policy/v1beta1) differ
//! in nothing but the name of the version.

mod autoscaler;

use serde_json::{Map, Value};

use crate::request::Request;

/// Fields of core/v1 events and their names in events.k8s.io/v1.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// The object as it is stored.
pub(crate) fn to_stored(request: &Request, mut object: Value) -> Value {
    if request.custom.is_none() && request.is_alias() {
        match request.kind.kind {
            "Event" => {
                rename(&mut object, EVENT_FIELDS.iter().map(|(stored, served)| (*served, *stored)));
            }
            "HorizontalPodAutoscaler" => autoscaler::to_v2(&mut object),
            _ => {}
        }
    }
    set(&mut object, "apiVersion", &request.kind.api_version());
    set(&mut object, "kind", request.kind.kind);
    object
}

/// The object as the client wants it.
pub(crate) fn to_served(request: &Request, object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(custom) = &request.custom {
        // A default that came after the object was stored holds for readers too.
        custom.fill_defaults(&mut object);
        set(&mut object, "apiVersion", &request.api_version());
    } else if request.is_alias() {
        match request.kind.kind {
            "Event" => rename(&mut object, EVENT_FIELDS.iter().copied()),
            "HorizontalPodAutoscaler" => autoscaler::to_v1(&mut object),
            _ => {}
        }
        set(&mut object, "apiVersion", &request.api_version());
    }
    object
}

fn set(object: &mut Value, key: &str, value: &str) {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(key.to_owned(), Value::from(value));
    }
}

fn rename<'a>(object: &mut Value, names: impl Iterator<Item = (&'a str, &'a str)>) {
    let Some(fields) = object.as_object_mut() else { return };
    let mut moved = Map::new();
    for (from, to) in names {
        if let Some(value) = fields.remove(from) {
            moved.insert(to.to_owned(), value);
        }
    }
    fields.extend(moved);
}
