//! Log output and error reports, set up the same way in every program.

use std::error::Error;
use std::fmt::Write as _;

use tracing_subscriber::EnvFilter;

/// Variable that overrides the level given on the command line, in `tracing` filter syntax.
pub const LEVEL_VARIABLE: &str = "MUSTER_LOG";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Sends log lines of `level` (such as `info` or `info,manager=debug`) and above to stderr.
///
/// A second call changes nothing, so tests and programs may both call it.
pub fn init(level: &str, format: Format) {
    let wanted = std::env::var(LEVEL_VARIABLE).unwrap_or_else(|_| level.to_owned());
    let filter = EnvFilter::try_new(&wanted).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Already set up is not a failure.
    let _already = match format {
        Format::Text => builder.with_ansi(false).try_init(),
        Format::Json => builder.json().try_init(),
    };
}

/// Renders an error and its causes, outermost first, in one line.
///
/// Called once, where the error stops travelling.
pub fn report(err: &dyn Error) -> String {
    let mut line = err.to_string();
    let mut cause = err.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        // Some libraries repeat the cause in their own sentence.
        if !line.ends_with(&text) {
            let _infallible = write!(line, ": {text}");
        }
        cause = inner.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot start")]
    struct Outer(#[source] std::num::ParseIntError);

    #[test]
    fn the_whole_chain_is_one_line() {
        let err = Outer("x".parse::<u8>().unwrap_err());
        assert_eq!(report(&err), "cannot start: invalid digit found in string");
    }
}
