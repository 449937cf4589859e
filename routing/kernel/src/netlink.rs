//! Links, addresses and routes over rtnetlink.
//!
//! One [`Netlink`] is one socket in the network namespace that its thread was in when it was
//! opened; it stays bound to that namespace. Every call is one request that is awaited to its
//! acknowledgement. IPv4 and IPv6 alike. Knows nothing of pods or nodes.
//!
//! Spec: rtnetlink(7).

mod link;
mod request;
mod route;

use futures_util::StreamExt as _;
use rtnetlink::packet_core::{ErrorMessage, NetlinkPayload};
use thiserror::Error;
use tokio::task::JoinSet;

pub(crate) use self::link::{parse_address, parse_link};
pub(crate) use self::request::Request;
pub(crate) use self::route::parse_route;

pub use self::link::{Address, AddressScope, Link, LinkIndex, Veth};
pub use self::route::{Family, NextHop, Route, RouteKind, RouteOrigin};

/// A request to the kernel that failed.
#[derive(Debug, Error)]
#[error("cannot {operation} {subject}")]
pub struct NetlinkError {
    /// What was asked, a verb phrase (`add route`).
    operation: &'static str,
    /// What it was asked for (`10.0.0.0/24`).
    subject: String,
    /// What the kernel said.
    #[source]
    source: Box<Cause>,
}

/// Why a netlink request failed.
#[derive(Debug, Error)]
pub(crate) enum Cause {
    #[error(transparent)]
    Socket(#[from] std::io::Error),
    #[error(transparent)]
    Request(#[from] rtnetlink::Error),
    #[error("no such link")]
    NoLink,
    #[error("the prefix length does not fit the address family")]
    BadPrefix,
}

impl NetlinkError {
    pub(crate) fn new(
        operation: &'static str,
        subject: impl ToString,
        source: impl Into<Cause>,
    ) -> Self {
        Self { operation, subject: subject.to_string(), source: Box::new(source.into()) }
    }

    /// Whether the thing asked for is there already.
    #[must_use]
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// Whether the thing asked for is not there.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(*self.source, Cause::NoLink)
            || matches!(self.errno(), Some(libc::ENOENT | libc::ENODEV | libc::ESRCH))
    }

    /// The kernel's error number, when the kernel answered.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match &*self.source {
            Cause::Request(rtnetlink::Error::NetlinkError(ErrorMessage {
                code: Some(code),
                ..
            })) => Some(code.get().saturating_abs()),
            _ => None,
        }
    }
}

/// An rtnetlink socket and the task that serves it.
///
/// Dropping it closes the socket. Cancel safety: a dropped call may or may not have taken
/// effect, as with any request on the wire; all calls may be repeated.
#[derive(Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    /// Aborted on drop; it holds the socket.
    _connection: JoinSet<()>,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace. Must be called on a tokio
    /// runtime with I/O.
    ///
    /// # Errors
    ///
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|err| NetlinkError::new("open", "rtnetlink socket", err))?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        Ok(Self { handle, _connection: tasks })
    }
    /// Sends a request and awaits its acknowledgement.
    async fn change(&self, request: Request) -> Result<(), NetlinkError> {
        let Request { message, operation, subject } = request;
        let failed = |err: rtnetlink::Error| NetlinkError::new(operation, &subject, err);
        let mut answers = self.handle.clone().request(message).map_err(failed)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(err) = answer.payload {
                return Err(failed(rtnetlink::Error::NetlinkError(err)));
            }
        }
        Ok(())
    }
}
