//! Whom the kernel killed because memory ran out, read from its log.
//!
//! The runtime hears of this by a file that goes with the container's control group; on a busy
//! machine the group is often gone before anyone has read it. The kernel writes the record before
//! it kills, so whoever sees the end finds the record too, unless ten were written within seconds
//! or the log is not ours to read.
//!
//! Spec: the kernel's `Documentation/ABI/testing/dev-kmsg`; the field `task_memcg` of its summary
//! of a kill.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;

/// More than one record ever has.
const RECORD_BYTES: usize = 8192;

/// Tells whether the kernel's log says that something of this container was killed because memory
/// ran out.
///
/// # Errors
///
/// When the log cannot be read.
pub(crate) fn is_told(log: &Path, container: &str) -> io::Result<bool> {
    let mut file =
        OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(log)?;
    let mut record = [0; RECORD_BYTES];
    loop {
        match file.read(&mut record) {
            Ok(0) => return Ok(false),
            Ok(length) => {
                let bytes = record.get(..length).unwrap_or_default();
                if names(&String::from_utf8_lossy(bytes), container) {
                    return Ok(true);
                }
            }
            Err(err) if err.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(err) if err.kind() == ErrorKind::Interrupted => {}
            // Records that were next have been overwritten; the next read goes on after them.
            Err(err) if err.kind() == ErrorKind::BrokenPipe => {}
            Err(err) => return Err(err),
        }
    }
}

/// Tells whether one of these records is of a kill in this container's control group.
fn names(records: &str, container: &str) -> bool {
    let mut kills = records.lines().filter(|record| record.contains("oom-kill:"));
    kills.any(|record| {
        let group = record.split(',').find_map(|field| field.strip_prefix("task_memcg="));
        group.is_some_and(|group| !container.is_empty() && group.contains(container))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_is_of_the_container_whose_group_the_task_was_in() {
        let kill = |group: &str| {
            format!(
                "6,1042,207519445,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,\
                 mems_allowed=0,oom_memcg=/pods,task_memcg={group},task=sh,pid=2397,uid=0\n"
            )
        };
        for (records, expected) in [
            (kill("/k8s.io/20deba"), true),
            (kill("/system.slice/cri-containerd-20deba.scope"), true),
            (kill("/k8s.io/a45013"), false),
            (kill("/k8s.io/a45013") + &kill("/k8s.io/20deba"), true),
            ("6,1,2,-;a word of 20deba,task_memcg=/k8s.io/20deba\n".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(names(&records, "20deba"), expected, "{records}");
        }
        assert!(!names(&kill("/k8s.io/20deba"), ""));
    }

    #[test]
    fn a_log_is_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("kmsg");
        assert_eq!(is_told(&log, "a").unwrap_err().kind(), ErrorKind::NotFound);
        std::fs::write(&log, "6,1,2,-;oom-kill:x,task_memcg=/k8s.io/a,task=sh\n").unwrap();
        assert!(is_told(&log, "a").unwrap());
        assert!(!is_told(&log, "b").unwrap());
    }
}
