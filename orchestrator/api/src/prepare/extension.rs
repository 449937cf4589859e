//! Where built-in kinds and those of definitions part ways.

use objects::{Cause, Status, kind};
use serde_json::Value;

use super::{Context, status};
use crate::{custom, defaults, request::Request, validate};

/// Nothing new comes into being while its definition goes away.
pub(super) fn refuse_creation(request: &Request) -> Result<(), Status> {
    match &request.custom {
        Some(custom) if custom.terminating => Err(Status::method_not_allowed(
            "create not allowed while custom resource definition is terminating",
        )),
        _ => Ok(()),
    }
}

/// Takes from a new object what its creator may not say.
pub(super) fn reset_on_create(request: &Request, object: &mut Value, context: &Context<'_>) {
    if request.custom.is_none() {
        status::reset_on_create(request.kind, object, context);
    } else if let (true, Some(fields)) = (request.kind.has_status, object.as_object_mut()) {
        fields.remove("status");
    }
}

/// Fills in defaults.
pub(super) fn set_defaults(request: &Request, object: &mut Value) {
    match &request.custom {
        Some(custom) => custom.fill_defaults(object),
        None => {
            defaults::set_defaults(request.kind, object);
            if *request.kind == kind::CUSTOM_RESOURCE_DEFINITION {
                custom::default_definition(object);
            }
        }
    }
}

/// Checks an object, new or changed.
pub(super) fn validate(request: &Request, old: Option<&Value>, new: &Value) -> Vec<Cause> {
    let kind = request.kind;
    if let Some(custom) = &request.custom {
        let mut causes = validate::validate_metadata(kind, new);
        if request.subresource != "status" || kind.has_status {
            causes.extend(custom.validate(new, old));
        }
        return causes;
    }
    let mut causes = match old {
        Some(old) => validate::validate_update(kind, &request.subresource, old, new),
        None => validate::validate_create(kind, new),
    };
    if old.is_none() && *kind == kind::EVENT && request.served.group == "events.k8s.io" {
        causes.extend(validate::validate_newer_event(new));
    }
    if *kind == kind::CUSTOM_RESOURCE_DEFINITION && request.is_main() {
        causes.extend(custom::check_definition(new, old));
    }
    if kind.group == "admissionregistration.k8s.io" && kind.kind.ends_with("AdmissionPolicy") {
        causes.extend(crate::policy::check(new));
    }
    causes
}
