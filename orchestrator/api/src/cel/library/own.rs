//! Kubernetes' own types: quantities, addresses, networks, URLs, versions, and the authorizer.

use std::{cmp::Ordering, net::IpAddr, sync::Arc};

use objects::Quantity;

use super::{Answer, Budget, Value, failed};
use crate::cel::{
    authorizer::Authorizer,
    value::{Own, Question, Semver, Url},
};

pub(super) fn call(function: &str, target: Option<&Value>, args: &[Value]) -> Answer {
    match (target, args) {
        (None, [Value::String(text)]) => of_text(function, text),
        (None, [Value::Own(own)]) if function == "string" => match &**own {
            Own::Ip(address) => Some(Ok(Value::from(address.to_string()))),
            Own::Cidr(address, bits) => Some(Ok(Value::from(format!("{address}/{bits}")))),
            _ => None,
        },
        (Some(Value::Own(own)), _) => match &**own {
            Own::Quantity(quantity) => of_quantity(function, quantity, args),
            Own::Ip(address) => of_address(function, *address, args),
            Own::Cidr(address, bits) => of_network(function, *address, *bits, args),
            Own::Url(url) => of_url(function, url, args),
            Own::Semver(version) => of_version(function, version, args),
            Own::Question(_) | Own::Decision(..) => None,
        },
        _ => None,
    }
}

fn of_text(function: &str, text: &str) -> Answer {
    let check = |good: bool| Some(Ok(Value::Bool(good)));
    let made = |own: Option<Own>, what: &str| {
        Some(match own {
            Some(own) => Ok(Value::from(own)),
            None => failed(format!("{what} \"{text}\" parse error during conversion from string")),
        })
    };
    match function {
        "quantity" => made(text.parse().ok().map(Own::Quantity), "quantity"),
        "isQuantity" => check(text.parse::<Quantity>().is_ok()),
        "ip" => made(parse_ip(text).map(Own::Ip), "IP Address"),
        "isIP" => check(parse_ip(text).is_some()),
        "ip.isCanonical" => match parse_ip(text) {
            Some(address) => check(address.to_string() == text),
            None => made(None, "IP Address"),
        },
        "cidr" => made(parse_cidr(text).map(|(ip, bits)| Own::Cidr(ip, bits)), "network address"),
        "isCIDR" => check(parse_cidr(text).is_some()),
        "url" => made(parse_url(text).map(Own::Url), "URL"),
        "isURL" => check(parse_url(text).is_some()),
        "semver" => made(parse_semver(text).map(Own::Semver), "semver"),
        // Upstream's name for the escapes of JSON pointers.
        "jsonpatch.escapeKey" => {
            let escaped = text.replace('~', "~0").replace('/', "~1");
            Some(Ok(Value::from(escaped)))
        }
        "isSemver" => check(parse_semver(text).is_some()),
        _ => None,
    }
}

fn parse_ip(text: &str) -> Option<IpAddr> {
    // Upstream refuses IPv4 in IPv6's clothes, since it means two things.
    let mapped = |ip: &IpAddr| matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    text.parse().ok().filter(|ip| !mapped(ip))
}

fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/')?;
    let address = parse_ip(address)?;
    let bits = bits.parse().ok()?;
    (bits <= width(address)).then_some((address, bits))
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address with all but its first bits cleared.
fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let keep = u32::MAX.checked_shl(32_u32.saturating_sub(bits.into())).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & keep).into())
        }
        IpAddr::V6(v6) => {
            let keep = u128::MAX.checked_shl(128_u32.saturating_sub(bits.into())).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & keep).into())
        }
    }
}

fn parse_url(text: &str) -> Option<Url> {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (scheme, rest),
        // A path alone is a URL too, if it is absolute.
        None if text.starts_with('/') => ("", text),
        None => return None,
    };
    let good = |letter: char| letter.is_ascii_alphanumeric() || "+-.".contains(letter);
    if !scheme.chars().all(good) || text.contains(char::is_whitespace) {
        return None;
    }
    let rest = rest.split('#').next().unwrap_or("");
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (host, path) = if scheme.is_empty() {
        ("", rest)
    } else {
        rest.split_at(rest.find('/').unwrap_or(rest.len()))
    };
    let host = host.rsplit('@').next().unwrap_or(host);
    Some(Url {
        scheme: scheme.to_owned(),
        host: host.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
    })
}

fn of_url(function: &str, url: &Url, args: &[Value]) -> Answer {
    if !args.is_empty() {
        return None;
    }
    let (name, port) = match url.host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (name, port),
        _ => (url.host.as_str(), ""),
    };
    Some(Ok(match function {
        "getScheme" => Value::from(url.scheme.as_str()),
        "getHost" => Value::from(url.host.as_str()),
        "getHostname" => Value::from(name.trim_matches(['[', ']'])),
        "getPort" => Value::from(port),
        "getEscapedPath" => Value::from(url.path.as_str()),
        "getQuery" => {
            let mut map = std::collections::BTreeMap::new();
            for pair in url.query.split('&').filter(|pair| !pair.is_empty()) {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                let list: &mut Vec<Value> = map.entry(key.to_owned()).or_default();
                list.push(Value::from(value));
            }
            let entries = map
                .into_iter()
                .filter_map(|(key, list)| Some((Value::from(key).key()?, Value::list(list))));
            Value::Map(Arc::new(entries.collect()))
        }
        _ => return None,
    }))
}

fn of_quantity(function: &str, own: &Quantity, args: &[Value]) -> Answer {
    let other = match args {
        [Value::Own(other)] => match &**other {
            Own::Quantity(other) => Some(*other),
            _ => None,
        },
        [Value::Int(number)] => Some(Quantity::from_whole(*number)),
        _ => None,
    };
    let whole = own.milli_value() % 1000 == 0;
    Some(Ok(match (function, other) {
        ("compareTo", Some(other)) => ordering(own.cmp(&other)),
        ("isGreaterThan", Some(other)) => Value::Bool(*own > other),
        ("isLessThan", Some(other)) => Value::Bool(*own < other),
        ("add", Some(other)) => Value::from(Own::Quantity(own.add(&other))),
        ("sub", Some(other)) => Value::from(Own::Quantity(own.sub(&other))),
        ("sign", None) => Value::Int(if own.is_zero() {
            0
        } else if own.is_negative() {
            -1
        } else {
            1
        }),
        ("isInteger", None) => Value::Bool(whole),
        ("asInteger", None) if whole => Value::Int(own.value()),
        ("asInteger", None) => return Some(failed("cannot convert value to integer")),
        ("asApproximateFloat", None) => {
            let thousandths: f64 = own.milli_value().to_string().parse().unwrap_or(f64::NAN);
            Value::Double(thousandths / 1000.0)
        }
        _ => return None,
    }))
}

fn ordering(order: Ordering) -> Value {
    Value::Int(match order {
        Ordering::Less => -1,
        Ordering::Equal => 0,
        Ordering::Greater => 1,
    })
}

fn of_address(function: &str, own: IpAddr, args: &[Value]) -> Answer {
    if !args.is_empty() {
        return None;
    }
    Some(Ok(match function {
        "family" => Value::Int(if own.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => Value::Bool(own.is_unspecified()),
        "isLoopback" => Value::Bool(own.is_loopback()),
        "isLinkLocalMulticast" => Value::Bool(match own {
            IpAddr::V4(v4) => v4.octets().starts_with(&[224, 0, 0]),
            IpAddr::V6(v6) => v6.segments().first() == Some(&0xff02),
        }),
        "isLinkLocalUnicast" => Value::Bool(match own {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        }),
        "isGlobalUnicast" => Value::Bool(
            !(own.is_unspecified()
                || own.is_loopback()
                || own.is_multicast()
                || matches!(own, IpAddr::V4(v4) if v4.is_link_local() || v4.is_broadcast())
                || matches!(own, IpAddr::V6(v6) if v6.is_unicast_link_local())),
        ),
        _ => return None,
    }))
}

fn of_network(function: &str, own: IpAddr, bits: u8, args: &[Value]) -> Answer {
    let other = match args {
        [Value::String(text)] if function == "containsIP" => {
            Some((parse_ip(text)?, width(parse_ip(text)?)))
        }
        [Value::String(text)] => Some(parse_cidr(text)?),
        [Value::Own(other)] => match &**other {
            Own::Ip(address) => Some((*address, width(*address))),
            Own::Cidr(address, bits) => Some((*address, *bits)),
            _ => None,
        },
        _ => None,
    };
    Some(Ok(match (function, other) {
        ("containsIP" | "containsCIDR", Some((address, length))) => Value::Bool(
            address.is_ipv4() == own.is_ipv4()
                && length >= bits
                && masked(address, bits) == masked(own, bits),
        ),
        ("ip", None) => Value::from(Own::Ip(own)),
        ("masked", None) => Value::from(Own::Cidr(masked(own, bits), bits)),
        ("prefixLength", None) => Value::Int(bits.into()),
        _ => return None,
    }))
}

fn parse_semver(text: &str) -> Option<Semver> {
    let text = text.split('+').next()?;
    let (core, pre) = text.split_once('-').map_or((text, None), |(core, pre)| (core, Some(pre)));
    let number = |text: &str| -> Option<u64> {
        let plain = text.len() == 1 || !text.starts_with('0');
        (plain && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
    };
    let parts: Vec<u64> = core.split('.').map(number).collect::<Option<_>>()?;
    let pre: Vec<String> =
        pre.map(|pre| pre.split('.').map(str::to_owned).collect()).unwrap_or_default();
    if pre.iter().any(String::is_empty) {
        return None;
    }
    Some(Semver { numbers: parts.try_into().ok()?, pre })
}

impl Semver {
    fn order(&self, other: &Self) -> Ordering {
        let pre = match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let key = |text: &String| {
                    text.parse::<u64>().map_or((1, 0, text.clone()), |n| (0, n, String::new()))
                };
                self.pre.iter().map(key).cmp(other.pre.iter().map(key))
            }
        };
        self.numbers.cmp(&other.numbers).then(pre)
    }
}

fn of_version(function: &str, own: &Semver, args: &[Value]) -> Answer {
    let other = match args {
        [Value::Own(other)] => match &**other {
            Own::Semver(other) => Some(other),
            _ => None,
        },
        _ => None,
    };
    let [major, minor, patch] = own.numbers;
    let number = |number: u64| Value::Int(i64::try_from(number).unwrap_or(i64::MAX));
    Some(Ok(match (function, other) {
        ("major", None) => number(major),
        ("minor", None) => number(minor),
        ("patch", None) => number(patch),
        ("compareTo", Some(other)) => ordering(own.order(other)),
        ("isGreaterThan", Some(other)) => Value::Bool(own.order(other).is_gt()),
        ("isLessThan", Some(other)) => Value::Bool(own.order(other).is_lt()),
        _ => return None,
    }))
}

/// Reads Go's durations (`1h15m30.5s`) as nanoseconds.
pub(crate) fn parse_duration(text: &str) -> Option<i128> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut sum: i128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
        let (number, tail) = rest.split_at_checked(end)?;
        let (unit, size) = [
            ("ns", 1),
            ("us", 1_000),
            ("µs", 1_000),
            ("ms", 1_000_000),
            ("s", 1_000_000_000),
            ("m", 60_000_000_000),
            ("h", 3_600_000_000_000_i128),
        ]
        .into_iter()
        .filter(|(unit, _)| tail.starts_with(unit))
        .max_by_key(|(unit, _)| unit.len())?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let mut part = whole.checked_mul(size)?;
        let mut place = size;
        for digit in fraction.chars() {
            place /= 10;
            part = part.checked_add(place.checked_mul(digit.to_digit(10)?.into())?)?;
        }
        sum = sum.checked_add(part)?;
        rest = tail.get(unit.len()..)?;
    }
    sum.checked_mul(sign)
}

/// Questions to the authorizer.
pub(super) fn ask(
    function: &str,
    target: Option<&Value>,
    args: &[Value],
    budget: &mut Budget,
    authorizer: Option<&dyn Authorizer>,
) -> Answer {
    let Some(Value::Own(own)) = target else { return None };
    let question = match &**own {
        Own::Decision(allowed, why) => {
            return Some(Ok(match function {
                "allowed" => Value::Bool(*allowed),
                "reason" => Value::from(why.as_str()),
                "errored" => Value::Bool(false),
                "error" => Value::from(""),
                _ => return None,
            }));
        }
        Own::Question(question) => question,
        _ => return None,
    };
    let mut next: Question = question.clone();
    match (function, args) {
        ("path", [Value::String(path)]) => next.path = Some(path.to_string()),
        ("group", [Value::String(group)]) => next.group = group.to_string(),
        ("resource", [Value::String(resource)]) => next.resource = resource.to_string(),
        ("subresource", [Value::String(part)]) => next.subresource = part.to_string(),
        ("namespace", [Value::String(namespace)]) => next.namespace = namespace.to_string(),
        ("name", [Value::String(name)]) => next.name = name.to_string(),
        ("serviceAccount", [Value::String(namespace), Value::String(name)]) => {
            next.account = Some((namespace.to_string(), name.to_string()));
        }
        ("check", [Value::String(verb)]) => {
            // Upstream prices a look at the authorizer far above everything else.
            if let Err(err) = budget.spend(350_000) {
                return Some(Err(err));
            }
            let Some(authorizer) = authorizer else { return Some(failed("no authorizer here")) };
            let (allowed, why) = authorizer.ask(&question.asked(verb));
            return Some(Ok(Value::from(Own::Decision(allowed, why))));
        }
        _ => return None,
    }
    Some(Ok(Value::from(Own::Question(next))))
}
