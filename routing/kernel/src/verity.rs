//! dm-verity: a read-only block device whose every block is checked against one root hash.
//!
//! Speaks to the device mapper directly, with three requests; neither libdevmapper nor udev is
//! there in an initramfs. Only creates; never removes.
//!
//! Spec: linux/dm-ioctl.h, Documentation/admin-guide/device-mapper/verity.rst.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use thiserror::Error;

/// `struct dm_ioctl`: its size, and where the fields we use stand.
const HEADER_BYTES: usize = 312;
const DATA_SIZE_AT: usize = 12;
const DATA_START_AT: usize = 16;
const TARGET_COUNT_AT: usize = 20;
const FLAGS_AT: usize = 28;
const DEVICE_AT: usize = 40;
const NAME_AT: usize = 48;
const NAME_BYTES_MAX: usize = 127;
/// `struct dm_target_spec` before the parameter text.
const TARGET_BYTES: usize = 40;
/// Header, one target and its text; texts are far shorter.
const BUFFER_BYTES: usize = 4096;

const DM_DEV_CREATE: libc::Ioctl = nix::request_code_readwrite!(0xfd, 3, HEADER_BYTES);
const DM_DEV_SUSPEND: libc::Ioctl = nix::request_code_readwrite!(0xfd, 6, HEADER_BYTES);
const DM_TABLE_LOAD: libc::Ioctl = nix::request_code_readwrite!(0xfd, 9, HEADER_BYTES);
const DM_READONLY_FLAG: u32 = 1;

const SECTORS_PER_BLOCK: u64 = 8;

/// Says why the device could not be made.
#[derive(Debug, Error)]
pub enum VerityError {
    /// The device mapper's control file cannot be opened.
    #[error("cannot open the device mapper")]
    Control(#[source] io::Error),
    /// A request was refused; at the table, most often because root hash or tree do not fit.
    #[error("the device mapper refused to {step}")]
    Refused {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// Name or parameters are longer than the kernel takes.
    #[error("name or table of the device is too long")]
    TooLong,
}

/// How often a block is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checks {
    /// Whenever it is read from the device: the device may change behind our back.
    EveryRead,
    /// When it is read for the first time: the device is memory of our own.
    Once,
}

/// What the kernel must know to check a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerityTable {
    /// The device that holds data and, behind it, superblock and tree.
    pub device: PathBuf,
    /// Number of 4096-byte data blocks; the superblock is the next one.
    pub data_blocks: u64,
    /// The hash function, as the kernel names it.
    pub hash: String,
    /// Root hash, lower-case hex.
    pub root_hash: String,
    /// Salt, lower-case hex.
    pub salt: String,
    /// How often a block is checked.
    pub checks: Checks,
}

impl VerityTable {
    /// Renders the target's parameters.
    #[must_use]
    pub fn render(&self) -> String {
        let device = self.device.display();
        let Self { hash, root_hash, salt, data_blocks: blocks, .. } = self;
        let options = match self.checks {
            Checks::EveryRead => "",
            Checks::Once => " 1 check_at_most_once",
        };
        format!(
            "1 {device} {device} 4096 4096 {blocks} {} {hash} {root_hash} {salt}{options}",
            blocks + 1
        )
    }
}

/// Makes the device-mapper device `name` and returns its path below `/dev`.
///
/// # Errors
///
/// When the kernel has no device mapper or no verity target, or refuses the table.
pub fn open(name: &str, table: &VerityTable) -> Result<PathBuf, VerityError> {
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/mapper/control")
        .map_err(VerityError::Control)?;
    let parameters = table.render();
    let mut create = Request::new(name, 0)?;
    create.send(&control, DM_DEV_CREATE, "make the device")?;
    let mut load = Request::new(name, DM_READONLY_FLAG)?;
    load.put_target(table.data_blocks * SECTORS_PER_BLOCK, "verity", &parameters)?;
    load.send(&control, DM_TABLE_LOAD, "load the table")?;
    // Suspending without the suspend flag means: resume.
    let mut resume = Request::new(name, 0)?;
    resume.send(&control, DM_DEV_SUSPEND, "start the device")?;
    Ok(Path::new("/dev").join(format!("dm-{}", resume.minor())))
}

/// One request's buffer: `dm_ioctl`, then the payload.
struct Request {
    bytes: Vec<u8>,
}

impl Request {
    fn new(name: &str, flags: u32) -> Result<Self, VerityError> {
        if name.len() > NAME_BYTES_MAX {
            return Err(VerityError::TooLong);
        }
        let mut request = Self { bytes: vec![0; BUFFER_BYTES] };
        request.put(0, &4_u32.to_ne_bytes())?;
        request.put(DATA_SIZE_AT, &small(BUFFER_BYTES)?.to_ne_bytes())?;
        request.put(DATA_START_AT, &small(HEADER_BYTES)?.to_ne_bytes())?;
        request.put(FLAGS_AT, &flags.to_ne_bytes())?;
        request.put(NAME_AT, name.as_bytes())?;
        Ok(request)
    }

    fn put_target(&mut self, sectors: u64, kind: &str, text: &str) -> Result<(), VerityError> {
        // The text ends with a NUL, and targets are padded to 8 bytes.
        let next = (TARGET_BYTES + text.len() + 1).next_multiple_of(8);
        self.put(TARGET_COUNT_AT, &1_u32.to_ne_bytes())?;
        self.put(HEADER_BYTES + 8, &sectors.to_ne_bytes())?;
        self.put(HEADER_BYTES + 20, &small(next)?.to_ne_bytes())?;
        self.put(HEADER_BYTES + 24, kind.as_bytes())?;
        self.put(HEADER_BYTES + TARGET_BYTES, text.as_bytes())
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> Result<(), VerityError> {
        // One byte is kept free, so that every text stays NUL-terminated.
        let end = at + bytes.len();
        let place = if end < BUFFER_BYTES { self.bytes.get_mut(at..end) } else { None };
        place.ok_or(VerityError::TooLong)?.copy_from_slice(bytes);
        Ok(())
    }

    fn send(
        &mut self,
        control: &File,
        code: libc::Ioctl,
        step: &'static str,
    ) -> Result<(), VerityError> {
        // SAFETY: the buffer is BUFFER_BYTES long, says so in data_size, and is exclusively
        // borrowed for the whole call; the kernel never writes beyond data_size.
        // JUSTIFICATION: no crate here wraps the device mapper's requests.
        let result = unsafe { libc::ioctl(control.as_raw_fd(), code, self.bytes.as_mut_ptr()) };
        Errno::result(result).map(drop).map_err(|source| VerityError::Refused { step, source })
    }

    /// The minor number of the device, from the kernel's wide encoding.
    fn minor(&self) -> u64 {
        let field = self.bytes.get(DEVICE_AT..DEVICE_AT + 8).and_then(|b| b.try_into().ok());
        let device = u64::from_ne_bytes(field.unwrap_or_default());
        // huge_encode_dev: minor bits 0–7 in place, the upper ones from bit 20 on.
        (device & 0xff) | ((device >> 12) & 0xf_ff00)
    }
}

fn small(value: usize) -> Result<u32, VerityError> {
    u32::try_from(value).map_err(|_| VerityError::TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_the_block_behind_the_superblock() {
        let table = VerityTable {
            device: "/dev/loop0".into(),
            data_blocks: 100,
            hash: "sha256".into(),
            root_hash: "aa".into(),
            salt: "bb".into(),
            checks: Checks::EveryRead,
        };
        let text = "1 /dev/loop0 /dev/loop0 4096 4096 100 101 sha256 aa bb";
        assert_eq!(table.render(), text);
        let once = VerityTable { checks: Checks::Once, ..table };
        assert_eq!(once.render(), format!("{text} 1 check_at_most_once"));
    }

    #[test]
    fn the_minor_number_is_decoded_whole() {
        for (device, minor) in [(0xfd00_u64, 0), (0xfd05, 5), (0x10_fd05, 0x105)] {
            let mut request = Request::new("root", 0).unwrap();
            request.put(DEVICE_AT, &device.to_ne_bytes()).unwrap();
            assert_eq!(request.minor(), minor);
        }
    }

    #[test]
    fn an_overlong_name_or_table_is_refused() {
        assert!(Request::new(&"x".repeat(128), 0).is_err());
        let mut request = Request::new("root", 0).unwrap();
        assert!(request.put_target(8, "verity", &"x".repeat(BUFFER_BYTES)).is_err());
    }
}
