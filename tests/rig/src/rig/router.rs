//! What befalls a rack's further routers: power cuts, cut cables, cables that drop everything.

use anyhow::{Context, Result, ensure};
use routes::Bfd;

use super::Rig;
use crate::topology::{BRIDGE, socket_dir};
use crate::{network, process};

impl Rig {
    /// Asks a router's BIRD something and gives what it says.
    ///
    /// # Errors
    ///
    /// When there is no such router, or its BIRD does not run.
    pub fn ask_router(&self, name: &str, question: &str) -> Result<String> {
        network::ask_router(&self.state.tag, &self.site.tor(name)?.name, question)
    }

    /// Has every router notice silence as fast as routers of real racks do, or at the pace that
    /// emulated machines can keep.
    ///
    /// # Errors
    ///
    /// When a router does not take its new configuration.
    pub fn set_routers_hasty(&self, hasty: bool) -> Result<()> {
        let bfd = if hasty { Bfd::default() } else { network::SIM_BFD };
        network::tune_routers(&self.state.plan, &self.site, &self.state.tag, &self.dir, bfd)
    }

    /// Takes the power of a router that is not its rack's first: no goodbye, no carrier.
    ///
    /// # Errors
    ///
    /// When there is no such router.
    pub fn power_cut_router(&self, name: &str) -> Result<()> {
        self.kill_daemon(&format!("bird-{name}"));
        self.set_router_links(name, "down")
    }

    /// Gives it its power back.
    ///
    /// # Errors
    ///
    /// When there is no such router, or its BIRD does not start.
    pub fn power_on_router(&self, name: &str) -> Result<()> {
        self.set_router_links(name, "up")?;
        let (tor, sockets) = (self.site.tor(name)?, socket_dir(&self.state.tag));
        network::start_bird(tor, &sockets, &self.dir)
    }

    fn set_router_links(&self, name: &str, state: &str) -> Result<()> {
        let index = self.site.tors.iter().position(|tor| tor.name == name);
        let index = index.with_context(|| format!("there is no router {name}"))?;
        let tor = self.site.tor(name)?;
        ensure!(tor.bridge_of.is_some(), "router {name} is also the switch of its rack");
        let ends = self.site.cable_ends(index).map(|(near, _)| near.interface.as_str());
        for link in ends.chain([BRIDGE]) {
            process::run("ip", &["-n", &tor.namespace, "link", "set", link, state])?;
        }
        Ok(())
    }

    /// Pulls, or plugs in, the cable between a rack's switch and a router that is not its first.
    ///
    /// # Errors
    ///
    /// When there is no such router.
    pub fn set_router_cable(&self, name: &str, state: &str) -> Result<()> {
        let (first, port) = self.port_of_router(name)?;
        process::run("ip", &["-n", &first, "link", "set", &port, state]).map(drop)
    }

    /// Lets that cable drop everything, carrier up, or lets it go on.
    ///
    /// # Errors
    ///
    /// When there is no such router, or nft refuses.
    pub fn silence_router(&self, name: &str, silent: bool) -> Result<()> {
        let (first, port) = self.port_of_router(name)?;
        let own = self.site.tor(name)?.namespace.clone();
        for (namespace, link) in [(first, port.as_str()), (own, BRIDGE)] {
            let script = if silent {
                format!(
                    "add table netdev silence\nadd chain netdev silence everything \
                     {{ type filter hook ingress device {link} priority 0; policy drop; }}\n"
                )
            } else {
                "delete table netdev silence\n".to_owned()
            };
            process::run_with_input(
                "ip",
                &["netns", "exec", &namespace, "nft", "-f", "-"],
                &script,
            )?;
        }
        Ok(())
    }

    /// The namespace of a rack's switch, and the port there of another router.
    fn port_of_router(&self, name: &str) -> Result<(String, String)> {
        let tor = self.site.tor(name)?;
        let first = tor.bridge_of.and_then(|first| self.site.tors.get(first));
        let first = first.with_context(|| format!("router {name} is its rack's first"))?;
        Ok((first.namespace.clone(), network::router_port(tor)))
    }
}
