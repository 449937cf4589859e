//! The environment of a container, and the `$(NAME)` references in its command.
//!
//! Spec: upstream: `envFrom` first, then `env` in order, later ones win; a reference to an
//! unknown name stays as it is; `$$` is a dollar sign.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use objects::config::{ConfigMap, Secret};
use objects::pod::{Container, EnvVarSource, KeySelector, Pod};
use thiserror::Error;

use crate::field::{Allocatable, field_value, resource_value};

/// Config maps and secrets of the pod's namespace by name; what is absent does not exist.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Config maps.
    pub config_maps: BTreeMap<String, ConfigMap>,
    /// Secrets.
    pub secrets: BTreeMap<String, Secret>,
}

/// Names of the config maps and secrets that something refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References {
    /// Config maps.
    pub config_maps: std::collections::BTreeSet<String>,
    /// Secrets.
    pub secrets: std::collections::BTreeSet<String>,
}

/// A variable that cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EnvError {
    /// The object is not there.
    #[error("{kind} \"{name}\" not found")]
    Object {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    Key {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// The pod's namespace, which is the object's.
        namespace: String,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// The pod has no such field.
    #[error("unsupported field path {path}")]
    Field {
        /// The path.
        path: String,
    },
}

/// The config maps and secrets that the environments of a pod's containers refer to.
#[must_use]
pub fn references(pod: &Pod) -> References {
    let mut found = References::default();
    for container in crate::plan::containers(pod) {
        for source in &container.env_from {
            found.config_maps.extend(source.config_map_ref.iter().map(|r| r.name.clone()));
            found.secrets.extend(source.secret_ref.iter().map(|r| r.name.clone()));
        }
        for source in container.env.iter().filter_map(|env| env.value_from.as_ref()) {
            found.config_maps.extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
            found.secrets.extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
        }
    }
    found
}

/// The environment of a container, in order; `services` are the variables of services.
///
/// # Errors
///
/// When something that is not optional is absent; it may come, so trying again makes sense.
pub fn resolve(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    services: &BTreeMap<String, String>,
    node: Allocatable,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut env = Env::default();
    for (name, value) in services {
        env.set(name, value.clone());
    }
    for from in &container.env_from {
        if let Some(named) = &from.config_map_ref {
            let data = match sources.config_maps.get(&named.name) {
                Some(map) => map.data.clone(),
                None if named.optional == Some(true) => BTreeMap::new(),
                None => return Err(absent("configmap", &named.name)),
            };
            env.set_all(&from.prefix, data);
        }
        if let Some(named) = &from.secret_ref {
            let data = match sources.secrets.get(&named.name) {
                Some(secret) => texts(secret),
                None if named.optional == Some(true) => BTreeMap::new(),
                None => return Err(absent("secret", &named.name)),
            };
            env.set_all(&from.prefix, data);
        }
    }
    for variable in &container.env {
        let value = match &variable.value_from {
            None => Some(expand(&variable.value, &env.values)),
            Some(source) => from_source(pod, container, source, sources, node)?,
        };
        if let Some(value) = value {
            env.set(&variable.name, value);
        }
    }
    Ok(env.into_list())
}

/// Replaces `$(NAME)` by the variable's value.
#[must_use]
pub fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('$') {
        let (before, after) = rest.split_at(start);
        out.push_str(before);
        if let Some(tail) = after.strip_prefix("$$") {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) =
            after.strip_prefix("$(").and_then(|inner| inner.split_once(')'))
        {
            match env.get(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after.get(1..).unwrap_or_default();
        }
    }
    out.push_str(rest);
    out
}

fn from_source(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    sources: &Sources,
    node: Allocatable,
) -> Result<Option<String>, EnvError> {
    if let Some(field) = &source.field_ref {
        let path = &field.field_path;
        return match field_value(pod, path) {
            Some(value) => Ok(Some(value)),
            None => Err(EnvError::Field { path: path.clone() }),
        };
    }
    if let Some(field) = &source.resource_field_ref {
        return match resource_value(pod, &container.name, field, node) {
            Some(value) => Ok(Some(value)),
            None => Err(EnvError::Field { path: field.resource.clone() }),
        };
    }
    if let Some(key) = &source.config_map_key_ref {
        let map = sources.config_maps.get(&key.name).map(|map| map.data.clone());
        return pick(pod, ("configmap", "ConfigMap"), key, map);
    }
    if let Some(key) = &source.secret_key_ref {
        return pick(pod, ("secret", "Secret"), key, sources.secrets.get(&key.name).map(texts));
    }
    Ok(Some(String::new()))
}

fn pick(
    pod: &Pod,
    (kind, title): (&'static str, &'static str),
    selector: &KeySelector,
    data: Option<BTreeMap<String, String>>,
) -> Result<Option<String>, EnvError> {
    let optional = selector.optional == Some(true);
    let Some(mut data) = data else {
        return if optional { Ok(None) } else { Err(absent(kind, &selector.name)) };
    };
    match data.remove(&selector.key) {
        Some(value) => Ok(Some(value)),
        None if optional => Ok(None),
        None => Err(EnvError::Key {
            kind: title,
            namespace: pod.metadata.namespace.clone(),
            name: selector.name.clone(),
            key: selector.key.clone(),
        }),
    }
}

fn absent(kind: &'static str, name: &str) -> EnvError {
    EnvError::Object { kind, name: name.to_owned() }
}

/// A secret's values as text; a value that is no base64 is left out, one that is no UTF-8 is
/// read as well as it can be.
fn texts(secret: &Secret) -> BTreeMap<String, String> {
    let decode = |value: &String| {
        STANDARD.decode(value).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    let values = secret.data.iter().filter_map(|(key, value)| Some((key.clone(), decode(value)?)));
    values.collect()
}

/// Variables in the order in which they were first set.
#[derive(Default)]
struct Env {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Env {
    fn set(&mut self, name: &str, value: String) {
        if self.values.insert(name.to_owned(), value).is_none() {
            self.order.push(name.to_owned());
        }
    }

    fn set_all(&mut self, prefix: &str, data: BTreeMap<String, String>) {
        for (key, value) in data {
            let name = format!("{prefix}{key}");
            // Upstream: keys that cannot be names are skipped, not refused.
            if !name.is_empty() && !name.contains('=') {
                self.set(&name, value);
            }
        }
    }

    fn into_list(mut self) -> Vec<(String, String)> {
        let values = &mut self.values;
        self.order.into_iter().filter_map(|name| values.remove_entry(&name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sources() -> Sources {
        let map = json!({"metadata": {"name": "m"}, "data": {"color": "red", "size": "9"}});
        let secret = json!({"metadata": {"name": "s"}, "data": {"key": "aHVudGVy"}});
        Sources {
            config_maps: [("m".into(), serde_json::from_value(map).unwrap())].into(),
            secrets: [("s".into(), serde_json::from_value(secret).unwrap())].into(),
        }
    }

    /// The output is `NAME=VALUE` joined by blanks, or the error.
    #[track_caller]
    fn check(container: serde_json::Value, expected: &str) {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p"}, "spec": {"containers": [container]}}),
        )
        .unwrap();
        let services = [("SVC".to_owned(), "1".to_owned())].into();
        let node = Allocatable::default();
        let got = match resolve(&pod, &pod.spec.containers[0], &sources(), &services, node) {
            Ok(list) => list.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" "),
            Err(err) => err.to_string(),
        };
        assert_eq!(got, expected);
    }

    #[test]
    fn variables_come_from_everywhere_and_later_ones_win() {
        check(
            json!({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "$(A)2$(B)$$(A)"}]}),
            "SVC=1 A=12$(B)$(A)",
        );
        check(
            json!({"envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}, {"secretRef": {"name": "s"}}],
                "env": [{"name": "P_size", "value": "10"}, {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
            "SVC=1 P_color=red P_size=10 key=hunter N=p",
        );
        check(
            json!({"env": [{"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "key"}}}]}),
            "SVC=1 S=hunter",
        );
    }

    #[test]
    fn what_is_absent_is_named_unless_optional() {
        check(json!({"envFrom": [{"configMapRef": {"name": "x"}}]}), "configmap \"x\" not found");
        check(json!({"envFrom": [{"secretRef": {"name": "x", "optional": true}}]}), "SVC=1");
        let key = |optional: bool| json!({"env": [{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "no", "optional": optional}}}]});
        check(key(false), "couldn't find key no in ConfigMap /m");
        check(key(true), "SVC=1");
        check(
            json!({"env": [{"name": "F", "valueFrom": {"fieldRef": {"fieldPath": "spec.color"}}}]}),
            "unsupported field path spec.color",
        );
    }

    #[test]
    fn references_in_text_are_expanded_once() {
        let env = [("A".to_owned(), "$(B)".to_owned()), ("B".to_owned(), "b".to_owned())].into();
        for (text, expected) in
            [("$(A)", "$(B)"), ("$$(A)", "$(A)"), ("$(", "$("), ("a$", "a$"), ("$x$(B)", "$xb")]
        {
            assert_eq!(expand(text, &env), expected);
        }
    }
}
