//! Builds and removes the namespaces and cables of a rig, and starts its routers.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster::plan::{Plan, RackRouting};
use routes::tor::{Advertisement, Uplink};
use routes::{Bfd, TorIntent, render_tor};

use crate::process::{self, Io, Process};
use crate::topology::{
    BRIDGE, SEED_HOST_LINK, SEED_UPLINK, TOR_SEED_LINK, Topology, TorSite, socket_dir, tag_of,
};
use crate::wait::{Seen, await_until};

/// Emulated machines on a busy host stall for a second or two: a BFD that is tuned for silicon
/// would see them die all the time.
pub(crate) const SIM_BFD: Bfd = Bfd { interval_ms: 1000, multiplier: 5 };
/// Routers need a second or two to find each other; a busy host needs more.
const CONVERGE_LIMIT: Duration = Duration::from_secs(90);

/// Forwarding on; no reverse-path filter, since ways out and back may differ; hash flows by port.
const ROUTER_SYSCTLS: &str = "\
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
echo 1 >/proc/sys/net/ipv4/fib_multipath_hash_policy
for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done
";
/// The seed is an ordinary host, but one with two links.
const SEED_SYSCTLS: &str = "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done\n";

/// The addresses under which a rig of `plan` in `dir` will reach its seed, host's side first: for
/// whoever must put them into certificates before the rig is built.
#[must_use]
pub fn seed_addresses(plan: &Plan, dir: &Path) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let dir = crate::rig::absolute(dir).ok()?;
    let site = Topology::new(plan, &[], &tag_of(&plan.site, &dir)).ok()?;
    Some((site.host.seed, site.seed.address))
}

/// Makes every namespace, link and address.
pub(crate) fn build(site: &Topology) -> Result<()> {
    for namespace in site.namespaces() {
        process::run("ip", &["netns", "add", namespace])?;
    }
    let seed = &site.seed;
    let host = &site.host;
    let peer = format!("{SEED_HOST_LINK} netns {}", seed.namespace);
    batch(
        None,
        &format!(
            "link add {0} type veth peer name {peer}\naddr add {1}/31 dev {0}\nlink set {0} up\n",
            host.interface, host.host
        ),
    )?;
    let tor = site.tors.get(seed.tor).context("the seed's router")?;
    let peer = format!("{TOR_SEED_LINK} netns {}", tor.namespace);
    batch(
        Some(&seed.namespace),
        &format!(
            "link set lo up\n\
         addr add {host_side}/31 dev {SEED_HOST_LINK}\n\
         link set {SEED_HOST_LINK} up\n\
         link add {SEED_UPLINK} type veth peer name {peer}\n\
         addr add {address}/{prefix} dev {SEED_UPLINK}\n\
         link set {SEED_UPLINK} up\n\
         route add default via {gateway} dev {SEED_UPLINK}\n",
            host_side = host.seed,
            address = seed.address,
            prefix = seed.prefix_len,
            gateway = seed.gateway,
        ),
    )?;
    shell(&seed.namespace, SEED_SYSCTLS)?;
    for (index, tor) in site.tors.iter().enumerate() {
        match tor.bridge_of.and_then(|first| site.tors.get(first)) {
            Some(first) => build_further_router(first, tor)?,
            None => build_tor(site, index, tor)?,
        }
    }
    // Cables need both ends' namespaces, addresses need both ends' links.
    for cable in &site.cables {
        let [left, right] = &cable.ends;
        let far = site.tors.get(right.tor).context("a cable's far end")?;
        let near = site.tors.get(left.tor).context("a cable's near end")?;
        batch(
            Some(&near.namespace),
            &format!(
                "link add {0} type veth peer name {1} netns {2}\naddr add {3}/31 dev {0}\nlink set {0} up\n",
                left.interface, right.interface, far.namespace, left.address
            ),
        )?;
        batch(
            Some(&far.namespace),
            &format!("addr add {1}/31 dev {0}\nlink set {0} up\n", right.interface, right.address),
        )?;
    }
    for (index, tor) in site.tors.iter().enumerate() {
        shell(&tor.namespace, ROUTER_SYSCTLS)?;
        batch(Some(&tor.namespace), &second_family(site, index, tor))?;
    }
    Ok(())
}

/// The commands that give a router its IPv6 addresses; nobody else has them.
fn second_family(site: &Topology, index: usize, tor: &TorSite) -> String {
    let rack = tor.addresses_v6.iter().map(|address| format!("{address}/64 dev {BRIDGE}"));
    let ends = site
        .cable_ends(index)
        .filter_map(|(near, _)| Some(format!("{}/127 dev {}", near.address_v6?, near.interface)));
    rack.chain(ends).map(|what| format!("addr add {what} nodad\n")).collect()
}

fn build_tor(site: &Topology, index: usize, tor: &TorSite) -> Result<()> {
    // Snooping would keep router advertisements from firmware that joins no group; the veth
    // that leads nowhere keeps the bridge's carrier while every machine is off.
    let mut text = format!(
        "link set lo up\n\
         link add {BRIDGE} address {mac} type bridge forward_delay 0 mcast_snooping 0\n\
         link add keep0 type veth peer name keep1\n\
         link set keep1 up\n\
         link set keep0 master {BRIDGE} up\n\
         addr add {gateway}/{prefix} dev {BRIDGE}\n\
         link set {BRIDGE} up\n",
        mac = tor.bridge_mac,
        gateway = tor.gateway,
        prefix = tor.prefix_len,
    );
    if site.seed.tor == index {
        if site.seed.is_flat {
            writeln!(text, "link set {TOR_SEED_LINK} master {BRIDGE} up")?;
        } else {
            let (gateway, prefix) = (site.seed.gateway, site.seed.prefix_len);
            writeln!(text, "addr add {gateway}/{prefix} dev {TOR_SEED_LINK}")?;
            writeln!(text, "link set {TOR_SEED_LINK} up")?;
        }
    }
    for machine in &tor.machines {
        writeln!(text, "tuntap add {} mode tap", machine.tap)?;
        writeln!(text, "link set {} master {BRIDGE} up", machine.tap)?;
    }
    batch(Some(&tor.namespace), &text)
}

/// A further router of a rack: its link to the rack's bridge has the name that the bridge has in the
/// first, so that both are configured alike.
fn build_further_router(first: &TorSite, tor: &TorSite) -> Result<()> {
    let port = router_port(tor);
    batch(
        Some(&first.namespace),
        &format!(
            "link add {port} type veth peer name {BRIDGE} address {mac} netns {far}\n\
             link set {port} master {BRIDGE} up\n",
            mac = tor.bridge_mac,
            far = tor.namespace,
        ),
    )?;
    let (address, prefix) = (tor.gateway, tor.prefix_len);
    let text =
        format!("link set lo up\naddr add {address}/{prefix} dev {BRIDGE}\nlink set {BRIDGE} up\n");
    batch(Some(&tor.namespace), &text)
}

/// The port of the rack's bridge that a further router hangs at.
pub(crate) fn router_port(tor: &TorSite) -> String {
    format!("tor{}", tor.number + 1)
}

/// Starts BIRD and the relay of every router, and waits until all racks reach the seed.
pub(crate) fn start_routers(plan: &Plan, site: &Topology, tag: &str, dir: &Path) -> Result<()> {
    let sockets = socket_dir(tag);
    for (index, tor) in site.tors.iter().enumerate() {
        let config = dir.join(format!("tor-{}.conf", tor.name));
        fs::write(&config, render_router(plan, site, index, SIM_BFD)?)
            .with_context(|| format!("writing {}", config.display()))?;
        start_bird(tor, &sockets, dir)?;
    }
    for (index, tor) in site.tors.iter().enumerate() {
        // The seed hangs at one router; another of the same rack has no way there of its own.
        if tor.bridge_of == Some(site.seed.tor) {
            continue;
        }
        let target = site.seed.address.to_string();
        let what = format!("a route from rack {} to the seed", tor.rack);
        await_until(&what, CONVERGE_LIMIT, || {
            process::run("ip", &["-n", &tor.namespace, "route", "get", &target]).map(Seen::There)
        })
        .with_context(|| {
            format!("BIRD's log is {}", log_path(dir, &format!("bird-{}", tor.name)).display())
        })?;
        // Before the route exists a relay would lose the first requests. On the seed's own
        // bridge there is nothing to relay.
        if tor.bridge_of.is_none() && !(site.seed.is_flat && site.seed.tor == index) {
            start_relay(site, index, tor, dir)?;
        }
    }
    Ok(())
}

/// Starts a router's BIRD with the configuration it has.
pub(crate) fn start_bird(tor: &TorSite, sockets: &Path, dir: &Path) -> Result<()> {
    let config = dir.join(format!("tor-{}.conf", tor.name));
    let mut bird = process::command("bird");
    bird.arg("-f").arg("-c").arg(&config).arg("-s").arg(bird_socket(sockets, &tor.name));
    start(dir, &format!("bird-{}", tor.name), &tor.namespace, &bird).map(drop)
}

fn start_relay(site: &Topology, index: usize, tor: &TorSite, dir: &Path) -> Result<()> {
    let mut relay = process::command("dhcrelay");
    // -a: say by option 82 which link a request came from.
    relay.args(["-4", "-d", "-a", "--no-pid", "-id", BRIDGE]);
    if site.seed.tor == index {
        relay.args(["-iu", TOR_SEED_LINK]);
    }
    for (end, _) in site.cable_ends(index) {
        relay.args(["-iu", &end.interface]);
    }
    relay.arg(site.seed.address.to_string());
    start(dir, &format!("relay-{}", tor.rack), &tor.namespace, &relay)?;
    Ok(())
}

/// Renders a router's BIRD configuration.
pub(crate) fn render_router(
    plan: &Plan,
    site: &Topology,
    index: usize,
    bfd: Bfd,
) -> Result<String> {
    let tor = site.tors.get(index).context("a router of the rig")?;
    let mut intent = TorIntent::new(plan, &tor.rack, BRIDGE)
        .with_context(|| format!("the plan has no rack {}", tor.rack))?;
    intent.address = tor.gateway;
    intent.uplinks = site
        .cable_ends(index)
        .map(|(near, far)| {
            let name = site.tors.get(far.tor).map(|tor| tor.name.clone()).unwrap_or_default();
            Uplink { name, interface: near.interface.clone(), address: far.address, asn: far.asn }
        })
        .collect();
    intent.bfd = bfd;
    if tor.bridge_of.is_none() {
        intent.advertisement = Advertisement::Presence;
    }
    Ok(render_tor(&intent))
}

/// Tells which protocols of a router are not as they should be; empty when all is well.
pub(crate) fn describe_router(tag: &str, tor: &TorSite, routing: &RackRouting) -> Result<String> {
    let mut text = ask_router(tag, &tor.name, "show protocols")?;
    if matches!(routing, RackRouting::Ospf { .. }) {
        text += &ask_router(tag, &tor.name, "show ospf neighbors")?;
    }
    Ok(text)
}

/// Has every router notice silence at another speed; sessions stay up.
pub(crate) fn tune_routers(
    plan: &Plan,
    site: &Topology,
    tag: &str,
    dir: &Path,
    bfd: Bfd,
) -> Result<()> {
    for (index, tor) in site.tors.iter().enumerate() {
        let config = dir.join(format!("tor-{}.conf", tor.name));
        fs::write(&config, render_router(plan, site, index, bfd)?)
            .with_context(|| format!("writing {}", config.display()))?;
        let socket = bird_socket(&socket_dir(tag), &tor.name);
        let socket = socket.to_str().context("a socket's path")?;
        let said = process::run("birdc", &["-s", socket, "configure"])?;
        ensure!(said.contains("Reconfig"), "the router of {} did not take it: {said}", tor.name);
    }
    Ok(())
}

/// Asks a router's BIRD, without a right to change anything.
pub(crate) fn ask_router(tag: &str, name: &str, question: &str) -> Result<String> {
    let socket = bird_socket(&socket_dir(tag), name);
    let socket = socket.to_str().context("a socket's path")?;
    process::run("birdc", &["-r", "-s", socket, question])
}

fn bird_socket(sockets: &Path, rack: &str) -> PathBuf {
    // Racks' names may be long, paths of sockets may not.
    let short: String = rack.chars().take(40).collect();
    sockets.join(format!("{short}.ctl"))
}

/// Removes every namespace and the host's link; goes on over what is gone already.
pub(crate) fn remove(site: &Topology) -> Vec<anyhow::Error> {
    let mut failures = Vec::new();
    let existing = existing_namespaces();
    for namespace in site.namespaces() {
        if !existing.iter().any(|name| name == namespace) {
            continue;
        }
        process::stop_all(&process::in_namespace(namespace));
        failures.extend(process::run("ip", &["netns", "del", namespace]).err());
    }
    // The link goes with the seed's namespace, though not always at once.
    let link = format!("/sys/class/net/{}", site.host.interface);
    if Path::new(&link).exists()
        && let Err(err) = process::run("ip", &["link", "del", &site.host.interface])
        && Path::new(&link).exists()
    {
        failures.push(err);
    }
    failures
}

/// Names of all network namespaces of this host.
pub(crate) fn existing_namespaces() -> Vec<String> {
    let text = process::run("ip", &["netns", "list"]).unwrap_or_default();
    text.lines().filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect()
}

/// Starts a program of the rig and notes its number, unless it runs already.
pub(crate) fn start(
    dir: &Path,
    name: &str,
    namespace: &str,
    command: &std::process::Command,
) -> Result<Process> {
    let note = dir.join("processes").join(format!("{name}.json"));
    if let Some(process) = process::restore::<Process>(&note).ok().flatten()
        && process.is_alive()
    {
        return Ok(process);
    }
    let process =
        process::spawn_detached(Some(namespace), command, Io::log(&log_path(dir, name))?)?;
    process::save(&note, &process)?;
    Ok(process)
}

/// The process of that name, if it runs.
pub(crate) fn running(dir: &Path, name: &str) -> Option<Process> {
    let note = dir.join("processes").join(format!("{name}.json"));
    process::restore::<Process>(&note).ok().flatten().filter(|process| process.is_alive())
}

/// Where a program of the rig logs.
pub(crate) fn log_path(dir: &Path, name: &str) -> PathBuf {
    dir.join("log").join(format!("{name}.log"))
}

fn batch(namespace: Option<&str>, lines: &str) -> Result<()> {
    let mut args = Vec::new();
    if let Some(namespace) = namespace {
        args.extend(["-n", namespace]);
    }
    args.extend(["-batch", "-"]);
    process::run_with_input("ip", &args, lines)
}

fn shell(namespace: &str, script: &str) -> Result<()> {
    process::run_with_input("ip", &["netns", "exec", namespace, "sh", "-eu"], script)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BIRD itself is the judge where it is installed, as it is wherever the rig runs.
    #[test]
    fn bird_accepts_the_routers_of_every_example() {
        for text in [
            include_str!("../../../examples/lab/rack.yaml"),
            include_str!("../../../examples/university/rack.yaml"),
            include_str!("../../../examples/two-tors/rack.yaml"),
            include_str!("../../../examples/two-families/rack.yaml"),
        ] {
            let plan = Plan::parse(text).unwrap();
            let site = Topology::new(&plan, &[], "test-0000").unwrap();
            for index in 0..site.tors.len() {
                let config = render_router(&plan, &site, index, SIM_BFD).unwrap();
                let first = site.tors[index].bridge_of.is_none();
                assert_eq!(config.contains("protocol radv"), first, "{config}");
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("bird.conf");
                fs::write(&path, &config).unwrap();
                let mut bird = process::command("bird");
                bird.arg("-p").arg("-c").arg(&path);
                match bird.output() {
                    Ok(output) => assert!(output.status.success(), "{output:?}\n{config}"),
                    Err(err) => assert_eq!(err.kind(), std::io::ErrorKind::NotFound),
                }
            }
        }
    }
}
