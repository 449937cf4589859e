//! The root image: fetched into memory, checked whole, mounted through dm-verity.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kernel::mount::{Access, mount};
use kernel::{loopback, verity};
use layout::cmdline::ImageArguments;
use layout::verity::{BLOCK_BYTES, TreeBuilder, tree_bytes};

use crate::console::say;
use crate::http;

/// Where the image lies; below `/run`, which survives the change of root.
const IMAGE: &str = "/run/muster-image/root.img";
/// Where the new root is put together.
pub(crate) const SYSROOT: &str = "/sysroot";

/// Connections that may break before the machine starts over.
const TRIES: u32 = 12;
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);
const PIECE_BYTES: usize = 256 << 10;

/// Fetches the image and refuses it unless every byte is what the root hash says.
pub(crate) fn fetch(url: &str, image: &ImageArguments) -> Result<()> {
    let path = Path::new(IMAGE);
    fs::create_dir_all(path.parent().context("the image has no directory")?)?;
    let file = File::options().create(true).truncate(true).write(true).read(true).open(path)?;
    let salt = hex::decode(&image.salt).context("the salt is not hex")?;
    let mut sink = Sink::new(file, image, &salt);
    let mut pause = PAUSE_MIN;
    for attempt in 1..=TRIES {
        match sink.fill(url) {
            Ok(()) => return sink.verify(image),
            Err(Trouble::Final(err)) => return Err(err),
            Err(Trouble::Passing(err)) => {
                say(&format!("attempt {attempt} at byte {}: {err:#}", sink.received));
            }
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
    bail!("cannot fetch the root image: {TRIES} attempts failed")
}

/// Mounts the verified image as the new root.
pub(crate) fn mount_root(image: &ImageArguments) -> Result<()> {
    let device = loopback::attach_read_only(Path::new(IMAGE))?;
    let table = verity::VerityTable {
        device,
        data_blocks: image.blocks,
        root_hash: image.hash.clone(),
        salt: image.salt.clone(),
    };
    let device = verity::open("root", &table)?;
    let source = device.to_string_lossy();
    mount("squashfs", &source, Path::new(SYSROOT), Access::ReadOnly, "")?;
    Ok(())
}

/// Whether asking again can help.
enum Trouble {
    Passing(anyhow::Error),
    Final(anyhow::Error),
}

/// Takes bytes in order, whatever connections they came by.
struct Sink {
    file: File,
    tree: TreeBuilder,
    data_bytes: u64,
    expected: u64,
    received: u64,
}

impl Sink {
    fn new(file: File, image: &ImageArguments, salt: &[u8]) -> Self {
        let data_bytes = image.blocks.saturating_mul(4096);
        let expected = data_bytes.saturating_add(tree_bytes(image.blocks));
        Self { file, tree: TreeBuilder::new(salt), data_bytes, expected, received: 0 }
    }

    fn fill(&mut self, url: &str) -> Result<(), Trouble> {
        let mut answer = http::get(url, self.received).map_err(Trouble::Passing)?;
        match (answer.status, self.received) {
            (200, 0) | (206, _) => (),
            // The server knows no ranges: what is there already must come again.
            (200, _) => self.restart().map_err(Trouble::Final)?,
            (status, _) => return Err(Trouble::Passing(anyhow::anyhow!("{url}: {status}"))),
        }
        if let Some(total) = answer.total_bytes
            && total != self.expected
        {
            let expected = self.expected;
            return Err(Trouble::Final(anyhow::anyhow!(
                "root image refused: the server has {total} bytes, the release has {expected}"
            )));
        }
        let mut piece = vec![0; PIECE_BYTES];
        while self.received < self.expected {
            let len = answer.body.read(&mut piece).map_err(|err| Trouble::Passing(err.into()))?;
            let bytes = piece.get(..len).unwrap_or_default();
            if bytes.is_empty() {
                return Err(Trouble::Passing(anyhow::anyhow!("the connection ended early")));
            }
            self.take(bytes).map_err(Trouble::Final)?;
        }
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        let room = usize::try_from(self.expected - self.received)?;
        let bytes = bytes.get(..bytes.len().min(room)).unwrap_or_default();
        self.file.write_all(bytes).context("no memory for the root image")?;
        let left = usize::try_from(self.data_bytes.saturating_sub(self.received))?;
        self.tree.absorb(bytes.get(..bytes.len().min(left)).unwrap_or_default());
        self.received += u64::try_from(bytes.len())?;
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.tree.restart();
        self.received = 0;
        Ok(())
    }

    fn verify(mut self, image: &ImageArguments) -> Result<()> {
        let tree = self.tree.finish();
        let found = hex::encode(tree.root_hash);
        ensure!(
            found == image.hash,
            "root image refused: it was altered or belongs to another release (root hash {found}, expected {})",
            image.hash
        );
        // The data are right; the kernel will read the tree that came with them, not ours.
        self.file.seek(SeekFrom::Start(self.data_bytes))?;
        let mut rest = Vec::with_capacity(tree.bytes.len());
        self.file.read_to_end(&mut rest)?;
        // The superblock is not read by anyone here, and its UUID is a matter of the builder.
        let (ours, theirs) = (tree.bytes.get(BLOCK_BYTES..), rest.get(BLOCK_BYTES..));
        ensure!(ours == theirs, "root image refused: its hash tree was altered");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;
    use std::net::TcpListener;

    use super::*;

    /// A small image, its arguments, and a directory to fetch it into.
    fn image() -> (Vec<u8>, ImageArguments) {
        let mut bytes = vec![3; BLOCK_BYTES * 300];
        let mut builder = TreeBuilder::new(&[1; 32]);
        builder.absorb(&bytes);
        let tree = builder.finish();
        bytes.extend_from_slice(&tree.bytes);
        let (hash, salt) = (hex::encode(tree.root_hash), hex::encode([1; 32]));
        (bytes, ImageArguments { hash, salt, blocks: tree.data_blocks })
    }

    /// Serves the parts one after the other, each on its own connection, and fetches them all.
    fn fetch_parts(parts: Vec<Vec<u8>>, image: &ImageArguments) -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}/root.img", listener.local_addr()?);
        let server = thread::spawn(move || {
            for part in parts {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = std::io::BufReader::new(stream.try_clone().unwrap()).lines();
                while !lines.next().unwrap().unwrap().is_empty() {}
                stream.write_all(&part).unwrap();
            }
        });
        let file = tempfile::tempfile()?;
        let mut sink = Sink::new(file, image, &hex::decode(&image.salt)?);
        let result = loop {
            match sink.fill(&url) {
                Ok(()) => break sink.verify(image),
                Err(Trouble::Final(err)) => break Err(err),
                Err(Trouble::Passing(_)) => (),
            }
        };
        server.join().unwrap();
        result
    }

    fn answer(head: &str, body: &[u8]) -> Vec<u8> {
        [format!("HTTP/1.1 {head}\r\n\r\n").as_bytes(), body].concat()
    }

    #[test]
    fn a_broken_transfer_goes_on_where_it_stopped() {
        let (bytes, image) = image();
        let total = bytes.len();
        let first = answer(&format!("200 OK\r\nContent-Length: {total}"), &bytes[..100_001]);
        let range = format!("206 Partial\r\nContent-Range: bytes 100001-{}/{total}", total - 1);
        fetch_parts(vec![first, answer(&range, &bytes[100_001..])], &image).unwrap();
    }

    #[test]
    fn a_server_without_ranges_sends_all_again() {
        let (bytes, image) = image();
        let parts = vec![answer("200 OK", &bytes[..5000]), answer("200 OK", &bytes)];
        fetch_parts(parts, &image).unwrap();
    }

    #[test]
    fn a_truncated_image_is_refused() {
        let (bytes, image) = image();
        let head = format!("200 OK\r\nContent-Length: {}", bytes.len() - 1);
        let err = fetch_parts(vec![answer(&head, &bytes)], &image).unwrap_err();
        assert!(err.to_string().contains("refused: the server has"), "{err}");
    }

    #[test]
    fn an_altered_image_is_refused() {
        let (bytes, image) = image();
        for place in [0, 5 * BLOCK_BYTES + 9, 299 * BLOCK_BYTES, 302 * BLOCK_BYTES] {
            let mut bytes = bytes.clone();
            bytes[place] ^= 1;
            let err = fetch_parts(vec![answer("200 OK", &bytes)], &image).unwrap_err();
            assert!(err.to_string().contains("altered"), "{place}: {err}");
        }
    }
}
