//! Unified kernel images: one PE file of stub, kernel, initramfs and command line.
//!
//! Sections are appended to systemd's stub; nothing that is there moves. Signing is done
//! afterwards, by others, over the whole.
//!
//! Spec: UAPI.5 Unified Kernel Image; Microsoft PE format (optional header, section table).

use thiserror::Error;

/// Read-only initialised data.
const CHARACTERISTICS: u32 = 0x4000_0040;
const PE_OFFSET_AT: usize = 0x3c;
const COFF_BYTES: usize = 24;
const SECTION_HEADER_BYTES: usize = 40;
const SECTION_NAME_BYTES: usize = 8;

/// Says why an image could not be composed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum UkiError {
    /// The stub is no PE file, or ends too early.
    #[error("the stub is no PE image at offset {offset}")]
    Stub {
        /// Where reading failed.
        offset: usize,
    },
    /// No room is left between section table and first section.
    #[error("the stub has room for {room} more sections, not {wanted}")]
    Room {
        /// Free places.
        room: usize,
        /// Sections to be added.
        wanted: usize,
    },
    /// The image would pass 4 GiB, which its fields cannot say.
    #[error("the image would be larger than 4 GiB")]
    TooLarge,
}

/// What goes into an image, besides the stub.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// Content of `.osrel`; its `VERSION_ID` is what boot loaders sort by.
    pub os_release: &'a str,
    /// The kernel command line.
    pub command_line: &'a str,
    /// The kernel.
    pub kernel: &'a [u8],
    /// The initramfs.
    pub initrd: &'a [u8],
}

/// Renders the `.osrel` text of a release.
#[must_use]
pub fn render_os_release(version: &str) -> String {
    format!("ID=muster\nNAME=Muster\nPRETTY_NAME=\"Muster {version}\"\nVERSION_ID={version}\n")
}

/// Composes an unsigned image; the same parts give the same bytes.
///
/// # Errors
///
/// When the stub cannot take the sections.
pub fn compose(stub: &[u8], parts: &Parts<'_>) -> Result<Vec<u8>, UkiError> {
    // The stub reads the command line up to a NUL.
    let command_line = [parts.command_line.as_bytes(), &[0]].concat();
    let sections: [(&str, &[u8]); 4] = [
        (".osrel", parts.os_release.as_bytes()),
        (".cmdline", &command_line),
        (".linux", parts.kernel),
        (".initrd", parts.initrd),
    ];
    let head = Head::read(stub)?;
    let table_end = head.table + SECTION_HEADER_BYTES * head.count;
    let room = head.first_data.saturating_sub(table_end) / SECTION_HEADER_BYTES;
    if room < sections.len() {
        return Err(UkiError::Room { room, wanted: sections.len() });
    }
    let mut image = stub.to_vec();
    let mut address = head.end_address;
    for (n, (name, data)) in sections.iter().enumerate() {
        image.resize(image.len().next_multiple_of(head.file_alignment), 0);
        let place = image.len();
        image.extend_from_slice(data);
        image.resize(image.len().next_multiple_of(head.file_alignment), 0);
        let header = render_header(name, data.len(), address, image.len() - place, place)?;
        put(&mut image, table_end + n * SECTION_HEADER_BYTES, &header)?;
        address = (address + data.len()).next_multiple_of(head.section_alignment);
    }
    let count = u16::try_from(head.count + sections.len()).map_err(|_| UkiError::TooLarge)?;
    put(&mut image, head.pe + 6, &count.to_le_bytes())?;
    put(&mut image, head.pe + COFF_BYTES + 56, &small(address)?.to_le_bytes())?;
    // The checksum is not looked at by firmware; 0 says that there is none.
    put(&mut image, head.pe + COFF_BYTES + 64, &[0; 4])?;
    Ok(image)
}

/// What must be known of the stub.
struct Head {
    pe: usize,
    table: usize,
    count: usize,
    file_alignment: usize,
    section_alignment: usize,
    /// Where the first section's bytes begin: the table must end before.
    first_data: usize,
    /// First free virtual address, aligned.
    end_address: usize,
}

impl Head {
    fn read(stub: &[u8]) -> Result<Self, UkiError> {
        let pe = read_u32(stub, PE_OFFSET_AT)?;
        let fail = |offset| UkiError::Stub { offset };
        if pe > stub.len() || stub.get(pe..pe + 4) != Some(b"PE\0\0".as_slice()) {
            return Err(fail(pe));
        }
        let count = read_u16(stub, pe + 6)?;
        let table = pe + COFF_BYTES + read_u16(stub, pe + 20)?;
        let section_alignment = read_u32(stub, pe + COFF_BYTES + 32)?;
        let file_alignment = read_u32(stub, pe + COFF_BYTES + 36)?;
        // Alignments are powers of two of at most a page or so; others would make us allocate.
        let sane = |alignment: usize| alignment.is_power_of_two() && alignment <= 1 << 16;
        if !sane(section_alignment) || !sane(file_alignment) {
            return Err(fail(pe + COFF_BYTES + 32));
        }
        let (mut first_data, mut end_address) = (stub.len(), 0);
        for n in 0..count {
            let at = table + n * SECTION_HEADER_BYTES;
            let end = read_u32(stub, at + 12)?.saturating_add(read_u32(stub, at + 8)?);
            end_address = end_address.max(end);
            let data = read_u32(stub, at + 20)?;
            if data > 0 {
                first_data = first_data.min(data);
            }
        }
        let end_address = end_address.next_multiple_of(section_alignment);
        Ok(Self { pe, table, count, file_alignment, section_alignment, first_data, end_address })
    }
}

fn render_header(
    name: &str,
    size: usize,
    address: usize,
    raw_size: usize,
    raw_place: usize,
) -> Result<[u8; SECTION_HEADER_BYTES], UkiError> {
    let mut header = [0; SECTION_HEADER_BYTES];
    for (place, byte) in header.iter_mut().take(SECTION_NAME_BYTES).zip(name.bytes()) {
        *place = byte;
    }
    for (at, value) in [(8, size), (12, address), (16, raw_size), (20, raw_place)] {
        put(&mut header, at, &small(value)?.to_le_bytes())?;
    }
    put(&mut header, 36, &CHARACTERISTICS.to_le_bytes())?;
    Ok(header)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) -> Result<(), UkiError> {
    let place = bytes.get_mut(at..at + value.len()).ok_or(UkiError::Stub { offset: at })?;
    place.copy_from_slice(value);
    Ok(())
}

fn read_u32(bytes: &[u8], at: usize) -> Result<usize, UkiError> {
    let field = bytes.get(at..at + 4).and_then(|field| field.try_into().ok());
    let value = u32::from_le_bytes(field.ok_or(UkiError::Stub { offset: at })?);
    usize::try_from(value).map_err(|_| UkiError::TooLarge)
}

fn read_u16(bytes: &[u8], at: usize) -> Result<usize, UkiError> {
    let field = bytes.get(at..at + 2).and_then(|field| field.try_into().ok());
    Ok(u16::from_le_bytes(field.ok_or(UkiError::Stub { offset: at })?).into())
}

fn small(value: usize) -> Result<u32, UkiError> {
    u32::try_from(value).map_err(|_| UkiError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PE file of one section of 512 bytes at file offset 1024, address 4096.
    fn stub() -> Vec<u8> {
        let mut stub = vec![0; 1536];
        put(&mut stub, PE_OFFSET_AT, &64_u32.to_le_bytes()).unwrap();
        put(&mut stub, 64, b"PE\0\0").unwrap();
        put(&mut stub, 64 + 6, &1_u16.to_le_bytes()).unwrap();
        put(&mut stub, 64 + 20, &240_u16.to_le_bytes()).unwrap();
        put(&mut stub, 64 + COFF_BYTES + 32, &4096_u32.to_le_bytes()).unwrap();
        put(&mut stub, 64 + COFF_BYTES + 36, &512_u32.to_le_bytes()).unwrap();
        let header = render_header(".text", 512, 4096, 512, 1024).unwrap();
        put(&mut stub, 64 + COFF_BYTES + 240, &header).unwrap();
        stub
    }

    fn parts() -> Parts<'static> {
        Parts { os_release: "ID=x\n", command_line: "quiet", kernel: &[7; 600], initrd: &[8; 5000] }
    }

    #[test]
    fn sections_follow_each_other_without_overlap() {
        let image = compose(&stub(), &parts()).unwrap();
        assert_eq!(read_u16(&image, 64 + 6).unwrap(), 5);
        let table = 64 + COFF_BYTES + 240;
        let row = |n: usize| {
            let at = table + n * SECTION_HEADER_BYTES;
            [8, 12, 16, 20].map(|field| read_u32(&image, at + field).unwrap())
        };
        assert_eq!(row(1), [5, 8192, 512, 1536]);
        assert_eq!(row(2), [6, 12288, 512, 2048]);
        assert_eq!(row(3), [600, 16384, 1024, 2560]);
        assert_eq!(row(4), [5000, 20480, 5120, 3584]);
        assert_eq!(read_u32(&image, 64 + COFF_BYTES + 56).unwrap(), 28672);
        assert_eq!(&image[2048..2054], b"quiet\0");
        assert_eq!(image.len(), 3584 + 5120);
    }

    #[test]
    fn a_full_section_table_is_refused() {
        let mut stub = stub();
        put(&mut stub, 64 + COFF_BYTES + 240 + 20, &400_u32.to_le_bytes()).unwrap();
        assert_eq!(compose(&stub, &parts()), Err(UkiError::Room { room: 0, wanted: 4 }));
    }

    #[test]
    fn any_bytes_are_a_stub_or_refused() {
        bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
            drop(compose(bytes, &parts()));
        });
    }
}
