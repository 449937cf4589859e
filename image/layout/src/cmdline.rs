//! The kernel command line: what init and agent learn before they can ask anyone.
//!
//! Three parts: what the kernel itself reads, what belongs to the release (in every UKI), and what
//! belongs to the site (added when a site composes its UKI or a boot script). Words that are not
//! ours are ignored when reading: firmware, loaders and people add some.

use std::fmt;
use std::net::Ipv4Addr;

use thiserror::Error;

use crate::manifest::{Manifest, is_digest};

/// What the kernel is told on every machine.
///
/// `no_timer_check`: emulated machines on a loaded host fail the timer check at random.
/// `lsm=`: those that restrict without a policy being loaded; systemd would load programs for the
/// bpf one at every boot.
/// `panic=5`: a machine that cannot go on starts over, and its console still shows why.
pub const KERNEL_WORDS: &str =
    "console=ttyS0 no_timer_check quiet panic=5 lsm=landlock,lockdown,yama";

/// The identity of a release's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageArguments {
    /// Root hash, lower-case hex.
    pub hash: String,
    /// Salt, lower-case hex.
    pub salt: String,
    /// Number of data blocks.
    pub blocks: u64,
}

/// Where a site's services are, and how the cluster is recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteArguments {
    /// URL of the root image.
    pub root: String,
    /// URL of the API server.
    pub api: String,
    /// Lower-case hex SHA-256 of the cluster CA's certificate (DER).
    pub ca: String,
    /// URL of the boot server.
    pub boot: String,
}

/// A fixed address, for segments without DHCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticAddress {
    /// The machine's address.
    pub address: Ipv4Addr,
    /// Length of the network part, in bits.
    pub prefix_len: u8,
    /// The default router, if there is one.
    pub gateway: Option<Ipv4Addr>,
}

/// What init finds on the command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arguments {
    /// `muster.hash`, `muster.salt` and `muster.blocks`; `None` when all are absent.
    pub image: Option<ImageArguments>,
    /// `muster.root`, `muster.api`, `muster.ca`, `muster.boot`; `None` when all are absent.
    pub site: Option<SiteArguments>,
    /// `muster.probe=bare`: say that init was reached, and power off.
    pub bare_probe: bool,
    /// `muster.ip=ADDRESS/PREFIX[,GATEWAY]`: do not ask DHCP.
    pub address: Option<StaticAddress>,
    /// `muster.name`: the machine's name, when DHCP does not tell it.
    pub name: Option<String>,
    /// `muster.mac`: use this card only.
    pub mac: Option<String>,
}

/// One argument that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("muster.{key} = {found:?} on the kernel command line: {rule}")]
pub struct ArgumentError {
    /// The word after `muster.`.
    pub key: &'static str,
    /// What stands there; empty when it is missing.
    pub found: String,
    /// What should stand there.
    pub rule: &'static str,
}

impl ImageArguments {
    /// Takes the values from a manifest.
    #[must_use]
    pub fn of(manifest: &Manifest) -> Self {
        let Manifest { root_hash, salt, data_blocks, .. } = manifest;
        Self { hash: root_hash.clone(), salt: salt.clone(), blocks: *data_blocks }
    }
}

impl fmt::Display for ImageArguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hash, salt, blocks } = self;
        write!(f, "muster.hash={hash} muster.salt={salt} muster.blocks={blocks}")
    }
}

impl fmt::Display for SiteArguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { root, api, ca, boot } = self;
        write!(f, "muster.root={root} muster.api={api} muster.ca={ca} muster.boot={boot}")
    }
}

/// Renders the command line of a release UKI, which belongs to no site.
#[must_use]
pub fn render_release(image: &ImageArguments) -> String {
    format!("{KERNEL_WORDS} {image}")
}

/// Renders the whole command line of a site's machines.
#[must_use]
pub fn render(image: &ImageArguments, site: &SiteArguments) -> String {
    format!("{KERNEL_WORDS} {image} {site}")
}

impl Arguments {
    /// Parses `/proc/cmdline`; of a repeated word the last one counts, as for the kernel.
    ///
    /// # Errors
    ///
    /// Every unusable argument, so that one look at the console tells all.
    pub fn parse(text: &str) -> Result<Self, Vec<ArgumentError>> {
        let value = |key: &str| {
            text.split_ascii_whitespace()
                .rev()
                .find_map(|word| word.strip_prefix("muster.")?.strip_prefix(key)?.strip_prefix('='))
        };
        let mut reader = Reader { value: &value, problems: Vec::new() };
        let arguments = Self {
            image: reader.image(),
            site: reader.site(),
            bare_probe: value("probe") == Some("bare"),
            address: reader.optional("ip", "ADDRESS/PREFIX[,GATEWAY]", parse_address),
            name: reader.optional("name", "a host name", parse_name),
            mac: reader.optional("mac", "a hardware address", parse_mac),
        };
        if reader.problems.is_empty() { Ok(arguments) } else { Err(reader.problems) }
    }
}

/// Collects problems while fields are read.
struct Reader<'a> {
    value: &'a dyn Fn(&str) -> Option<&'a str>,
    problems: Vec<ArgumentError>,
}

impl Reader<'_> {
    fn image(&mut self) -> Option<ImageArguments> {
        if ["hash", "salt", "blocks"].iter().all(|key| (self.value)(key).is_none()) {
            return None;
        }
        let digest = |text: &str| is_digest(text).then(|| text.to_owned());
        let hash = self.required("hash", "64 lower-case hex digits", digest);
        let salt = self.required("salt", "64 lower-case hex digits", digest);
        let positive = |text: &str| text.parse().ok().filter(|blocks: &u64| *blocks > 0);
        let blocks = self.required("blocks", "a positive number", positive);
        Some(ImageArguments { hash: hash?, salt: salt?, blocks: blocks? })
    }

    fn site(&mut self) -> Option<SiteArguments> {
        if ["root", "api", "ca", "boot"].iter().all(|key| (self.value)(key).is_none()) {
            return None;
        }
        let url = |text: &str| text.starts_with("http").then(|| text.to_owned());
        let root = self.required("root", "an http URL", url);
        let api = self.required("api", "an https URL", url);
        let digest = |text: &str| is_digest(text).then(|| text.to_owned());
        let ca = self.required("ca", "64 lower-case hex digits", digest);
        let boot = self.required("boot", "an http URL", url);
        Some(SiteArguments { root: root?, api: api?, ca: ca?, boot: boot? })
    }

    fn required<T>(
        &mut self,
        key: &'static str,
        rule: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let found = (self.value)(key).unwrap_or_default();
        let value = parse(found);
        if value.is_none() {
            self.problems.push(ArgumentError { key, found: found.to_owned(), rule });
        }
        value
    }

    fn optional<T>(
        &mut self,
        key: &'static str,
        rule: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        (self.value)(key)?;
        self.required(key, rule, parse)
    }
}

fn parse_address(text: &str) -> Option<StaticAddress> {
    let (network, gateway) = match text.split_once(',') {
        Some((network, gateway)) => (network, Some(gateway.parse().ok()?)),
        None => (text, None),
    };
    let (address, prefix) = network.split_once('/')?;
    let prefix_len = prefix.parse().ok().filter(|len| *len <= 32)?;
    Some(StaticAddress { address: address.parse().ok()?, prefix_len, gateway })
}

fn parse_name(text: &str) -> Option<String> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let fits = (1..=253).contains(&text.len()) && text.bytes().all(good);
    fits.then(|| text.to_owned())
}

fn parse_mac(text: &str) -> Option<String> {
    let parts: Vec<&str> = text.split(':').collect();
    let good = |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
    (parts.len() == 6 && parts.iter().all(good)).then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageArguments {
        ImageArguments { hash: "a".repeat(64), salt: "b".repeat(64), blocks: 7 }
    }

    fn site() -> SiteArguments {
        SiteArguments {
            root: "http://10.98.0.1:8080/image/root.img".into(),
            api: "https://10.98.0.1:6443".into(),
            ca: "c".repeat(64),
            boot: "http://10.98.0.1:8080".into(),
        }
    }

    #[test]
    fn what_was_rendered_parses_to_the_same() {
        let read = Arguments::parse(&render(&image(), &site())).unwrap();
        assert_eq!((read.image, read.site), (Some(image()), Some(site())));
        let read = Arguments::parse(&render_release(&image())).unwrap();
        assert_eq!((read.image, read.site), (Some(image()), None));
    }

    #[test]
    fn other_words_are_ignored_and_the_last_of_a_kind_counts() {
        let line = "initrd=initrd ro muster.probe=x muster.probe=bare muster.name=n1 muster.ip=10.0.0.5/24,10.0.0.1";
        let read = Arguments::parse(line).unwrap();
        assert!(read.bare_probe);
        assert_eq!(read.name.as_deref(), Some("n1"));
        let address = read.address.unwrap();
        assert_eq!((address.prefix_len, address.gateway), (24, Some(Ipv4Addr::new(10, 0, 0, 1))));
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let line =
            "muster.hash=zz muster.blocks=0 muster.ip=10.0.0.5 muster.mac=52:54 muster.api=ftp";
        let keys: Vec<_> = Arguments::parse(line).unwrap_err().iter().map(|e| e.key).collect();
        assert_eq!(keys, ["hash", "salt", "blocks", "root", "api", "ca", "boot", "ip", "mac"]);
    }

    #[test]
    fn any_text_is_parsed_or_refused() {
        bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
            drop(Arguments::parse(&String::from_utf8_lossy(bytes)));
        });
    }
}
