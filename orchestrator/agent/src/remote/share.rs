//! Shares of the network, mounted for each pod: NFS exports and Ceph file systems.
//!
//! A server that is silent must cost a pod its volume and never its end: an NFS server is asked
//! whether it is there before anything is mounted, mounts have a limit, and what is unmounted
//! while its server is silent is given up. What a container then had not written is lost, as it
//! would be with the node.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use kernel::disk::{Mounted, is_mounted, mounts};
use kernel::keyring::Key;
use kernel::rbd::{self, RbdError};
use kernel::share::{ShareError, abandon, is_alone, mount_within, unmount_share};
use runtime::report;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::warn;
use volumes::remote::{CephFs, Nfs};
use volumes::share::{
    is_answer, is_other_version, nfs_port, null_call, plan_cephfs, plan_nfs, servers_of,
};

use super::address::{own_address, resolve, resolve_all};
use super::{Job, RemoteError};
use crate::Shared;
use crate::disk::{blocking, pod_dir};

/// How long a server may take to answer a call that asks for nothing.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long a mount may take with a server that is there.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);
/// How long a container may take to end after it was killed, unless something holds it.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// The number of our only call on a connection.
const CALL: u32 = 1;
/// The bytes of an answer that tell what it is.
const ANSWER_HEAD_BYTES: usize = 12;

pub(super) async fn set_up_nfs(job: Job, share: &Nfs) -> Result<(), RemoteError> {
    if is_mounted(&job.place) {
        return Ok(());
    }
    let server = resolve(&share.server, 0).await?.ip();
    if let Some(port) = nfs_port(&job.options()) {
        let server = SocketAddr::new(server, port);
        ask(server).await.map_err(|why| RemoteError::Silent {
            name: job.remote.name.clone(),
            share: format!("{}:{}", share.server, share.path),
            server,
            why,
        })?;
    }
    let share = share.clone();
    blocking(move || {
        let own = own_address(server)
            .map_err(|source| RemoteError::Address { host: share.server.clone(), source })?;
        let options = job.options();
        let mut outcome = Ok(());
        for attempt in plan_nfs(server, own, &share.path, &options) {
            outcome = mount_within(&attempt, &job.place, &options, MOUNT_LIMIT);
            match &outcome {
                Err(err) if err.errno().is_some_and(is_other_version) => {}
                _ => break,
            }
        }
        outcome.map_err(failed(&job))
    })
    .await
}

pub(super) async fn set_up_cephfs(
    job: Job,
    share: &CephFs,
    secret: Option<Vec<u8>>,
) -> Result<(), RemoteError> {
    if is_mounted(&job.place) {
        return Ok(());
    }
    let monitors = resolve_all(&share.monitors).await?;
    let share = share.clone();
    blocking(move || {
        let name = job.remote.name.clone();
        rbd::load("ceph").map_err(|source| RemoteError::Rbd { name: name.clone(), source })?;
        let key_name = format!("client.{}.cephfs.{name}", share.user);
        let options = job.options();
        let named = secret.as_ref().map(|_| key_name.as_str());
        let attempt = plan_cephfs(&monitors, &share.path, &share.user, named, &options);
        let add = |secret: &Vec<u8>| Key::add("ceph", &key_name, secret);
        let key = secret.as_ref().map(add).transpose().map_err(|source| {
            let source = RbdError::Key { user: share.user.clone(), source };
            RemoteError::Rbd { name: name.clone(), source }
        })?;
        // The key is this process's own and a child does not see it; the kernel's own limit for
        // these mounts makes one needless. It stands in the keyring until the mount is done.
        let done = kernel::share::mount_here(&attempt, &job.place, &options);
        drop(key);
        done.map_err(failed(&job))
    })
    .await
}

fn failed(job: &Job) -> impl Fn(ShareError) -> RemoteError {
    let name = job.remote.name.clone();
    move |source| RemoteError::Share { name: name.clone(), source }
}

/// Takes a share away; what waits for a silent server is given up.
pub(super) async fn take_away(mount: Mounted) -> Result<(), RemoteError> {
    let answers = answers(&mount).await;
    if !answers {
        warn!(share = mount.source, target = %mount.target.display(), "unmounted without its server");
    }
    let name = mount.target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let done = blocking(move || unmount_share(&mount, answers)).await;
    done.map_err(|source| RemoteError::Share { name, source })
}

/// Waits until a container of a pod has ended, at first as long as it was given; then what it may
/// wait for is given up.
pub(crate) async fn end_within<T>(
    (shared, uid): (&Shared, &str),
    grace: Duration,
    end: impl Future<Output = T>,
) -> T {
    tokio::pin!(end);
    tokio::select! { biased;
        done = &mut end => return done,
        () = tokio::time::sleep(grace + KILL_LIMIT) => {}
    }
    let_go(shared, uid).await;
    end.await
}

/// Lets a pod's containers end that wait for a silent server: they cannot be killed before.
///
/// Shares that other pods of the node use too are left alone, for those wait for good reason.
async fn let_go(shared: &Shared, uid: &str) {
    let all = mounts();
    for mount in below(&all, &pod_dir(shared, uid)) {
        if is_alone(mount, &all) && !answers(mount).await {
            warn!(share = mount.source, uid, "given up: its server is silent and the pod must end");
            let mount = mount.clone();
            blocking(move || abandon(&mount)).await;
        }
    }
}

/// Fails where a path is in a share whose server is silent: looking at it would take for ever.
pub(super) async fn check(path: &Path) -> Result<(), RemoteError> {
    let all = mounts();
    let above = all.iter().rev().find(|mount| path.starts_with(&mount.target));
    let Some(mount) = above.filter(|mount| is_share(mount)) else { return Ok(()) };
    for server in servers_of(&mount.kind, &mount.source, &mount.options) {
        if let (true, Err(why)) = (mount.kind.starts_with("nfs"), ask(server).await) {
            let name = mount.target.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Err(RemoteError::Silent { name, share: mount.source.clone(), server, why });
        }
    }
    Ok(())
}

/// Tells whether a mount has a server behind it.
pub(super) fn is_share(mount: &Mounted) -> bool {
    matches!(&*mount.kind, "nfs" | "nfs4" | "ceph")
}

fn below<'a>(all: &'a [Mounted], dir: &'a Path) -> impl Iterator<Item = &'a Mounted> {
    all.iter().filter(move |mount| is_share(mount) && mount.target.starts_with(dir))
}

/// Tells whether a server behind a mount answers; one that cannot be asked is believed to.
async fn answers(mount: &Mounted) -> bool {
    let servers = servers_of(&mount.kind, &mount.source, &mount.options);
    if servers.is_empty() {
        return true;
    }
    for server in servers {
        let asked = match &*mount.kind {
            "ceph" => match tokio::time::timeout(ANSWER_LIMIT, TcpStream::connect(server)).await {
                Ok(done) => done.map(drop).map_err(|err| report(&err)),
                Err(_) => Err("no connection".to_owned()),
            },
            _ => ask(server).await,
        };
        match asked {
            Ok(()) => return true,
            Err(why) => warn!(%server, why, "a server of a share is silent"),
        }
    }
    false
}

/// Asks an NFS server for an answer; the error says what came instead.
async fn ask(server: SocketAddr) -> Result<(), String> {
    ask_within(server, ANSWER_LIMIT).await
}

async fn ask_within(server: SocketAddr, limit: Duration) -> Result<(), String> {
    let exchange = async {
        let mut stream = TcpStream::connect(server).await.map_err(|err| report(&err))?;
        let mut head = [0; ANSWER_HEAD_BYTES];
        let said = async {
            stream.write_all(&null_call(CALL)).await?;
            stream.read_exact(&mut head).await
        };
        said.await.map_err(|err| report(&err))?;
        if is_answer(&head, CALL) { Ok(()) } else { Err("it speaks no NFS".to_owned()) }
    };
    let silent = |_| Err(format!("no answer within {limit:?}"));
    tokio::time::timeout(limit, exchange).await.unwrap_or_else(silent)
}

/// The mounts below a pod's directory, the deepest first.
pub(super) fn deepest_first(dir: &Path) -> Vec<Mounted> {
    let mut below: Vec<Mounted> =
        mounts().into_iter().filter(|mount| mount.target.starts_with(dir)).collect();
    below.sort_by(|a, b| b.target.cmp(&a.target));
    below
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// Answers one connection with `bytes` and keeps it open until it has been read.
    async fn server(bytes: &'static [u8]) -> (SocketAddr, tokio::task::JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut call = [0; 44];
            stream.read_exact(&mut call).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let mut rest = Vec::new();
            drop(stream.read_to_end(&mut rest).await);
        });
        (address, tasks)
    }

    #[tokio::test]
    async fn a_server_is_there_when_it_answers() {
        let (address, _tasks) = server(&[0x80, 0, 0, 24, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]).await;
        assert_eq!(ask(address).await, Ok(()));
        let (address, _tasks) = server(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        assert_eq!(ask(address).await, Err("it speaks no NFS".to_owned()));
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_told_with_its_cause() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // It takes connections, as a stopped server's kernel does, and says nothing.
        let silent = ask_within(address, Duration::from_millis(50)).await;
        assert_eq!(silent, Err("no answer within 50ms".to_owned()));
        drop(listener);
        let why = ask(address).await.unwrap_err();
        assert!(why.contains("Connection refused"), "{why}");
    }
}
