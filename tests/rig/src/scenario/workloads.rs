//! What people run on a site: an application of three tiers, an update under load, jobs by the
//! clock, a scaler, probes, limits, and kubectl's hands inside containers.

mod apps;
mod hands;

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::kubectl::Kubectl;
use super::story::Story;
use crate::Rig;
use crate::wait::{Seen, await_until};

/// Containers that start, probes that pass, on emulated machines that have other work.
pub(super) const LIMIT: Duration = Duration::from_secs(300);

/// Tells the story.
pub(super) fn run(story: &mut Story) -> Result<()> {
    story.come_up()?;
    let site = Site::of(story)?;
    apps::three_tiers_keep_a_word(&site)?;
    apps::an_update_under_load_loses_nothing(&site)?;
    apps::old_controllers_scale_and_are_exposed(&site)?;
    hands::probes_decide(&site)?;
    hands::a_config_map_changes_inside_a_pod(&site)?;
    hands::too_much_memory_is_told(&site)?;
    for kubectl in site.story.kubectls() {
        hands::kubectl_reaches_inside(&site, &kubectl)?;
    }
    apps::a_scaler_follows_the_load(&site)?;
    apps::the_clock_starts_a_job(&site)
}

/// A site that is up.
pub(super) struct Site<'a> {
    pub(super) story: &'a Story,
    pub(super) rig: Rig,
    pub(super) kubectl: Kubectl,
}

impl<'a> Site<'a> {
    /// The site of a story.
    pub(super) fn of(story: &'a Story) -> Result<Self> {
        Ok(Self { rig: story.rig()?, kubectl: story.kubectl()?, story })
    }

    /// Applies a manifest.
    pub(super) fn apply(&self, name: &str, text: &str) -> Result<()> {
        let path = self.story.dir().join(format!("{name}.yaml"));
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        self.kubectl.run(&["apply", "-f", path.to_str().context("a path that is no UTF-8")?])?;
        Ok(())
    }

    /// Waits until `look` is content with what kubectl says of an object.
    pub(super) fn await_object(
        &self,
        what: &str,
        args: &[&str],
        good: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        await_until(what, LIMIT, || {
            let object = self.kubectl.json(args)?;
            let status = object.get("status").unwrap_or(&object).to_string();
            Ok(if good(&object) { Seen::There(object) } else { Seen::NotYet(status) })
        })
    }

    /// Where a NodePort service answers on a machine.
    pub(super) fn node_port(&self, service: &str, machine: &str) -> Result<SocketAddrV4> {
        let object = self.kubectl.json(&["get", "service", service])?;
        let port = object.pointer("/spec/ports/0/nodePort").and_then(Value::as_u64);
        let port = port.with_context(|| format!("service {service} has no node port"))?;
        let machine = self.story.plan().machine(machine).context("a machine of the plan")?;
        let address: Ipv4Addr = machine.address;
        Ok(SocketAddrV4::new(address, u16::try_from(port).context("a port")?))
    }

    /// Asks an address from the seed until it answers as it should.
    pub(super) fn await_answer(
        &self,
        server: SocketAddrV4,
        path: &str,
        wanted: &str,
    ) -> Result<()> {
        await_until(&format!("{server}{path} to say {wanted:?}"), LIMIT, || {
            let answer = self.rig.ask(server, path, None)?;
            let body = answer.body.trim();
            let right = answer.status == 200 && body == wanted;
            Ok(if right { Seen::There(()) } else { Seen::NotYet(format!("{answer:?}")) })
        })
    }

    /// Runs a command in a pod's container.
    pub(super) fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        self.kubectl.run(&[&["exec", pod, "--"], command].concat())
    }

    /// Deletes what a story made, and waits until it is gone.
    pub(super) fn delete(&self, what: &[&str]) -> Result<()> {
        let said = self.kubectl.run(&[&["delete", "--timeout=300s"], what].concat())?;
        ensure!(said.contains("deleted"), "kubectl delete {what:?} says {said}");
        Ok(())
    }
}
