//! The shape of every kind: one table that decoding, patches, apply and OpenAPI walk.
//!
//! The table is text, one line per field, committed under `schema/`: `kubernetes.txt` is distilled
//! from upstream's definitions by [`distil`] (`cargo run -p api --example schema`), `muster.txt` is
//! written by hand. A type begins with `= NAME`, a field reads `name[!] type attribute…`:
//!
//! ```text
//! = io.k8s.api.core.v1.ServiceSpec
//! ports [@io.k8s.api.core.v1.ServicePort map=port,protocol merge=port
//! selector {string atomic
//! ```
//!
//! `!` = required, `@` = another type, `[` = list of, `{` = map to; `set`, `map=KEYS` and `atomic`
//! are upstream's list and map types; `merge[=KEY]`, `retainKeys` and `replace` its patch strategies.
//!
//! What follows ` -- ` describes the type or field for `kubectl explain`; what is
//! told of upstream's is `descriptions.txt`, which `words` reads.

mod distil;
mod words;

use std::{collections::BTreeMap, sync::LazyLock};

pub use distil::{DistilError, distil};
use objects::kind;
pub(crate) use words::about;

/// Upstream's shapes.
const KUBERNETES: &str = include_str!("../schema/kubernetes.txt");
/// Our own.
const MUSTER: &str = include_str!("../schema/muster.txt");

/// What stands before a description.
const ABOUT: &str = " -- ";

/// The built-in table.
static BUILTIN: LazyLock<Schema> = LazyLock::new(|| Schema::parse(&[KUBERNETES, MUSTER]));

/// All types.
#[derive(Debug, Default)]
pub(crate) struct Schema {
    types: Vec<Type>,
    /// `Group/version/Kind` to type.
    roots: BTreeMap<(String, String, String), TypeId>,
    /// Is what it does not know taken apart by server-side apply all the same? So it is with
    /// custom kinds.
    is_open: bool,
}

/// A type's place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TypeId(usize);

impl TypeId {
    /// The type at a place of the table.
    pub(crate) fn new(at: usize) -> Self {
        Self(at)
    }

    /// The place in the table.
    pub(crate) fn index(self) -> usize {
        self.0
    }
}

/// An object with known fields.
#[derive(Debug, Clone)]
pub(crate) struct Type {
    /// Upstream's name of the definition.
    pub(crate) name: &'static str,
    /// Is it one value to server-side apply?
    pub(crate) atomic: bool,
    /// What it is, in a sentence; empty when nobody says.
    pub(crate) about: &'static str,
    /// Group, version and kind when it is a whole object; several when older versions of the same
    /// shape are served too.
    pub(crate) gvks: Vec<(&'static str, &'static str, &'static str)>,
    /// Its fields by name, sorted.
    pub(crate) fields: Vec<Field>,
}

/// One field of a type.
#[derive(Debug, Clone)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    /// What it says, in a sentence; empty when nobody tells.
    pub(crate) about: &'static str,
    pub(crate) required: bool,
    pub(crate) node: Node,
    pub(crate) list: ListKind,
    /// Is the object or map one value to server-side apply?
    pub(crate) atomic: bool,
    pub(crate) strategy: Strategy,
}

/// What may stand somewhere.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    /// One value.
    Scalar(Scalar),
    /// An object of this type.
    Object(TypeId),
    /// A list.
    List(Box<Node>),
    /// A map from text.
    Map(Box<Node>),
    /// Anything.
    Any,
}

/// The kinds of single values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scalar {
    String,
    Byte,
    Boolean,
    Int32,
    Int64,
    Integer,
    Number,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
}

/// How items of a list are told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListKind {
    /// Not at all: the list is one value.
    Atomic,
    /// By value.
    Set,
    /// By these fields.
    Map(Vec<&'static str>),
}

/// What a strategic merge patch does with a field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Strategy {
    /// Lists are merged by this key; `Some("")` = by value.
    pub(crate) merge_key: Option<&'static str>,
    /// `$retainKeys` may be used.
    pub(crate) retain_keys: bool,
    /// The field is replaced as a whole.
    pub(crate) replace: bool,
}

/// The built-in table.
pub(crate) fn builtin() -> &'static Schema {
    &BUILTIN
}

impl Schema {
    /// A table without types, of which what it does not know is taken apart all the same.
    pub(crate) fn open() -> Self {
        Self { is_open: true, ..Self::default() }
    }

    /// Is what the table does not know taken apart by server-side apply?
    pub(crate) fn is_open(&self) -> bool {
        self.is_open
    }

    /// The type of a whole object.
    pub(crate) fn root(&self, group: &str, version: &str, kind: &str) -> Option<&Type> {
        let key = (group.to_owned(), version.to_owned(), kind.to_owned());
        self.get(*self.roots.get(&key)?)
    }

    /// The type of objects of this `apiVersion` and kind.
    pub(crate) fn root_of(&self, api_version: &str, name: &str) -> Option<&Type> {
        let (group, version) = kind::split_api_version(api_version);
        self.root(group, version, name)
    }

    /// A type by its place.
    pub(crate) fn get(&self, id: TypeId) -> Option<&Type> {
        self.types.get(id.0)
    }

    /// Adds a type.
    pub(crate) fn add(&mut self, one: Type) -> TypeId {
        let id = self.next();
        self.types.push(one);
        id
    }

    /// A type by its place, to be completed.
    pub(crate) fn get_mut(&mut self, id: TypeId) -> Option<&mut Type> {
        self.types.get_mut(id.0)
    }

    /// The place the next added type gets.
    fn next(&self) -> TypeId {
        TypeId(self.types.len())
    }

    /// The place of a type by its name.
    pub(crate) fn named(&self, name: &str) -> Option<TypeId> {
        self.types.iter().position(|one| one.name == name).map(TypeId)
    }

    /// All types, in the order of the table.
    pub(crate) fn types(&self) -> &[Type] {
        &self.types
    }

    /// Reads the table. Lines that cannot be read are left out; a test holds that there are none.
    fn parse(texts: &[&'static str]) -> Self {
        let mut ids = BTreeMap::new();
        for line in texts.iter().flat_map(|text| text.lines()) {
            if let Some(name) = line.strip_prefix("= ").and_then(|rest| rest.split(' ').next()) {
                let next = TypeId(ids.len());
                ids.entry(name).or_insert(next);
            }
        }
        let mut schema = Self::default();
        for line in texts.iter().flat_map(|text| text.lines()) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(head) = line.strip_prefix("= ") {
                schema.start_type(head);
            } else if let Some(field) = parse_field(line, &ids)
                && let Some(last) = schema.types.last_mut()
            {
                last.fields.push(field);
            }
        }
        for one in &mut schema.types {
            one.fields.sort_by_key(|field| field.name);
        }
        schema
    }

    fn start_type(&mut self, head: &'static str) {
        let (head, about) = head.split_once(ABOUT).unwrap_or((head, ""));
        let mut words = head.split(' ');
        let name = words.next().unwrap_or("");
        let mut made = Type { name, atomic: false, about, gvks: Vec::new(), fields: Vec::new() };
        for word in words {
            if word == "atomic" {
                made.atomic = true;
            } else if let Some((group, rest)) = word.split_once('/')
                && let Some((version, kind)) = rest.split_once('/')
            {
                made.gvks.push((group, version, kind));
                let key = (group.to_owned(), version.to_owned(), kind.to_owned());
                self.roots.insert(key, TypeId(self.types.len()));
            }
        }
        self.types.push(made);
    }
}

impl Type {
    /// A type without a name and without fields.
    pub(crate) fn blank() -> Self {
        Self { name: "", atomic: false, about: "", gvks: Vec::new(), fields: Vec::new() }
    }

    /// A field by name.
    pub(crate) fn field(&self, name: &str) -> Option<&Field> {
        let at = self.fields.binary_search_by_key(&name, |field| field.name).ok()?;
        self.fields.get(at)
    }
}

fn parse_field(line: &'static str, ids: &BTreeMap<&str, TypeId>) -> Option<Field> {
    let (line, about) = line.split_once(ABOUT).unwrap_or((line, ""));
    let mut words = line.split(' ');
    let name = words.next()?;
    let (name, required) = match name.strip_suffix('!') {
        Some(name) => (name, true),
        None => (name, false),
    };
    let node = parse_node(words.next()?, ids)?;
    let mut field = Field {
        name,
        about,
        required,
        node,
        list: ListKind::Atomic,
        atomic: false,
        strategy: Strategy::default(),
    };
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("set", _) => field.list = ListKind::Set,
            ("map", keys) => field.list = ListKind::Map(keys.split(',').collect()),
            ("atomic", _) => field.atomic = true,
            ("merge", key) => field.strategy.merge_key = Some(key),
            ("retainKeys", _) => field.strategy.retain_keys = true,
            ("replace", _) => field.strategy.replace = true,
            _ => return None,
        }
    }
    Some(field)
}

fn parse_node(word: &str, ids: &BTreeMap<&str, TypeId>) -> Option<Node> {
    if let Some(rest) = word.strip_prefix('[') {
        return Some(Node::List(Box::new(parse_node(rest, ids)?)));
    }
    if let Some(rest) = word.strip_prefix('{') {
        return Some(Node::Map(Box::new(parse_node(rest, ids)?)));
    }
    if let Some(name) = word.strip_prefix('@') {
        return ids.get(name).copied().map(Node::Object);
    }
    if word == "any" {
        return Some(Node::Any);
    }
    Scalar::ALL.iter().find(|(name, _)| *name == word).map(|(_, scalar)| Node::Scalar(*scalar))
}

impl Scalar {
    /// The words of the table.
    const ALL: &'static [(&'static str, Self)] = &[
        ("string", Self::String),
        ("byte", Self::Byte),
        ("boolean", Self::Boolean),
        ("int32", Self::Int32),
        ("int64", Self::Int64),
        ("integer", Self::Integer),
        ("number", Self::Number),
        ("time", Self::Time),
        ("microtime", Self::MicroTime),
        ("quantity", Self::Quantity),
        ("int-or-string", Self::IntOrString),
    ];
}

#[cfg(test)]
mod tests {
    use objects::kind::KINDS;

    use super::*;

    #[test]
    fn every_line_of_the_table_is_read() {
        let fields = |text: &str| {
            text.lines().filter(|l| !l.is_empty() && !l.starts_with(['#', '='])).count()
        };
        let read: usize = builtin().types().iter().map(|one| one.fields.len()).sum();
        assert_eq!(read, fields(KUBERNETES) + fields(MUSTER));
    }

    #[test]
    fn every_kind_has_a_shape_in_every_version() {
        for kind in KINDS {
            assert!(builtin().root(kind.group, kind.version, kind.kind).is_some(), "{kind:?}");
            for alias in kind.aliases {
                assert!(
                    builtin().root(alias.group, alias.version, kind.kind).is_some(),
                    "{alias:?}"
                );
            }
        }
    }

    #[test]
    fn merge_keys_and_list_keys_may_differ() {
        let spec = builtin().types().iter().find(|t| t.name == "io.k8s.api.core.v1.ServiceSpec");
        let ports = spec.unwrap().field("ports").unwrap();
        assert_eq!(ports.list, ListKind::Map(vec!["port", "protocol"]));
        assert_eq!(ports.strategy.merge_key, Some("port"));
    }
}
