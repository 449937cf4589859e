//! What the API's documentation says of policies, word for word and one packet at a time; knows
//! nothing of sets, roles or tables.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::Packet;

/// A cluster as the API tells it.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    pub(super) namespaces: Vec<Value>,
    pub(super) pods: Vec<Value>,
    pub(super) policies: Vec<Value>,
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

fn selects(selector: &Value, object: &Value) -> bool {
    let labels = &object["metadata"]["labels"];
    let equal = selector["matchLabels"]
        .as_object()
        .is_none_or(|wanted| wanted.iter().all(|(key, value)| labels.get(key) == Some(value)));
    let expressions = list(selector, "matchExpressions").iter().all(|one| {
        let label = labels.get(one["key"].as_str().unwrap());
        let among = label.is_some_and(|label| list(one, "values").contains(label));
        match one["operator"].as_str().unwrap() {
            "In" => among,
            "NotIn" => !among,
            "Exists" => label.is_some(),
            "DoesNotExist" => label.is_none(),
            other => panic!("{other}"),
        }
    });
    equal && expressions
}

impl Cluster {
    /// May this node let the first packet of a connection through?
    pub(super) fn allows(&self, node: &str, packet: &Packet) -> bool {
        if packet.from == packet.to {
            return true;
        }
        let (source, target) = (self.pod_at(packet.from), self.pod_at(packet.to));
        let is_here = |pod: &&Value| pod["spec"]["nodeName"] == node;
        let may_leave = source.filter(is_here).is_none_or(|pod| {
            self.permits(pod, "Egress", "egress", "to", (packet.to, target), (target, packet))
        });
        let may_enter = target.filter(is_here).is_none_or(|pod| {
            let peer = (packet.from, source);
            self.permits(pod, "Ingress", "ingress", "from", peer, (target, packet))
        });
        may_leave && may_enter
    }

    fn pod_at(&self, address: IpAddr) -> Option<&Value> {
        self.pods.iter().find(|pod| {
            let lives = !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed");
            let own = pod["spec"]["hostNetwork"] != true;
            let has = |entry: &Value| entry["ip"] == address.to_string();
            lives && own && list(&pod["status"], "podIPs").iter().any(has)
        })
    }

    fn permits(
        &self,
        pod: &Value,
        kind: &str,
        side: &str,
        peers: &str,
        peer: (IpAddr, Option<&Value>),
        target: (Option<&Value>, &Packet),
    ) -> bool {
        let about = |policy: &&Value| {
            let spec = &policy["spec"];
            let types = list(spec, "policyTypes");
            let by_default = kind == "Ingress" || !list(spec, "egress").is_empty();
            policy["metadata"]["namespace"] == pod["metadata"]["namespace"]
                && selects(&spec["podSelector"], pod)
                && if types.is_empty() { by_default } else { types.iter().any(|one| one == kind) }
        };
        let selecting: Vec<&Value> = self.policies.iter().filter(about).collect();
        let rules = selecting.iter().flat_map(|policy| {
            list(&policy["spec"], side).iter().map(|rule| (&policy["metadata"]["namespace"], rule))
        });
        selecting.is_empty()
            || rules.into_iter().any(|(namespace, rule)| {
                let (peers, ports) = (list(rule, peers), list(rule, "ports"));
                let peer_fits =
                    peers.is_empty() || peers.iter().any(|one| self.is_peer(one, namespace, peer));
                let port_fits =
                    ports.is_empty() || ports.iter().any(|one| is_port(one, target.0, target.1));
                peer_fits && port_fits
            })
    }

    fn is_peer(&self, rule: &Value, namespace: &Value, peer: (IpAddr, Option<&Value>)) -> bool {
        let (address, pod) = peer;
        if let Some(block) = rule.get("ipBlock") {
            let inside =
                |net: &Value| net.as_str().unwrap().parse::<IpNet>().unwrap().contains(&address);
            return inside(&block["cidr"]) && !list(block, "except").iter().any(inside);
        }
        let Some(pod) = pod else { return false };
        let room = &pod["metadata"]["namespace"];
        let right_room = match rule.get("namespaceSelector") {
            None => room == namespace,
            Some(selector) => {
                let named = |one: &&Value| &one["metadata"]["name"] == room;
                selects(selector, self.namespaces.iter().find(named).unwrap())
            }
        };
        right_room && rule.get("podSelector").is_none_or(|selector| selects(selector, pod))
    }
}

fn is_port(rule: &Value, target: Option<&Value>, packet: &Packet) -> bool {
    let protocol = rule["protocol"].as_str().unwrap_or("TCP");
    if protocol.to_ascii_lowercase() != packet.protocol {
        return false;
    }
    let port = i64::from(packet.port);
    match &rule["port"] {
        Value::Null => true,
        Value::String(name) => target.is_some_and(|pod| {
            list(&pod["spec"], "containers").iter().flat_map(|one| list(one, "ports")).any(|one| {
                one["name"] == **name && one["protocol"] == protocol && one["containerPort"] == port
            })
        }),
        first => {
            let first = first.as_i64().unwrap();
            (first..=rule["endPort"].as_i64().unwrap_or(first)).contains(&port)
        }
    }
}
