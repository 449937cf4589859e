//! The table of controllers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use objects::kind::{self, Kind};

use crate::action::Steps;
use crate::garbage::Graph;
use crate::lifecycle::{Heartbeats, ZoneFigures};
use crate::scaling::Recommendations;
use crate::view::{Key, View};
use crate::wake::{Touch, Wake, Woken, nodes_of_pod, same_name};
use crate::{
    aggregation, approval, attachment, autoscaler, budget, cron_job, daemon_set, deployment, drain,
    endpoints, expansion, garbage, image_provisioner, job, lifecycle, load_balancer, machine,
    membership, mirror, namespace, pod_gc, quota, replica_set, service_account, service_range,
    snapshot, stateful_set, upgrade, volume_binder,
};

/// One controller: what it looks at and what it does about one key.
#[derive(Clone, Copy)]
pub struct Controller {
    /// Its name in logs, events and records of field managers.
    pub name: &'static str,
    /// The kinds its view must hold, and whom a change of each wakes. None at all means
    /// metadata of every kind, in the graph.
    pub needs: &'static [(&'static Kind, Wake)],
    /// The keys it is about.
    pub keys: fn(&View) -> Vec<Key>,
    /// Decides about one key; total: what is broken is left alone.
    pub reconcile: fn(&View, &Key, Timestamp) -> Steps,
    /// What it must remember from look to look.
    pub remembers: Remembers,
    /// Does it give away what there is only once? Then no key is planned while the view lacks
    /// any of its writes, not those of that key alone.
    pub serial: bool,
}

/// What a controller remembers that is not in objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remembers {
    /// Nothing.
    Nothing,
    /// When nodes last gave a sign of life.
    Heartbeats,
    /// Who belongs to whom.
    Graph,
    /// What autoscalers' metrics asked for.
    Scaling,
}

/// What changed since a controller last looked.
#[derive(Debug, Default)]
pub struct News {
    /// The changes.
    pub touches: Vec<Touch>,
    /// Kinds of which there is a whole new list; all their objects are among the touches when
    /// the controller needs the graph.
    pub relisted: Vec<&'static Kind>,
    /// Kinds that are not looked at any more; nothing is known of their objects.
    pub forgotten: Vec<&'static Kind>,
}

/// A controller's memory.
#[derive(Debug, Default)]
pub struct Memory {
    heartbeats: Heartbeats,
    graph: Arc<Graph>,
    scaling: Recommendations,
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
            Some(target) => written.insert((target.kind, target.uid.clone())),
            None => true,
        });
        steps
    }

    /// Does the controller look at this kind?
    #[must_use]
    pub fn looks_at(&self, kind: &Kind) -> bool {
        self.needs.is_empty() || self.needs.iter().any(|(need, _)| *need == kind)
    }

    /// The keys that what happened concerns; fills what the memory knows into the view.
    pub fn wake(
        &self,
        view: &mut View,
        news: &News,
        memory: &mut Memory,
        now: Timestamp,
    ) -> BTreeSet<Key> {
        if self.remembers == Remembers::Graph {
            return memory.note(view, news);
        }
        let mut keys = BTreeSet::new();
        let mut everywhere = news.relisted.iter().any(|kind| self.looks_at(kind));
        let mut inside = BTreeSet::new();
        for touch in &news.touches {
            for (_, wake) in self.needs.iter().filter(|(kind, _)| *kind == touch.kind) {
                match wake.keys(view, touch) {
                    Woken::These(these) => keys.extend(these),
                    Woken::Inside(namespace) => _ = inside.insert(namespace),
                    Woken::All => everywhere = true,
                }
            }
        }
        if everywhere {
            keys.extend((self.keys)(view));
        } else if !inside.is_empty() {
            let all = (self.keys)(view);
            keys.extend(all.into_iter().filter(|key| inside.contains(&key.namespace)));
        }
        if self.remembers == Remembers::Heartbeats {
            let changed: Vec<Key> = keys.iter().cloned().collect();
            let some = (!everywhere).then_some(changed.as_slice());
            keys.extend(memory.heartbeats.observe(view, some, now));
        }
        if self.remembers == Remembers::Scaling {
            memory.scaling.observe(view, now);
        }
        keys
    }
}

impl Memory {
    /// Every failure zone in numbers; none for whoever does not look after nodes.
    #[must_use]
    pub fn zones(&self) -> Vec<ZoneFigures> {
        self.heartbeats.zones()
    }

    fn note(&mut self, view: &mut View, news: &News) -> BTreeSet<Key> {
        // The view's own hold on the graph would make this a copy.
        view.graph = Arc::default();
        let graph = Arc::make_mut(&mut self.graph);
        let mut uids: BTreeSet<String> = BTreeSet::new();
        let mut kept: BTreeMap<&Kind, BTreeSet<String>> =
            news.relisted.iter().map(|kind| (*kind, BTreeSet::new())).collect();
        for touch in &news.touches {
            if let (Some(kept), Some(after)) = (kept.get_mut(touch.kind), &touch.after) {
                kept.insert(after.meta().uid.clone());
            }
            uids.extend(graph.note(touch));
        }
        for (kind, kept) in kept {
            uids.extend(graph.retain(kind, &kept));
        }
        for kind in &news.forgotten {
            graph.forget(kind);
        }
        view.graph = Arc::clone(&self.graph);
        uids.into_iter().map(|uid| Key::new("", &uid)).collect()
    }
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Controller").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What most rows have in common.
const BASE: Controller = Controller {
    name: "",
    needs: &[],
    keys: |_| Vec::new(),
    reconcile: |_, _, _| Steps::none(),
    remembers: Remembers::Nothing,
    serial: false,
};

/// Every controller; each runs in its own loop.
pub static CONTROLLERS: &[Controller] = &[
    Controller {
        name: "replicaset-controller",
        needs: &[(&kind::REPLICA_SET, Wake::Own), (&kind::POD, Wake::Owner(&kind::REPLICA_SET))],
        keys: |view| view.replica_sets.keys(),
        reconcile: replica_set::reconcile,
        ..BASE
    },
    Controller {
        name: "replication-controller",
        needs: &[
            (&kind::REPLICATION_CONTROLLER, Wake::Own),
            (&kind::POD, Wake::Owner(&kind::REPLICATION_CONTROLLER)),
        ],
        keys: |view| view.replication_controllers.keys(),
        reconcile: replica_set::reconcile_replication_controller,
        ..BASE
    },
    Controller {
        name: "deployment-controller",
        needs: &[
            (&kind::DEPLOYMENT, Wake::Own),
            (&kind::REPLICA_SET, Wake::Owner(&kind::DEPLOYMENT)),
            (&kind::POD, Wake::By(deployment::of_pod)),
        ],
        keys: |view| view.deployments.keys(),
        reconcile: deployment::reconcile,
        ..BASE
    },
    Controller {
        name: "daemonset-controller",
        needs: &[
            (&kind::DAEMON_SET, Wake::Own),
            (&kind::POD, Wake::Owner(&kind::DAEMON_SET)),
            (&kind::NODE, Wake::By(daemon_set::sets_of_node)),
            (&kind::CONTROLLER_REVISION, Wake::Owner(&kind::DAEMON_SET)),
        ],
        keys: |view| view.daemon_sets.keys(),
        reconcile: daemon_set::reconcile,
        ..BASE
    },
    Controller {
        name: "statefulset-controller",
        needs: &[
            (&kind::STATEFUL_SET, Wake::Own),
            (&kind::POD, Wake::Owner(&kind::STATEFUL_SET)),
            (&kind::PERSISTENT_VOLUME_CLAIM, Wake::By(stateful_set::sets_of_claim)),
            (&kind::CONTROLLER_REVISION, Wake::Owner(&kind::STATEFUL_SET)),
        ],
        keys: |view| view.stateful_sets.keys(),
        reconcile: stateful_set::reconcile,
        ..BASE
    },
    Controller {
        name: "job-controller",
        needs: &[(&kind::JOB, Wake::Own), (&kind::POD, Wake::By(job::of_pod))],
        keys: job::keys,
        reconcile: job::reconcile,
        ..BASE
    },
    Controller {
        name: "ttl-after-finished-controller",
        needs: &[(&kind::JOB, Wake::Own)],
        keys: |view| view.jobs.keys(),
        reconcile: job::reconcile_ttl,
        ..BASE
    },
    Controller {
        name: "cronjob-controller",
        needs: &[(&kind::CRON_JOB, Wake::Own), (&kind::JOB, Wake::Owner(&kind::CRON_JOB))],
        keys: |view| view.cron_jobs.keys(),
        reconcile: cron_job::reconcile,
        ..BASE
    },
    Controller {
        name: "endpoint-controller",
        needs: &[
            (&kind::SERVICE, Wake::Own),
            (&kind::ENDPOINTS, Wake::Own),
            (&kind::POD, Wake::By(endpoints::services_of_pod)),
        ],
        keys: endpoints::keys,
        reconcile: endpoints::reconcile,
        ..BASE
    },
    Controller {
        name: "endpointslice-controller",
        needs: &[
            (&kind::SERVICE, Wake::Own),
            (&kind::ENDPOINT_SLICE, Wake::By(endpoints::service_of_slice)),
            (&kind::POD, Wake::By(endpoints::services_of_pod)),
            (&kind::NODE, Wake::By(endpoints::services_by_zone)),
        ],
        keys: |view| view.services.keys(),
        reconcile: endpoints::reconcile_slices,
        ..BASE
    },
    Controller {
        name: "endpointslice-mirroring-controller",
        needs: &[
            (&kind::ENDPOINTS, Wake::Own),
            (&kind::SERVICE, Wake::Own),
            (&kind::ENDPOINT_SLICE, Wake::By(mirror::endpoints_of_slice)),
        ],
        keys: mirror::keys,
        reconcile: mirror::reconcile,
        ..BASE
    },
    Controller {
        name: "attach-detach-controller",
        needs: &[
            (&kind::POD, Wake::By(nodes_of_pod)),
            (&kind::NODE, Wake::Own),
            (&kind::PERSISTENT_VOLUME_CLAIM, Wake::By(attachment::nodes_of_claim)),
            (&kind::PERSISTENT_VOLUME, Wake::By(attachment::nodes_of_volume)),
            (&kind::VOLUME_ATTACHMENT, Wake::By(attachment::nodes_of_attachment)),
            (&kind::CSI_DRIVER, Wake::Every),
        ],
        keys: attachment::keys,
        reconcile: attachment::reconcile,
        ..BASE
    },
    Controller {
        name: "node-controller",
        needs: &[
            (&kind::NODE, Wake::Own),
            (&kind::LEASE, Wake::By(lifecycle::node_of_lease)),
            (&kind::POD, Wake::By(nodes_of_pod)),
        ],
        keys: |view| view.nodes.keys(),
        reconcile: lifecycle::reconcile,
        remembers: Remembers::Heartbeats,
        ..BASE
    },
    Controller {
        name: "node-membership-controller",
        needs: &[
            (&kind::NODE, Wake::By(membership::nodes_of_node)),
            (&kind::MACHINE, Wake::By(same_name)),
        ],
        keys: |view| view.nodes.keys(),
        reconcile: membership::reconcile,
        serial: true,
        ..BASE
    },
    Controller {
        name: "pod-garbage-collector",
        needs: &[
            (&kind::POD, Wake::By(pod_gc::of_pod)),
            (&kind::NODE, Wake::By(pod_gc::pods_of_node)),
        ],
        keys: pod_gc::keys,
        reconcile: pod_gc::reconcile,
        ..BASE
    },
    Controller {
        name: "csr-controller",
        needs: &[(&kind::CERTIFICATE_SIGNING_REQUEST, Wake::Own), (&kind::MACHINE, Wake::Every)],
        keys: |view| view.requests.keys(),
        reconcile: approval::reconcile,
        ..BASE
    },
    Controller {
        name: "csrsigning-controller",
        needs: &[(&kind::CERTIFICATE_SIGNING_REQUEST, Wake::Own)],
        keys: |view| view.requests.keys(),
        reconcile: approval::reconcile_upstream,
        ..BASE
    },
    Controller {
        name: "csrcleaner-controller",
        needs: &[(&kind::CERTIFICATE_SIGNING_REQUEST, Wake::Own)],
        keys: |view| view.requests.keys(),
        reconcile: approval::clean,
        ..BASE
    },
    Controller {
        name: "namespace-controller",
        needs: &[(&kind::NAMESPACE, Wake::Own)],
        keys: |view| view.namespaces.keys(),
        reconcile: namespace::reconcile,
        ..BASE
    },
    Controller {
        name: "service-lb-controller",
        needs: &[(&kind::SERVICE, Wake::Every)],
        keys: |view| view.services.keys(),
        reconcile: load_balancer::reconcile,
        serial: true,
        ..BASE
    },
    Controller {
        name: "service-cidrs-controller",
        needs: &[(&kind::SERVICE_CIDR, Wake::Every), (&kind::IP_ADDRESS, Wake::Every)],
        keys: |view| view.service_cidrs.keys(),
        reconcile: service_range::reconcile,
        ..BASE
    },
    Controller {
        name: "drain-controller",
        needs: &[
            (&kind::NODE, Wake::By(drain::of_node)),
            (&kind::POD, Wake::By(drain::of_pod)),
            (&kind::DAEMON_SET, Wake::Never),
        ],
        keys: |view| view.nodes.keys(),
        reconcile: drain::reconcile,
        ..BASE
    },
    Controller {
        name: "machine-controller",
        needs: &[(&kind::MACHINE, Wake::Own), (&kind::NODE, Wake::By(machine::of_node))],
        keys: |view| view.machines.keys(),
        reconcile: machine::reconcile,
        ..BASE
    },
    Controller {
        name: "upgrade-controller",
        needs: &[
            (&kind::NODE_IMAGE, Wake::By(upgrade::of_image)),
            (&kind::NODE, Wake::By(upgrade::of_node)),
        ],
        keys: upgrade::keys,
        reconcile: upgrade::reconcile,
        serial: true,
        ..BASE
    },
    Controller {
        name: "resourcequota-controller",
        needs: &[
            (&kind::RESOURCE_QUOTA, Wake::Namespace),
            (&kind::POD, Wake::Namespace),
            (&kind::SERVICE, Wake::Namespace),
            (&kind::CONFIG_MAP, Wake::Namespace),
            (&kind::SECRET, Wake::Namespace),
            (&kind::SERVICE_ACCOUNT, Wake::Namespace),
            (&kind::INGRESS, Wake::Namespace),
            (&kind::PERSISTENT_VOLUME_CLAIM, Wake::Namespace),
            (&kind::REPLICATION_CONTROLLER, Wake::Namespace),
            (&kind::DAEMON_SET, Wake::Namespace),
            (&kind::DEPLOYMENT, Wake::Namespace),
            (&kind::REPLICA_SET, Wake::Namespace),
            (&kind::STATEFUL_SET, Wake::Namespace),
            (&kind::JOB, Wake::Namespace),
            (&kind::CRON_JOB, Wake::Namespace),
        ],
        keys: |view| view.quotas.keys(),
        reconcile: quota::reconcile,
        ..BASE
    },
    Controller {
        name: "horizontal-pod-autoscaler-controller",
        needs: &[
            (&kind::HORIZONTAL_POD_AUTOSCALER, Wake::Own),
            (&kind::DEPLOYMENT, Wake::Never),
            (&kind::REPLICA_SET, Wake::Never),
            (&kind::STATEFUL_SET, Wake::Never),
            (&kind::REPLICATION_CONTROLLER, Wake::Never),
            (&kind::POD, Wake::Never),
        ],
        keys: |view| view.autoscalers.keys(),
        reconcile: autoscaler::reconcile,
        remembers: Remembers::Scaling,
        ..BASE
    },
    Controller {
        name: "serviceaccount-controller",
        needs: &[
            (&kind::NAMESPACE, Wake::Own),
            (&kind::SERVICE_ACCOUNT, Wake::By(service_account::namespace_of)),
        ],
        keys: |view| view.namespaces.keys(),
        reconcile: service_account::reconcile,
        ..BASE
    },
    Controller {
        name: "root-ca-certificate-publisher-controller",
        needs: &[
            (&kind::NAMESPACE, Wake::Own),
            (&kind::CONFIG_MAP, Wake::By(service_account::namespace_of)),
        ],
        keys: |view| view.namespaces.keys(),
        reconcile: service_account::reconcile_root_ca,
        ..BASE
    },
    Controller {
        name: "clusterrole-aggregation-controller",
        needs: &[(&kind::CLUSTER_ROLE, Wake::Every)],
        keys: |view| view.cluster_roles.keys(),
        reconcile: aggregation::reconcile,
        ..BASE
    },
    Controller {
        name: "disruption-controller",
        needs: &[
            (&kind::POD_DISRUPTION_BUDGET, Wake::Own),
            (&kind::POD, Wake::By(budget::of_pod)),
            (&kind::DEPLOYMENT, Wake::Namespace),
            (&kind::REPLICA_SET, Wake::Namespace),
            (&kind::STATEFUL_SET, Wake::Namespace),
            (&kind::REPLICATION_CONTROLLER, Wake::Namespace),
        ],
        keys: |view| view.budgets.keys(),
        reconcile: budget::reconcile,
        ..BASE
    },
    Controller {
        name: "persistentvolumeclaim-binder-controller",
        needs: &[
            (&kind::PERSISTENT_VOLUME_CLAIM, Wake::Own),
            (&kind::PERSISTENT_VOLUME, Wake::By(volume_binder::claims_of_volume)),
            (&kind::POD, Wake::By(volume_binder::claims_of_pod)),
            (&kind::STORAGE_CLASS, Wake::Every),
            (&kind::NODE, Wake::Never),
        ],
        keys: |view| view.claims.keys(),
        reconcile: volume_binder::reconcile_claim,
        ..BASE
    },
    Controller {
        name: "persistentvolume-binder-controller",
        needs: &[
            (&kind::PERSISTENT_VOLUME, Wake::Own),
            (&kind::PERSISTENT_VOLUME_CLAIM, Wake::By(volume_binder::volumes_of_claim)),
        ],
        keys: |view| view.volumes.keys(),
        reconcile: volume_binder::reconcile_volume,
        ..BASE
    },
    Controller {
        name: "persistentvolume-expander-controller",
        needs: &[
            (&kind::PERSISTENT_VOLUME_CLAIM, Wake::Own),
            (&kind::PERSISTENT_VOLUME, Wake::By(expansion::claim_of_volume)),
        ],
        keys: |view| view.claims.keys(),
        reconcile: expansion::reconcile,
        ..BASE
    },
    Controller {
        name: "image-provisioner-controller",
        needs: &[
            (&kind::PERSISTENT_VOLUME_CLAIM, Wake::Own),
            (&kind::PERSISTENT_VOLUME, Wake::By(image_provisioner::claim_of_volume)),
            (&kind::STORAGE_CLASS, Wake::Every),
            (&kind::VOLUME_SNAPSHOT, Wake::By(image_provisioner::claims_of_snapshot)),
            (&kind::VOLUME_SNAPSHOT_CONTENT, Wake::Never),
        ],
        keys: |view| view.claims.keys(),
        reconcile: image_provisioner::reconcile_claim,
        ..BASE
    },
    Controller {
        name: "volume-snapshot-controller",
        needs: &[
            (&kind::VOLUME_SNAPSHOT, Wake::Own),
            (&kind::VOLUME_SNAPSHOT_CONTENT, Wake::By(snapshot::snapshot_of_content)),
            (&kind::VOLUME_SNAPSHOT_CLASS, Wake::Every),
            (&kind::PERSISTENT_VOLUME_CLAIM, Wake::By(snapshot::snapshots_of_claim)),
            (&kind::PERSISTENT_VOLUME, Wake::Never),
        ],
        keys: |view| view.snapshots.keys(),
        reconcile: snapshot::reconcile,
        ..BASE
    },
    Controller {
        name: "image-snapshot-controller",
        needs: &[
            (&kind::VOLUME_SNAPSHOT_CONTENT, Wake::Own),
            (&kind::VOLUME_SNAPSHOT, Wake::By(snapshot::content_of_snapshot)),
        ],
        keys: |view| view.snapshot_contents.keys(),
        reconcile: snapshot::reconcile_content,
        ..BASE
    },
    Controller {
        name: "image-deleter-controller",
        needs: &[
            (&kind::PERSISTENT_VOLUME, Wake::Own),
            (&kind::VOLUME_ATTACHMENT, Wake::By(image_provisioner::volume_of_attachment)),
        ],
        keys: |view| view.volumes.keys(),
        reconcile: image_provisioner::reconcile_volume,
        ..BASE
    },
    Controller {
        name: "ephemeral-volume-controller",
        needs: &[(&kind::POD, Wake::Own), (&kind::PERSISTENT_VOLUME_CLAIM, Wake::Never)],
        keys: |view| view.pods.keys(),
        reconcile: volume_binder::reconcile_ephemeral,
        ..BASE
    },
    Controller {
        name: "garbage-collector",
        keys: garbage::keys,
        reconcile: garbage::reconcile,
        remembers: Remembers::Graph,
        ..BASE
    },
];
