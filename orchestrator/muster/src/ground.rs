//! Where a site stands: on this very host, or in a simulated rack.
//!
//! The rest of `up` does the same on both grounds.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use cluster::plan::Plan;
use rig::Rig;

use crate::site::Site;

/// The ground a site stands on.
pub(crate) enum Ground {
    /// Real machines; this host is the seed.
    Host {
        /// The seed's address.
        address: Ipv4Addr,
    },
    /// QEMU machines and routers in network namespaces.
    Sim(Box<Rig>),
}

impl Ground {
    /// Prepares the ground; safe to call again.
    pub(crate) fn make(plan: &Plan, site: &Site, simulated: Simulated) -> Result<Self> {
        match simulated {
            Simulated::No => Ok(Self::Host { address: plan.seed.address }),
            Simulated::Yes => {
                let options = rig::RigOptions::new(&site.path("rig"));
                let rig = Rig::build(plan, &options).context("cannot build the simulated rack")?;
                Ok(Self::Sim(Box::new(rig)))
            }
        }
    }

    /// A command that runs on the seed.
    pub(crate) fn seed_command(&self, program: &Path) -> Command {
        match self {
            Self::Host { .. } => Command::new(program),
            Self::Sim(rig) => rig.seed_command(program),
        }
    }

    /// The address by which this process, and the operator's kubectl, reach the seed.
    pub(crate) fn api_address(&self) -> Ipv4Addr {
        match self {
            Self::Host { address } => *address,
            Self::Sim(rig) => rig.host_side_address(),
        }
    }

    /// Powers a machine on, where that is ours to do.
    ///
    /// Returns whether it was; else a person must press the button.
    pub(crate) fn power_on(&self, machine: &str) -> Result<bool> {
        match self {
            Self::Host { .. } => Ok(false),
            Self::Sim(rig) => {
                rig.power_on(machine).with_context(|| format!("cannot power on {machine}"))?;
                Ok(true)
            }
        }
    }
}

/// Whether racks are simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Simulated {
    /// QEMU machines on this host.
    Yes,
    /// Real machines.
    No,
}
