//! Racks as Ceph's CRUSH map wants them: copies of one object never share a rack.

use std::collections::BTreeSet;

use cluster::plan::Plan;
use serde::Serialize;

/// The root of every CRUSH map that Ceph makes.
const ROOT: &str = "default";
/// The rule whose failure domain is the rack.
const RULE: &str = "muster-rack";

/// Where a machine stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct CrushLocation {
    /// The bucket of the whole site.
    pub root: String,
    /// The rack's bucket.
    pub rack: String,
    /// The machine's bucket.
    pub host: String,
}

/// Every machine's place, in the plan's order.
///
/// Buckets share one name space: a rack that is called like a machine, or like the root, gets
/// `rack-` before its name.
#[must_use]
pub fn crush_locations(plan: &Plan) -> Vec<CrushLocation> {
    let location = |machine: &cluster::plan::Machine| CrushLocation {
        root: ROOT.to_owned(),
        rack: bucket(plan, &machine.rack),
        host: machine.name.clone(),
    };
    plan.machines.iter().filter(|machine| !machine.r#virtual).map(location).collect()
}

fn bucket(plan: &Plan, rack: &str) -> String {
    let taken = rack == ROOT || plan.machines.iter().any(|machine| machine.name == rack);
    if taken { format!("rack-{rack}") } else { rack.to_owned() }
}

/// Renders the commands that make it so; each may be run again.
#[must_use]
pub fn render_crush(plan: &Plan) -> String {
    let locations = crush_locations(plan);
    let racks: BTreeSet<&str> = locations.iter().map(|one| one.rack.as_str()).collect();
    let mut text = format!(
        "# Racks of site {} for Ceph; run on a host with an admin keyring, again after changes.\n",
        plan.site
    );
    for rack in &racks {
        text += &format!("ceph osd crush add-bucket {rack} rack\n");
        text += &format!("ceph osd crush move {rack} root={ROOT}\n");
    }
    text += "# A machine without an OSD yet gets an empty bucket, which holds nothing up.\n";
    for CrushLocation { root, rack, host } in &locations {
        text += &format!("ceph osd crush add-bucket {host} host\n");
        text += &format!("ceph osd crush move {host} root={root} rack={rack}\n");
    }
    text += &format!("# No two copies in one rack. {} here.\n", counted(racks.len()));
    text += &format!("ceph osd crush rule create-replicated {RULE} {ROOT} rack\n");
    if let Some(ceph) = &plan.ceph {
        let pool = &ceph.pool;
        let set = format!("ceph osd pool set {pool} crush_rule {RULE}\n");
        if racks.len() < 3 {
            text += "# A pool of three copies needs three racks: with fewer, this would leave it\n";
            text +=
                "# degraded for ever. Set size to the number of racks first, or stay with hosts.\n";
            text += &format!("# {set}");
        } else {
            text += &set;
        }
    }
    text += "# In ceph.conf of each machine, so that new OSDs start at their place:\n";
    for CrushLocation { root, rack, host } in &locations {
        text += &format!("#   {host}: crush location = root={root} rack={rack} host={host}\n");
    }
    text
}

fn counted(racks: usize) -> String {
    if racks == 1 { "There is 1 rack".to_owned() } else { format!("There are {racks} racks") }
}
