//! `muster routes`: each node's routing, as meant, as BIRD has it, as the kernel does it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use routes::Survey;
use runtime::Client;
use runtime::client::ListParams;
use runtime::resource::NODES;
use serde_json::json;

use crate::args::{Output, RoutesArgs};
use crate::site::Site;

/// What came of asking one node.
struct Answer {
    node: String,
    /// Its survey, or why there is none.
    survey: Result<Survey, String>,
}

/// Prints every node's survey; the exit code tells whether all is well.
pub(crate) fn run(args: &RoutesArgs) -> Result<ExitCode> {
    let answers = match local(args) {
        Some(file) => vec![read(&file)?],
        None => {
            let client = Site::find(&args.site)?.client()?;
            crate::daemon::block_on(ask_all(&client, &args.nodes))?
        }
    };
    let mut out = std::io::stdout();
    match args.output {
        Output::Table => write!(out, "{}", render_table(&answers))?,
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&render_json(&answers))?)?,
    }
    let well = answers.iter().all(|one| one.survey.as_ref().is_ok_and(Survey::is_well));
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The file to read when this is a node that is asked about itself.
fn local(args: &RoutesArgs) -> Option<PathBuf> {
    let own = Path::new(router::SURVEY);
    let on_a_node = args.nodes.is_empty() && args.site.dir.is_none() && own.exists();
    args.local.clone().or_else(|| on_a_node.then(|| own.to_owned()))
}

fn read(file: &Path) -> Result<Answer> {
    let text = std::fs::read_to_string(file).with_context(|| {
        format!("cannot read {}; does `muster agent` run here?", file.display())
    })?;
    let survey: Survey =
        serde_json::from_str(&text).with_context(|| format!("{} is no survey", file.display()))?;
    Ok(Answer { node: survey.node.clone(), survey: Ok(survey) })
}

async fn ask_all(client: &Client, wanted: &[String]) -> Result<Vec<Answer>> {
    let list = client.list(&NODES, None, &ListParams::default()).await;
    let list = list.context("cannot ask the API for nodes; is `muster master` up?")?;
    let name =
        |node: &serde_json::Value| node.pointer("/metadata/name")?.as_str().map(str::to_owned);
    let mut names: Vec<String> = list.items.iter().filter_map(name).collect();
    names.sort();
    if !wanted.is_empty() {
        for one in wanted {
            anyhow::ensure!(
                names.contains(one),
                "no node {one}; the nodes are {}",
                names.join(", ")
            );
        }
        names.retain(|name| wanted.contains(name));
    }
    let mut answers = Vec::new();
    for node in names {
        let survey = ask(client, &node).await;
        answers.push(Answer { node, survey });
    }
    Ok(answers)
}

async fn ask(client: &Client, node: &str) -> Result<Survey, String> {
    let path = format!("/api/v1/nodes/{node}/proxy/muster/routes");
    let answer = client.raw_get(&path).await.map_err(|err| runtime::report(&err))?;
    if !answer.status.is_success() {
        let text = String::from_utf8_lossy(&answer.body);
        return Err(format!("{}: {}", answer.status, text.trim()));
    }
    serde_json::from_slice(&answer.body).map_err(|err| format!("an unreadable answer: {err}"))
}

fn render_table(answers: &[Answer]) -> String {
    let one = |answer: &Answer| match &answer.survey {
        Ok(survey) => survey.render(),
        Err(why) => format!("{}: no answer ({why})\n", answer.node),
    };
    let texts: Vec<String> = answers.iter().map(one).collect();
    let well = answers.iter().filter(|one| one.survey.as_ref().is_ok_and(Survey::is_well)).count();
    format!("{}\n{well} of {} nodes as intended\n", texts.join("\n"), answers.len())
}

fn render_json(answers: &[Answer]) -> serde_json::Value {
    let one = |answer: &Answer| match &answer.survey {
        Ok(survey) => json!({ "node": answer.node, "well": survey.is_well(), "survey": survey }),
        Err(why) => json!({ "node": answer.node, "well": false, "problem": why }),
    };
    json!({ "nodes": answers.iter().map(one).collect::<Vec<_>>() })
}
