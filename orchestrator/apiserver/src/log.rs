//! Logs of containers: asked of the node's agent and passed on as they come.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use objects::Status;

use crate::agent::{self, parameter};
use crate::handle::Call;
use crate::respond::{self, Answer};

/// How long an agent may take to answer.
const AGENT_LIMIT: Duration = Duration::from_secs(10);
/// Parameters passed on to the agent.
const PARAMETERS: [&str; 7] =
    ["follow", "tailLines", "previous", "timestamps", "sinceSeconds", "sinceTime", "limitBytes"];

/// Answers GET of a pod's log.
pub(crate) async fn answer(call: &Call<'_>) -> Result<Answer, Status> {
    let (pod, door) = agent::door_of_pod(call)?;
    let container = agent::container(call, &pod)?;
    let request = Request::get(path(call, &container))
        .header(http::header::HOST, door.address.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(|err| Status::bad_request(err.to_string()))?;
    let answered = agent::ask(call.server, &door, request, AGENT_LIMIT).await?;
    let code = answered.status().as_u16();
    let body = answered.into_body();
    if code != 200 {
        return Err(agent::refused(code, body).await);
    }
    let chunks = futures_util::stream::unfold(body, |mut body| async move {
        loop {
            // An agent that breaks off ends the log; there is no place left to say so.
            let frame = body.frame().await?.ok()?;
            if let Ok(chunk) = frame.into_data() {
                return Some((chunk, body));
            }
        }
    });
    let stop = call.server.stop.clone();
    let chunks = futures_util::StreamExt::take_until(chunks, async move { stop.cancelled().await });
    Ok(respond::stream("text/plain", Box::pin(chunks)))
}

fn path(call: &Call<'_>, container: &str) -> String {
    let request = &call.request;
    let mut path = format!("/containerLogs/{}/{}/{container}", request.namespace, request.name);
    let mut separator = '?';
    for key in PARAMETERS {
        // Values are flags, numbers and times; anything else would change the request's meaning.
        let plain = |value: &&str| {
            value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, ':' | '-' | '.'))
        };
        if let Some(value) = parameter(call, key).filter(plain) {
            path.push(separator);
            path.push_str(key);
            path.push('=');
            path.push_str(value);
            separator = '&';
        }
    }
    path
}
