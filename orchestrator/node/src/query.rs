//! Query strings of the agent's own pages.

/// Splits and decodes a query; what is no encoding stays as it is.
#[must_use]
pub fn parse_pairs(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let split = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key), decode(value))
    };
    pairs.map(split).collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        let escaped = || {
            let (digits, after) = tail.split_at_checked(2).filter(|_| *first == b'%')?;
            let digits = str::from_utf8(digits).ok()?;
            let is_hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
            Some((u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)?, after))
        };
        match escaped() {
            Some((byte, after)) => {
                bytes.push(byte);
                rest = after;
            }
            None if *first == b'+' => bytes.push(b' '),
            None => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_decoded_and_oddities_kept() {
        let check = |query: &str, expected: &[(&str, &str)]| {
            let pairs = parse_pairs(query);
            let got: Vec<_> = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            assert_eq!(got, expected, "{query}");
        };
        check(
            "command=sh&command=-c&command=echo+%22%C3%A9%22",
            &[("command", "sh"), ("command", "-c"), ("command", "echo \"\u{e9}\"")],
        );
        check("&a&b=%zz%4&c=%+1", &[("a", ""), ("b", "%zz%4"), ("c", "% 1")]);
        check("", &[]);
    }

    #[test]
    fn any_text_is_taken() {
        bolero::check!().with_iterations(1_000).for_each(|bytes: &[u8]| {
            drop(parse_pairs(&String::from_utf8_lossy(bytes)));
        });
    }
}
