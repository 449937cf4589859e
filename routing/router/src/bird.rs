//! BIRD's control socket.
//!
//! One connection per conversation: BIRD may be restarted by its unit at any time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use routes::BirdView;
use routes::birdc::{
    BirdRoute, Configured, Counts, ProtocolRow, ReadError, Reader, Reply, parse_configured,
    parse_counts, parse_protocols, parse_routes,
};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// BIRD answers in milliseconds; ten times a loaded emulator's worst is generous.
const LIMIT: Duration = Duration::from_secs(10);
/// Pace of waiting for a BIRD that is not there.
const RETRY: Duration = Duration::from_millis(200);
/// More than this unasked is not BIRD's greeting.
const GREETING_BYTES_MAX: u64 = 4096;

/// Why BIRD could not be told or asked something.
#[derive(Debug, Error)]
pub enum BirdError {
    /// No connection: BIRD is not there, or not yet.
    #[error("cannot reach BIRD at {socket}")]
    Connect {
        /// The control socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("lost BIRD during {command:?}")]
    Lost {
        /// What was asked.
        command: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What came is not BIRD's protocol.
    #[error("BIRD's answer to {command:?} makes no sense")]
    Read {
        /// What was asked.
        command: String,
        /// Where it went wrong.
        #[source]
        source: ReadError,
    },
    /// No answer in time.
    #[error("BIRD did not answer {command:?} within {} s", LIMIT.as_secs())]
    Timeout {
        /// What was asked.
        command: String,
    },
    /// The command was refused.
    #[error("BIRD refused {command:?}: {message}")]
    Refused {
        /// What was asked.
        command: String,
        /// BIRD's words.
        message: String,
    },
}

/// A BIRD, by its control socket.
#[derive(Debug, Clone)]
pub struct Bird {
    socket: PathBuf,
}

impl Bird {
    /// The BIRD at this socket; nothing is connected yet.
    #[must_use]
    pub fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Counts up `lives` whenever BIRD is there anew, until `stop`.
    ///
    /// An open connection ends with the BIRD it leads to: so a BIRD that was restarted, and has
    /// forgotten its configuration, is noticed at once and without asking.
    pub async fn follow(self, stop: CancellationToken, lives: watch::Sender<u64>) {
        let follow = async {
            loop {
                if let Ok(mut stream) = UnixStream::connect(&self.socket).await {
                    lives.send_modify(|life| *life = life.wrapping_add(1));
                    let mut rest = Vec::new();
                    // BIRD greets and then says nothing unasked. However it ends, it is over.
                    let _ended =
                        (&mut stream).take(GREETING_BYTES_MAX).read_to_end(&mut rest).await;
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::select! { biased;
            () = stop.cancelled() => (),
            () = follow => (),
        }
    }

    /// Sends one command and returns the reply, whatever it says.
    ///
    /// # Errors
    ///
    /// When BIRD cannot be reached or does not answer.
    pub async fn ask(&self, command: &str) -> Result<Reply, BirdError> {
        match tokio::time::timeout(LIMIT, self.converse(command)).await {
            Ok(reply) => reply,
            Err(_) => Err(BirdError::Timeout { command: command.to_owned() }),
        }
    }

    async fn converse(&self, command: &str) -> Result<Reply, BirdError> {
        let connected = UnixStream::connect(&self.socket).await;
        let mut stream = connected
            .map_err(|source| BirdError::Connect { socket: self.socket.clone(), source })?;
        let mut reader = Reader::default();
        // The greeting, then the reply.
        next_reply(&mut stream, &mut reader, command).await?;
        let line = format!("{command}\n");
        let lost = |source| BirdError::Lost { command: command.to_owned(), source };
        stream.write_all(line.as_bytes()).await.map_err(lost)?;
        next_reply(&mut stream, &mut reader, command).await
    }

    /// Lists the protocols, and how many prefixes each takes and gives.
    ///
    /// # Errors
    ///
    /// As [`Bird::ask`], and when BIRD refuses.
    pub async fn protocols(
        &self,
    ) -> Result<(Vec<ProtocolRow>, BTreeMap<String, Counts>), BirdError> {
        let command = "show protocols all";
        let reply = self.ask(command).await?;
        if reply.is_error() {
            return Err(refused(command, reply.text()));
        }
        Ok((parse_protocols(&reply), parse_counts(&reply)))
    }

    /// Lists the routes that BIRD hands to one of its protocols.
    ///
    /// # Errors
    ///
    /// As [`Bird::ask`], and when BIRD refuses: it has no such protocol, or not yet.
    pub async fn exported(&self, protocol: &str) -> Result<Vec<BirdRoute>, BirdError> {
        let command = format!("show route export {protocol}");
        let reply = self.ask(&command).await?;
        if reply.is_error() {
            return Err(refused(&command, reply.text()));
        }
        Ok(parse_routes(&reply))
    }

    /// Looks at everything that a survey compares.
    ///
    /// # Errors
    ///
    /// As [`Bird::ask`]. A protocol that went meanwhile is no error.
    pub async fn view(&self) -> Result<BirdView, BirdError> {
        let (protocols, counts) = self.protocols().await?;
        let mut view = BirdView { protocols, counts, ..BirdView::default() };
        for row in view.protocols.clone() {
            let exported = match row.kind.as_str() {
                "Kernel" | "BGP" | "OSPF" => self.exported(&row.name).await,
                _ => continue,
            };
            let routes = match exported {
                Ok(routes) => routes,
                Err(BirdError::Refused { .. }) => continue,
                Err(err) => return Err(err),
            };
            if row.kind == "Kernel" {
                view.routes.extend(routes);
            } else {
                let nets = routes.into_iter().map(|route| route.destination).collect();
                view.told.insert(row.name, nets);
            }
        }
        Ok(view)
    }

    /// Has BIRD check a configuration file.
    ///
    /// # Errors
    ///
    /// As [`Bird::ask`], and when the file is wrong; the running configuration stays.
    pub async fn check(&self, file: &Path) -> Result<(), BirdError> {
        let command = format!("configure check \"{}\"", file.display());
        let reply = self.ask(&command).await?;
        match parse_configured(&reply) {
            Configured::Checked => Ok(()),
            Configured::Applied | Configured::Underway | Configured::ShuttingDown => {
                Err(refused(&command, reply.text()))
            }
            Configured::Refused { message } => Err(refused(&command, message)),
        }
    }

    /// Has BIRD take a configuration file into force. Sessions whose definition did not change
    /// stay up.
    ///
    /// # Errors
    ///
    /// As [`Bird::ask`], and when BIRD refuses; the running configuration stays then.
    pub async fn configure(&self, file: &Path) -> Result<(), BirdError> {
        let command = format!("configure \"{}\"", file.display());
        let reply = self.ask(&command).await?;
        match parse_configured(&reply) {
            Configured::Applied | Configured::Underway => Ok(()),
            Configured::Checked | Configured::ShuttingDown => Err(refused(&command, reply.text())),
            Configured::Refused { message } => Err(refused(&command, message)),
        }
    }
}

fn refused(command: &str, message: String) -> BirdError {
    BirdError::Refused { command: command.to_owned(), message }
}

async fn next_reply(
    stream: &mut UnixStream,
    reader: &mut Reader,
    command: &str,
) -> Result<Reply, BirdError> {
    let mut buffer = [0_u8; 4096];
    loop {
        let lost = |source| BirdError::Lost { command: command.to_owned(), source };
        let count = stream.read(&mut buffer).await.map_err(lost)?;
        if count == 0 {
            return Err(lost(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let bytes = buffer.get(..count).unwrap_or_default();
        let bad = |source| BirdError::Read { command: command.to_owned(), source };
        // One command is under way, so at most one reply comes.
        if let Some(reply) = reader.read(bytes).map_err(bad)?.into_iter().next() {
            return Ok(reply);
        }
    }
}
