//! Text to tree.
//!
//! Macros (`has`, `all`, `map`, `cel.bind`, …) are known to the parser, as in the original: they are
//! no functions, for they do not evaluate their arguments where they stand.
//!
//! Spec: the Common Expression Language definition, "Syntax"; the extension macros of cel-go that
//! Kubernetes enables (two-variable comprehensions, `cel.bind`, optional selection).

use thiserror::Error;

use super::{
    lex::{Lexer, Token},
    value::Value,
};

/// Deeper expressions are refused.
const DEPTH_MAX: usize = 64;

/// An expression and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Expr {
    pub(crate) at: usize,
    pub(crate) kind: Kind,
}

/// The kinds of expression.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    Literal(Value),
    Ident(String),
    /// `a.b`; `optional` for `a.?b`.
    Select {
        operand: Box<Expr>,
        field: String,
        optional: bool,
    },
    /// `has(a.b)`.
    Has {
        operand: Box<Expr>,
        field: String,
    },
    /// `a[b]`; `optional` for `a[?b]`.
    Index {
        operand: Box<Expr>,
        index: Box<Expr>,
        optional: bool,
    },
    /// `f(…)` or `a.f(…)`; operators are called by their CEL names.
    Call {
        function: String,
        target: Option<Box<Expr>>,
        args: Vec<Expr>,
    },
    /// `[a, ?b]`.
    List(Vec<(Expr, bool)>),
    /// `{a: b, ?c: d}`.
    Map(Vec<(Expr, Expr, bool)>),
    /// `Object.spec{a: b}`.
    Struct {
        name: String,
        fields: Vec<(String, Expr, bool)>,
    },
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Conditional(Box<Expr>, Box<Expr>, Box<Expr>),
    /// `a.all(x, p)` and its kin.
    Loop(Box<Loop>),
    /// `cel.bind(x, value, result)`.
    Bind {
        name: String,
        value: Box<Expr>,
        result: Box<Expr>,
    },
}

/// A macro over the items of a list or map.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Loop {
    pub(crate) fold: Fold,
    pub(crate) range: Expr,
    pub(crate) var: String,
    /// The second variable of the two-variable forms.
    pub(crate) second: Option<String>,
    pub(crate) filter: Option<Expr>,
    pub(crate) body: Option<Expr>,
}

/// What a macro makes of its items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fold {
    All,
    Exists,
    ExistsOne,
    /// `filter`, `map` and `transformList`.
    List,
    /// `transformMap`.
    Map,
    /// `transformMapEntry`.
    Entries,
    /// `optMap` and `optFlatMap` over what may be absent.
    Optional,
    OptionalFlat,
    /// `sortBy`.
    Sort,
}

/// Why a text is no expression.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
#[error("Syntax error: {why}")]
pub struct ParseError {
    /// The offset in bytes.
    pub at: usize,
    /// What is wrong there.
    pub why: String,
}

/// Parses an expression.
pub(crate) fn parse(text: &str) -> Result<Expr, ParseError> {
    let mut parser = Parser { lexer: Lexer::new(text), token: (0, Token::End), depth: 0 };
    parser.advance()?;
    let expr = parser.expr()?;
    match &parser.token {
        (_, Token::End) => Ok(expr),
        _ => Err(parser.unexpected("<EOF>")),
    }
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    token: (usize, Token),
    depth: usize,
}

impl Parser<'_> {
    fn advance(&mut self) -> Result<(usize, Token), ParseError> {
        let next = self.lexer.next()?;
        Ok(std::mem::replace(&mut self.token, next))
    }

    fn unexpected(&self, wanted: &str) -> ParseError {
        let found = self.token.1.shown();
        ParseError {
            at: self.token.0,
            why: format!("mismatched input '{found}' expecting {wanted}"),
        }
    }

    fn is(&self, mark: &str) -> bool {
        matches!(&self.token.1, Token::Mark(found) if *found == mark)
    }

    fn take(&mut self, mark: &str) -> Result<bool, ParseError> {
        let found = self.is(mark);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn expect(&mut self, mark: &str) -> Result<(), ParseError> {
        if self.take(mark)? { Ok(()) } else { Err(self.unexpected(&format!("'{mark}'"))) }
    }

    fn expr(&mut self) -> Result<Expr, ParseError> {
        self.depth = self.depth.saturating_add(1);
        if self.depth > DEPTH_MAX {
            let why = "expression recursion limit exceeded".to_owned();
            return Err(ParseError { at: self.token.0, why });
        }
        let condition = self.or()?;
        let at = condition.at;
        let made = if self.take("?")? {
            let yes = self.or()?;
            self.expect(":")?;
            let no = self.expr()?;
            let kind = Kind::Conditional(Box::new(condition), Box::new(yes), Box::new(no));
            Expr { at, kind }
        } else {
            condition
        };
        self.depth = self.depth.saturating_sub(1);
        Ok(made)
    }

    fn or(&mut self) -> Result<Expr, ParseError> {
        let mut left = self.and()?;
        while self.is("||") {
            let (at, _) = self.advance()?;
            let right = self.and()?;
            left = Expr { at, kind: Kind::Or(Box::new(left), Box::new(right)) };
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expr, ParseError> {
        let mut left = self.relation()?;
        while self.is("&&") {
            let (at, _) = self.advance()?;
            let right = self.relation()?;
            left = Expr { at, kind: Kind::And(Box::new(left), Box::new(right)) };
        }
        Ok(left)
    }

    fn binary(
        &mut self,
        operators: &[(&str, &str)],
        next: fn(&mut Self) -> Result<Expr, ParseError>,
    ) -> Result<Expr, ParseError> {
        let mut left = next(self)?;
        loop {
            let found = match &self.token.1 {
                Token::Mark(mark) => operators.iter().find(|(text, _)| text == mark),
                Token::Ident(word) if word == "in" => {
                    operators.iter().find(|(text, _)| *text == "in")
                }
                _ => None,
            };
            let Some((_, function)) = found else { return Ok(left) };
            let (at, _) = self.advance()?;
            let right = next(self)?;
            let function = (*function).to_owned();
            let kind = Kind::Call { function, target: None, args: vec![left, right] };
            left = Expr { at, kind };
        }
    }

    fn relation(&mut self) -> Result<Expr, ParseError> {
        let operators = [
            ("<", "_<_"),
            ("<=", "_<=_"),
            (">", "_>_"),
            (">=", "_>=_"),
            ("==", "_==_"),
            ("!=", "_!=_"),
            ("in", "@in"),
        ];
        self.binary(&operators, Self::addition)
    }

    fn addition(&mut self) -> Result<Expr, ParseError> {
        self.binary(&[("+", "_+_"), ("-", "_-_")], Self::multiplication)
    }

    fn multiplication(&mut self) -> Result<Expr, ParseError> {
        self.binary(&[("*", "_*_"), ("/", "_/_"), ("%", "_%_")], Self::unary)
    }

    fn unary(&mut self) -> Result<Expr, ParseError> {
        for (mark, function) in [("!", "!_"), ("-", "-_")] {
            if self.is(mark) {
                let (at, _) = self.advance()?;
                // The smallest number has no positive counterpart.
                if mark == "-"
                    && let (_, Token::Magnitude(size)) = &self.token
                    && let Some(number) = 0_i64.checked_sub_unsigned(*size)
                {
                    self.advance()?;
                    return self.members(Expr { at, kind: Kind::Literal(Value::Int(number)) });
                }
                self.depth = self.depth.saturating_add(1);
                if self.depth > DEPTH_MAX {
                    let why = "expression recursion limit exceeded".to_owned();
                    return Err(ParseError { at, why });
                }
                let inner = self.unary()?;
                self.depth = self.depth.saturating_sub(1);
                let function = function.to_owned();
                return Ok(Expr {
                    at,
                    kind: Kind::Call { function, target: None, args: vec![inner] },
                });
            }
        }
        let primary = self.primary()?;
        self.members(primary)
    }

    fn members(&mut self, mut left: Expr) -> Result<Expr, ParseError> {
        loop {
            if self.is(".") {
                let (at, _) = self.advance()?;
                let optional = self.take("?")?;
                let field = self.name(true)?;
                if !optional && self.is("(") {
                    let args = self.arguments()?;
                    left = self.method(at, left, field, args)?;
                } else {
                    let kind = Kind::Select { operand: Box::new(left), field, optional };
                    left = Expr { at, kind };
                }
            } else if self.is("[") {
                let (at, _) = self.advance()?;
                let optional = self.take("?")?;
                let index = Box::new(self.expr()?);
                self.expect("]")?;
                left = Expr { at, kind: Kind::Index { operand: Box::new(left), index, optional } };
            } else if self.is("{")
                && let Some(name) = dotted(&left)
            {
                let at = left.at;
                let fields = self.fields()?;
                left = Expr { at, kind: Kind::Struct { name, fields } };
            } else {
                return Ok(left);
            }
        }
    }

    fn name(&mut self, member: bool) -> Result<String, ParseError> {
        match self.advance()? {
            (_, Token::Ident(name)) => Ok(name),
            (_, Token::Quoted(name)) if member => Ok(name),
            (at, token) => {
                let why = format!("mismatched input '{}' expecting IDENTIFIER", token.shown());
                Err(ParseError { at, why })
            }
        }
    }

    fn arguments(&mut self) -> Result<Vec<Expr>, ParseError> {
        self.expect("(")?;
        let mut args = Vec::new();
        while !self.is(")") {
            args.push(self.expr()?);
            if !self.take(",")? {
                break;
            }
        }
        self.expect(")")?;
        Ok(args)
    }

    fn fields(&mut self) -> Result<Vec<(String, Expr, bool)>, ParseError> {
        self.expect("{")?;
        let mut fields = Vec::new();
        while !self.is("}") {
            let optional = self.take("?")?;
            let name = self.name(true)?;
            self.expect(":")?;
            fields.push((name, self.expr()?, optional));
            if !self.take(",")? {
                break;
            }
        }
        self.expect("}")?;
        Ok(fields)
    }

    fn primary(&mut self) -> Result<Expr, ParseError> {
        let (at, token) = self.advance()?;
        let literal = |value: Value| Ok(Expr { at, kind: Kind::Literal(value) });
        match token {
            Token::Value(value) => literal(value),
            Token::Magnitude(size) => match i64::try_from(size) {
                Ok(number) => literal(Value::Int(number)),
                Err(_) => Err(ParseError { at, why: "invalid int literal".to_owned() }),
            },
            Token::Ident(word) => match word.as_str() {
                "true" => literal(Value::Bool(true)),
                "false" => literal(Value::Bool(false)),
                "null" => literal(Value::Null),
                "in" => Err(ParseError { at, why: "mismatched input 'in'".to_owned() }),
                _ if self.is("(") => {
                    let args = self.arguments()?;
                    function(at, word, args)
                }
                _ => Ok(Expr { at, kind: Kind::Ident(word) }),
            },
            Token::Mark(".") => {
                let word = self.name(false)?;
                Ok(Expr { at, kind: Kind::Ident(word) })
            }
            Token::Mark("(") => {
                let inner = self.expr()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Mark("[") => {
                let mut items = Vec::new();
                while !self.is("]") {
                    let optional = self.take("?")?;
                    items.push((self.expr()?, optional));
                    if !self.take(",")? {
                        break;
                    }
                }
                self.expect("]")?;
                Ok(Expr { at, kind: Kind::List(items) })
            }
            Token::Mark("{") => {
                let mut entries = Vec::new();
                while !self.is("}") {
                    let optional = self.take("?")?;
                    let key = self.expr()?;
                    self.expect(":")?;
                    entries.push((key, self.expr()?, optional));
                    if !self.take(",")? {
                        break;
                    }
                }
                self.expect("}")?;
                Ok(Expr { at, kind: Kind::Map(entries) })
            }
            other => {
                let why = format!("mismatched input '{}'", other.shown());
                Err(ParseError { at, why })
            }
        }
    }

    /// A call on something: a macro where it is one.
    fn method(
        &mut self,
        at: usize,
        target: Expr,
        name: String,
        args: Vec<Expr>,
    ) -> Result<Expr, ParseError> {
        if name == "bind" && matches!(&target.kind, Kind::Ident(word) if word == "cel") {
            return bind(at, args);
        }
        if let Some(fold) = fold(&name, args.len()) {
            return comprehension(at, fold, &name, target, args);
        }
        // Functions of a namespace (`sets.contains`, `math.greatest`) are called by their full name.
        if let Kind::Ident(space) = &target.kind
            && matches!(
                space.as_str(),
                "sets" | "math" | "ip" | "jsonpatch" | "lists" | "optional" | "base64"
            )
            && !(space == "ip" && name != "isCanonical")
        {
            let function = format!("{space}.{name}");
            return Ok(Expr { at, kind: Kind::Call { function, target: None, args } });
        }
        Ok(Expr { at, kind: Kind::Call { function: name, target: Some(Box::new(target)), args } })
    }
}

/// `a.b.c` as one name.
fn dotted(expr: &Expr) -> Option<String> {
    match &expr.kind {
        Kind::Ident(name) => Some(name.clone()),
        Kind::Select { operand, field, optional: false } => {
            Some(format!("{}.{field}", dotted(operand)?))
        }
        _ => None,
    }
}

fn function(at: usize, name: String, args: Vec<Expr>) -> Result<Expr, ParseError> {
    if name == "has" {
        return match <[Expr; 1]>::try_from(args) {
            Ok([Expr { kind: Kind::Select { operand, field, .. }, .. }]) => {
                Ok(Expr { at, kind: Kind::Has { operand, field } })
            }
            _ => Err(ParseError { at, why: "invalid argument to has() macro".to_owned() }),
        };
    }
    Ok(Expr { at, kind: Kind::Call { function: name, target: None, args } })
}

fn bind(at: usize, args: Vec<Expr>) -> Result<Expr, ParseError> {
    match <[Expr; 3]>::try_from(args) {
        Ok([Expr { kind: Kind::Ident(name), .. }, value, result]) => Ok(Expr {
            at,
            kind: Kind::Bind { name, value: Box::new(value), result: Box::new(result) },
        }),
        _ => Err(ParseError {
            at,
            why: "cel.bind() variable names must be simple identifiers".to_owned(),
        }),
    }
}

fn fold(name: &str, count: usize) -> Option<Fold> {
    Some(match (name, count) {
        ("all", 2 | 3) => Fold::All,
        ("exists", 2 | 3) => Fold::Exists,
        ("exists_one" | "existsOne", 2 | 3) => Fold::ExistsOne,
        ("filter", 2) | ("map", 2 | 3) | ("transformList", 3 | 4) => Fold::List,
        ("transformMap", 3 | 4) => Fold::Map,
        ("transformMapEntry", 3 | 4) => Fold::Entries,
        ("optMap", 2) => Fold::Optional,
        ("optFlatMap", 2) => Fold::OptionalFlat,
        ("sortBy", 2) => Fold::Sort,
        _ => return None,
    })
}

fn comprehension(
    at: usize,
    fold: Fold,
    name: &str,
    range: Expr,
    args: Vec<Expr>,
) -> Result<Expr, ParseError> {
    let count = args.len();
    let mut args = args.into_iter();
    let mut variable = || match args.next() {
        Some(Expr { kind: Kind::Ident(name), .. }) => Ok(name),
        other => {
            let at = other.map_or(at, |one| one.at);
            Err(ParseError { at, why: "argument must be a simple name".to_owned() })
        }
    };
    let var = variable()?;
    let two = name.starts_with("transform") || (count == 3 && name != "map");
    let second = if two { Some(variable()?) } else { None };
    let (first, last) = (args.next(), args.next());
    let (filter, body) = match (name, last) {
        ("filter", _) => (first, None),
        (_, Some(body)) => (first, Some(body)),
        (_, None) => (None, first),
    };
    let made = Loop { fold, range, var, second, filter, body };
    Ok(Expr { at, kind: Kind::Loop(Box::new(made)) })
}
