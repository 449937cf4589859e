//! Is the API server of this very node ready?
//!
//! One task asks `/readyz` at a steady pace while somebody wants to know. A master announces the
//! API's shared address only while the answer is yes.

use std::net::SocketAddrV4;
use std::time::Duration;

use runtime::{Client, ClientConfig};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often the server is asked. Together with [`LIMIT`] it bounds how long a hung server draws
/// clients: three quarters of a second.
const BEAT: Duration = Duration::from_millis(250);
/// A server that takes longer to say that it is ready is not.
const LIMIT: Duration = Duration::from_millis(500);

/// The answers so far: 1 while the server is ready, 0 otherwise.
pub(crate) type Answer = watch::Receiver<u64>;

/// Whom to ask: the server of this node, or nobody while that is not known or not wanted.
pub(crate) type Wanted = watch::Sender<Option<SocketAddrV4>>;

/// Makes both ends of the asking, and the task between them.
pub(crate) fn channels() -> (Wanted, Answer, Asking) {
    let (wanted, whom) = watch::channel(None);
    let (said, answer) = watch::channel(0);
    (wanted, answer, Asking { whom, said })
}

/// The task that asks.
#[derive(Debug)]
pub(crate) struct Asking {
    whom: watch::Receiver<Option<SocketAddrV4>>,
    said: watch::Sender<u64>,
}

impl Asking {
    /// Asks until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken, config: ClientConfig) {
        let ask = async {
            loop {
                let whom = *self.whom.borrow_and_update();
                let Some(whom) = whom else {
                    self.tell(false);
                    // Nobody is left who could want to know.
                    if self.whom.changed().await.is_err() {
                        return;
                    }
                    continue;
                };
                let ready = is_ready(&config, whom).await;
                self.tell(ready);
                tokio::time::sleep(BEAT).await;
            }
        };
        tokio::select! { biased;
            () = stop.cancelled() => (),
            () = ask => (),
        }
    }

    fn tell(&self, ready: bool) {
        let changed = self.said.send_if_modified(|said| {
            let changed = (*said == 1) != ready;
            *said = u64::from(ready);
            changed
        });
        match (changed, ready) {
            (true, true) => info!("the API server of this node is ready"),
            (true, false) => warn!("the API server of this node is not ready any more"),
            (false, _) => (),
        }
    }
}

async fn is_ready(config: &ClientConfig, whom: SocketAddrV4) -> bool {
    let scheme = if config.server.starts_with("http://") { "http" } else { "https" };
    let config = ClientConfig { server: format!("{scheme}://{whom}"), ..config.clone() };
    // A client of its own: a connection that is kept would hide that nobody listens any more.
    let Ok(client) = Client::new(config) else { return false };
    let asked = tokio::time::timeout(LIMIT, client.raw_get("/readyz")).await;
    matches!(asked, Ok(Ok(answer)) if answer.status.is_success())
}
