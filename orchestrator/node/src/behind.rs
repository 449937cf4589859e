//! Services and the slices of endpoints behind them, as they were told, and which of them changed
//! since somebody last asked.
//!
//! Packets ([`crate::service`]) and names ([`crate::dns`]) follow from the same objects, each at its
//! own time; each has one of these, and both point to the objects of one cache.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::take;
use std::sync::Arc;

use objects::network::{EndpointSlice, Service};

/// The label by which a slice names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Namespace and name; one copy for all who speak of it.
pub type Name = Arc<(Box<str>, Box<str>)>;

/// Everything that was told.
#[derive(Debug, Default)]
pub struct Behind {
    known: BTreeMap<Name, Known>,
    /// The service that each slice belongs to.
    homes: BTreeMap<Name, Name>,
    changed: BTreeSet<Name>,
}

/// One service and its slices; either may be unknown as yet, or no longer be there.
#[derive(Debug, Default)]
struct Known {
    service: Option<Arc<Service>>,
    slices: BTreeMap<Box<str>, Arc<EndpointSlice>>,
}

impl Behind {
    /// Says what a service is; `None` when it is gone.
    pub fn set_service(&mut self, namespace: &str, name: &str, service: Option<Arc<Service>>) {
        let name = self.name(namespace, name);
        if service.is_none() && !self.known.contains_key(&name) {
            return;
        }
        self.known.entry(Arc::clone(&name)).or_default().service = service;
        self.changed.insert(name);
    }

    /// Says what a slice of endpoints is; `None` when it is gone.
    pub fn set_slice(&mut self, namespace: &str, name: &str, slice: Option<Arc<EndpointSlice>>) {
        let home = slice.as_ref().and_then(|slice| slice.metadata.labels.get(SERVICE_NAME));
        let home = home.map(|service| self.name(namespace, service));
        let own = (namespace.into(), name.into());
        if let Some(old) = self.homes.get(&own)
            && home.as_ref() != Some(old)
        {
            if let Some(known) = self.known.get_mut(old) {
                known.slices.remove(name);
            }
            self.changed.insert(Arc::clone(old));
            self.homes.remove(&own);
        }
        let (Some(home), Some(slice)) = (home, slice) else { return };
        self.known.entry(Arc::clone(&home)).or_default().slices.insert(name.into(), slice);
        self.homes.insert(Arc::new(own), Arc::clone(&home));
        self.changed.insert(home);
    }

    /// Says what all services are.
    pub fn replace_services(&mut self, services: impl IntoIterator<Item = Arc<Service>>) {
        let mut gone: BTreeSet<Name> = self.known.keys().cloned().collect();
        for service in services {
            let meta = &service.metadata;
            let name = self.name(&meta.namespace, &meta.name);
            gone.remove(&name);
            self.set_service(&name.0, &name.1, Some(service));
        }
        for name in gone {
            self.set_service(&name.0, &name.1, None);
        }
    }

    /// Says what all slices of endpoints are.
    pub fn replace_slices(&mut self, slices: impl IntoIterator<Item = Arc<EndpointSlice>>) {
        let mut gone: BTreeSet<Name> = self.homes.keys().cloned().collect();
        for slice in slices {
            let meta = &slice.metadata;
            let own = (meta.namespace.as_str().into(), meta.name.as_str().into());
            gone.remove(&own);
            self.set_slice(&own.0, &own.1, Some(slice));
        }
        for name in gone {
            self.set_slice(&name.0, &name.1, None);
        }
    }

    /// Treats every service as changed.
    pub(crate) fn touch_all(&mut self) {
        self.changed.extend(self.known.keys().cloned());
    }

    /// The services that changed since the last time, or whose slices did.
    pub(crate) fn take_changed(&mut self) -> BTreeSet<Name> {
        take(&mut self.changed)
    }

    /// A service, if there is one.
    pub(crate) fn service(&self, name: &Name) -> Option<&Service> {
        self.known.get(name)?.service.as_deref()
    }

    /// The slices behind a service.
    pub(crate) fn slices(&self, name: &Name) -> Vec<&EndpointSlice> {
        let known = self.known.get(name);
        known.map(|known| known.slices.values().map(AsRef::as_ref).collect()).unwrap_or_default()
    }

    /// Forgets a name behind which there is nothing any more.
    pub(crate) fn forget_if_gone(&mut self, name: &Name) {
        let gone = |known: &Known| known.service.is_none() && known.slices.is_empty();
        if self.known.get(name).is_some_and(gone) {
            self.known.remove(name);
        }
    }

    /// A name that is known already, or a new one.
    fn name(&self, namespace: &str, name: &str) -> Name {
        let name = (namespace.into(), name.into());
        match self.known.get_key_value(&name) {
            Some((known, _)) => Arc::clone(known),
            None => Arc::new(name),
        }
    }
}
