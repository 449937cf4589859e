//! What every namespace has from its beginning: the account `default` and the authority's
//! certificate for pods.

use jiff::Timestamp;
use objects::kind;
use serde_json::json;

use crate::action::{Action, Steps, Target};
use crate::view::{Key, View};

/// The account of pods that name none.
const DEFAULT: &str = "default";
/// The config map that pods' tokens are projected with.
const ROOT_CA: &str = "kube-root-ca.crt";

/// The namespace of an account or a map that matters here.
#[must_use]
pub fn namespace_of(_view: &View, touch: &crate::wake::Touch) -> Vec<Key> {
    let ours = [DEFAULT, ROOT_CA].contains(&touch.key.name.as_str());
    if ours { vec![Key::new("", &touch.key.namespace)] } else { Vec::new() }
}

/// Plans the account of one namespace.
#[must_use]
pub fn reconcile(view: &View, key: &Key, _now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    if is_active(view, key) && view.accounts.get(&key.name, DEFAULT).is_none() {
        let object = json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": DEFAULT, "namespace": key.name},
        });
        steps.push(Action::create(&kind::SERVICE_ACCOUNT, &key.name, object));
    }
    steps
}

/// Plans the certificate's config map of one namespace.
#[must_use]
pub fn reconcile_root_ca(view: &View, key: &Key, _now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let pem = &view.settings.root_ca;
    if pem.is_empty() || !is_active(view, key) {
        return steps;
    }
    let data = json!({"ca.crt": pem});
    match view.config_maps.get(&key.name, ROOT_CA) {
        None => {
            let about = "Contains a CA bundle that can be used to verify the kube-apiserver when \
                         using internal endpoints such as the internal service IP or \
                         kubernetes.default.svc. No other usage is guaranteed across \
                         distributions of Kubernetes clusters.";
            let object = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {
                    "name": ROOT_CA, "namespace": key.name,
                    "annotations": {"kubernetes.io/description": about},
                },
                "data": data,
            });
            steps.push(Action::create(&kind::CONFIG_MAP, &key.name, object));
        }
        Some(had) if json!(had.data) != data => {
            // Keys that are not ours go: the map is not a place to keep things.
            let mut object = objects::config::ConfigMap::clone(had);
            object.data = [("ca.crt".to_owned(), pem.clone())].into();
            steps.push(Action::replace(Target::of(&**had), &object));
        }
        Some(_) => (),
    }
    steps
}

fn is_active(view: &View, key: &Key) -> bool {
    let namespace = view.namespaces.get("", &key.name);
    namespace.is_some_and(|one| !one.metadata.is_deleting() && one.status.phase != "Terminating")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;
    use objects::config::{ConfigMap, ServiceAccount};

    #[test]
    fn a_namespace_gets_its_account_and_certificate_and_keeps_them() {
        let mut world = World::default();
        world.settings.root_ca = "PEM".to_owned();
        world.add(&kind::NAMESPACE, json!({"metadata": {"name": "n"}}));
        world.settle(&[]);
        assert_eq!(world.all::<ServiceAccount>()[0].metadata.name, "default");
        assert_eq!(world.all::<ConfigMap>()[0].data["ca.crt"], "PEM");
        world.remove(&kind::SERVICE_ACCOUNT, "n", "default");
        let other = json!({"data": {"ca.crt": "other", "more": "x"}});
        world.change(&kind::CONFIG_MAP, "n", ROOT_CA, &other);
        world.settle(&[]);
        assert_eq!(world.all::<ServiceAccount>().len(), 1);
        assert_eq!(json!(world.all::<ConfigMap>()[0].data), json!({"ca.crt": "PEM"}));
    }
}
