//! The kernel's tables of services: what was planned is put there.
//!
//! Rules, chains and sets are scripts for `nft`; elements go straight over netlink.

use std::net::IpAddr;

use ipnet::IpNet;
use kernel::nft::{
    self, ElementError, Elements, Held, HeldValue, NftError, Parts, Place, Transaction, Value,
};
use node::service::{
    Backend, Change, Data, Element, Family, Frontend, Key, Planner, Set, Site, TABLE, Transport,
    chain_name,
};
use runtime::report;
use thiserror::Error;
use tracing::{info, warn};

/// So many elements are put in where the loop runs; of more, somewhere else: it takes
/// milliseconds.
const INLINE_MAX: usize = 1024;

/// Why the kernel's tables do not say what was planned.
#[derive(Debug, Error)]
pub enum TableError {
    /// A script was not applied.
    #[error("the script was not applied")]
    Script(#[source] NftError),
    /// Elements were not changed.
    #[error("the elements were not changed")]
    Elements(#[source] ElementError),
}

/// The kernel's tables of services, in the network namespace of the thread that first uses this.
#[derive(Debug, Default)]
pub struct Tables {
    elements: Option<Elements>,
}

impl Tables {
    /// Makes the tables hold everything that is planned, whatever they held before.
    ///
    /// Tables of an earlier run go on serving until they hold the new elements, all at once.
    ///
    /// # Errors
    ///
    /// When nft or the kernel refuse; the tables may hold anything then.
    pub async fn load(&mut self, planner: &mut Planner) -> Result<(), TableError> {
        let structure = planner.render_structure();
        if let Err(err) = nft::apply(&structure).await {
            info!(err = report(&err), "tables of another make are replaced");
            let script = planner.render_removal() + &structure;
            nft::apply(&script).await.map_err(TableError::Script)?;
        }
        let mut transaction = Transaction::default();
        for family in Family::BOTH {
            if planner.site().ranges(family).is_some() {
                // Not what is remembered of clients: their slots are what they were.
                for set in Set::ALL.map(Set::name) {
                    transaction.flush(Place { family: of(family), table: TABLE, set });
                }
            }
        }
        for element in planner.elements() {
            put(&mut transaction, &element, Transaction::add);
        }
        let Err(err) = self.commit(transaction).await else { return Ok(()) };
        // Who may not send so much at once may still have nft, which sends it in pieces.
        warn!(err = report(&err), "services are loaded by nft");
        nft::apply(&planner.render_whole()).await.map_err(TableError::Script)
    }

    /// Makes a change. When dropped meanwhile, nobody knows whether it was made.
    ///
    /// # Errors
    ///
    /// When the kernel refuses: it does not hold what was thought, and the whole must be loaded.
    pub async fn change(&mut self, change: &Change) -> Result<(), TableError> {
        if !change.chains.is_empty() {
            nft::apply(&change.chains).await.map_err(TableError::Script)?;
        }
        let mut transaction = Transaction::default();
        for element in &change.removed {
            put(&mut transaction, element, Transaction::remove);
        }
        for element in &change.added {
            put(&mut transaction, element, Transaction::add);
        }
        self.commit(transaction).await
    }

    async fn commit(&mut self, transaction: Transaction) -> Result<(), TableError> {
        let mut elements = self.open()?;
        let outcome = if transaction.len() <= INLINE_MAX {
            elements.commit(transaction)
        } else {
            let work = move || {
                let outcome = elements.commit(transaction);
                (elements, outcome)
            };
            let (back, outcome) = match tokio::task::spawn_blocking(work).await {
                Ok(done) => done,
                Err(err) => match err.try_into_panic() {
                    // A panic there is one here.
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime is ending.
                    Err(_) => return Ok(()),
                },
            };
            elements = back;
            outcome
        };
        outcome.map_err(TableError::Elements)?;
        // A socket that failed is not used again.
        self.elements = Some(elements);
        Ok(())
    }

    /// The slots that the kernel's tables know, from an earlier run; none when there are no
    /// tables. Blocks for about a microsecond per slot.
    pub fn slots(&mut self, site: &Site) -> Vec<(Frontend, u32, Backend)> {
        let Ok(mut elements) = self.open() else { return Vec::new() };
        let mut found = Vec::new();
        for family in Family::BOTH.into_iter().filter(|family| site.ranges(*family).is_some()) {
            for set in [Set::Endpoints, Set::NodePortEndpoints] {
                let place = Place { family: of(family), table: TABLE, set: set.name() };
                // No such table, or one of another make: then nobody remembers anything.
                let held = elements.list(place).unwrap_or_default();
                found.extend(held.iter().filter_map(|held| parse_slot(family, set, held)));
            }
        }
        self.elements = Some(elements);
        found
    }

    /// Whether the tables are there.
    ///
    /// # Errors
    ///
    /// When the kernel does not say.
    pub fn are_there(&mut self, families: &[Family]) -> Result<bool, TableError> {
        let mut elements = self.open()?;
        for family in families {
            if !elements.has_table(of(*family), TABLE).map_err(TableError::Elements)? {
                return Ok(false);
            }
        }
        self.elements = Some(elements);
        Ok(true)
    }

    fn open(&mut self) -> Result<Elements, TableError> {
        self.elements.take().map_or_else(Elements::open, Ok).map_err(TableError::Elements)
    }
}

/// A family in the kernel's words.
pub(crate) fn of(family: Family) -> nft::Family {
    match family {
        Family::V4 => nft::Family::V4,
        Family::V6 => nft::Family::V6,
    }
}

fn put(
    transaction: &mut Transaction,
    element: &Element,
    verb: fn(&mut Transaction, Place<'_>, &nft::Element<'_>),
) {
    let family = of(element.key.family());
    let place = Place { family, table: TABLE, set: element.set.name() };
    let (key, key_end) = key(&element.key);
    let chain;
    let value = match &element.data {
        Data::None => Value::None,
        Data::Drop => Value::Drop,
        Data::Goto(choice) => {
            chain = chain_name(*choice);
            Value::Goto(&chain)
        }
        Data::Backend(Backend { address, port }) => {
            Value::Parts(Parts::new().address(*address).port(*port))
        }
    };
    verb(transaction, place, &nft::Element { key, key_end, value });
}

fn key(key: &Key) -> (Parts, Option<Parts>) {
    match key {
        Key::Frontend(frontend) => (parts(frontend), None),
        Key::Slot(frontend, slot) => (parts(frontend).mark(*slot), None),
        Key::Address(address) => (Parts::new().address(*address), None),
        Key::Twice(address) => (Parts::new().address(*address).address(*address), None),
        Key::Source(frontend, net) => {
            let end = |address| parts(frontend).address(address);
            let (first, last) = match net {
                IpNet::V4(net) => (net.network().into(), net.broadcast().into()),
                IpNet::V6(net) => (net.network().into(), net.broadcast().into()),
            };
            (end(first), Some(end(last)))
        }
    }
}

fn parts(frontend: &Frontend) -> Parts {
    match frontend {
        Frontend::Address(address, transport, port) => {
            Parts::new().address(*address).protocol(transport.number()).port(*port)
        }
        Frontend::NodePort(_, transport, port) => {
            Parts::new().protocol(transport.number()).port(*port)
        }
    }
}

/// Reads an element of one of the maps of endpoints.
fn parse_slot(family: Family, set: Set, held: &Held) -> Option<(Frontend, u32, Backend)> {
    let HeldValue::Parts(value) = &held.value else { return None };
    let (address, rest) = parse_address(family, value.as_bytes())?;
    let backend = Backend { address, port: parse_port(rest)? };
    let key = held.key.as_bytes();
    let (address, rest) = match set {
        Set::Endpoints => {
            parse_address(family, key).map(|(address, rest)| (Some(address), rest))?
        }
        _ => (None, key),
    };
    let number = *rest.first()?;
    let all = [Transport::Tcp, Transport::Udp, Transport::Sctp];
    let transport = all.into_iter().find(|transport| transport.number() == number)?;
    let port = parse_port(rest.get(4..)?)?;
    let slot = u32::from_ne_bytes(*rest.get(8..)?.first_chunk()?);
    let frontend = match address {
        Some(address) => Frontend::Address(address, transport, port),
        None => Frontend::NodePort(family, transport, port),
    };
    Some((frontend, slot, backend))
}

fn parse_address(family: Family, bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    match family {
        Family::V4 => {
            let (octets, rest) = bytes.split_first_chunk::<4>()?;
            Some((IpAddr::from(*octets), rest))
        }
        Family::V6 => {
            let (octets, rest) = bytes.split_first_chunk::<16>()?;
            Some((IpAddr::from(*octets), rest))
        }
    }
}

fn parse_port(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}
