//! The macro behind all typed views, and what "absent" means when one is written out.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Tells whether a field is left out when its view is serialised.
pub(crate) trait Empty {
    /// Is there nothing to write?
    fn is_empty(&self) -> bool;
}

/// The function `skip_serializing_if` names.
pub(crate) fn empty<T: Empty>(value: &T) -> bool {
    value.is_empty()
}

impl<T> Empty for Option<T> {
    fn is_empty(&self) -> bool {
        self.is_none()
    }
}

impl<T> Empty for Vec<T> {
    fn is_empty(&self) -> bool {
        Vec::is_empty(self)
    }
}

impl<K, V> Empty for BTreeMap<K, V> {
    fn is_empty(&self) -> bool {
        BTreeMap::is_empty(self)
    }
}

impl Empty for Map<String, Value> {
    fn is_empty(&self) -> bool {
        Map::is_empty(self)
    }
}

impl Empty for Value {
    fn is_empty(&self) -> bool {
        self.is_null()
    }
}

impl Empty for String {
    fn is_empty(&self) -> bool {
        String::is_empty(self)
    }
}

impl Empty for bool {
    fn is_empty(&self) -> bool {
        !self
    }
}

impl Empty for i64 {
    fn is_empty(&self) -> bool {
        *self == 0
    }
}

/// Defines typed views: camel-case JSON, every field optional, unknown fields kept in `extra`.
///
/// A field that is empty is not written. Where empty and absent differ (`emptyDir: {}`,
/// `replicas: 0`) the field is an `Option`.
macro_rules! views {
    ($( $(#[$outer:meta])* pub struct $name:ident {
        $( $(#[$inner:meta])* pub $field:ident : $type:ty, )*
    } )*) => { $(
        $(#[$outer])*
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        #[allow(missing_docs, reason = "the fields are upstream's and documented there")]
        pub struct $name {
            $( $(#[$inner])*
               #[serde(skip_serializing_if = "crate::view::empty")]
               pub $field: $type, )*
            /// Fields this view does not name, kept for the way back.
            #[serde(flatten)]
            pub extra: serde_json::Map<String, serde_json::Value>,
        }

        impl crate::view::Empty for $name {
            fn is_empty(&self) -> bool {
                *self == Self::default()
            }
        }
    )* };
}

/// Defines a view of a whole object, with `apiVersion`, `kind` and `metadata` in front.
macro_rules! objects {
    ($( $(#[$outer:meta])* $kind:path => pub struct $name:ident {
        $( $(#[$inner:meta])* pub $field:ident : $type:ty, )*
    } )*) => { $(
        crate::view::views! {
            $(#[$outer])*
            pub struct $name {
                pub api_version: String,
                pub kind: String,
                pub metadata: crate::meta::ObjectMeta,
                $( $(#[$inner])* pub $field: $type, )*
            }
        }

        impl $name {
            /// An empty object of this kind with `apiVersion` and `kind` filled in.
            #[must_use]
            pub fn blank() -> Self {
                Self {
                    api_version: $kind.api_version(),
                    kind: $kind.kind.to_owned(),
                    ..Self::default()
                }
            }
        }

        impl crate::meta::Object for $name {
            const KIND: &'static crate::kind::Kind = &$kind;
            fn meta(&self) -> &crate::meta::ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut crate::meta::ObjectMeta {
                &mut self.metadata
            }
        }
    )* };
}

pub(crate) use objects;
pub(crate) use views;
