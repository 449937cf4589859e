//! Bootstrap tokens: secrets of `kube-system` by which newcomers ask for a certificate.
//!
//! Spec: secrets of type `bootstrap.kubernetes.io/token`.

use api::User;
use api::authority::AUTHENTICATED;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use objects::field::Fields as _;
use objects::{field, kind};
use serde_json::Value;

use super::same_bytes;
use crate::object;
use crate::server::{Server, now};

const NAMESPACE: &str = "kube-system";
const GROUP: &str = "system:bootstrappers";

/// The user of a bootstrap token; `None` when no secret backs it, now and for this use.
pub(super) fn user(server: &Server, id: &str, secret: &str) -> Option<User> {
    let item = server.item(&kind::SECRET, NAMESPACE, &format!("bootstrap-token-{id}"))?;
    let found = object::decode(&item, 0);
    let data = |key: &str| -> Option<String> {
        let encoded = found.get("data")?.get(key)?.as_str()?;
        String::from_utf8(STANDARD.decode(encoded).ok()?).ok()
    };
    let usable = field::str_at(&found, "type") == Some("bootstrap.kubernetes.io/token")
        && found.field("metadata.deletionTimestamp").is_none_or(Value::is_null)
        && data("token-id").as_deref() == Some(id)
        && same_bytes(data("token-secret")?.as_bytes(), secret.as_bytes())
        && data("usage-bootstrap-authentication").as_deref() == Some("true");
    let ended = data("expiration").is_some_and(|text| {
        // An end nobody can read has passed.
        objects::time::parse_time(&text).is_none_or(|end| end <= now())
    });
    if !usable || ended {
        return None;
    }
    let mut user = User::named(&format!("system:bootstrap:{id}")).with_group(GROUP);
    for group in data("auth-extra-groups").unwrap_or_default().split(',') {
        let group = group.trim();
        if group.starts_with("system:bootstrappers:") {
            user = user.with_group(group);
        }
    }
    Some(user.with_group(AUTHENTICATED))
}
