//! SPDY/3.1 frames as the opener of streams reads and writes them, without sockets.
//!
//! Kubelets and container runtimes speak SPDY for exec and attach. Of the protocol only what
//! they use is here: streams opened by us, data both ways, ends, pings.
//!
//! Header blocks are a zlib stream; ours holds stored blocks only, which need no compressor and
//! no dictionary. Headers in answers say nothing that is needed, so they are not read.
//!
//! Spec: SPDY Protocol, draft 3.1, §2.2 and §2.6. *Limits*: no flow control, as in the
//! runtimes' own implementation; priorities and settings are skipped.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// The version in every control frame.
const VERSION: u16 = 3;
/// The first bytes of a zlib stream without a dictionary.
const ZLIB_HEAD: [u8; 2] = [0x78, 0x01];
/// An empty stored block.
const ZLIB_FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];
/// The end of a stream's sending side.
const FLAG_FIN: u8 = 1;
/// Bytes of a data frame at most; the runtimes' own piece is 32 KiB.
pub(crate) const DATA_BYTES_MAX: usize = 32 << 10;

/// One frame of the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Bytes of a stream, and whether they are its last.
    Data { stream: u32, last: bool, payload: Bytes },
    /// The stream was taken, and whether nothing will come on it.
    Reply { stream: u32, last: bool },
    /// The stream is over.
    Reset { stream: u32 },
    /// To be answered with the same id.
    Ping { id: u32 },
    /// Something that may be skipped.
    Other,
}

/// Bytes that are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("control frame of version {0}")]
    Version(u16),
    #[error("control frame of kind {0} is too short")]
    Short(u16),
}

/// Takes the next whole frame off the front of `buffer`; `None` when more bytes are needed.
pub(crate) fn decode_frame(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let mut head = &buffer[..];
    if head.remaining() < 8 {
        return Ok(None);
    }
    let (word, tail) = (head.get_u32(), head.get_u32());
    let [flags, high, middle, low] = tail.to_be_bytes();
    let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
    let [first, second, third, fourth] = word.to_be_bytes();
    let version = u16::from_be_bytes([first & 0x7f, second]);
    let is_control = first & 0x80 != 0;
    if is_control && version != VERSION {
        return Err(FrameError::Version(version));
    }
    if head.remaining() < length {
        return Ok(None);
    }
    buffer.advance(8);
    let mut payload = buffer.split_to(length).freeze();
    let last = flags & FLAG_FIN != 0;
    if !is_control {
        return Ok(Some(Frame::Data { stream: word, last, payload }));
    }
    let kind = u16::from_be_bytes([third, fourth]);
    let mut id = || {
        if payload.remaining() < 4 {
            return Err(FrameError::Short(kind));
        }
        Ok(payload.get_u32() & 0x7fff_ffff)
    };
    Ok(Some(match kind {
        2 => Frame::Reply { stream: id()?, last },
        3 => Frame::Reset { stream: id()? },
        6 => Frame::Ping { id: id()? },
        _ => Frame::Other,
    }))
}

/// Renders the frames of our side.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    began: bool,
}

impl Writer {
    /// Renders the opening of a stream; ids are odd and rise.
    pub(crate) fn render_open(&mut self, stream: u32, headers: &[(&str, &str)]) -> Bytes {
        let mut block = BytesMut::new();
        put_length(&mut block, headers.len());
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            put_length(&mut block, text.len());
            block.put_slice(text.as_bytes());
        }
        let mut body = BytesMut::new();
        body.put_u32(stream);
        body.put_u32(0);
        body.put_u16(0);
        if !std::mem::replace(&mut self.began, true) {
            body.put_slice(&ZLIB_HEAD);
        }
        for piece in block.chunks(usize::from(u16::MAX)) {
            let length = u16::try_from(piece.len()).unwrap_or(u16::MAX);
            body.put_u8(0);
            body.put_u16_le(length);
            body.put_u16_le(!length);
            body.put_slice(piece);
        }
        // Readers give out what they hold when an empty block comes.
        body.put_slice(&ZLIB_FLUSH);
        control(1, &body)
    }
}

/// Renders bytes of a stream; they must fit a frame, see [`DATA_BYTES_MAX`].
pub(crate) fn render_data(stream: u32, last: bool, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(8 + payload.len());
    out.put_u32(stream & 0x7fff_ffff);
    put_flags(&mut out, if last { FLAG_FIN } else { 0 }, payload.len());
    out.put_slice(payload);
    out.freeze()
}

/// Renders a ping, or the answer to one.
pub(crate) fn render_ping(id: u32) -> Bytes {
    control(6, &id.to_be_bytes())
}

fn control(kind: u16, body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(8 + body.len());
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    put_flags(&mut out, 0, body.len());
    out.put_slice(body);
    out.freeze()
}

fn put_flags(out: &mut BytesMut, flags: u8, length: usize) {
    let length = u32::try_from(length).unwrap_or(u32::MAX) & 0x00ff_ffff;
    out.put_u32(u32::from(flags) << 24 | length);
}

fn put_length(out: &mut BytesMut, length: usize) {
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
        decode_frame(&mut BytesMut::from(bytes))
    }

    #[test]
    fn data_pings_and_ends_are_read() {
        let payload = Bytes::from_static(b"hi");
        let data = Frame::Data { stream: 5, last: true, payload };
        assert_eq!(decode(&render_data(5, true, b"hi")), Ok(Some(data)));
        assert_eq!(decode(&render_ping(2)), Ok(Some(Frame::Ping { id: 2 })));
        let reset = control(3, &[0, 0, 0, 7, 0, 0, 0, 5]);
        assert_eq!(decode(&reset), Ok(Some(Frame::Reset { stream: 7 })));
        let reply = control(2, &[0, 0, 0, 7, 9, 9]);
        assert_eq!(decode(&reply), Ok(Some(Frame::Reply { stream: 7, last: false })));
        assert_eq!(decode(&control(4, &[0; 4])), Ok(Some(Frame::Other)));
    }

    #[test]
    fn parts_wait_and_foreign_bytes_are_refused() {
        let whole = render_data(5, false, b"hello");
        for cut in 0..whole.len() {
            assert_eq!(decode(&whole[..cut]), Ok(None));
        }
        assert_eq!(decode(&[0x80, 2, 0, 1, 0, 0, 0, 0]), Err(FrameError::Version(2)));
        assert_eq!(decode(&control(6, &[1])), Err(FrameError::Short(6)));
    }

    #[test]
    fn headers_are_stored_blocks_of_one_zlib_stream() {
        let mut writer = Writer::default();
        let first = writer.render_open(1, &[("streamtype", "error")]);
        let block = b"\0\0\0\x01\0\0\0\x0astreamtype\0\0\0\x05error";
        let length = u16::try_from(block.len()).unwrap();
        let size = u8::try_from(10 + 2 + 5 + 5 + block.len()).unwrap();
        let mut expected = vec![0x80, 3, 0, 1, 0, 0, 0, size];
        expected.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x78, 0x01, 0]);
        expected.extend(length.to_le_bytes());
        expected.extend((!length).to_le_bytes());
        expected.extend(block);
        expected.extend([0, 0, 0, 0xff, 0xff]);
        assert_eq!(&first[..], &expected[..]);
        let second = writer.render_open(3, &[("streamtype", "error")]);
        assert_eq!(second.len(), first.len() - 2, "the stream's head is written once");
    }

    #[test]
    fn any_bytes_are_taken_or_refused() {
        bolero::check!().with_iterations(2_000).for_each(|bytes: &[u8]| {
            let mut buffer = BytesMut::from(bytes);
            let mut left = buffer.len();
            while let Ok(Some(_)) = decode_frame(&mut buffer) {
                assert!(buffer.len() < left);
                left = buffer.len();
            }
        });
    }
}
