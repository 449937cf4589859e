//! What to answer a machine that wakes: DHCP, TFTP, boot scripts, inventory. Sans-IO.
//!
//! Bytes and the time go in; bytes, records to keep, and deadlines come out. The crate opens no
//! socket, reads no clock and writes no file: a fleet of simulated machines drives it as well as
//! `bootserver` does.
//!
//! The way in is [`Site`]: it is made from a checked plan and the records of an earlier run, is
//! fed with packets ([`Site::dhcp`]), requests ([`Site::script`], [`Site::fetched`]) and reports
//! ([`Site::report`]), and says for each what must be kept and what may then be sent. What may
//! be sent comes out only through [`commit`], which writes the records first: a lease that was
//! promised to a machine is always on disk.
//!
//! *Limits*: DHCPv4 only; authoritative or behind relays, not yet as proxy beside another server.

#![forbid(unsafe_code)]

mod time;

mod cause;
pub mod dhcp;
mod identity;
mod lease;
mod machine;
mod record;
mod request;
mod script;
mod site;
pub mod tftp;
mod view;

pub use identity::{Mac, MacError, SmbiosUuid};
pub use machine::{Firmware, Phase, Standing};
pub use record::{Journal, Outcome, Record, Reply, commit, parse_record, render_record};
pub use request::{
    Query, QueryError, Report, ReportError, ReportedPhase, parse_query, parse_report,
};
pub use site::{Arrival, Counters, Fetch, ReportRefused, Settings, Site, SiteError, Verdict};
pub use time::Moment;
pub use view::{Evidence, MachineView, Mark, RivalView, SiteView};
