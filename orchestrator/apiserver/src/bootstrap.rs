//! What every cluster has from its first moment: namespaces, and the API as a service.

use std::time::Duration;

use objects::{Kind, Status, field, kind};
use serde_json::{Value, json};

use crate::claim;
use crate::object;
use crate::server::Server;
use crate::write::{create_own, replace_own};

/// The user recorded for what the server makes itself.
const USER: &str = "muster:apiserver";
/// How often the claim on the first address may be another server's, and how long that is given.
const CLAIM_ROUNDS_MAX: usize = 100;
const CLAIM_PAUSE: Duration = Duration::from_millis(50);
/// The namespaces every cluster has.
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes what is missing and mends what is outdated.
///
/// # Errors
///
/// When the store takes no writes.
pub(crate) async fn run(server: &Server) -> Result<(), Status> {
    for name in NAMESPACES {
        if server.item(&kind::NAMESPACE, "", name).is_none() {
            let object = json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
            });
            create_own(server, USER, &kind::NAMESPACE.path(None, None), &object).await?;
        }
    }
    roles(server).await?;
    flows(server).await?;
    authentication(server).await?;
    crate::aggregate::locals(server).await?;
    service_range(server).await?;
    for (kind, object) in [
        (&kind::SERVICE, service(server)),
        (&kind::ENDPOINTS, endpoints(server)),
        (&kind::ENDPOINT_SLICE, slice(server)),
    ] {
        let Some(item) = server.item(kind, "default", "kubernetes") else {
            create_for_all(server, kind, &object).await?;
            continue;
        };
        // The address of the API may have changed since the last start.
        let stored = object::decode(&item, item.modified());
        let said = ["/subsets", "/endpoints", "/ports", "/spec/ports"];
        let differs = said.iter().any(|path| {
            object.pointer(path).is_some_and(|wanted| !covers(stored.pointer(path), wanted))
        });
        if differs {
            let path = kind.path(Some("default"), Some("kubernetes"));
            replace_own(server, USER, &path, &object).await?;
        }
    }
    name_service(server).await
}

/// Makes an object of the service `kubernetes`, as other servers on the same store may be doing.
async fn create_for_all(server: &Server, kind: &Kind, object: &Value) -> Result<(), Status> {
    let mut rounds = 0..CLAIM_ROUNDS_MAX;
    loop {
        if *kind == kind::SERVICE {
            // Who claimed its address and wrote no service was killed, or is at it now and will
            // find the service there.
            claim::forget(server, "default", "kubernetes").await;
        }
        match create_own(server, USER, &kind.path(Some("default"), None), object).await {
            // The other was quicker with the claim; soon there is the service, or just the claim.
            Err(status) if status.is("Invalid") && rounds.next().is_some() => {
                tokio::time::sleep(CLAIM_PAUSE).await;
                let _tried = server.store.sync().await.is_ok();
            }
            made => return made.map(drop),
        }
    }
}

/// The ranges service addresses come from, as an object. Who made the cluster chose them; other
/// ranges in the configuration leave what stands there, as upstream does, but for a second one,
/// which is added to the first.
async fn service_range(server: &Server) -> Result<(), Status> {
    let (kind, name) = (&kind::SERVICE_CIDR, "kubernetes");
    let cidrs = json!(server.services.cidrs());
    if let Some(item) = server.item(kind, "", name) {
        let mut object = object::decode(&item, item.modified());
        let stored = object.pointer("/spec/cidrs").and_then(Value::as_array);
        let (stored, wanted) = (stored.map_or(&[][..], Vec::as_slice), server.services.cidrs());
        match (stored, wanted.as_slice()) {
            (stored, wanted) if stored == wanted => {}
            ([one], [first, _]) if one == first => {
                tracing::info!(cidrs = %cidrs, "services get a second family of addresses");
                if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
                    spec.insert("cidrs".to_owned(), cidrs);
                }
                replace_own(server, USER, &kind.path(None, Some(name)), &object).await?;
            }
            (stored, _) => {
                let stored = json!(stored);
                tracing::warn!(%stored, configured = %cidrs, "the ranges of services stay");
            }
        }
        return Ok(());
    }
    let object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
        "spec": {"cidrs": cidrs},
    });
    create_own(server, USER, &kind.path(None, None), &object).await?;
    let Some(item) = server.item(kind, "", name) else { return Ok(()) };
    let mut object = object::decode(&item, item.modified());
    if let Some(fields) = object.as_object_mut() {
        let condition = json!({
            "type": "Ready", "status": "True", "reason": "",
            "message": "Kubernetes default Service CIDR is ready",
            "lastTransitionTime": objects::Time::from(crate::server::now()).to_string(),
        });
        fields.insert("status".to_owned(), json!({"conditions": [condition]}));
    }
    let path = format!("{}/status", kind.path(None, Some(name)));
    replace_own(server, USER, &path, &object).await.map(drop)
}

/// Whom servers behind ours may believe.
async fn authentication(server: &Server) -> Result<(), Status> {
    let (kind, place) = (&kind::CONFIG_MAP, Some("kube-system"));
    let object = server.site.front_proxy.config_map(&server.site.ca_pem);
    let name = field::str_at(&object, "metadata.name").unwrap_or_default();
    match server.item(kind, "kube-system", name) {
        None => create_own(server, USER, &kind.path(place, None), &object).await?,
        Some(item) if object::decode(&item, 0).get("data") == object.get("data") => false,
        Some(_) => replace_own(server, USER, &kind.path(place, Some(name)), &object).await?,
    };
    Ok(())
}

/// The service under which people look for cluster DNS. Nodes answer at its address themselves;
/// the object keeps the address from being given to another service. It has one family, upstream's
/// installers' habit: pods are told one address, and it answers for names of both families.
async fn name_service(server: &Server) -> Result<(), Status> {
    let (namespace, name) = ("kube-system", "kube-dns");
    let Some(address) = server.services.tenth() else { return Ok(()) };
    if server.item(&kind::SERVICE, namespace, name).is_some() {
        return Ok(());
    }
    let object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name, "namespace": namespace,
            "labels": {"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true"},
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ports": [
                {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 53},
                {"name": "dns-tcp", "protocol": "TCP", "port": 53, "targetPort": 53},
            ],
        },
    });
    let path = kind::SERVICE.path(Some(namespace), None);
    if let Err(status) = create_own(server, USER, &path, &object).await {
        // An older service may have the address; it keeps it, and names go on without the object.
        tracing::warn!(err = %status.message, "the service of cluster DNS cannot be made");
    }
    Ok(())
}

/// The default roles and bindings: made when missing, completed when something was taken out.
async fn roles(server: &Server) -> Result<(), Status> {
    let wanted = api::authority::policy::default_objects();
    let writes = wanted.iter().map(|wanted| async move {
        let text = |path| field::str_at(wanted, path).unwrap_or_default();
        let (namespace, name) = (text("metadata.namespace"), text("metadata.name"));
        let Some(kind) = kind::by_gvk(text("apiVersion"), text("kind")) else { return Ok(()) };
        let place = Some(namespace).filter(|namespace| !namespace.is_empty());
        let Some(item) = server.item(kind, namespace, name) else {
            create_own(server, USER, &kind.path(place, None), wanted).await?;
            return Ok(());
        };
        let stored = object::decode(&item, item.modified());
        if let Some(mended) = api::authority::policy::reconcile_default(&stored, wanted) {
            replace_own(server, USER, &kind.path(place, Some(name)), &mended).await?;
        }
        Ok(())
    });
    // All at once, so that they share the disk's syncs.
    futures_util::future::join_all(writes).await.into_iter().collect()
}

/// The default priority levels and flow schemas: made when missing, and as they should be unless
/// somebody has taken them over.
async fn flows(server: &Server) -> Result<(), Status> {
    let wanted = api::authority::flow::default_objects();
    let writes = wanted.iter().map(|wanted| async move {
        let text = |path| field::str_at(wanted, path).unwrap_or_default();
        let Some(kind) = kind::by_gvk(text("apiVersion"), text("kind")) else { return Ok(()) };
        let name = text("metadata.name");
        let Some(item) = server.item(kind, "", name) else {
            create_own(server, USER, &kind.path(None, None), wanted).await?;
            return Ok(());
        };
        let mut stored = object::decode(&item, item.modified());
        let auto = "/metadata/annotations/apf.kubernetes.io~1autoupdate-spec";
        let ours = stored.pointer(auto).and_then(Value::as_str) == Some("true");
        let spec = wanted.get("spec").unwrap_or(&Value::Null);
        if ours && !covers(stored.get("spec"), spec) {
            if let Some(stored) = stored.as_object_mut() {
                stored.insert("spec".to_owned(), spec.clone());
            }
            replace_own(server, USER, &kind.path(None, Some(name)), &stored).await?;
        }
        Ok(())
    });
    futures_util::future::join_all(writes).await.into_iter().collect()
}

/// Does what is stored say all that is wanted? Defaults may stand beside it.
fn covers(stored: Option<&Value>, wanted: &Value) -> bool {
    match (stored, wanted) {
        (Some(Value::Object(stored)), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| covers(stored.get(key), wanted))
        }
        (Some(Value::Array(stored)), Value::Array(wanted)) => {
            stored.len() == wanted.len()
                && stored.iter().zip(wanted).all(|(stored, wanted)| covers(Some(stored), wanted))
        }
        (stored, wanted) => stored == Some(wanted),
    }
}

fn service(server: &Server) -> Value {
    let address = server.services.first().to_string();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ports": [{
                "name": "https", "protocol": "TCP", "port": 443, "targetPort": server.port,
            }],
        },
    })
}

fn endpoints(server: &Server) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{
            "addresses": [{"ip": server.site.address.to_string()}],
            "ports": [{"name": "https", "port": server.port, "protocol": "TCP"}],
        }],
    })
}

fn slice(server: &Server) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": if server.site.address.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{
            "addresses": [server.site.address.to_string()],
            "conditions": {"ready": true},
        }],
        "ports": [{"name": "https", "port": server.port, "protocol": "TCP"}],
    })
}
