//! The plan as an Ansible inventory (`muster inventory --list`, `--host NAME`).
//!
//! Spec: Ansible's "script inventory" JSON, with `_meta.hostvars` so that one call is enough.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::plan::{BootMethod, Machine, Plan, Role};

/// Renders the whole inventory: groups `masters`, `workers`, one `rack_NAME` per rack.
#[must_use]
pub fn render_list(plan: &Plan) -> String {
    let mut groups: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in ["masters", "workers"] {
        groups.insert(name.to_owned(), Vec::new());
    }
    for rack in &plan.racks {
        groups.insert(group_of_rack(&rack.name), Vec::new());
    }
    let mut hostvars = Map::new();
    for machine in &plan.machines {
        let role = match machine.role {
            Role::Master => "masters",
            Role::Worker => "workers",
        };
        groups.entry(role.to_owned()).or_default().push(&machine.name);
        groups.entry(group_of_rack(&machine.rack)).or_default().push(&machine.name);
        hostvars.insert(machine.name.clone(), variables(machine));
    }
    let mut children: Vec<&str> = groups.keys().map(String::as_str).collect();
    children.push("ungrouped");
    let mut list = Map::new();
    list.insert("_meta".to_owned(), json!({ "hostvars": hostvars }));
    list.insert("all".to_owned(), json!({ "children": children }));
    for (name, hosts) in &groups {
        list.insert(name.clone(), json!({ "hosts": hosts }));
    }
    print(&Value::Object(list))
}

/// Renders the variables of one machine; `None` when the plan has no such machine.
#[must_use]
pub fn render_host(plan: &Plan, name: &str) -> Option<String> {
    plan.machine(name).map(|machine| print(&variables(machine)))
}

/// Ansible group names have letters, digits and underscores only.
fn group_of_rack(rack: &str) -> String {
    format!("rack_{}", rack.replace('-', "_"))
}

fn variables(machine: &Machine) -> Value {
    let mut variables = json!({
        "ansible_host": machine.address.to_string(),
        "muster_asn": machine.asn,
        "muster_boot": match machine.boot {
            BootMethod::Bios => "bios",
            BootMethod::UefiPxe => "uefi-pxe",
            BootMethod::UefiHttp => "uefi-http",
        },
        "muster_gateway": machine.gateway.to_string(),
        "muster_mac": machine.mac,
        "muster_node": machine.node,
        "muster_pod_cidr": machine.pod_cidr.to_string(),
        "muster_rack": machine.rack,
        "muster_role": match machine.role {
            Role::Master => "master",
            Role::Worker => "worker",
        },
        "muster_virtual": machine.r#virtual,
    });
    if let Value::Object(map) = &mut variables {
        let pods = machine.pod_cidr_v6.map(|net| net.to_string());
        let address = machine.address_v6.map(|address| address.to_string());
        for (key, value) in [
            ("muster_uuid", &machine.uuid),
            ("muster_serial", &machine.serial),
            ("muster_pod_cidr_v6", &pods),
            ("muster_address_v6", &address),
        ] {
            if let Some(value) = value {
                map.insert(key.to_owned(), Value::String(value.clone()));
            }
        }
    }
    variables
}

fn print(value: &Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests;
