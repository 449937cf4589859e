//! The root image: fetched into memory, read once through dm-verity, mounted.
//!
//! The kernel checks; this reads every block before anything is believed, so that an altered image
//! is refused here and not when some program is started in a week.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kernel::mount::{Access, mount};
use kernel::{loopback, verity};
use layout::cmdline::ImageArguments;
use layout::verity::{BLOCK_BYTES, HASH, tree_bytes};
use nix::fcntl::OFlag;

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

/// Fetches the image into memory; nothing is checked yet but its length.
pub(crate) fn fetch(url: &str, image: &ImageArguments) -> Result<()> {
    let path = Path::new(IMAGE);
    fs::create_dir_all(path.parent().context("the image has no directory")?)?;
    let file = File::options().create(true).truncate(true).write(true).open(path)?;
    let mut sink = Sink::new(file, image);
    let mut pause = PAUSE_MIN;
    for attempt in 1..=TRIES {
        match sink.fill(url) {
            Ok(()) => return Ok(()),
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

/// Puts dm-verity over the image, and refuses it unless every block is what the root hash says.
///
/// Returns the device to mount.
pub(crate) fn verify(image: &ImageArguments) -> Result<PathBuf> {
    let table = verity::VerityTable {
        device: loopback::attach_read_only(Path::new(IMAGE))?,
        data_blocks: image.blocks,
        hash: HASH.to_owned(),
        root_hash: image.hash.clone(),
        salt: image.salt.clone(),
        // What lies below is memory, and whoever can change that can change the kernel too.
        checks: verity::Checks::Once,
    };
    let device = verity::open("root", &table)?;
    // Past the page cache, which would only hold the image a second time.
    let direct = OFlag::O_DIRECT.bits();
    let file = File::options().read(true).custom_flags(direct).open(&device)?;
    let checked = read_all(file)
        .context("root image refused: it was altered or belongs to another release")?;
    ensure!(
        checked == image.blocks.saturating_mul(4096),
        "root image refused: {checked} bytes of it can be read"
    );
    Ok(device)
}

/// Mounts the verified image as the new root.
pub(crate) fn mount_root(device: &Path) -> Result<()> {
    let source = device.to_string_lossy();
    mount("squashfs", &source, Path::new(SYSROOT), Access::ReadOnly, "")?;
    Ok(())
}

/// Reads to the end and returns the number of bytes.
fn read_all(mut file: File) -> Result<u64> {
    // Direct reads want memory that begins at a block.
    let mut buffer = vec![0; PIECE_BYTES + BLOCK_BYTES];
    let from = buffer.as_ptr().align_offset(BLOCK_BYTES);
    let piece = buffer.get_mut(from..from + PIECE_BYTES).context("memory cannot be aligned")?;
    let mut total = 0;
    loop {
        let len = file.read(piece).with_context(|| format!("at byte {total}"))?;
        if len == 0 {
            return Ok(total);
        }
        total += u64::try_from(len)?;
    }
}

/// Whether asking again can help.
enum Trouble {
    Passing(anyhow::Error),
    Final(anyhow::Error),
}

/// Takes bytes in order, whatever connections they came by.
struct Sink {
    file: File,
    expected: u64,
    received: u64,
}

impl Sink {
    fn new(file: File, image: &ImageArguments) -> Self {
        let data_bytes = image.blocks.saturating_mul(4096);
        let expected = data_bytes.saturating_add(tree_bytes(image.blocks));
        Self { file, expected, received: 0 }
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
        self.received += u64::try_from(bytes.len())?;
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.received = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;
    use std::net::TcpListener;

    use super::*;

    /// Some bytes that are as long as an image of 300 blocks, and its arguments.
    fn image() -> (Vec<u8>, ImageArguments) {
        let len = 300 * 4096 + tree_bytes(300);
        let bytes = (0..=250).cycle().take(usize::try_from(len).unwrap()).collect();
        (bytes, ImageArguments { hash: "a".repeat(64), salt: "b".repeat(64), blocks: 300 })
    }

    /// Serves the parts one after the other, each on its own connection, and fetches them all.
    fn fetch_parts(parts: Vec<Vec<u8>>, image: &ImageArguments) -> Result<Vec<u8>> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}/root.img", listener.local_addr()?);
        let server = thread::spawn(move || {
            for part in parts {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = std::io::BufReader::new(stream.try_clone().unwrap()).lines();
                while !lines.next().unwrap().unwrap().is_empty() {}
                // The other side may have heard enough and gone.
                drop(stream.write_all(&part));
            }
        });
        let file = tempfile::tempfile()?;
        let mut sink = Sink::new(file.try_clone()?, image);
        let result = loop {
            match sink.fill(&url) {
                Ok(()) => break Ok(()),
                Err(Trouble::Final(err)) => break Err(err),
                Err(Trouble::Passing(_)) => (),
            }
        };
        server.join().unwrap();
        result?;
        let mut file = file;
        file.seek(SeekFrom::Start(0))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
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
        let parts = vec![first, answer(&range, &bytes[100_001..])];
        assert!(fetch_parts(parts, &image).unwrap() == bytes);
    }

    #[test]
    fn a_server_without_ranges_sends_all_again() {
        let (bytes, image) = image();
        let parts = vec![answer("200 OK", &bytes[..5000]), answer("200 OK", &bytes)];
        assert!(fetch_parts(parts, &image).unwrap() == bytes);
    }

    #[test]
    fn an_image_of_another_length_is_refused() {
        let (bytes, image) = image();
        for len in [bytes.len() - 1, bytes.len() + 1, 0] {
            let head = format!("200 OK\r\nContent-Length: {len}");
            let err = fetch_parts(vec![answer(&head, &bytes)], &image).unwrap_err();
            assert!(err.to_string().contains("refused: the server has"), "{err}");
        }
    }

    #[test]
    fn everything_is_read() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![1; PIECE_BYTES * 2 + 77]).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        assert_eq!(read_all(file).unwrap(), PIECE_BYTES as u64 * 2 + 77);
    }
}
