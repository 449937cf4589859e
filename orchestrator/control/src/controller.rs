//! The table of controllers.

use std::collections::BTreeSet;

use jiff::Timestamp;
use objects::kind::{self, Kind};

use crate::action::Steps;
use crate::view::{Key, View};
use crate::{
    approval, deployment, endpoints, garbage, lifecycle, membership, namespace, pod_gc, replica_set,
};

/// One controller: what it looks at and what it does about one key.
#[derive(Clone, Copy)]
pub struct Controller {
    /// Its name in logs, events and records of field managers.
    pub name: &'static str,
    /// The kinds its view must hold.
    pub needs: &'static [&'static Kind],
    /// The keys it is about.
    pub keys: fn(&View) -> Vec<Key>,
    /// Decides about one key; total: what is broken is left alone.
    pub reconcile: fn(&View, &Key, Timestamp) -> Steps,
}

impl Controller {
    /// Plans the steps for one key, at most one write per object.
    ///
    /// A second write to the same object would fail on the version the first one changed; it
    /// is planned again in the round that sees the first.
    #[must_use]
    pub fn plan(&self, view: &View, key: &Key, now: Timestamp) -> Steps {
        let mut steps = (self.reconcile)(view, key, now);
        let mut written = BTreeSet::new();
        steps.actions.retain(|action| match action.target() {
            Some(target) => written.insert((target.kind.plural, target.uid.clone())),
            None => true,
        });
        steps
    }
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Controller").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Every controller; each runs in its own loop.
pub static CONTROLLERS: &[Controller] = &[
    Controller {
        name: "replicaset-controller",
        needs: &[&kind::REPLICA_SET, &kind::POD],
        keys: |view| view.replica_sets.keys(),
        reconcile: replica_set::reconcile,
    },
    Controller {
        name: "replication-controller",
        needs: &[&kind::REPLICATION_CONTROLLER, &kind::POD],
        keys: |view| view.replication_controllers.keys(),
        reconcile: replica_set::reconcile_replication_controller,
    },
    Controller {
        name: "deployment-controller",
        needs: &[&kind::DEPLOYMENT, &kind::REPLICA_SET, &kind::POD],
        keys: |view| view.deployments.keys(),
        reconcile: deployment::reconcile,
    },
    Controller {
        name: "endpoint-controller",
        needs: &[&kind::SERVICE, &kind::ENDPOINTS, &kind::POD],
        keys: endpoints::keys,
        reconcile: endpoints::reconcile,
    },
    Controller {
        name: "endpointslice-controller",
        needs: &[&kind::SERVICE, &kind::ENDPOINT_SLICE, &kind::POD, &kind::NODE],
        keys: |view| view.services.keys(),
        reconcile: endpoints::reconcile_slices,
    },
    Controller {
        name: "node-controller",
        needs: &[&kind::NODE, &kind::LEASE, &kind::POD],
        keys: |view| view.nodes.keys(),
        reconcile: lifecycle::reconcile,
    },
    Controller {
        name: "node-membership-controller",
        needs: &[&kind::NODE, &kind::MACHINE],
        keys: |view| view.nodes.keys(),
        reconcile: membership::reconcile,
    },
    Controller {
        name: "pod-garbage-collector",
        needs: &[&kind::POD, &kind::NODE],
        keys: |view| view.pods.keys(),
        reconcile: pod_gc::reconcile,
    },
    Controller {
        name: "csr-controller",
        needs: &[&kind::CERTIFICATE_SIGNING_REQUEST, &kind::MACHINE],
        keys: |view| view.requests.keys(),
        reconcile: approval::reconcile,
    },
    Controller {
        name: "namespace-controller",
        needs: &[&kind::NAMESPACE],
        keys: |view| view.namespaces.keys(),
        reconcile: namespace::reconcile,
    },
    Controller {
        name: "garbage-collector",
        needs: &[],
        keys: |_| vec![Key::new("", "")],
        reconcile: garbage::reconcile,
    },
];
