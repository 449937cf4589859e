//! Addresses and ports of services, each claimed by an object of its own before the service is
//! written.
//!
//! A claim is made only where none is: so two servers on one etcd cluster never give the same
//! address or port twice. An address is claimed by an `IPAddress` that names the service, as
//! upstream does; a port of every node by a row of the shelf `ranges/servicenodeports`, where
//! upstream keeps a bitmap.
//!
//! A kill between claim and service leaves a claim without a service, one between a service's
//! removal and its claims' too: [`repair`] takes those away once nobody can be about to use them,
//! and claims what services hold without one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::service::{Family, Holding, Supply, Taken};
use api::{Change, Request};
use jiff::Timestamp;
use objects::{Kind, Status, field, kind, time};
use serde_json::{Value, json};
use store::{Expect, Item, Query, Write, WriteError};

use crate::object;
use crate::server::{Server, now};
use crate::storage;
use crate::write::own_creation;

/// Who makes the claims, as upstream calls it.
const USER: &str = "ipallocator.k8s.io";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
/// Where ports of every node are claimed.
const PORTS: &str = "ranges/servicenodeports";
/// How often a claim may be made by someone else between a look and ours.
const ROUNDS_MAX: usize = 32;
/// How old a claim without a service is before it goes, on a store that others may be writing.
const GRACE_SECONDS: i64 = 60;

static ADDRESSES: &Kind = &kind::IP_ADDRESS;

/// What a write of a service claims and frees.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// The service's namespace and name.
    service: (String, String),
    /// Claimed for this write.
    made: Holding,
    /// Held before this write and not after it.
    freed: Holding,
}

/// Why something is not claimed.
enum Refused {
    /// Someone has it.
    Taken,
    /// It cannot be claimed now.
    Broken(Box<Status>),
}

impl From<WriteError> for Refused {
    fn from(err: WriteError) -> Self {
        match err {
            WriteError::Conflict { .. } => Self::Taken,
            err => Self::Broken(Box::new(storage::refusal(&err))),
        }
    }
}

/// What is claimed.
struct Shelves<'a>(&'a Server);

impl Taken for Shelves<'_> {
    fn has_address(&self, address: IpAddr) -> bool {
        self.0.item(ADDRESSES, "", &address.to_string()).is_some()
    }

    fn has_port(&self, port: u16) -> bool {
        self.0.store.get(PORTS, &port.to_string()).is_some()
    }
}

impl Claims {
    /// Gives a service what it needs and claims it; nothing for other kinds.
    ///
    /// # Errors
    ///
    /// As [`api::service::assign`]; 500 when the store takes no writes.
    pub(crate) async fn take(
        server: &Server,
        request: &Request,
        change: Change,
        old: Option<&Arc<Item>>,
        service: &mut Value,
    ) -> Result<Self, Status> {
        if *request.kind != kind::SERVICE || !request.is_main() && change != Change::Remove {
            return Ok(Self::default());
        }
        let old = old.map(|item| object::decode(item, 0));
        let own = old.as_ref().map(Holding::of).unwrap_or_default();
        let text = |path| field::str_at(service, path).unwrap_or_default().to_owned();
        let named = (request.namespace.clone(), text("metadata.name"));
        match change {
            Change::Remove if request.options.dry_run => return Ok(Self::default()),
            Change::Remove => {
                return Ok(Self { service: named, made: Holding::default(), freed: own });
            }
            Change::Nothing => return Ok(Self::default()),
            Change::Create | Change::Update => {}
        }
        if change == Change::Create && server.item(request.kind, &named.0, &named.1).is_some() {
            // The name is taken, which the write itself will find.
            return Ok(Self::default());
        }
        for _ in 0..ROUNDS_MAX {
            let mut tried = service.clone();
            assign(server, &mut tried, old.as_ref())?;
            let held = Holding::of(&tried);
            let wanted = held.without(&own);
            let freed = own.without(&held);
            if request.options.dry_run {
                *service = tried;
                return Ok(Self::default());
            }
            let mut claims = Self { service: named.clone(), made: Holding::default(), freed };
            match claims.make(server, &wanted).await {
                Ok(()) => {
                    *service = tried;
                    return Ok(claims);
                }
                Err(refused) => {
                    claims.conclude(server, false).await;
                    if let Refused::Broken(status) = refused {
                        return Err(*status);
                    }
                }
            }
        }
        Err(Status::conflict(request.kind, &named.1, "addresses are given away too fast"))
    }

    /// Claims all that is wanted; at the first that is taken some may be claimed already.
    async fn make(&mut self, server: &Server, wanted: &Holding) -> Result<(), Refused> {
        for address in &wanted.addresses {
            claim_address(server, *address, &self.service).await?;
            self.made.addresses.insert(*address);
        }
        for port in &wanted.ports {
            claim_port(server, *port, &self.service).await?;
            self.made.ports.insert(*port);
        }
        Ok(())
    }

    /// Frees what the service has no more: the old when it was written, the new when it was not.
    pub(crate) async fn conclude(self, server: &Server, written: bool) {
        let (namespace, name) = &self.service;
        let mut over = if written { self.freed } else { self.made };
        if over == Holding::default() {
            return;
        }
        // Someone may have written the same service meanwhile.
        if let Some(item) = server.item(&kind::SERVICE, namespace, name) {
            over = over.without(&Holding::of(&object::decode(&item, 0)));
        }
        for address in &over.addresses {
            if let Some(item) = server.item(ADDRESSES, "", &address.to_string())
                && parent(&object::decode(&item, 0)).as_ref() == Some(&self.service)
            {
                drop_claim(server, &server.shelf(ADDRESSES), &item).await;
            }
        }
        for port in &over.ports {
            if let Some(item) = server.store.get(PORTS, &port.to_string())
                && PortClaim::read(&item).service == self.service
            {
                drop_claim(server, &PORTS.into(), &item).await;
            }
        }
    }
}

/// Chooses what is free at the moment.
fn assign(server: &Server, service: &mut Value, old: Option<&Value>) -> Result<(), Status> {
    let ranges = server.items(&kind::SERVICE_CIDR, "");
    let ranges: Vec<Value> = ranges.iter().map(|item| object::decode(item, 0)).collect();
    let networks = api::service::networks(&ranges);
    let (range, taken, seed) = (&server.services, &Shelves(server), server.seed());
    api::service::assign(service, old, &Supply { networks: &networks, range, taken, seed })
}

async fn claim_address(
    server: &Server,
    address: IpAddr,
    (namespace, name): &(String, String),
) -> Result<(), Refused> {
    let wanted = json!({
        "apiVersion": ADDRESSES.api_version(), "kind": ADDRESSES.kind,
        "metadata": {
            "name": address.to_string(), "labels": {FAMILY: Family::of(address).name(), MANAGED_BY: USER},
        },
        "spec": {"parentRef": {
            "resource": "services", "namespace": namespace, "name": name,
        }},
    });
    let (value, head) = own_creation(server, USER, ADDRESSES, &wanted)
        .map_err(|status| Refused::Broken(Box::new(status)))?;
    let write = Write {
        shelf: server.shelf(ADDRESSES),
        name: address.to_string().into(),
        expect: Expect::Absent,
        value: Some(value),
        head: Some(head),
    };
    Ok(server.store.write(write).await.map(drop)?)
}

async fn claim_port(
    server: &Server,
    port: u16,
    (namespace, name): &(String, String),
) -> Result<(), Refused> {
    let at = objects::Time::from(now());
    let claim = json!({"namespace": namespace, "service": name, "at": at});
    let write = Write {
        shelf: PORTS.into(),
        name: port.to_string().into(),
        expect: Expect::Absent,
        value: Some(claim.to_string().into()),
        head: None,
    };
    Ok(server.store.write(write).await.map(drop)?)
}

async fn drop_claim(server: &Server, shelf: &Arc<str>, item: &Item) {
    let write = Write {
        shelf: Arc::clone(shelf),
        name: item.name().into(),
        expect: Expect::Revision(item.modified()),
        value: None,
        head: None,
    };
    if let Err(err) = server.store.write(write).await {
        // The next repair tries again.
        tracing::debug!(claim = item.name(), err = runtime::report(&err), "a claim stays");
    }
}

/// The service that an `IPAddress` of ours names.
fn parent(address: &Value) -> Option<(String, String)> {
    let text = |path| field::str_at(address, path).unwrap_or_default();
    let label = address.pointer("/metadata/labels")?.get(MANAGED_BY)?;
    let ours = label == USER && text("spec.parentRef.resource") == "services";
    ours.then(|| {
        let (namespace, name) = ("spec.parentRef.namespace", "spec.parentRef.name");
        (text(namespace).to_owned(), text(name).to_owned())
    })
}

/// Who has a port, and since when.
struct PortClaim {
    service: (String, String),
    at: Option<Timestamp>,
}

impl PortClaim {
    fn read(item: &Item) -> Self {
        let claim: Value = serde_json::from_slice(item.value()).unwrap_or_default();
        let text = |key| field::str_at(&claim, key).unwrap_or_default();
        Self {
            service: (text("namespace").to_owned(), text("service").to_owned()),
            at: time::parse_time(text("at")),
        }
    }
}

/// Removes a service's claims when there is no such service: who claimed for it was killed.
pub(crate) async fn forget(server: &Server, namespace: &str, name: &str) {
    if server.item(&kind::SERVICE, namespace, name).is_some() {
        return;
    }
    let service = (namespace.to_owned(), name.to_owned());
    for item in server.items(ADDRESSES, "") {
        if parent(&object::decode(&item, 0)).as_ref() == Some(&service) {
            drop_claim(server, &server.shelf(ADDRESSES), &item).await;
        }
    }
}

/// Makes claims and services agree again.
///
/// `alone` = nobody else writes to the store, so nobody is about to use a claim without a service.
pub(crate) async fn repair(server: &Server, alone: bool) {
    // Claims are looked at before services: one that was made before its service is then seen
    // with it.
    let addresses = server.items(ADDRESSES, "");
    let query = Query { shelf: PORTS, prefix: "", after: None, at: None, limit: usize::MAX };
    let ports = server.store.range(&query).map(|page| page.items).unwrap_or_default();
    let held = held(server);
    let is_old = |at: Option<Timestamp>| {
        alone || at.is_none_or(|at| time::seconds_between(at, now()) > GRACE_SECONDS)
    };
    for item in addresses {
        let claim = object::decode(&item, 0);
        let Some(service) = parent(&claim) else { continue };
        let address: Option<IpAddr> = item.name().parse().ok();
        let holder = address.and_then(|address| held.addresses.get(&address));
        let made = field::str_at(&claim, "metadata.creationTimestamp").and_then(time::parse_time);
        if holder != Some(&service) && is_old(made) {
            tracing::info!(address = item.name(), service = ?service, "an address is free again");
            drop_claim(server, &server.shelf(ADDRESSES), &item).await;
        }
    }
    for item in ports {
        let claim = PortClaim::read(&item);
        let port: Option<u16> = item.name().parse().ok();
        let holder = port.and_then(|port| held.ports.get(&port));
        if holder != Some(&claim.service) && is_old(claim.at) {
            tracing::info!(port = item.name(), service = ?claim.service, "a port is free again");
            drop_claim(server, &PORTS.into(), &item).await;
        }
    }
    held.claim(server).await;
}

/// Who holds what, as the services say.
#[derive(Default)]
struct Held {
    addresses: BTreeMap<IpAddr, (String, String)>,
    ports: BTreeMap<u16, (String, String)>,
}

fn held(server: &Server) -> Held {
    let mut held = Held::default();
    for item in server.items(&kind::SERVICE, "") {
        let holding = Holding::of(&object::decode(&item, 0));
        let known = object::known(&kind::SERVICE, &item);
        let text = |path| known.field(path).unwrap_or_default().to_owned();
        let service = (text("metadata.namespace"), text("metadata.name"));
        for address in holding.addresses {
            if let Some(first) = held.addresses.insert(address, service.clone()) {
                tracing::error!(%address, ?first, ?service, "two services have one address");
            }
        }
        held.ports.extend(holding.ports.into_iter().map(|port| (port, service.clone())));
    }
    held
}

impl Held {
    /// Claims what is held without a claim, as by a store from before there were claims, or when
    /// somebody deleted one.
    async fn claim(&self, server: &Server) {
        let taken = Shelves(server);
        for (address, service) in &self.addresses {
            if !taken.has_address(*address)
                && let Err(Refused::Broken(status)) = claim_address(server, *address, service).await
            {
                tracing::warn!(%address, err = %status.message, "an address is not claimed");
            }
        }
        for (port, service) in &self.ports {
            if !taken.has_port(*port)
                && let Err(Refused::Broken(status)) = claim_port(server, *port, service).await
            {
                tracing::warn!(port, err = %status.message, "a port is not claimed");
            }
        }
    }
}
