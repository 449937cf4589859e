//! Debian packages: resolved and downloaded by apt into the cache, unpacked in memory.
//!
//! apt runs with a configuration of its own and an empty list of installed packages, so nothing
//! of the host's packages gets in; proxies and the like are taken from the host's configuration
//! and environment. apt checks signatures and digests. The set of files is kept, and later builds
//! use it without asking the mirrors.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

use crate::cache::{Cache, Key, write_file};
use crate::rules::{
    KERNEL_META, ROOT_PACKAGES, SIDE_PACKAGES, SOURCES, UNWANTED_PACKAGES, entries,
};
use crate::tree::Tree;
use crate::{BuildError, Freshness, Progress, say, say_cached, tool};

/// The package files of a build.
#[derive(Debug)]
pub(crate) struct Downloads {
    /// Where the files lie.
    archives: PathBuf,
    /// Package name → file name, for packages that go into the root.
    pub(crate) root: BTreeMap<String, String>,
    /// The same for packages of which single files are taken.
    pub(crate) side: BTreeMap<String, String>,
    /// Stands for the whole set.
    pub(crate) key: Key,
}

/// Makes sure that all packages are in the cache.
pub(crate) fn fetch(
    cache: &Cache,
    freshness: Freshness,
    progress: &dyn Fn(Progress),
) -> Result<Downloads, BuildError> {
    let wanted = format!("{ROOT_PACKAGES}{SIDE_PACKAGES:?}{UNWANTED_PACKAGES}{SOURCES:?}");
    let lock = cache.path("packages", &Key::of(&[wanted.as_bytes()]));
    let apt = Apt { dir: cache.dir.join("apt") };
    if freshness == Freshness::Pinned
        && let Ok(text) = fs::read_to_string(&lock)
        && let Some(downloads) = Downloads::parse(&text, apt.archives())
        && downloads.complete()
    {
        say_cached(progress, "downloading packages");
        return Ok(downloads);
    }
    say(progress, "downloading packages", "asking the mirrors");
    apt.prepare()?;
    tool::output(apt.get().arg("update"))?;
    let kernel = apt.kernel_package()?;
    let side: Vec<&str> = SIDE_PACKAGES.iter().copied().chain([kernel.as_str()]).collect();
    let wanted: Vec<&str> = entries(ROOT_PACKAGES).collect();
    let mut root = apt.resolve(&wanted)?;
    root.retain(|name, _| entries(UNWANTED_PACKAGES).all(|unwanted| unwanted != name));
    let names: Vec<&str> = root.keys().map(String::as_str).chain(side.iter().copied()).collect();
    say(progress, "downloading packages", &format!("{} packages", names.len()));
    tool::output(apt.get().arg("download").args(&names).current_dir(apt.archives()))?;
    let side = apt.newest(&side)?;
    let text = render_lock(&root, &side);
    write_file(&lock, text.as_bytes())?;
    let downloads = Downloads::parse(&text, apt.archives());
    downloads.filter(Downloads::complete).ok_or(BuildError::Cache { path: lock })
}

fn render_lock(root: &BTreeMap<String, String>, side: &BTreeMap<String, String>) -> String {
    let lines = |kind: &str, set: &BTreeMap<String, String>| {
        set.iter().map(|(name, file)| format!("{kind} {name} {file}\n")).collect::<String>()
    };
    lines("root", root) + &lines("side", side)
}

impl Downloads {
    fn parse(text: &str, archives: PathBuf) -> Option<Self> {
        let (mut root, mut side) = (BTreeMap::new(), BTreeMap::new());
        for line in text.lines() {
            let mut words = line.split(' ').map(str::to_owned);
            let (kind, name, file) = (words.next()?, words.next()?, words.next()?);
            let set = if kind == "root" { &mut root } else { &mut side };
            set.insert(name, file);
        }
        Some(Self { archives, root, side, key: Key::of(&[text.as_bytes()]) })
    }

    fn complete(&self) -> bool {
        let mut files = self.root.values().chain(self.side.values());
        !self.root.is_empty() && files.all(|file| self.archives.join(file).is_file())
    }

    /// The kernel's package: its name carries the version.
    pub(crate) fn kernel(&self) -> Result<(&str, &str), BuildError> {
        let found = self.side.iter().find(|(name, _)| name.starts_with("linux-image-"));
        let (name, file) =
            found.ok_or_else(|| BuildError::NoPackage { name: "linux-image-".to_owned() })?;
        Ok((name, file))
    }

    /// Unpacks one package file.
    pub(crate) fn unpack(&self, file: &str) -> Result<Tree, BuildError> {
        let mut tree = Tree::default();
        self.unpack_into(file, &mut tree)?;
        Ok(tree)
    }

    fn unpack_into(&self, file: &str, tree: &mut Tree) -> Result<(), BuildError> {
        let mut command = tool::command("dpkg-deb");
        command.arg("--fsys-tarfile").arg(self.archives.join(file));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let name = tool::describe(&command);
        let mut child = command.spawn().map_err(BuildError::run(&name))?;
        let read = child.stdout.take().map(|out| tree.read_tar(std::io::BufReader::new(out)));
        let end = child.wait_with_output().map_err(BuildError::run(&name))?;
        if !end.status.success() {
            let output = tool::tail(&end.stderr);
            return Err(BuildError::Failed { tool: name, status: end.status, output });
        }
        let package = file.to_owned();
        read.unwrap_or(Ok(())).map_err(|source| BuildError::Package { package, source })
    }

    /// Unpacks all packages of the root, on all processors; each into a tree of its own.
    pub(crate) fn unpack_root(&self) -> Result<BTreeMap<String, Tree>, BuildError> {
        let queue = Mutex::new(self.root.iter());
        let done = Mutex::new(BTreeMap::new());
        let work = || -> Result<(), BuildError> {
            loop {
                let next = queue.lock().ok().and_then(|mut queue| queue.next());
                let Some((name, file)) = next else { return Ok(()) };
                let tree = self.unpack(file)?;
                if let Ok(mut done) = done.lock() {
                    done.insert(name.clone(), tree);
                }
            }
        };
        let workers = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            let handles: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            handles.into_iter().try_for_each(|handle| handle.join().unwrap_or(Ok(())))
        })?;
        Ok(done.into_inner().unwrap_or_default())
    }

    /// Version of a package, from its file name.
    pub(crate) fn version(file: &str) -> String {
        // NAME_VERSION_ARCHITECTURE.deb; apt writes a colon as %3a.
        file.split('_').nth(1).unwrap_or_default().replace("%3a", ":")
    }

    /// The kernel itself.
    pub(crate) fn kernel_image(&self) -> Result<Vec<u8>, BuildError> {
        let (_, file) = self.kernel()?;
        self.single(file, |path| path.starts_with("boot/vmlinuz-"), "boot/vmlinuz-*")
    }

    /// systemd's stub for unified kernel images.
    pub(crate) fn stub(&self) -> Result<Vec<u8>, BuildError> {
        let path = "usr/lib/systemd/boot/efi/linuxx64.efi.stub";
        self.single(self.side_file("systemd-boot-efi")?, |found| found == path, path)
    }

    /// A network boot loader of iPXE.
    pub(crate) fn loader(&self, name: &str) -> Result<Vec<u8>, BuildError> {
        let path = format!("usr/lib/ipxe/{name}");
        self.single(self.side_file("ipxe")?, |found| found == path, &path)
    }

    /// busybox, linked statically.
    pub(crate) fn busybox(&self) -> Result<Vec<u8>, BuildError> {
        let path = "usr/bin/busybox";
        self.single(self.side_file("busybox-static")?, |found| found == path, path)
    }

    fn side_file(&self, name: &str) -> Result<&str, BuildError> {
        let file = self.side.get(name).map(String::as_str);
        file.ok_or_else(|| BuildError::NoPackage { name: name.to_owned() })
    }

    fn single(
        &self,
        file: &str,
        wanted: impl Fn(&str) -> bool,
        path: &str,
    ) -> Result<Vec<u8>, BuildError> {
        // Unpacking a kernel takes seconds, so what was taken out once is kept beside it.
        let kept = self.archives.join(format!("{file}.{}", path.replace(['/', '*'], "-")));
        if let Ok(bytes) = fs::read(&kept) {
            return Ok(bytes);
        }
        let tree = self.unpack(file)?;
        let found = tree.nodes.keys().find(|path| wanted(path));
        let bytes = found.and_then(|path| tree.bytes(path));
        let bytes = bytes.ok_or_else(|| BuildError::NoFile { path: path.to_owned() })?;
        write_file(&kept, bytes)?;
        Ok(bytes.to_vec())
    }
}

/// apt with a configuration of its own.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn archives(&self) -> PathBuf {
        self.dir.join("archives")
    }

    fn prepare(&self) -> Result<(), BuildError> {
        for dir in ["state/lists/partial", "archives/partial", "etc"] {
            let dir = self.dir.join(dir);
            fs::create_dir_all(&dir).map_err(BuildError::write(&dir))?;
        }
        write_file(&self.dir.join("state/status"), b"")?;
        write_file(&self.dir.join("etc/sources.list"), (SOURCES.join("\n") + "\n").as_bytes())
    }

    fn get(&self) -> Command {
        self.command("apt-get")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = tool::command(program);
        let state = self.dir.join("state");
        let mut set = |name: &str, value: &Path| {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        };
        set("Dir::State", &state);
        set("Dir::State::status", &state.join("status"));
        set("Dir::State::lists", &state.join("lists"));
        set("Dir::Cache", &self.dir);
        set("Dir::Cache::archives", &self.archives());
        set("Dir::Etc::sourcelist", &self.dir.join("etc/sources.list"));
        for name in ["sourceparts", "preferences", "preferencesparts"] {
            set(&format!("Dir::Etc::{name}"), Path::new("/dev/null"));
        }
        for word in [
            "APT::Architecture=amd64",
            "APT::Architectures=amd64",
            "APT::Default-Release=",
            "APT::Install-Recommends=false",
            "APT::Install-Suggests=false",
            // The user _apt may not reach the cache directory.
            "APT::Sandbox::User=root",
            "Debug::NoLocking=true",
            "Acquire::Languages=none",
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
            "Acquire::Retries=3",
            "quiet=2",
        ] {
            command.arg("-o").arg(word);
        }
        command
    }

    /// Asks which files an installation would need, without getting them.
    fn resolve(&self, packages: &[&str]) -> Result<BTreeMap<String, String>, BuildError> {
        let mut command = self.get();
        command.args(["install", "--print-uris", "--yes"]);
        // Files that are there already would not be printed.
        command.arg("-o").arg("Dir::Cache::archives=/nonexistent/").args(packages);
        let text = tool::output(&mut command)?;
        Ok(parse_uris(&String::from_utf8_lossy(&text)))
    }

    /// File names of the newest version of these packages.
    fn newest(&self, packages: &[&str]) -> Result<BTreeMap<String, String>, BuildError> {
        let mut command = self.get();
        command.args(["download", "--print-uris"]).args(packages);
        let text = tool::output(command.current_dir("/"))?;
        Ok(parse_uris(&String::from_utf8_lossy(&text)))
    }

    /// The versioned package behind the kernel's meta package.
    fn kernel_package(&self) -> Result<String, BuildError> {
        let mut command = self.command("apt-cache");
        let text = tool::output(command.args(["show", "--no-all-versions", KERNEL_META]))?;
        let text = String::from_utf8_lossy(&text);
        let depends = text.lines().find_map(|line| line.strip_prefix("Depends: "));
        let name = depends.and_then(|list| list.split([' ', ',']).next()).map(str::to_owned);
        name.ok_or_else(|| BuildError::NoPackage { name: KERNEL_META.to_owned() })
    }
}

/// Reads lines of `'URI' FILE SIZE DIGEST`.
fn parse_uris(text: &str) -> BTreeMap<String, String> {
    let files = text.lines().filter(|line| line.starts_with('\''));
    let files = files.filter_map(|line| line.split(' ').nth(1));
    files.filter_map(|file| Some((file.split_once('_')?.0.to_owned(), file.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apts_list_of_files_is_read() {
        let text = "Reading...\n'http://x/pool/m/libmnl0_1.0.5-3_amd64.deb' libmnl0_1.0.5-3_amd64.deb 12 MD5Sum:ab\n'http://x/s' passwd_1%3a4.17_amd64.deb 5 SHA256:1\n";
        let files = parse_uris(text);
        assert_eq!(files["libmnl0"], "libmnl0_1.0.5-3_amd64.deb");
        assert_eq!(Downloads::version(&files["passwd"]), "1:4.17");
    }

    #[test]
    fn a_lock_file_reads_back() {
        let root = parse_uris("'u' a_1_all.deb 1 x\n");
        let side = parse_uris("'u' linux-image-6.12-amd64_2_amd64.deb 1 x\n");
        let read = Downloads::parse(&render_lock(&root, &side), PathBuf::new()).unwrap();
        assert_eq!((&read.root, &read.side), (&root, &side));
        assert_eq!(read.kernel().unwrap().0, "linux-image-6.12-amd64");
    }
}
