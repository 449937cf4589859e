//! What goes into the image and what does not: the tables.
//!
//! One entry a line, `#` begins a comment.

/// Where packages come from.
pub(crate) const SOURCES: [&str; 3] = [
    "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main",
    "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie-updates main",
    "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian-security trixie-security main",
];

/// Packages of which only single files are used; the kernel's own is added when it is known.
pub(crate) const SIDE_PACKAGES: [&str; 3] = ["busybox-static", "ipxe", "systemd-boot-efi"];

/// Always depends on the newest kernel.
pub(crate) const KERNEL_META: &str = "linux-image-amd64";

pub(crate) const ROOT_PACKAGES: &str = include_str!("rules/packages.txt");
pub(crate) const UNWANTED_PACKAGES: &str = include_str!("rules/unwanted.txt");
pub(crate) const STRIPPED: &str = include_str!("rules/stripped.txt");
pub(crate) const UNITS: &str = include_str!("rules/units.txt");
pub(crate) const DROPPED_MODULES: &str = include_str!("rules/modules-dropped.txt");
pub(crate) const HOT_MODULES: &str = include_str!("rules/modules-hot.txt");
pub(crate) const INITRD_MODULES: &str = include_str!("rules/modules-initrd.txt");
pub(crate) const INITRD_TREES: &str = include_str!("rules/modules-initrd-trees.txt");

/// The entries of a table.
pub(crate) fn entries(table: &'static str) -> impl Iterator<Item = &'static str> {
    table.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Programs that a build runs, with the Debian package of each.
pub(crate) const TOOLS: [(&str, &str); 8] = [
    ("apt-get", "apt"),
    ("apt-cache", "apt"),
    ("dpkg-deb", "dpkg"),
    ("mksquashfs", "squashfs-tools"),
    ("xz", "xz-utils"),
    ("depmod", "kmod"),
    ("openssl", "openssl"),
    ("sbsign", "sbsigntool"),
];

/// Debian packages that a host needs to build an image; all are in Debian 12 and 13.
pub const HOST_PACKAGES: [&str; 6] =
    ["debian-archive-keyring", "kmod", "openssl", "sbsigntool", "squashfs-tools", "xz-utils"];
