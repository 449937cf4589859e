//! WebSocket frames as a server reads and writes them, without sockets.
//!
//! Spec: RFC 6455 §5; no extensions. Messages are not put together here: whoever reads knows
//! what the pieces mean.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

/// The largest frame taken; clients send pieces of some kilobytes.
const PAYLOAD_BYTES_MAX: u64 = 4 << 20;
/// What a handshake's key is hashed with.
const MAGIC: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opcode {
    /// The next piece of a message.
    Continuation,
    /// The first piece of a message.
    Message,
    /// The end.
    Close,
    /// To be answered by a pong with the same bytes.
    Ping,
    /// The answer to a ping.
    Pong,
}

/// One frame, unmasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) opcode: Opcode,
    pub(crate) payload: Bytes,
}

/// Bytes that are no frame of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a client's frame must be masked")]
    Unmasked,
    #[error("frame of unknown kind {0}")]
    Opcode(u8),
    #[error("frame of {0} bytes is too long")]
    Length(u64),
}

/// Takes the next whole frame off the front of `buffer`; `None` when more bytes are needed.
pub(crate) fn decode_frame(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let mut head = &buffer[..];
    if head.remaining() < 2 {
        return Ok(None);
    }
    let (first, second) = (head.get_u8(), head.get_u8());
    let opcode = match first & 0x0f {
        0 => Opcode::Continuation,
        1 | 2 => Opcode::Message,
        8 => Opcode::Close,
        9 => Opcode::Ping,
        10 => Opcode::Pong,
        other => return Err(FrameError::Opcode(other)),
    };
    if second & 0x80 == 0 {
        return Err(FrameError::Unmasked);
    }
    let wide = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    if head.remaining() < wide + 4 {
        return Ok(None);
    }
    let length = match second & 0x7f {
        126 => u64::from(head.get_u16()),
        127 => head.get_u64(),
        short => u64::from(short),
    };
    if length > PAYLOAD_BYTES_MAX {
        return Err(FrameError::Length(length));
    }
    let mask = head.get_u32().to_be_bytes();
    let length = usize::try_from(length).map_err(|_| FrameError::Length(length))?;
    if head.remaining() < length {
        return Ok(None);
    }
    buffer.advance(2 + wide + 4);
    let mut payload = buffer.split_to(length);
    for (byte, key) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
    Ok(Some(Frame { opcode, payload: payload.freeze() }))
}

/// Renders a binary message of several parts as one frame.
pub(crate) fn render_message(parts: &[&[u8]]) -> Bytes {
    render(0x82, parts)
}

/// Renders the answer to a ping.
pub(crate) fn render_pong(payload: &[u8]) -> Bytes {
    render(0x8a, &[payload])
}

/// Renders the end of a conversation.
pub(crate) fn render_close(code: u16) -> Bytes {
    render(0x88, &[&code.to_be_bytes()])
}

fn render(first: u8, parts: &[&[u8]]) -> Bytes {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = BytesMut::with_capacity(length + 10);
    out.put_u8(first);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ 0..=125), _) => out.put_u8(short),
        (_, Ok(medium)) => {
            out.put_u8(126);
            out.put_u16(medium);
        }
        _ => {
            out.put_u8(127);
            out.put_u64(u64::try_from(length).unwrap_or(u64::MAX));
        }
    }
    parts.iter().for_each(|part| out.put_slice(part));
    out.freeze()
}

/// The answer to a handshake's `Sec-WebSocket-Key`.
pub(crate) fn accept_key(key: &str) -> String {
    use base64::Engine as _;
    let sum = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{MAGIC}").as_bytes());
    base64::engine::general_purpose::STANDARD.encode(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(first: u8, payload: &[u8]) -> BytesMut {
        let mut frame = BytesMut::from(&render(first, &[payload])[..]);
        let head = frame.len() - payload.len();
        frame[1] |= 0x80;
        let mask = [1, 2, 3, 4];
        let body = frame.split_off(head);
        frame.put_slice(&mask);
        frame.extend(body.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
        frame
    }

    #[test]
    fn frames_of_every_length_come_back_and_wait_until_they_are_whole() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![7; length];
            let whole = masked(0x82, &payload);
            for cut in [1, 2, 5, whole.len() - 1].into_iter().filter(|cut| *cut < whole.len()) {
                let mut part = BytesMut::from(&whole[..cut]);
                assert_eq!(decode_frame(&mut part), Ok(None));
                assert_eq!(part.len(), cut, "nothing may be taken off a part");
            }
            let mut buffer = whole.clone();
            buffer.put_slice(b"rest");
            let frame = decode_frame(&mut buffer).unwrap().unwrap();
            assert_eq!((frame.opcode, &frame.payload[..]), (Opcode::Message, &payload[..]));
            assert_eq!(&buffer[..], b"rest");
        }
    }

    #[test]
    fn what_no_client_may_send_is_refused() {
        for (bytes, why) in [
            (&[0x82, 0x01][..], FrameError::Unmasked),
            (&[0x83, 0x81], FrameError::Opcode(3)),
            (&[0x82, 0xff, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], FrameError::Length(1 << 56)),
        ] {
            assert_eq!(decode_frame(&mut BytesMut::from(bytes)), Err(why));
        }
    }

    #[test]
    fn the_key_of_the_specification_is_answered_as_it_says() {
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn any_bytes_are_taken_or_refused() {
        bolero::check!().with_iterations(2_000).for_each(|bytes: &[u8]| {
            let mut buffer = BytesMut::from(bytes);
            while let Ok(Some(frame)) = decode_frame(&mut buffer) {
                assert!(frame.payload.len() <= bytes.len());
            }
        });
    }
}
