//! Variables that name a namespace's services, as containers have had them from the beginning.
//!
//! Spec: upstream's service links: `{NAME}_SERVICE_HOST`, `{NAME}_SERVICE_PORT` and the
//! variables of Docker links; the service `kubernetes` of the namespace `default` is always there.

use std::collections::BTreeMap;

use objects::network::{Service, ServicePort};

/// The namespace and name of the API's own service.
const MASTER: (&str, &str) = ("default", "kubernetes");

/// The variables of a pod in `namespace`; without `links` only the API's own service is named.
#[must_use]
pub fn service_env<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    // The pod's own namespace wins over the API's service of the same name.
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let address = service.spec.cluster_ip.as_str();
        if address.is_empty() || address == "None" {
            continue;
        }
        let meta = &service.metadata;
        let is_master = (meta.namespace.as_str(), meta.name.as_str()) == MASTER;
        if meta.namespace == namespace && (links || is_master) {
            chosen.insert(&meta.name, service);
        } else if is_master {
            chosen.entry(&meta.name).or_insert(service);
        }
    }
    let mut env = BTreeMap::new();
    for service in chosen.into_values() {
        put_service(service, &mut env);
    }
    env
}

fn put_service(service: &Service, env: &mut BTreeMap<String, String>) {
    let prefix = variable(&service.metadata.name);
    let address = &service.spec.cluster_ip;
    let Some(first) = service.spec.ports.first() else { return };
    let mut put = |name: String, value: String| env.insert(format!("{prefix}_{name}"), value);
    put("SERVICE_HOST".to_owned(), address.clone());
    put("SERVICE_PORT".to_owned(), first.port.to_string());
    for port in service.spec.ports.iter().filter(|port| !port.name.is_empty()) {
        put(format!("SERVICE_PORT_{}", variable(&port.name)), port.port.to_string());
    }
    put("PORT".to_owned(), url(address, first));
    for port in &service.spec.ports {
        let protocol = protocol(port);
        let base = format!("PORT_{}_{}", port.port, protocol.to_ascii_uppercase());
        put(base.clone(), url(address, port));
        put(format!("{base}_PROTO"), protocol);
        put(format!("{base}_PORT"), port.port.to_string());
        put(format!("{base}_ADDR"), address.clone());
    }
}

fn url(address: &str, port: &ServicePort) -> String {
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    format!("{}://{host}:{}", protocol(port), port.port)
}

fn protocol(port: &ServicePort) -> String {
    if port.protocol.is_empty() { "tcp".to_owned() } else { port.protocol.to_ascii_lowercase() }
}

fn variable(name: &str) -> String {
    name.to_ascii_uppercase().replace(['-', '.'], "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(namespace: &str, name: &str, address: &str) -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": namespace, "name": name},
            "spec": {"clusterIP": address, "ports": [{"name": "https", "port": 443, "protocol": "TCP"},
                {"name": "dns-udp", "port": 53, "protocol": "UDP"}]}}))
        .unwrap()
    }

    #[test]
    fn services_of_the_namespace_are_named_and_the_api_always() {
        let services = [
            service("default", "kubernetes", "10.0.0.1"),
            service("shop", "my-db", "10.0.0.2"),
            service("shop", "headless", "None"),
            service("other", "their-db", "10.0.0.3"),
        ];
        let env = service_env(&services, "shop", true);
        for (name, value) in [
            ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
            ("KUBERNETES_SERVICE_PORT", "443"),
            ("MY_DB_SERVICE_PORT_DNS_UDP", "53"),
            ("MY_DB_PORT", "tcp://10.0.0.2:443"),
            ("MY_DB_PORT_53_UDP", "udp://10.0.0.2:53"),
            ("MY_DB_PORT_53_UDP_PROTO", "udp"),
        ] {
            assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!env.keys().any(|name| name.starts_with("THEIR") || name.starts_with("HEADLESS")));
        let bare = service_env(&services, "shop", false);
        assert!(bare.keys().all(|name| name.starts_with("KUBERNETES_")), "{bare:?}");
        assert_eq!(service_env(&services, "default", false).len(), bare.len());
    }
}
