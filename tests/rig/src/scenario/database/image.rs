//! Container images made of Debian packages on this host: apt resolves and fetches them as if
//! nothing were installed, and what they hold becomes one layer.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::process;
use crate::scenario::archive;
use crate::scenario::story::Story;

/// What an image is made of.
pub(super) struct Recipe {
    /// The image's name.
    pub(super) name: &'static str,
    /// Packages; what they depend on comes along.
    packages: &'static [&'static str],
    /// Paths that a container of it never reads.
    unwanted: &'static [&'static str],
}

/// The database, its client and a shell.
pub(super) const DATABASE: Recipe = Recipe {
    name: "lab.example/mariadb:1",
    packages: &["mariadb-server-core", "mariadb-client-core", "busybox-static"],
    unwanted: &["usr/bin/mariadb-upgrade", "usr/bin/mariadb-check", "usr/bin/innochecksum"],
};
/// The web front end's language and a shell.
pub(super) const FRONT: Recipe = Recipe {
    name: "lab.example/php:1",
    packages: &["php-cli", "php-mysql", "busybox-static"],
    unwanted: &["usr/lib/file", "usr/share/perl5"],
};
/// What no container here reads.
const UNWANTED: [&str; 6] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/bug",
    "usr/lib/x86_64-linux-gnu/gconv",
];
/// What Debian's base system has as links, where no package brought a directory.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// Makes an image and puts it on the master.
pub(super) fn bring(story: &Story, recipe: &Recipe) -> Result<()> {
    let dir = story.dir().join("images").join(recipe.name.replace(['/', ':'], "-"));
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let root = dir.join("root");
    for file in download(story, recipe, &dir)? {
        process::run("dpkg-deb", &["-x", text(&file)?, text(&root)?])?;
    }
    trim(&root, recipe)?;
    finish(&root)?;
    let layer = dir.join("layer.tar");
    let plain = ["--sort=name", "--numeric-owner", "--owner=0", "--group=0"];
    let take = ["-C", text(&root)?, "-cf", text(&layer)?, "."];
    process::run("tar", &[&plain[..], &take].concat())?;
    let image = dir.join("image.tar");
    let config = json!({"Cmd": ["sh"], "Env": ["PATH=/usr/bin:/usr/sbin:/bin:/sbin"]});
    archive::write(&image, recipe.name, &fs::read(&layer)?, &config)?;
    let said =
        story.muster_output(&["images", "add", text(&image)?, "--dir", text(story.dir())?])?;
    ensure!(said.contains(recipe.name), "muster images add says {said}");
    fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))
}

/// Fetches the packages, kept beside the stories for the next run.
fn download(story: &Story, recipe: &Recipe, dir: &Path) -> Result<Vec<PathBuf>> {
    let kept = crate::rig::absolute(&story.options().dir.join("packages"))?;
    fs::create_dir_all(&kept).with_context(|| format!("making {}", kept.display()))?;
    let nothing = dir.join("status");
    fs::write(&nothing, "")?;
    let status = format!("Dir::State::status={}", text(&nothing)?);
    let resolve = || {
        let mut apt = apt(&["install", "--print-uris", "--yes"], &kept);
        apt.args(["-o", &status, "-o", "Dir::Cache::archives=/nonexistent/"]);
        process::output(apt.args(recipe.packages))
    };
    // Lists may be missing or old; only then is it worth a minute to fetch them.
    let said = resolve().or_else(|_| {
        process::output(&mut apt(&["update"], &kept))?;
        resolve()
    })?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let files = said.lines().filter(|line| line.starts_with('\''));
    let files: Vec<&str> = files.filter_map(|line| line.split(' ').nth(1)).collect();
    ensure!(!files.is_empty(), "apt finds no packages: {said}");
    let missing = files.iter().filter(|file| !kept.join(file).is_file());
    let missing: Vec<&str> = missing.filter_map(|file| file.split('_').next()).collect();
    if !missing.is_empty() {
        process::output(apt(&["download"], &kept).args(missing))?;
    }
    Ok(files.into_iter().map(|file| kept.join(file)).collect())
}

fn apt(arguments: &[&str], dir: &Path) -> Command {
    let mut apt = process::command("apt-get");
    apt.args(["-qq", "-o", "APT::Install-Recommends=false", "-o", "APT::Sandbox::User=root"]);
    apt.args(arguments).current_dir(dir);
    apt
}

fn trim(root: &Path, recipe: &Recipe) -> Result<()> {
    for path in UNWANTED.iter().chain(recipe.unwanted) {
        let path = root.join(path);
        let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match gone {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                return Err(err).with_context(|| format!("removing {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What the packages' scripts would have done, as far as containers need it.
fn finish(root: &Path) -> Result<()> {
    for name in MERGED {
        if !root.join(name).exists() && root.join("usr").join(name).exists() {
            symlink(format!("usr/{name}"), root.join(name))?;
        }
    }
    let above = ["usr/bin", "bin"].into_iter().find(|dir| root.join(dir).join("busybox").is_file());
    let bin = root.join(above.context("the packages bring no busybox")?);
    let applets = process::run(text(&bin.join("busybox"))?, &["--list"])?;
    for applet in applets.lines().filter(|name| *name != "busybox") {
        if !["bin", "usr/bin", "sbin", "usr/sbin"]
            .iter()
            .any(|dir| root.join(dir).join(applet).exists())
        {
            symlink("busybox", bin.join(applet))?;
        }
    }
    // A versioned program has its plain name from a script.
    let tools = root.join("usr/bin");
    for entry in fs::read_dir(&tools)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("php8") && !tools.join("php").exists() {
            symlink(name, tools.join("php"))?;
        }
    }
    for dir in ["tmp", "run", "data"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::create_dir_all(root.join("etc"))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n").context("writing the groups")
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no UTF-8")
}
