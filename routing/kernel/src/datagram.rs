//! Many datagrams with one system call: half of what a busy name server does is getting in and out
//! of the kernel.
//!
//! Spec: recvmmsg(2), sendmmsg(2); udp(7), UDP_SEGMENT.

use std::io::{self, IoSlice};
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt};
use socket2::{SockAddr, SockAddrStorage};

/// Datagrams at a time, at most.
pub const BATCH: usize = 32;

/// Gives a socket room for datagrams that wait to be read.
///
/// Only root may have more than the kernel's limit for everybody; others get that.
///
/// # Errors
///
/// When the kernel refuses.
pub fn make_room(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    let forced = setsockopt(socket, sockopt::RcvBufForce, &bytes);
    Ok(forced.or_else(|_| setsockopt(socket, sockopt::RcvBuf, &bytes))?)
}

/// Reads what has come, without waiting: one datagram to a buffer. `come` is, in the order of the
/// buffers, how long each is and from whom.
///
/// # Errors
///
/// `WouldBlock` when there is nothing; others may be about datagrams sent earlier.
#[allow(
    clippy::cast_sign_loss,
    clippy::unnecessary_cast,
    trivial_numeric_casts,
    reason = "flags have a sign or none, as the C library likes"
)]
pub fn receive(
    socket: &impl AsFd,
    buffers: &mut [Box<[u8]>],
    come: &mut Vec<(usize, Option<SocketAddr>)>,
) -> io::Result<()> {
    come.clear();
    let mut names: [SockAddrStorage; BATCH] = std::array::from_fn(|_| SockAddrStorage::zeroed());
    // SAFETY: both are plain C structures, for which zeros are null pointers and lengths of 0.
    // JUSTIFICATION: on some targets they have private padding, so they cannot be written out.
    let (mut pieces, mut heads): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
        unsafe { (mem::zeroed(), mem::zeroed()) };
    let places = buffers.iter_mut().zip(&mut names).zip(pieces.iter_mut().zip(&mut heads));
    let mut count: libc::c_uint = 0;
    for ((buffer, name), (piece, head)) in places {
        piece.iov_base = buffer.as_mut_ptr().cast();
        piece.iov_len = buffer.len();
        head.msg_hdr.msg_iov = piece;
        head.msg_hdr.msg_iovlen = 1;
        head.msg_hdr.msg_name = (&raw mut *name).cast();
        head.msg_hdr.msg_namelen = name.size_of();
        count += 1;
    }
    let (fd, flags) = (socket.as_fd().as_raw_fd(), libc::MSG_DONTWAIT);
    // SAFETY: the first `count` heads point to a piece and a name each, and each piece to a buffer
    // of its length; all of them live until after the call, and nothing else refers to them.
    // JUSTIFICATION: no safe wrapper tells how many were sent, and its sister below must.
    let read =
        unsafe { libc::recvmmsg(fd, heads.as_mut_ptr(), count, flags as _, std::ptr::null_mut()) };
    let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
    for (head, name) in heads.iter().zip(names).take(read) {
        // SAFETY: the kernel has written so many bytes of a socket address into the name.
        // JUSTIFICATION: the kernel's addresses have no other form.
        let name = unsafe { SockAddr::new(name, head.msg_hdr.msg_namelen) };
        come.push((usize::try_from(head.msg_len).unwrap_or_default(), name.as_socket()));
    }
    Ok(())
}

/// Sends datagrams in order, without waiting, [`BATCH`] at most; returns how many were sent.
///
/// # Errors
///
/// When the first cannot be sent.
#[allow(
    clippy::cast_sign_loss,
    clippy::unnecessary_cast,
    trivial_numeric_casts,
    reason = "flags have a sign or none, as the C library likes"
)]
pub fn send<'a>(
    socket: &impl AsFd,
    letters: impl Iterator<Item = (&'a [u8], SocketAddr)>,
) -> io::Result<usize> {
    let letters: Vec<(&[u8], SockAddr)> =
        letters.take(BATCH).map(|(bytes, to)| (bytes, SockAddr::from(to))).collect();
    // SAFETY: both are plain C structures, for which zeros are null pointers and lengths of 0.
    // JUSTIFICATION: on some targets they have private padding, so they cannot be written out.
    let (mut pieces, mut heads): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
        unsafe { (mem::zeroed(), mem::zeroed()) };
    let mut count: libc::c_uint = 0;
    for ((bytes, to), (piece, head)) in letters.iter().zip(pieces.iter_mut().zip(&mut heads)) {
        piece.iov_base = bytes.as_ptr().cast_mut().cast();
        piece.iov_len = bytes.len();
        head.msg_hdr.msg_iov = piece;
        head.msg_hdr.msg_iovlen = 1;
        head.msg_hdr.msg_name = to.as_ptr().cast_mut().cast();
        head.msg_hdr.msg_namelen = to.len();
        count += 1;
    }
    let (fd, flags) = (socket.as_fd().as_raw_fd(), libc::MSG_DONTWAIT);
    // SAFETY: the first `count` heads point to a piece and a name each, and each piece to bytes of
    // its length; all of them live until after the call, and the kernel only reads them.
    // JUSTIFICATION: no safe wrapper tells how many were sent.
    let sent = unsafe { libc::sendmmsg(fd, heads.as_mut_ptr(), count, flags as _) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Sends equally long datagrams to one receiver, without waiting, [`BATCH`] at most: the kernel
/// carries them as one until the receiver takes them apart, which costs it a third of the work.
///
/// # Errors
///
/// When the kernel refuses, for want of room or because the way to the receiver cannot do this;
/// then none is sent, and [`send`] may still do.
pub fn send_alike(socket: &impl AsFd, letters: &[&[u8]], to: SocketAddr) -> io::Result<()> {
    let unequal = || io::Error::from(io::ErrorKind::InvalidInput);
    let (first, rest) = letters.split_first().ok_or_else(unequal)?;
    if letters.len() > BATCH || rest.iter().any(|letter| letter.len() != first.len()) {
        return Err(unequal());
    }
    let length = u16::try_from(first.len()).map_err(|_| unequal())?;
    let pieces: Vec<IoSlice<'_>> = letters.iter().map(|letter| IoSlice::new(letter)).collect();
    let how = [ControlMessage::UdpGsoSegments(&length)];
    let (fd, flags) = (socket.as_fd().as_raw_fd(), MsgFlags::MSG_DONTWAIT);
    sendmsg(fd, &pieces, &how, flags, Some(&SockaddrStorage::from(to)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn many_datagrams_are_answered_each_to_its_sender() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(server) = UdpSocket::bind(address) else { continue };
            make_room(&server, 1 << 20).unwrap();
            let target = server.local_addr().unwrap();
            let clients: Vec<_> =
                (0..3 * BATCH + 5).map(|_| UdpSocket::bind(address).unwrap()).collect();
            for (number, client) in clients.iter().enumerate() {
                client.send_to(format!("question {number}").as_bytes(), target).unwrap();
            }
            let mut buffers = vec![vec![0; 64].into_boxed_slice(); BATCH];
            let mut come = Vec::new();
            let mut seen = 0;
            while seen < clients.len() {
                receive(&server, &mut buffers, &mut come).unwrap();
                seen += come.len();
                let letters = || {
                    let both = buffers.iter().zip(&come);
                    both.map(|(buffer, (length, from))| (&buffer[..*length], from.unwrap()))
                };
                assert_eq!(send(&server, letters()).unwrap(), come.len());
            }
            let nothing = receive(&server, &mut buffers, &mut come).unwrap_err();
            assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
            for (number, client) in clients.iter().enumerate() {
                let mut buffer = [0; 64];
                let (length, from) = client.recv_from(&mut buffer).unwrap();
                assert_eq!(from, target);
                assert_eq!(buffer[..length], *format!("question {number}").as_bytes());
            }
        }
    }

    #[test]
    fn datagrams_that_are_alike_come_one_by_one() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(server) = UdpSocket::bind(address) else { continue };
            let client = UdpSocket::bind(address).unwrap();
            let to = client.local_addr().unwrap();
            let letters: Vec<String> = (0..BATCH).map(|number| format!("no {number:02}")).collect();
            let mut letters: Vec<&[u8]> = letters.iter().map(String::as_bytes).collect();
            match send_alike(&server, &letters, to) {
                Ok(()) => (),
                // A kernel before 4.18.
                Err(err) => {
                    assert_ne!(err.kind(), io::ErrorKind::InvalidInput, "{err}");
                    continue;
                }
            }
            for letter in &letters {
                let mut buffer = [0; 64];
                let (length, from) = client.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..length], from), (*letter, server.local_addr().unwrap()));
            }
            letters.push(b"no 99");
            assert!(send_alike(&server, &letters, to).is_err(), "too many");
            assert!(send_alike(&server, &[b"one", b"three"], to).is_err(), "unequal");
            assert!(send_alike(&server, &[], to).is_err(), "none");
        }
    }
}
