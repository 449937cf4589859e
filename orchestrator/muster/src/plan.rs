//! `muster plan`: what is wrong with a site's file, or what would be done.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use cluster::plan::Plan;
use cluster::preview;

use crate::args::{Output, PlanArgs};

/// Prints the plan, or every problem of the file.
pub(crate) fn run(args: &PlanArgs) -> Result<ExitCode> {
    let text = read(&args.file)?;
    let mut out = std::io::stdout();
    let plan = match Plan::parse(&text) {
        Ok(plan) => plan,
        Err(problems) if args.output == Output::Json => {
            let answer = serde_json::json!({ "problems": problems });
            writeln!(out, "{}", serde_json::to_string_pretty(&answer)?)?;
            return Ok(ExitCode::FAILURE);
        }
        Err(problems) => bail!(render_problems(&args.file, &problems)),
    };
    match args.output {
        Output::Table => {
            write!(out, "{}", preview::render_table(&plan))?;
            let (file, hash) = (args.file.display(), plan.hash());
            writeln!(out, "\nto do exactly this: muster up {file} --plan {hash}")?;
        }
        Output::Json => write!(out, "{}", preview::render_json(&plan))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads and checks a site's file; the text comes back beside the plan.
pub(crate) fn load(file: &Path) -> Result<(Plan, String)> {
    let text = read(file)?;
    Ok((parse(&text, file)?, text))
}

/// Checks a site's text; `file` is for the error message.
pub(crate) fn parse(text: &str, file: &Path) -> Result<Plan> {
    Plan::parse(text).map_err(|problems| anyhow::anyhow!(render_problems(file, &problems)))
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

fn render_problems(file: &Path, problems: &[cluster::problem::Problem]) -> String {
    let mut text = format!("{}: {} to mend", file.display(), count(problems.len(), "problem"));
    for problem in problems {
        text.push_str(&format!("\n  {problem}"));
    }
    text
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
