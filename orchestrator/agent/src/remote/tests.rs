use super::collect::{collect_image, collect_mount};
use super::*;
use serde_json::{Value, json};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use volumes::remote::parse_remote;

/// A disk in a file; given back when dropped, with all mounts of it.
struct LoopDisk {
    dir: tempfile::TempDir,
    device: String,
}

impl LoopDisk {
    /// `None` where this host gives no loop devices.
    fn new(size_bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::File::create(&path).unwrap().set_len(size_bytes).unwrap();
        let out = Command::new("losetup").args(["--find", "--show"]).arg(&path).output();
        let device = out.ok().filter(|out| out.status.success())?.stdout;
        let device = String::from_utf8(device).unwrap().trim().to_owned();
        Some(Self { dir, device })
    }

    fn job(&self, pod: &str, source: Value, group: Option<u32>) -> Job {
        let fields = source.as_object().unwrap().clone();
        let remote = parse_remote(&fields, "pv").unwrap().unwrap();
        let place = self.dir.path().join("pods").join(pod);
        Job { remote, place, group: group.map(|id| Group { id, policy: Policy::OnRootMismatch }) }
    }

    fn mount(&self, pod: &str, read_only: bool, group: Option<u32>) -> Result<Job, RemoteError> {
        let source = json!({"local": {"path": self.device, "readOnly": read_only}});
        let job = self.job(pod, source, group);
        let RemoteKind::Local(local) = job.remote.kind.clone() else { panic!() };
        job.local(&local, &self.global()).map(|()| job)
    }

    fn global(&self) -> PathBuf {
        self.dir.path().join("plugins")
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let below = mounts().into_iter().filter(|one| one.target.starts_with(self.dir.path()));
        for mount in below.collect::<Vec<_>>().into_iter().rev() {
            drop(unmount_now(&mount.target));
        }
        drop(Command::new("losetup").args(["--detach", &self.device]).status());
    }
}

/// A blank disk becomes a file system once; pods come and go, the last one takes the mount with
/// it, and what was written is there for the next.
#[test]
fn a_disk_is_shown_to_pods_as_long_as_one_sees_it() {
    let Some(disk) = LoopDisk::new(32 << 20) else {
        println!("skipped: this host gives no loop devices");
        return;
    };
    let writer = disk.mount("a", false, Some(4242)).unwrap();
    fs::write(writer.place.join("data"), "kept").unwrap();
    let meta = fs::metadata(&writer.place).unwrap();
    assert_eq!((meta.gid(), meta.mode() & 0o7070), (4242, 0o2070));
    let reader = disk.mount("b", true, None).unwrap();
    assert_eq!(fs::read_to_string(reader.place.join("data")).unwrap(), "kept");
    assert_eq!(fs::write(reader.place.join("data"), "x").unwrap_err().raw_os_error(), Some(30));
    disk.mount("a", false, None).unwrap();
    assert_eq!(mounts().iter().filter(|one| one.source == disk.device).count(), 3);

    assert!(!collect_mount(&disk.global()).unwrap(), "pods see it");
    unmount_now(&writer.place).unwrap();
    assert!(!collect_mount(&disk.global()).unwrap(), "one pod sees it");
    unmount_now(&reader.place).unwrap();
    // An agent that was killed here would find the same and do the same.
    assert!(collect_mount(&disk.global()).unwrap());
    assert!(!is_mounted(&disk.global()));

    let again = disk.mount("c", false, None).unwrap();
    assert_eq!(fs::read_to_string(again.place.join("data")).unwrap(), "kept");
}

#[test]
fn a_disk_that_holds_something_else_is_never_formatted() {
    let Some(disk) = LoopDisk::new(4 << 20) else { return };
    let mut bytes = vec![0; 4 << 20];
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::write(&disk.device, &bytes).unwrap();
    let err = disk.mount("a", false, None).map(drop).unwrap_err();
    assert!(report(&err).contains("unknown data, probably partitions"), "{}", report(&err));
    assert_eq!(&fs::read(&disk.device).unwrap()[510..512], &[0x55, 0xaa]);
}

#[test]
fn a_raw_disk_is_linked_and_a_directory_is_no_disk() {
    let Some(disk) = LoopDisk::new(1 << 20) else { return };
    let block = |path: &str| {
        let mut job = disk.job("a", json!({"local": {"path": path}}), None);
        job.remote.mode = Mode::Block;
        let RemoteKind::Local(local) = job.remote.kind.clone() else { panic!() };
        job.local(&local, &disk.global()).map(|()| fs::read_link(&job.place).unwrap())
    };
    assert_eq!(block(&disk.device).unwrap(), Path::new(&disk.device));
    assert_eq!(block(&disk.device).unwrap(), Path::new(&disk.device));
    assert!(report(&block("/tmp").unwrap_err()).contains("no block device"));
}

#[test]
fn files_are_given_to_the_group_and_links_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("volume");
    fs::create_dir_all(root.join("sub")).unwrap();
    fs::write(root.join("sub/file"), "").unwrap();
    fs::write(dir.path().join("outside"), "").unwrap();
    fs::set_permissions(dir.path().join("outside"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink("../outside", root.join("link")).unwrap();
    let own = fs::metadata(&root).unwrap().gid();
    give(&root, Group { id: own, policy: Policy::Always }).unwrap();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(root.join("sub")) & 0o2070, 0o2070);
    assert_eq!(mode(root.join("sub/file")) & 0o660, 0o660);
    assert_eq!(mode(dir.path().join("outside")), 0o600);
}

#[test]
fn an_image_of_ours_that_is_not_mapped_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (mount, devices) = (dir.path().join("m"), dir.path().join("d"));
    make_dir(&mount).unwrap();
    make_dir(&devices).unwrap();
    fs::write(devices.join("pod-1"), "").unwrap();
    assert_eq!(collect_image(&mount, &devices, "no-image-here").unwrap(), None);
    assert!(mount.exists(), "a pod has the raw device");
    fs::remove_file(devices.join("pod-1")).unwrap();
    assert_eq!(collect_image(&mount, &devices, "no-image-here").unwrap(), None);
    assert!(!mount.exists() && !devices.exists());
}

#[test]
fn keys_are_read_as_people_paste_them() {
    let key = "AQBJRlVnAAAAABAAmWm4hmTTBN2SMFmVOcg0tA==";
    let stored = STANDARD.encode(format!("{key}\n"));
    assert_eq!(decode_key(&stored).unwrap().len(), 28);
    assert_eq!(decode_key("%"), None);
    assert_eq!(decode_key(&STANDARD.encode("not base64!")), None);
}
