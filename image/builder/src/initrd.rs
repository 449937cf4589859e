//! The initramfs: our init, the modules it needs, a console.

use std::io::Write;

use cpio::newc;

use crate::cache::{Cache, Key, read_file};
use crate::kernel::Modules;
use crate::tree::{Kind, Tree};
use crate::{BuildConfig, BuildError, Progress, say, say_cached};

/// The levels of zstd for development and release; unpacking costs the same.
const LEVEL_QUICK: i32 = 9;
const LEVEL_SMALL: i32 = 19;
/// From this level of the root on, a build is a release.
const RELEASE_LEVEL: u32 = 10;

/// Makes the archive, or finds it in the cache.
pub(crate) fn build(
    cache: &Cache,
    config: &BuildConfig,
    modules: &Modules,
    progress: &dyn Fn(Progress),
) -> Result<Vec<u8>, BuildError> {
    let init = read_file(&config.init)?;
    let level = if config.compression_level < RELEASE_LEVEL { LEVEL_QUICK } else { LEVEL_SMALL };
    let numbers = format!("{level} {} initrd 1", config.epoch);
    let key = Key::of(&[&init, modules.key.bytes(), numbers.as_bytes()]);
    let path = cache.path("initrd", &key);
    if path.exists() {
        say_cached(progress, "packing the initramfs");
        return read_file(&path);
    }
    say(progress, "packing the initramfs", "");
    let mut tree = modules.initrd_tree()?;
    tree.file("init", 0o755, init);
    // /lib is where the kernel's own loader would look; init looks there too.
    tree.link("lib", "usr/lib");
    for place in ["dev", "proc", "run", "sys", "sysroot"] {
        tree.directory(place, 0o755);
    }
    let archive = render(&tree, config.epoch).map_err(BuildError::write(&path))?;
    let packed = pack(&archive, level).map_err(BuildError::write(&path))?;
    cache.keep("initrd", &key, &packed)?;
    Ok(packed)
}

fn pack(archive: &[u8], level: i32) -> std::io::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), level)?;
    encoder.write_all(archive)?;
    encoder.finish()
}

/// Renders the tree as `newc`, which is what kernels read.
fn render(tree: &Tree, epoch: u32) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut number = 0;
    let mut add = |path: &str, mode: u32, bytes: &[u8], device: (u32, u32)| {
        number += 1;
        let entry = newc::Builder::new(path)
            .ino(number)
            .mode(mode)
            .nlink(1)
            .mtime(epoch)
            .rdev_major(device.0)
            .rdev_minor(device.1);
        let size = u32::try_from(bytes.len()).map_err(std::io::Error::other)?;
        let mut writer = entry.write(&mut out, size);
        writer.write_all(bytes)?;
        writer.finish().map(drop)
    };
    for (path, node) in &tree.nodes {
        match &node.kind {
            Kind::Directory => add(path, 0o040_000 | node.mode, b"", (0, 0))?,
            Kind::File(bytes) => add(path, 0o100_000 | node.mode, bytes, (0, 0))?,
            Kind::Link(target) => add(path, 0o120_777, target.as_bytes(), (0, 0))?,
        }
        // Without a console the kernel starts init with nothing to print to.
        if path == "dev" {
            add("dev/console", 0o020_600, b"", (5, 1))?;
        }
    }
    newc::trailer(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_has_a_console_and_is_the_same_every_time() {
        let mut tree = Tree::default();
        tree.file("init", 0o755, *b"x");
        tree.directory("dev", 0o755);
        let first = render(&tree, 7).unwrap();
        assert_eq!(first, render(&tree, 7).unwrap());
        let mut names = Vec::new();
        let mut rest = first.as_slice();
        loop {
            let reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            names.push((reader.entry().name().to_owned(), reader.entry().mode()));
            rest = reader.finish().unwrap();
        }
        let expected = [("dev", 0o040_755), ("dev/console", 0o020_600), ("init", 0o100_755)];
        assert_eq!(names, expected.map(|(name, mode)| (name.to_owned(), mode)));
    }
}
