//! Who is reachable through whom: intent to BIRD configuration, and what BIRD says.
//!
//! Pure: the plan in, text out; BIRD's bytes in, values out. No sockets, no files, no clock.
//! A configuration is always rendered whole: BIRD reloads a thousand peers in milliseconds, so
//! there is nothing to gain from cleverness. What a node or a ToR router may say and believe
//! follows from the plan alone, on both ends of every session.
//!
//! Written for BIRD 2.0.12 to 2.17.

#![forbid(unsafe_code)]

pub mod announce;
pub mod birdc;
pub mod compare;
pub mod export;
pub mod figures;
pub mod intent;
pub mod node;
pub mod second;
pub mod survey;
pub mod tor;

mod key;
mod words;

#[cfg(test)]
mod fixture;

pub use figures::Figures;
pub use intent::{Bfd, Intent, IntentError, Protocol};
pub use key::{Key, KeyError};
pub use node::render_node;
pub use survey::{BirdView, Survey};
pub use tor::{TorIntent, render_tor};
