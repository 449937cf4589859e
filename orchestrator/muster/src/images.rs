//! `muster images add|list|remove`: images for nodes that reach no registry.
//!
//! Archives are read here and sent to the master's registry, which checks every digest; so this
//! works from any host with the admin's kubeconfig. What is there already is not sent again, and
//! a broken line costs no more than the blob it broke in.

mod archive;
mod push;

use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use api::registry::Reference;
use comfy_table::{Table, presets};
use runtime::Client;
use serde::{Deserialize, Serialize};

use self::archive::{Archive, Image};
use crate::args::{
    ClusterArgs, ImagesAddArgs, ImagesArgs, ImagesListArgs, ImagesRemoveArgs, ImagesVerb, Output,
};
use crate::daemon::block_on;
use crate::say;
use crate::site::Site;

/// How much of a digest a table shows.
const DIGEST_SHOWN: usize = "sha256:".len() + 12;

/// Does what was asked.
pub(crate) fn run(args: &ImagesArgs) -> Result<()> {
    match &args.verb {
        ImagesVerb::Add(args) => add(args),
        ImagesVerb::List(args) => list(args),
        ImagesVerb::Remove(args) => remove(args),
    }
}

fn client(args: &ClusterArgs) -> Result<Client> {
    match &args.kubeconfig {
        Some(path) => {
            Client::from_kubeconfig(path).with_context(|| format!("cannot use {}", path.display()))
        }
        None => Site::find(&args.site)?.client(),
    }
}

fn add(args: &ImagesAddArgs) -> Result<()> {
    let client = client(&args.cluster)?;
    let name = args.name.as_deref().map(Reference::parse).transpose()?;
    let path = Path::new(&args.source);
    if path.exists() {
        return add_archive(&client, path, name);
    }
    let reference = Reference::parse(&args.source).ok().filter(|_| !looks_like_a_path(path));
    let reference =
        reference.with_context(|| format!("{}: there is no such file", path.display()))?;
    let fetched = fetch(&args.source, &reference)?;
    add_archive(&client, fetched.path(), Some(name.unwrap_or(reference)))
}

/// People who mistype a path must not be told about registries.
fn looks_like_a_path(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let known = [".tar", ".gz", ".tgz", ".zst", ".oci"];
    text.starts_with(['/', '.', '~']) || known.iter().any(|end| text.ends_with(end))
}

/// Has skopeo fetch an image: it knows logins, proxies and the registries' many ways.
fn fetch(source: &str, reference: &Reference) -> Result<tempfile::NamedTempFile> {
    let file = tempfile::Builder::new().suffix(".tar").tempfile()?;
    // It refuses to write into a file that is there.
    std::fs::remove_file(file.path())?;
    let to = format!("oci-archive:{}", file.path().display());
    let status = Command::new("skopeo")
        .args(["copy", "--override-os", "linux", "--override-arch", "amd64"])
        .arg(format!("docker://{reference}"))
        .arg(&to)
        .status();
    match status {
        Ok(status) => {
            ensure!(status.success(), "skopeo cannot fetch {reference} ({status})");
            Ok(file)
        }
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => bail!(
            "{source} is no file, and fetching it from its registry takes skopeo, which is not on \
             this host (Debian package skopeo). Or, on a host with a network:\n  \
             skopeo copy docker://{reference} docker-archive:image.tar:{reference}\nand here:\n  \
             muster images add image.tar"
        ),
        Err(err) => Err(err).context("cannot run skopeo"),
    }
}

fn add_archive(client: &Client, path: &Path, name: Option<Reference>) -> Result<()> {
    let context = || path.display().to_string();
    let mut archive = Archive::open(path).with_context(context)?;
    let images = archive.images().with_context(context)?;
    let named = name_images(images, name).with_context(context)?;
    let mut out = std::io::stdout();
    for (names, image) in &named {
        for name in names {
            let pushed = block_on(push::push(client, name, image, &mut archive));
            let pushed = pushed.with_context(|| format!("cannot add {name}"))?;
            let (sent, size) = (megabytes(pushed.sent_bytes), megabytes(pushed.size_bytes));
            writeln!(
                out,
                "added {name}@{}: {size} MB, of which {sent} were new",
                image.digest().context("an image without a manifest")?
            )?;
        }
    }
    Ok(())
}

/// What each image of an archive is to be called.
fn name_images(
    images: Vec<Image>,
    name: Option<Reference>,
) -> Result<Vec<(Vec<Reference>, Image)>> {
    ensure!(!images.is_empty(), "there is no image in it");
    let count = images.len();
    images
        .into_iter()
        .map(|image| {
            let names = match &name {
                Some(name) => {
                    ensure!(count == 1, "there are {count} images in it, for one --name");
                    vec![name.clone()]
                }
                None => {
                    let parsed: Result<Vec<_>, _> =
                        image.names.iter().map(|name| Reference::parse(name)).collect();
                    parsed?
                }
            };
            ensure!(!names.is_empty(), "it does not say what the image is called; give --name REF");
            Ok((names, image))
        })
        .collect()
}

/// What the master says of an image.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    name: String,
    tag: Option<String>,
    digest: String,
    media_type: String,
    size_bytes: u64,
    platforms: Vec<String>,
    added: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Listing {
    images: Vec<Listed>,
}

fn list(args: &ImagesListArgs) -> Result<()> {
    let client = client(&args.cluster)?;
    let answer = block_on(async { Ok(client.raw_get("/muster/v1/images").await?) });
    let answer = answer.context("cannot ask the master for its images")?;
    ensure!(answer.status.is_success(), "the master refuses: {}", push::refusal(&answer));
    let listing: Listing =
        serde_json::from_slice(&answer.body).context("the master's list cannot be read")?;
    let mut out = std::io::stdout();
    if args.output == Output::Json {
        writeln!(out, "{}", serde_json::to_string_pretty(&listing)?)?;
        return Ok(());
    }
    let mut table = Table::new();
    let head = ["NAME", "TAG", "DIGEST", "MB", "PLATFORMS", "ADDED"];
    table.load_style(presets::NOTHING).set_header(head);
    for image in listing.images {
        table.add_row([
            image.name,
            image.tag.unwrap_or_else(|| "-".to_owned()),
            image.digest.get(..DIGEST_SHOWN).unwrap_or_default().to_owned(),
            megabytes(image.size_bytes),
            image.platforms.join(" "),
            image.added,
        ]);
    }
    writeln!(out, "{table}")?;
    Ok(())
}

fn remove(args: &ImagesRemoveArgs) -> Result<()> {
    let client = client(&args.cluster)?;
    let name = Reference::parse(&args.name)?;
    block_on(push::remove(&client, &name))?;
    say(&format!("removed {name}; nodes that have it keep their copies"));
    Ok(())
}

fn megabytes(bytes: u64) -> String {
    format!("{}.{}", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
}
