//! The Common Expression Language, as rules of definitions and policies are written in it.
//!
//! Text becomes a tree ([`parse`]), the tree is held against what is known of its names
//! ([`check`]), and evaluated against values within a budget ([`eval`]).
//!
//! Our own and not the crate `cel`: that one has neither costs nor a type check, no optional
//! selection, and would bring `chrono` and a second set of time types into a crate that has `jiff`;
//! what it would save is the parser, the smallest part.
//!
//! *Limits*: the type check knows fields and the sorts of values; where a value may be anything it
//! is silent, and so are calls whose result it does not know. Costs are of upstream's order, not
//! upstream's numbers. Time zones are `UTC` and fixed offsets.
//!
//! Spec: the Common Expression Language definition; Kubernetes' "CEL in Kubernetes".

mod authorizer;
mod check;
mod eval;
mod lex;
mod library;
mod parse;
mod value;

use std::{collections::BTreeMap, sync::Arc};

pub use authorizer::{Asked, Authorizer};
pub(crate) use check::{Sort, estimate, path_of};
pub use eval::EvalError;
pub(crate) use eval::{Budget, Variable};
use eval::{Evaluator, Scope};
pub(crate) use parse::Expr;
pub use parse::ParseError;
use thiserror::Error;
pub(crate) use value::{Own, Question, Value};

/// What one evaluation may cost, as upstream limits it.
pub(crate) const COST_PER_CALL: u64 = 1_000_000;
/// What all rules of one request may cost together.
pub(crate) const COST_PER_REQUEST: u64 = 10_000_000;

/// Why a text is no program.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum CompileError {
    /// It is no expression.
    #[error("{}", shown(.0, .1.at, &.1.to_string()))]
    Syntax(String, ParseError),
    /// It speaks of what there is not, or mixes what cannot be mixed.
    #[error("{}", shown(.0, *.1, .2))]
    Check(String, usize, String),
}

/// An error with the line it is in, as upstream's compiler shows it.
fn shown(source: &str, at: usize, why: &str) -> String {
    let before = source.get(..at).unwrap_or(source);
    let line = before.matches('\n').count().saturating_add(1);
    let start = before.rfind('\n').map_or(0, |found| found.saturating_add(1));
    let column = before.len().saturating_sub(start);
    let text = source.get(start..).unwrap_or("").lines().next().unwrap_or("");
    let dots = ".".repeat(column);
    format!("ERROR: <input>:{line}:{}: {why}\n | {text}\n | {dots}^", column.saturating_add(1))
}

/// A parsed and checked expression.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) expr: Arc<Expr>,
}

impl Program {
    /// Parses a text and holds it against the sorts of its names; also what it comes to.
    pub(crate) fn compile<'s>(
        source: &str,
        names: &BTreeMap<String, Sort<'s>>,
    ) -> Result<(Self, Sort<'s>), CompileError> {
        let expr =
            parse::parse(source).map_err(|err| CompileError::Syntax(source.to_owned(), err))?;
        let sort = check::check(&expr, names)
            .map_err(|(at, why)| CompileError::Check(source.to_owned(), at, why))?;
        Ok((Self { expr: Arc::new(expr) }, sort))
    }

    /// Does the expression speak of this name?
    pub(crate) fn names(&self, name: &str) -> bool {
        check::names(&self.expr, name)
    }

    /// Evaluates it with these names.
    pub(crate) fn eval(
        &self,
        names: BTreeMap<String, Variable<'_>>,
        authorizer: Option<&dyn Authorizer>,
        budget: &mut Budget,
    ) -> Result<Value, EvalError> {
        let scope = Scope { names, authorizer };
        Evaluator::new(&scope, budget).eval(&self.expr)
    }
}

#[cfg(test)]
mod tests;
