//! The root image: packages, modules and our own files, as squashfs with its hash tree.

mod files;

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use layout::manifest::FileEntry;
use layout::verity::{BLOCK_BYTES, SALT, TreeBuilder};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::base::Base;
use crate::cache::{Cache, Key, read_file, write_file};
use crate::debian::Downloads;
use crate::kernel::Modules;
use crate::tree::Tree;
use crate::{BuildConfig, BuildError, Progress, oci, say, say_cached, tool};

const PIECE_BYTES: usize = 1 << 20;

/// A finished root image in the cache.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Root {
    pub(crate) path: PathBuf,
    pub(crate) root_hash: String,
    pub(crate) data_blocks: u64,
    pub(crate) entry: FileEntry,
}

/// Makes the image, or finds it in the cache.
pub(crate) fn build(
    cache: &Cache,
    config: &BuildConfig,
    base: &Base,
    modules: &Modules,
    downloads: &Downloads,
    progress: &dyn Fn(Progress),
) -> Result<Root, BuildError> {
    let muster = read_file(&config.muster)?;
    let pause = read_file(&config.pause)?;
    let plugin = read_file(&config.plugin)?;
    let numbers =
        format!("{} {} {}", config.compression_level, config.epoch, files::digest_input(config))
            + "root 5";
    let key = Key::of(&[
        &Sha256::digest(&muster),
        &Sha256::digest(&pause),
        &Sha256::digest(&plugin),
        base.key.bytes(),
        modules.key.bytes(),
        downloads.key.bytes(),
        numbers.as_bytes(),
    ]);
    let (path, facts) = (cache.path("root", &key), cache.path("root-facts", &key));
    if path.exists() && facts.exists() {
        say_cached(progress, "packing the root");
        let root = serde_json::from_slice::<Root>(&read_file(&facts)?);
        let root = root.map_err(|_| BuildError::Cache { path: facts })?;
        return Ok(Root { path, ..root });
    }
    say(progress, "packing the root", &format!("zstd level {}", config.compression_level));
    let mut tree = base.tree()?;
    for (path, node) in modules.root_tree()?.nodes {
        tree.put(&path, node);
    }
    files::add(&mut tree, config, muster, plugin);
    let images = oci::archive(pause, downloads.busybox()?, config.epoch)?;
    tree.file("usr/share/muster/images/muster.tar", 0o644, images);
    tree.add_parents();
    let temporary = path.with_extension("new");
    squash(&tree, config, &temporary)?;
    say(progress, "hashing the root", "");
    let root = seal(&temporary, &path)?;
    cache.forget_others("root", &path);
    write_file(&facts, &serde_json::to_vec(&root).unwrap_or_default())?;
    cache.forget_others("root-facts", &facts);
    Ok(root)
}

fn squash(tree: &Tree, config: &BuildConfig, to: &Path) -> Result<(), BuildError> {
    drop(fs::remove_file(to));
    let mut command = tool::command("mksquashfs");
    command.arg("-").arg(to).args(["-tar", "-noappend", "-no-progress", "-quiet", "-no-xattrs"]);
    command.args(["-comp", "zstd", "-Xcompression-level", &config.compression_level.to_string()]);
    // Time of the file system itself comes from this variable; those of files from the archive.
    command.env("SOURCE_DATE_EPOCH", config.epoch.to_string());
    // Nothing belongs to anyone else, and the root directory is in no archive.
    command.args(["-all-root", "-root-mode", "755", "-root-time", &config.epoch.to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let name = tool::describe(&command);
    let mut child = command.spawn().map_err(BuildError::run(&name))?;
    let written = child
        .stdin
        .take()
        .map(|pipe| tree.write_tar(BufWriter::with_capacity(PIECE_BYTES, pipe), config.epoch));
    let end = child.wait_with_output().map_err(BuildError::run(&name))?;
    if !end.status.success() {
        let output = tool::tail(&[end.stdout, end.stderr].concat());
        return Err(BuildError::Failed { tool: name, status: end.status, output });
    }
    written.unwrap_or(Ok(())).map_err(BuildError::run(&name))
}

/// Appends the hash tree and gives the file its name.
fn seal(from: &Path, to: &Path) -> Result<Root, BuildError> {
    let mut builder = TreeBuilder::new(&SALT);
    let mut digest = Sha256::new();
    let mut size_bytes = 0_u64;
    let mut add = |bytes: &[u8]| {
        digest.update(bytes);
        size_bytes += u64::try_from(bytes.len()).unwrap_or_default();
    };
    let mut reader = BufReader::new(File::open(from).map_err(BuildError::read(from))?);
    let mut piece = vec![0; PIECE_BYTES];
    let mut length = 0;
    loop {
        let read = reader.read(&mut piece).map_err(BuildError::read(from))?;
        let bytes = piece.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        length += read;
        builder.absorb(bytes);
        add(bytes);
    }
    // squashfs ends where it likes; the tree begins at a whole block.
    let gap = vec![0; length.next_multiple_of(BLOCK_BYTES) - length];
    builder.absorb(&gap);
    let tree = builder.finish();
    let tail = [gap, tree.bytes].concat();
    add(&tail);
    let mut file = OpenOptions::new().append(true).open(from).map_err(BuildError::write(from))?;
    file.write_all(&tail).map_err(BuildError::write(from))?;
    fs::rename(from, to).map_err(BuildError::write(to))?;
    let entry = FileEntry { size_bytes, sha256: hex::encode(digest.finalize()) };
    let root_hash = hex::encode(tree.root_hash);
    Ok(Root { path: to.to_owned(), root_hash, data_blocks: tree.data_blocks, entry })
}
