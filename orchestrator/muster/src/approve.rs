//! `muster approve NAME`: a person lets a machine in.

use std::io::Write;

use anyhow::{Context, Result, bail};
use runtime::Client;
use runtime::client::ListParams;
use runtime::resource::CERTIFICATE_SIGNING_REQUESTS as REQUESTS;
use serde_json::{Value, json};

use crate::args::ApproveArgs;
use crate::site::Site;

/// The signer of node certificates.
const SIGNER: &str = "muster.dev/node";

/// Approves the newest waiting request of a machine.
pub(crate) fn run(args: &ApproveArgs) -> Result<()> {
    let client = Site::find(&args.site)?.client()?;
    let request = crate::daemon::block_on(approve(&client, &args.name))?;
    writeln!(std::io::stdout(), "approved {request}")?;
    Ok(())
}

async fn approve(client: &Client, name: &str) -> Result<String> {
    let list = client.list(&REQUESTS, None, &ListParams::default()).await;
    let list = list.context("cannot ask the API for requests; is `muster master` up?")?;
    let waiting: Vec<&Value> = list.items.iter().filter(|item| is_waiting(item)).collect();
    let mine = waiting.iter().filter(|item| belongs_to(item, name));
    let newest = mine.max_by_key(|item| text(item, "/metadata/creationTimestamp"));
    let Some(request) = newest else {
        let names: Vec<&str> = waiting.iter().map(|item| text(item, "/metadata/name")).collect();
        bail!("{name}: no request waits under that name; waiting: [{}]", names.join(", "));
    };
    let mut request = (*request).clone();
    let condition = json!({
        "type": "Approved", "status": "True", "reason": "MusterApprove",
        "message": "approved by a person with `muster approve`",
    });
    if let Some(request) = request.as_object_mut() {
        request.insert("status".to_owned(), json!({ "conditions": [condition] }));
    }
    let id = text(&request, "/metadata/name").to_owned();
    client
        .update_subresource(&REQUESTS, None, &id, "approval", &request)
        .await
        .with_context(|| format!("cannot approve {id}"))?;
    Ok(id)
}

fn text<'a>(item: &'a Value, pointer: &str) -> &'a str {
    item.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn is_waiting(item: &Value) -> bool {
    let decided = item.pointer("/status/conditions").and_then(Value::as_array);
    text(item, "/spec/signerName") == SIGNER && decided.is_none_or(Vec::is_empty)
}

/// Requests are called `node-NAME-HASH`; people may type either form.
fn belongs_to(item: &Value, name: &str) -> bool {
    let id = text(item, "/metadata/name");
    let inner = id.strip_prefix("node-").and_then(|rest| rest.rsplit_once('-'));
    id == name || inner.is_some_and(|(machine, _)| machine == name)
}
