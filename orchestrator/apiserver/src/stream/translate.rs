//! Between a client's WebSocket and an agent's SPDY connection.
//!
//! Two conversations are translated: exec and attach, whose channels (stdin, stdout, stderr,
//! errors, terminal sizes) become SPDY streams; and port-forward, whose WebSocket carries
//! SPDY's bytes as they are.
//!
//! Spec: upstream's `v5.channel.k8s.io`: the first byte of a message is its channel; channel 255
//! closes the one named by its next byte.

use std::collections::BTreeSet;
use std::io;

use bytes::{Buf as _, Bytes, BytesMut};
use serde_json::json;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf,
};
use tokio::sync::Mutex;

use super::{spdy, websocket};

/// Channels of the client.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;
/// Bytes read at once from a tunnel.
const PIECE: usize = 32 << 10;
/// The ordinary end of a WebSocket.
const CLOSE_NORMAL: u16 = 1000;

/// Which channels a command has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Channels {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) tty: bool,
}

impl Channels {
    /// The channels with the names of their SPDY streams, in the order upstream opens them.
    fn list(self) -> Vec<(u8, &'static str)> {
        let all = [
            (ERROR, "error", true),
            (STDIN, "stdin", self.stdin),
            (STDOUT, "stdout", self.stdout),
            (STDERR, "stderr", self.stderr && !self.tty),
            (RESIZE, "resize", self.tty),
        ];
        all.into_iter().filter(|(.., is_used)| *is_used).map(|(id, name, _)| (id, name)).collect()
    }
}

/// The SPDY stream of a channel; the opener's ids are odd.
fn stream_of(channel: u8) -> u32 {
    u32::from(channel) * 2 + 1
}

fn channel_of(stream: u32) -> Option<u8> {
    (stream % 2 == 1).then(|| u8::try_from(stream / 2).ok())?
}

/// Carries a command's channels until either side ends.
pub(crate) async fn command<C, A>(client: C, agent: A, channels: Channels) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Send + 'static,
    A: AsyncRead + AsyncWrite + Send + 'static,
{
    let (from_client, to_client) = tokio::io::split(client);
    let (from_agent, to_agent) = tokio::io::split(agent);
    // Both directions write to both sides: bytes here, answers to pings there. Each holds a
    // writer for one frame alone.
    let (to_client, to_agent) = (Mutex::new(to_client), Mutex::new(to_agent));
    let mut writer = spdy::Writer::default();
    let mut streams: Vec<(u8, &str)> = channels.list();
    streams.sort_by_key(|(channel, _)| stream_of(*channel));
    for (channel, name) in &streams {
        send(&to_agent, &writer.render_open(stream_of(*channel), &[("streamtype", name)])).await?;
    }
    // An empty message tells the client that it is connected.
    let first = streams.iter().map(|(channel, _)| *channel).find(|c| matches!(c, 1..=3));
    send(&to_client, &websocket::render_message(&[&[first.unwrap_or(ERROR)]])).await?;
    let outgoing = streams.iter().map(|(channel, _)| *channel).filter(|c| matches!(c, 1..=3));
    let answers = answers(from_agent, &to_agent, &to_client, outgoing.collect());
    let input = input(from_client, &to_client, &to_agent, channels);
    tokio::select! {
        ended = answers => ended,
        ended = input => ended,
    }
}

/// From the agent's streams to the client's channels.
async fn answers<C: AsyncWrite, A: AsyncRead + AsyncWrite>(
    mut from: ReadHalf<A>,
    to_agent: &Mutex<WriteHalf<A>>,
    to_client: &Mutex<WriteHalf<C>>,
    mut open: BTreeSet<u8>,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    let mut told = false;
    let mut alive = true;
    while alive && !open.is_empty() {
        alive = from.read_buf(&mut buffer).await.unwrap_or(0) > 0;
        while let Some(frame) = spdy::decode_frame(&mut buffer).map_err(io::Error::other)? {
            match frame {
                spdy::Frame::Data { stream, last, payload } => {
                    let Some(channel) = channel_of(stream) else { continue };
                    if !payload.is_empty() {
                        told |= channel == ERROR;
                        let message = websocket::render_message(&[&[channel], &payload]);
                        send(to_client, &message).await?;
                    }
                    if last {
                        open.remove(&channel);
                    }
                }
                spdy::Frame::Reset { stream } | spdy::Frame::Reply { stream, last: true } => {
                    channel_of(stream).map(|channel| open.remove(&channel));
                }
                spdy::Frame::Ping { id } if id % 2 == 0 => {
                    send(to_agent, &spdy::render_ping(id)).await?;
                }
                spdy::Frame::Reply { .. } | spdy::Frame::Ping { .. } | spdy::Frame::Other => {}
            }
        }
    }
    if !told {
        let status = json!({
            "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
            "message": "the connection to the container ended before the command did",
        });
        let text = status.to_string();
        send(to_client, &websocket::render_message(&[&[ERROR], text.as_bytes()])).await?;
    }
    send(to_client, &websocket::render_close(CLOSE_NORMAL)).await
}

/// From the client's channels to the agent's streams.
async fn input<C: AsyncRead + AsyncWrite, A: AsyncWrite>(
    from: ReadHalf<C>,
    to_client: &Mutex<WriteHalf<C>>,
    to_agent: &Mutex<WriteHalf<A>>,
    channels: Channels,
) -> io::Result<()> {
    let mut reader = Reader { from, buffer: BytesMut::new() };
    let mut channel = None;
    while let Some((is_first, mut payload)) = reader.next(to_client).await? {
        if is_first {
            if payload.is_empty() {
                continue;
            }
            channel = Some(payload.get_u8());
        }
        match channel {
            Some(STDIN) if channels.stdin => {
                for piece in payload.chunks(spdy::DATA_BYTES_MAX) {
                    send(to_agent, &spdy::render_data(stream_of(STDIN), false, piece)).await?;
                }
            }
            Some(RESIZE) if channels.tty && !payload.is_empty() => {
                send(to_agent, &spdy::render_data(stream_of(RESIZE), false, &payload)).await?;
            }
            Some(CLOSE) if payload.first() == Some(&STDIN) && channels.stdin => {
                send(to_agent, &spdy::render_data(stream_of(STDIN), true, &[])).await?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Carries bytes that a WebSocket's messages hold, until both directions have ended.
pub(crate) async fn tunnel<C, A>(client: C, agent: A) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Send + 'static,
    A: AsyncRead + AsyncWrite + Send + 'static,
{
    let (from_client, to_client) = tokio::io::split(client);
    let (mut from_agent, to_agent) = tokio::io::split(agent);
    let (to_client, to_agent) = (Mutex::new(to_client), Mutex::new(to_agent));
    let down = async {
        let mut piece = vec![0; PIECE];
        loop {
            let count = from_agent.read(&mut piece).await.unwrap_or(0);
            let Some(bytes) = piece.get(..count).filter(|bytes| !bytes.is_empty()) else {
                return send(&to_client, &websocket::render_close(CLOSE_NORMAL)).await;
            };
            send(&to_client, &websocket::render_message(&[bytes])).await?;
        }
    };
    let up = async {
        let mut reader = Reader { from: from_client, buffer: BytesMut::new() };
        while let Some((_, payload)) = reader.next(&to_client).await? {
            send(&to_agent, &payload).await?;
        }
        Ok(())
    };
    tokio::select! {
        ended = down => ended,
        ended = up => ended,
    }
}

/// Reads a client's WebSocket.
struct Reader<C> {
    from: ReadHalf<C>,
    buffer: BytesMut,
}

impl<C: AsyncRead + AsyncWrite> Reader<C> {
    /// The next piece, and whether it begins a message; pings are answered on the way. `None`
    /// at the end.
    async fn next(&mut self, to: &Mutex<WriteHalf<C>>) -> io::Result<Option<(bool, Bytes)>> {
        loop {
            let frame = websocket::decode_frame(&mut self.buffer).map_err(io::Error::other)?;
            let Some(frame) = frame else {
                if self.from.read_buf(&mut self.buffer).await? == 0 {
                    return Ok(None);
                }
                continue;
            };
            match frame.opcode {
                websocket::Opcode::Message => return Ok(Some((true, frame.payload))),
                websocket::Opcode::Continuation => return Ok(Some((false, frame.payload))),
                websocket::Opcode::Ping => {
                    send(to, &websocket::render_pong(&frame.payload)).await?;
                }
                websocket::Opcode::Pong => {}
                websocket::Opcode::Close => {
                    send(to, &websocket::render_close(CLOSE_NORMAL)).await?;
                    return Ok(None);
                }
            }
        }
    }
}

async fn send<W: AsyncWrite>(to: &Mutex<WriteHalf<W>>, bytes: &[u8]) -> io::Result<()> {
    let mut writer = to.lock().await;
    writer.write_all(bytes).await?;
    writer.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    /// A client's frame, masked with zeros.
    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x82, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0];
        bytes.extend(payload);
        bytes
    }

    async fn expect(from: &mut (impl AsyncRead + Unpin), expected: &[u8]) {
        let mut got = vec![0; expected.len()];
        from.read_exact(&mut got).await.unwrap();
        assert_eq!(got, expected);
    }

    #[tokio::test]
    async fn a_command_reads_its_input_to_the_end_and_says_how_it_went() {
        let (mut client, ours) = duplex(1 << 16);
        let (mut agent, theirs) = duplex(1 << 16);
        let channels = Channels { stdin: true, stdout: true, stderr: false, tty: false };
        let talk = async {
            expect(&mut client, &[0x82, 1, STDOUT]).await;
            let mut writer = spdy::Writer::default();
            for (channel, name) in [(STDIN, "stdin"), (STDOUT, "stdout"), (ERROR, "error")] {
                let opened = writer.render_open(stream_of(channel), &[("streamtype", name)]);
                expect(&mut agent, &opened).await;
            }
            // A message may come in pieces, and a ping between two of them.
            let mut first = frame(b"\0he");
            first[0] = 0x02;
            client.write_all(&first).await.unwrap();
            client.write_all(&[0x89, 0x81, 0, 0, 0, 0, b'x']).await.unwrap();
            let mut second = frame(b"llo");
            second[0] = 0x80;
            client.write_all(&second).await.unwrap();
            client.write_all(&frame(&[CLOSE, STDIN])).await.unwrap();
            expect(&mut client, &[0x8a, 1, b'x']).await;
            expect(&mut agent, &spdy::render_data(1, false, b"he")).await;
            expect(&mut agent, &spdy::render_data(1, false, b"llo")).await;
            expect(&mut agent, &spdy::render_data(1, true, b"")).await;
            agent.write_all(&spdy::render_ping(2)).await.unwrap();
            expect(&mut agent, &spdy::render_ping(2)).await;
            agent.write_all(&spdy::render_data(3, true, b"out")).await.unwrap();
            agent.write_all(&spdy::render_data(7, true, b"{}")).await.unwrap();
            expect(&mut client, b"\x82\x04\x01out\x82\x03\x03{}").await;
            expect(&mut client, &[0x88, 2, 3, 0xe8]).await;
        };
        let (done, ()) = tokio::join!(command(ours, theirs, channels), talk);
        done.unwrap();
    }

    #[tokio::test]
    async fn a_command_whose_connection_breaks_is_said_to_have_failed() {
        let (mut client, ours) = duplex(1 << 16);
        let (agent, theirs) = duplex(1 << 16);
        let channels = Channels { stdin: false, stdout: true, stderr: true, tty: false };
        drop(agent);
        let ended = command(ours, theirs, channels).await;
        // The write to the agent may fail first: then the client sees the connection end.
        if ended.is_ok() {
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            assert!(String::from_utf8_lossy(&got).contains("InternalError"));
        }
    }

    #[tokio::test]
    async fn a_tunnel_carries_bytes_both_ways() {
        let (mut client, ours) = duplex(1 << 16);
        let (mut agent, theirs) = duplex(1 << 16);
        let talk = async {
            client.write_all(&frame(b"up")).await.unwrap();
            expect(&mut agent, b"up").await;
            agent.write_all(b"down").await.unwrap();
            expect(&mut client, b"\x82\x04down").await;
            drop(agent);
            expect(&mut client, &[0x88, 2]).await;
        };
        let (done, ()) = tokio::join!(tunnel(ours, theirs), talk);
        done.unwrap();
    }
}
