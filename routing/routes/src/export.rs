//! What the site's other keepers need to know of the plan: the ToR routers' side of every session
//! for BIRD, FRR or a person with any other router, and the racks for Ceph.
//!
//! Pure. What the plan does not say, such as the links between ToR routers, is left to whoever
//! keeps them; the text says where it goes.

mod crush;
mod frr;
mod text;

use cluster::plan::Plan;

use crate::key::Key;
use crate::tor::{TorIntent, render_tor};

pub use crush::{CrushLocation, crush_locations, render_crush};

/// How a ToR router's side is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// BIRD 2's configuration.
    Bird,
    /// FRR's integrated configuration, 8.4 and later.
    Frr,
    /// Words and lists, for any other router.
    Text,
}

/// Renders the routers of the named rack, or of all racks; `None` when there is no such rack.
///
/// `interface` is the router's link to its rack, as the router calls it.
#[must_use]
pub fn render_tors(
    plan: &Plan,
    rack: Option<&str>,
    interface: &str,
    format: Format,
) -> Option<String> {
    let racks = plan.racks.iter().filter(|one| rack.is_none_or(|name| name == one.name));
    let mut texts = Vec::new();
    for rack in racks {
        for mut intent in TorIntent::all(plan, &rack.name, interface) {
            // Keys are secrets: a person puts them in.
            let key = (!rack.authentication.is_none()).then(|| Key::placeholder(&rack.name));
            intent.key = key;
            texts.push(match format {
                Format::Bird => render_tor(&intent),
                Format::Frr => frr::render(&intent),
                Format::Text => text::render(&intent),
            });
        }
    }
    (!texts.is_empty()).then(|| texts.join("\n"))
}

#[cfg(test)]
mod tests;
