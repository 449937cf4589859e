//! Settings and secrets for pods.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    kind::{self, Kind},
    meta::{Object, ObjectMeta},
    view::objects,
};

objects! {
    /// Settings for pods; `binaryData` is base64.
    kind::CONFIG_MAP => pub struct ConfigMap {
        pub data: BTreeMap<String, String>,
        pub binary_data: BTreeMap<String, String>,
        pub immutable: Option<bool>,
    }

    /// An identity for pods.
    kind::SERVICE_ACCOUNT => pub struct ServiceAccount {
        pub automount_service_account_token: Option<bool>,
    }
}

/// Secrets for pods; the values of `data` are base64. Its `Debug` tells keys only.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the fields are upstream's and documented there")]
pub struct Secret {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub secret_type: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub immutable: Option<bool>,
    /// Fields this view does not name, kept for the way back.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Secret {
    /// An empty secret with `apiVersion` and `kind` filled in.
    #[must_use]
    pub fn blank() -> Self {
        Self {
            api_version: kind::SECRET.api_version(),
            kind: kind::SECRET.kind.to_owned(),
            ..Self::default()
        }
    }
}

impl Object for Secret {
    const KIND: &'static Kind = &kind::SECRET;

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values never reach a log; annotations may carry a copy of them, so only the name is told.
        f.debug_struct("Secret")
            .field("namespace", &self.metadata.namespace)
            .field("name", &self.metadata.name)
            .field("type", &self.secret_type)
            .field("keys", &self.data.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}
