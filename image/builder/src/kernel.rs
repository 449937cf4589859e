//! The kernel's modules: those of servers for the root, and the few that the initramfs needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};

use layout::manifest::PackageEntry;
use tempfile::TempDir;

use crate::cache::{Cache, Key, read_file};
use crate::debian::Downloads;
use crate::rules::{DROPPED_MODULES, HOT_MODULES, INITRD_MODULES, INITRD_TREES, entries};
use crate::tree::Tree;
use crate::{BuildError, Progress, say, say_cached, tool};

const PACKED: &str = ".ko.xz";

/// Where both trees lie in the cache, and what they are of.
#[derive(Debug)]
pub(crate) struct Modules {
    pub(crate) key: Key,
    pub(crate) version: String,
    pub(crate) package: PackageEntry,
    root: PathBuf,
    initrd: PathBuf,
}

impl Modules {
    /// `usr/lib/modules/VERSION` of the root.
    pub(crate) fn root_tree(&self) -> Result<Tree, BuildError> {
        read_tree(&self.root)
    }

    /// The same of the initramfs.
    pub(crate) fn initrd_tree(&self) -> Result<Tree, BuildError> {
        read_tree(&self.initrd)
    }
}

/// Makes both trees, or finds them in the cache.
pub(crate) fn build(
    cache: &Cache,
    downloads: &Downloads,
    progress: &dyn Fn(Progress),
) -> Result<Modules, BuildError> {
    let (name, file) = downloads.kernel()?;
    let version = name.trim_start_matches("linux-image-").to_owned();
    let rules = format!("{DROPPED_MODULES}{HOT_MODULES}{INITRD_MODULES}{INITRD_TREES} modules 1");
    let key = Key::of(&[file.as_bytes(), rules.as_bytes()]);
    let root = cache.path("modules", &key);
    let initrd = cache.path("modules-initrd", &key);
    let entry = |size_bytes| PackageEntry {
        name: name.to_owned(),
        version: Downloads::version(file),
        size_bytes,
    };
    if root.exists() && initrd.exists() {
        say_cached(progress, "choosing kernel modules");
        let size = fs::metadata(&root).map_or(0, |meta| meta.len());
        return Ok(Modules { key, version, package: entry(size), root, initrd });
    }
    say(progress, "choosing kernel modules", &version);
    let workshop = Workshop::open(&downloads.unpack(file)?, &version)?;
    workshop.depmod()?;
    let needs = Needs::parse(&workshop.read("modules.dep")?);
    let hot = needs.close(|file| is_named(file, HOT_MODULES));
    let early = needs.close(|file| {
        is_named(file, INITRD_MODULES) || entries(INITRD_TREES).any(|tree| is_below(file, tree))
    });
    workshop.unpack(hot.union(&early))?;
    save(&workshop.initrd_tree(&needs, &early)?, &initrd)?;
    cache.forget_others("modules-initrd", &initrd);
    workshop.settle(&hot, &early)?;
    workshop.depmod()?;
    save(&workshop.root_tree()?, &root)?;
    cache.forget_others("modules", &root);
    let size = fs::metadata(&root).map_or(0, |meta| meta.len());
    Ok(Modules { key, version, package: entry(size), root, initrd })
}

fn read_tree(path: &Path) -> Result<Tree, BuildError> {
    let file = File::open(path).map_err(BuildError::read(path))?;
    let mut tree = Tree::default();
    tree.read_tar(BufReader::new(file)).map_err(BuildError::read(path))?;
    Ok(tree)
}

fn save(tree: &Tree, path: &Path) -> Result<(), BuildError> {
    let temporary = path.with_extension("new");
    let file = File::create(&temporary).map_err(BuildError::write(&temporary))?;
    tree.write_tar(BufWriter::new(file), 0).map_err(BuildError::write(&temporary))?;
    fs::rename(&temporary, path).map_err(BuildError::write(path))
}

/// A directory in which tools that know only files can work.
struct Workshop {
    dir: TempDir,
    version: String,
}

impl Workshop {
    /// Lays out the wanted modules of the kernel's package.
    fn open(package: &Tree, version: &str) -> Result<Self, BuildError> {
        let dir = TempDir::new().map_err(BuildError::write(Path::new("a temporary directory")))?;
        let workshop = Self { dir, version: version.to_owned() };
        let prefix = format!("usr/lib/modules/{version}/");
        for path in package.nodes.keys() {
            let (Some(name), Some(bytes)) = (path.strip_prefix(&prefix), package.bytes(path))
            else {
                continue;
            };
            if is_wanted(name) {
                let to = workshop.place(name);
                let above = to.parent().unwrap_or(&to).to_owned();
                fs::create_dir_all(&above).map_err(BuildError::write(&above))?;
                fs::write(&to, bytes).map_err(BuildError::write(&to))?;
            }
        }
        Ok(workshop)
    }

    fn place(&self, name: &str) -> PathBuf {
        self.dir.path().join("lib/modules").join(&self.version).join(name)
    }

    fn read(&self, name: &str) -> Result<String, BuildError> {
        let path = self.place(name);
        fs::read_to_string(&path).map_err(BuildError::read(&path))
    }

    fn depmod(&self) -> Result<(), BuildError> {
        let mut command = tool::command("depmod");
        tool::output(command.arg("-b").arg(self.dir.path()).arg(&self.version)).map(drop)
    }

    /// Puts the unpacked form beside these modules.
    fn unpack<'a>(&self, files: impl Iterator<Item = &'a String>) -> Result<(), BuildError> {
        let files: Vec<PathBuf> = files.map(|file| self.place(file)).collect();
        // Far below the limit for arguments of one command.
        for part in files.chunks(200) {
            let mut command = tool::command("xz");
            tool::output(command.args(["--decompress", "--keep", "--force", "--"]).args(part))?;
        }
        Ok(())
    }

    /// Leaves each module in the one form that the root shall have.
    fn settle(&self, hot: &BTreeSet<String>, early: &BTreeSet<String>) -> Result<(), BuildError> {
        for file in hot.union(early) {
            let extra = if hot.contains(file) { file.as_str() } else { unpacked(file) };
            let path = self.place(extra);
            fs::remove_file(&path).map_err(BuildError::write(&path))?;
        }
        Ok(())
    }

    fn initrd_tree(&self, needs: &Needs, early: &BTreeSet<String>) -> Result<Tree, BuildError> {
        let mut tree = Tree::default();
        let base = format!("usr/lib/modules/{}", self.version);
        for file in early {
            let name = unpacked(file);
            let bytes = read_file(&self.place(name))?;
            tree.file(&format!("{base}/{name}"), 0o644, bytes);
        }
        tree.text(&format!("{base}/modules.dep"), &needs.render(early));
        let aliases = choose_aliases(&self.read("modules.alias")?, early);
        tree.text(&format!("{base}/modules.alias"), &aliases);
        tree.add_parents();
        Ok(tree)
    }

    fn root_tree(&self) -> Result<Tree, BuildError> {
        let mut tree = Tree::default();
        let mut dirs = vec![self.place("")];
        let base = format!("usr/lib/modules/{}", self.version);
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir).map_err(BuildError::read(&dir))?.flatten() {
                let path = entry.path();
                if path.is_dir() {
                    dirs.push(path);
                    continue;
                }
                let place = self.place("");
                let name = path.strip_prefix(&place).unwrap_or(&path).to_string_lossy();
                // Only debuggers and depmod itself read these.
                if !name.starts_with("modules.symbols") && name != "modules.order" {
                    tree.file(&format!("{base}/{name}"), 0o644, read_file(&path)?);
                }
            }
        }
        tree.add_parents();
        Ok(tree)
    }
}

/// What each module file needs.
struct Needs(BTreeMap<String, Vec<String>>);

impl Needs {
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        let words = |text: &str| text.split_ascii_whitespace().map(str::to_owned).collect();
        Self(lines.map(|(file, needs)| (file.to_owned(), words(needs))).collect())
    }

    /// The files chosen and all they need. depmod lists indirect needs as well.
    fn close(&self, chosen: impl Fn(&str) -> bool) -> BTreeSet<String> {
        let chosen = self.0.iter().filter(|(file, _)| chosen(file));
        chosen.flat_map(|(file, needs)| std::iter::once(file).chain(needs)).cloned().collect()
    }

    fn render(&self, files: &BTreeSet<String>) -> String {
        let line = |(file, needs): (&String, &Vec<String>)| {
            let needs: String = needs.iter().map(|need| format!(" {}", unpacked(need))).collect();
            format!("{}:{needs}\n", unpacked(file))
        };
        self.0.iter().filter(|(file, _)| files.contains(*file)).map(line).collect()
    }
}

fn choose_aliases(text: &str, files: &BTreeSet<String>) -> String {
    let names: BTreeSet<String> = files.iter().map(|file| module_name(file)).collect();
    let chosen = text.lines().filter(|line| {
        line.starts_with("alias ")
            && line.rsplit(' ').next().is_some_and(|name| names.contains(name))
    });
    chosen.map(|line| format!("{line}\n")).collect()
}

fn is_wanted(name: &str) -> bool {
    let Some(place) = name.strip_prefix("kernel/") else { return name.starts_with("modules.") };
    !entries(DROPPED_MODULES)
        .any(|tree| place.strip_prefix(tree).is_some_and(|rest| rest.starts_with('/')))
}

fn is_named(file: &str, table: &'static str) -> bool {
    let name = module_name(file);
    entries(table).any(|wanted| wanted.replace('-', "_") == name)
}

fn is_below(file: &str, tree: &str) -> bool {
    file.strip_prefix("kernel/").is_some_and(|place| place.starts_with(tree))
}

fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

fn unpacked(file: &str) -> &str {
    if file.ends_with(PACKED) { file.trim_end_matches(".xz") } else { file }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn desktop_drivers_go_and_server_drivers_stay() {
        for (name, wanted) in [
            ("kernel/sound/soundcore.ko.xz", false),
            ("kernel/drivers/gpu/drm/drm.ko.xz", false),
            ("kernel/drivers/net/ethernet/intel/ice/ice.ko.xz", true),
            ("kernel/drivers/net/wireless/ath/ath.ko.xz", false),
            ("modules.builtin", true),
            ("build", false),
        ] {
            assert_eq!(is_wanted(name), wanted, "{name}");
        }
    }

    #[test]
    fn needs_are_closed_and_written_for_unpacked_files() {
        let needs = Needs::parse(
            "k/a.ko.xz: k/b.ko.xz k/c.ko.xz\nk/b.ko.xz: k/c.ko.xz\nk/c.ko.xz:\nk/d.ko.xz:\n",
        );
        let chosen = needs.close(|file| is_named(file, "a"));
        assert_eq!(chosen.len(), 3);
        assert_eq!(needs.render(&chosen), "k/a.ko: k/b.ko k/c.ko\nk/b.ko: k/c.ko\nk/c.ko:\n");
        let aliases = "# x\nalias pci:1 a\nalias pci:2 d\n";
        assert_eq!(choose_aliases(aliases, &chosen), "alias pci:1 a\n");
    }
}
