//! When a disk is formatted, and how mount options are read.
//!
//! A disk is formatted only when it is blank and may be written: what is already there is never
//! overwritten, whatever file system the volume asks for.

/// What is on a disk, as its first bytes tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Nothing that anyone would miss: no signature, all zero.
    Blank,
    /// A file system of this name.
    FileSystem(&'static str),
    /// Something else: perhaps data.
    Unknown,
}

/// How many bytes of a disk [`recognise`] wants to see.
pub const HEAD_BYTES: usize = 128 << 10;

/// Recognises what is on a disk by its first [`HEAD_BYTES`]; fewer when it is smaller.
#[must_use]
pub fn recognise(head: &[u8]) -> Content {
    let at = |offset: usize, magic: &[u8]| {
        head.get(offset..).is_some_and(|rest| rest.starts_with(magic))
    };
    let u32_at = |offset: usize| {
        let bytes = head.get(offset..offset.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    if at(0x438, &[0x53, 0xef]) {
        // Features tell the family apart: extents and the like are ext4's, a journal ext3's.
        let has = |offset, bits| u32_at(offset).is_some_and(|found: u32| found & bits != 0);
        let fourth = has(0x460, !0x0016) || has(0x464, !0x0007);
        return Content::FileSystem(match (fourth, has(0x45c, 0x4)) {
            (true, _) => "ext4",
            (false, true) => "ext3",
            (false, false) => "ext2",
        });
    }
    const KNOWN: [(usize, &[u8], &str); 5] = [
        (0, b"XFSB", "xfs"),
        (0x10040, b"_BHRfS_M", "btrfs"),
        (0, b"hsqs", "squashfs"),
        (0x8001, b"CD001", "iso9660"),
        (0, b"LUKS\xba\xbe", "crypto_LUKS"),
    ];
    if let Some((_, _, name)) = KNOWN.iter().find(|(offset, magic, _)| at(*offset, magic)) {
        return Content::FileSystem(name);
    }
    if head.iter().all(|byte| *byte == 0) { Content::Blank } else { Content::Unknown }
}

/// What to do before a disk is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prepare {
    /// Nothing: it has the file system wanted.
    Nothing,
    /// Run this program with these arguments and the device at the end.
    Format(&'static str, Vec<&'static str>),
    /// It cannot be mounted as wanted.
    Refuse(String),
}

/// Plans how a disk with `found` on it becomes one with `wanted`.
#[must_use]
pub fn plan_format(found: &Content, wanted: &str, read_only: bool) -> Prepare {
    match found {
        Content::FileSystem(name) if *name == wanted => Prepare::Nothing,
        // The kernel's ext4 mounts the older ones as well.
        Content::FileSystem("ext2" | "ext3") if wanted == "ext4" => Prepare::Nothing,
        Content::FileSystem(name) => Prepare::Refuse(format!(
            "failed to mount the volume as {wanted:?}: it already contains {name}"
        )),
        Content::Unknown => Prepare::Refuse(format!(
            "failed to mount the volume as {wanted:?}: it contains unknown data, probably partitions"
        )),
        Content::Blank if read_only => {
            Prepare::Refuse("cannot format a disk that is only to be read".to_owned())
        }
        Content::Blank => match wanted {
            // A thin image has nothing to discard, and discarding a large one takes minutes.
            "ext4" => Prepare::Format("mkfs.ext4", vec!["-F", "-m0", "-E", "nodiscard"]),
            "ext3" => Prepare::Format("mkfs.ext3", vec!["-F", "-m0", "-E", "nodiscard"]),
            "ext2" => Prepare::Format("mkfs.ext2", vec!["-F", "-m0"]),
            "xfs" => Prepare::Format("mkfs.xfs", vec!["-f", "-K"]),
            other => Prepare::Refuse(format!("file system {other:?} cannot be made on this node")),
        },
    }
}

/// Mount options as people write them, split into the kernel's flags and the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Flags by name: `ro`, `noatime`, `nosuid` and their like.
    pub flags: Vec<Flag>,
    /// What the file system itself reads.
    pub data: Vec<String>,
}

/// A flag of mount(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flag {
    /// `ro`
    ReadOnly,
    /// `noatime`
    NoAccessTime,
    /// `nodiratime`
    NoDirectoryAccessTime,
    /// `relatime`
    RelativeAccessTime,
    /// `strictatime`
    StrictAccessTime,
    /// `nodev`
    NoDevices,
    /// `noexec`
    NoPrograms,
    /// `nosuid`
    NoSetUser,
    /// `sync`
    Synchronous,
    /// `dirsync`
    SynchronousDirectories,
    /// `lazytime`
    LazyTime,
}

/// Splits options; each may itself be several joined by commas.
#[must_use]
pub fn split_options(given: &[String]) -> Options {
    let mut options = Options::default();
    for word in given.iter().flat_map(|one| one.split(',')).map(str::trim) {
        let flag = match word {
            "" | "rw" | "defaults" | "async" | "atime" | "diratime" | "dev" | "exec" | "suid"
            | "auto" | "noauto" | "user" | "nouser" | "_netdev" | "nofail" => continue,
            "ro" => Flag::ReadOnly,
            "noatime" => Flag::NoAccessTime,
            "nodiratime" => Flag::NoDirectoryAccessTime,
            "relatime" => Flag::RelativeAccessTime,
            "strictatime" => Flag::StrictAccessTime,
            "nodev" => Flag::NoDevices,
            "noexec" => Flag::NoPrograms,
            "nosuid" => Flag::NoSetUser,
            "sync" => Flag::Synchronous,
            "dirsync" => Flag::SynchronousDirectories,
            "lazytime" => Flag::LazyTime,
            other => {
                options.data.push(other.to_owned());
                continue;
            }
        };
        options.flags.push(flag);
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD_BYTES];
        for (offset, bytes) in parts {
            head[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    #[test]
    fn only_a_blank_disk_is_formatted() {
        let check = |head: &[u8], wanted: &str, read_only, expected: &str| {
            let got = match plan_format(&recognise(head), wanted, read_only) {
                Prepare::Nothing => "mount".to_owned(),
                Prepare::Format(program, _) => program.to_owned(),
                Prepare::Refuse(why) => why,
            };
            assert_eq!(got, expected);
        };
        let ext4 = head(&[(0x438, &[0x53, 0xef]), (0x45c, &[4]), (0x460, &[0x42])]);
        check(&head(&[]), "ext4", false, "mkfs.ext4");
        check(&head(&[]), "xfs", false, "mkfs.xfs");
        check(&head(&[]), "ext4", true, "cannot format a disk that is only to be read");
        check(&head(&[]), "zfs", false, "file system \"zfs\" cannot be made on this node");
        check(&ext4, "ext4", false, "mount");
        check(
            &ext4,
            "xfs",
            false,
            "failed to mount the volume as \"xfs\": it already contains ext4",
        );
        check(&head(&[(0x438, &[0x53, 0xef])]), "ext4", false, "mount");
        check(&head(&[(0, b"XFSB")]), "xfs", true, "mount");
        let unknown =
            "failed to mount the volume as \"ext4\": it contains unknown data, probably partitions";
        check(&head(&[(510, &[0x55, 0xaa])]), "ext4", false, unknown);
        check(&head(&[(100_000, &[1])]), "ext4", false, unknown);
        check(b"", "ext4", false, "mkfs.ext4");
    }

    #[test]
    fn options_become_flags_and_data() {
        let options = split_options(&["ro,noatime".into(), "data=journal".into(), "rw".into()]);
        assert_eq!(options.flags, [Flag::ReadOnly, Flag::NoAccessTime]);
        assert_eq!(options.data, ["data=journal"]);
    }
}
