//! Whose files a volume's are: what `fsGroup` changes.
//!
//! Spec: upstream's `SetVolumeOwnership`: the group becomes the pod's, owner and group may read
//! and write (only read, when the volume is read-only), directories hand the group on. With
//! policy `OnRootMismatch` nothing is changed when the top directory is already so.

/// Bits owner and group get on a volume that is written.
const WRITE_BITS: u32 = 0o660;
/// Bits they get on one that is only read.
pub(crate) const READ_BITS: u32 = 0o440;
/// Bits directories get besides.
const DIRECTORY_BITS: u32 = 0o2110;

/// What one file has, or should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    /// The group.
    pub group: u32,
    /// Permission bits, set-group included.
    pub mode: u32,
}

/// When files are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// At each mount.
    Always,
    /// When the top directory is not as wanted.
    OnRootMismatch,
}

impl Policy {
    /// Reads `fsGroupChangePolicy`.
    #[must_use]
    pub fn parse(given: Option<&str>) -> Self {
        if given == Some("OnRootMismatch") { Self::OnRootMismatch } else { Self::Always }
    }
}

/// The rights a file should have.
#[must_use]
pub fn wanted(mode: u32, directory: bool, read_only: bool, group: u32) -> Rights {
    let bits = if read_only { READ_BITS } else { WRITE_BITS };
    let more = if directory { DIRECTORY_BITS } else { 0 };
    Rights { group, mode: mode & 0o7777 | bits | more }
}

/// Need the files below a top directory with `root` rights be changed?
#[must_use]
pub fn is_needed(policy: Policy, root: Rights, read_only: bool, group: u32) -> bool {
    policy == Policy::Always || wanted(root.mode, true, read_only, group) != root
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_may_do_what_the_volume_allows() {
        let mode = |mode, directory, read_only| wanted(mode, directory, read_only, 7).mode;
        assert_eq!(mode(0o644, false, false), 0o664);
        assert_eq!(mode(0o600, false, true), 0o640);
        assert_eq!(mode(0o755, true, false), 0o2775);
        assert_eq!(mode(0o700, true, true), 0o2750);
    }

    #[test]
    fn a_volume_that_is_right_at_the_top_is_left_alone_on_request() {
        let right = Rights { group: 7, mode: 0o2775 };
        assert!(is_needed(Policy::Always, right, false, 7));
        assert!(!is_needed(Policy::parse(Some("OnRootMismatch")), right, false, 7));
        assert!(is_needed(Policy::OnRootMismatch, right, false, 8));
        assert!(is_needed(Policy::OnRootMismatch, Rights { group: 7, mode: 0o755 }, false, 7));
    }
}
