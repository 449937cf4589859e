//! What `muster plan` shows: every machine and what will be done to it, as text or JSON.
//!
//! Pure: the same plan gives the same bytes. Nothing is asked of the machines themselves.

use serde::Serialize;

use crate::plan::{BootMethod, DiskSelector, Machine, Plan, RackRouting, Role};
use crate::problem::Problem;

const HEADERS: [&str; 9] = [
    "MACHINE",
    "RACK",
    "ROLE",
    "ADDRESS",
    "BOOT",
    "DISK",
    "POD NETWORK",
    "AS",
    "WHAT WILL BE DONE",
];

/// Renders the plan for people.
#[must_use]
pub fn render_table(plan: &Plan) -> String {
    let mut text = format!("site {}, plan {}\n", plan.site, plan.hash());
    let seed = &plan.seed;
    text.push_str(&format!(
        "seed {} (API port {}, boot port {}), pods {}, services {}\n",
        seed.address, seed.api_port, seed.http_port, plan.networks.pods, plan.networks.services
    ));
    if let Some((pods, services)) = plan.networks.v6() {
        text.push_str(&format!("IPv6 beside it, pods {pods}, services {services}\n"));
    }
    for rack in &plan.racks {
        let mut routing = describe_routing(&rack.routing);
        if !rack.authentication.is_none() {
            routing.push_str(", with the rack's key");
        }
        text.push_str(&format!(
            "rack {}: {}, router {}, {routing}\n",
            rack.name, rack.subnet, rack.gateway
        ));
    }
    if let Some(ceph) = &plan.ceph {
        text.push_str(&format!("ceph pool {} at {}\n", ceph.pool, ceph.monitors.join(", ")));
    }
    text.push('\n');
    let mut rows = vec![HEADERS.map(str::to_owned)];
    rows.extend(plan.machines.iter().map(row));
    let mut widths = [0_usize; HEADERS.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    for warning in plan.warnings() {
        text.push_str(&format!("\nwarning: {warning}\n"));
    }
    text
}

/// Renders the plan as one JSON document that ends with a line feed.
#[must_use]
pub fn render_json(plan: &Plan) -> String {
    let machines = plan
        .machines
        .iter()
        .map(|machine| MachinePreview { machine, action: describe_action(machine) })
        .collect();
    let preview = Preview { hash: plan.hash(), plan, machines, warnings: plan.warnings() };
    // Strings and numbers under string keys: there is nothing JSON cannot say.
    let mut text = serde_json::to_string_pretty(&preview).unwrap_or_default();
    text.push('\n');
    text
}

/// Says what will be done to a machine when the plan is carried out.
#[must_use]
pub fn describe_action(machine: &Machine) -> String {
    let boot = describe_boot(machine.boot);
    match &machine.disk {
        None => format!("boot by {boot}, run from memory; no disk is touched"),
        Some(disk) => format!(
            "boot by {boot}, run from memory; disk {} is kept for it, not written yet",
            describe_disk(disk)
        ),
    }
}

#[derive(Serialize)]
struct Preview<'a> {
    hash: String,
    plan: &'a Plan,
    machines: Vec<MachinePreview<'a>>,
    warnings: Vec<Problem>,
}

#[derive(Serialize)]
struct MachinePreview<'a> {
    #[serde(flatten)]
    machine: &'a Machine,
    action: String,
}

fn row(machine: &Machine) -> [String; HEADERS.len()] {
    let role = match machine.role {
        Role::Master => "master",
        Role::Worker => "worker",
    };
    let role = if machine.r#virtual { format!("{role} (virtual)") } else { role.to_owned() };
    [
        machine.name.clone(),
        machine.rack.clone(),
        role,
        format!("{}/{}", machine.address, machine.prefix_len),
        describe_boot(machine.boot).to_owned(),
        machine.disk.as_ref().map_or_else(|| "-".to_owned(), describe_disk),
        machine.pod_cidr.to_string(),
        machine.asn.to_string(),
        describe_action(machine),
    ]
}

fn describe_boot(boot: BootMethod) -> &'static str {
    match boot {
        BootMethod::Bios => "BIOS PXE",
        BootMethod::UefiPxe => "UEFI PXE",
        BootMethod::UefiHttp => "UEFI HTTP",
    }
}

fn describe_disk(disk: &DiskSelector) -> String {
    let mut parts = Vec::new();
    parts.extend(disk.serial.as_ref().map(|serial| format!("serial={serial}")));
    parts.extend(disk.wwn.as_ref().map(|wwn| format!("wwn={wwn}")));
    parts.extend(disk.size_bytes_min.map(|bytes| format!("size>={bytes}")));
    parts.join(",")
}

fn describe_routing(routing: &RackRouting) -> String {
    match routing {
        RackRouting::Bgp { tor_asn, tors, .. } if tors.len() > 1 => {
            let tors: Vec<String> = tors.iter().map(ToString::to_string).collect();
            format!("BGP with AS {tor_asn} at {}", tors.join(", "))
        }
        RackRouting::Bgp { tor_asn, .. } => format!("BGP with AS {tor_asn}"),
        RackRouting::Ibgp { asn, reflectors } => {
            format!("iBGP in AS {asn}, reflected by {}", reflectors.join(", "))
        }
        RackRouting::Ospf { area, tor_asn: None } => format!("OSPF area {area}"),
        RackRouting::Ospf { area, tor_asn: Some(asn) } => {
            format!("OSPF area {area}, BGP to other racks with AS {asn}")
        }
    }
}

#[cfg(test)]
mod tests;
