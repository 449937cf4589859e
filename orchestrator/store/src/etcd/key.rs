//! Where items lie in etcd: `PREFIX/GROUP/PLURAL/NAME`, so that `etcdctl get --prefix` reads well.
//!
//! A shelf is two words with a slash between; whatever follows is the name. Keys with fewer words
//! are the store's own: `PREFIX/store` says how the rest is to be read.

use bytes::Bytes;

/// The keys of one store.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    prefix: String,
}

impl Keys {
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: format!("/{}/", prefix.trim_matches('/')) }
    }

    /// The first key of the store.
    pub(crate) fn start(&self) -> Bytes {
        Bytes::from(self.prefix.clone())
    }

    /// The first key behind the store: `0` follows `/`.
    pub(crate) fn end(&self) -> Bytes {
        let mut end = self.prefix.clone();
        end.pop();
        end.push('0');
        Bytes::from(end)
    }

    /// Where the store says how it is to be read.
    pub(crate) fn meta(&self) -> Bytes {
        Bytes::from(format!("{}store", self.prefix))
    }

    /// The key of an item; `None` when the shelf is not two words.
    pub(crate) fn render(&self, shelf: &str, name: &str) -> Option<Bytes> {
        let key = Bytes::from(format!("{}{shelf}/{name}", self.prefix));
        (self.parse(&key) == Some((shelf, name))).then_some(key)
    }

    /// Shelf and name of a key; `None` when it is not an item's.
    pub(crate) fn parse<'a>(&self, key: &'a [u8]) -> Option<(&'a str, &'a str)> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(self.prefix.as_str())?;
        let group = rest.find('/')?;
        let plural = group + 1 + rest.get(group + 1..)?.find('/')?;
        let (shelf, name) = (rest.get(..plural)?, rest.get(plural + 1..)?);
        let whole = group > 0 && plural > group + 1 && !name.is_empty();
        whole.then_some((shelf, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_shelf_and_name() {
        let keys = Keys::new("muster");
        let check = |shelf: &str, name: &str, expected: Option<&str>| {
            let key = keys.render(shelf, name);
            assert_eq!(key.as_deref(), expected.map(str::as_bytes), "{shelf} {name}");
            if let Some(key) = key {
                assert_eq!(keys.parse(&key), Some((shelf, name)));
                assert!(keys.start() <= key && key < keys.end());
            }
        };
        check("core/pods", "default/web-1", Some("/muster/core/pods/default/web-1"));
        check("core/nodes", "a", Some("/muster/core/nodes/a"));
        check("apps/deployments", "x/y/z", Some("/muster/apps/deployments/x/y/z"));
        check("core", "a", None);
        check("a/b/c", "d", None);
        check("core/pods", "", None);
        assert_eq!(keys.parse(&keys.meta()), None);
        assert_eq!(keys.parse(b"/other/core/pods/a"), None);
        assert_eq!(keys.parse(b"/muster/\xff/pods/a"), None);
    }
}
