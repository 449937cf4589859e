//! A site's own UKI: the release's parts with the site's command line, signed with its key.

use std::fs;
use std::path::{Path, PathBuf};

use layout::cmdline::{ImageArguments, SiteArguments, render};
use layout::manifest::{Manifest, file};
use layout::uki;

use crate::BuildError;
use crate::cache::{read_file, write_file};
use crate::tool;

const KEY_FILE: &str = "site.key";
const CERTIFICATE_FILE: &str = "site.crt";
/// Firmware does not look at dates, but people do.
const CERTIFICATE_DAYS: &str = "7300";

/// A composed and signed UKI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteUki {
    /// Where it was written.
    pub path: PathBuf,
    /// The whole kernel command line in it; boot scripts for legacy BIOS carry the same.
    pub command_line: String,
    /// The certificate that firmware must trust for Secure Boot.
    pub certificate: PathBuf,
}

/// Composes the UKI that a site's machines boot from, and signs it for Secure Boot.
///
/// Key and certificate are made in `keys` when they are missing. `words` is added at the end of
/// the command line and may be empty.
///
/// # Errors
///
/// When the image directory is incomplete or altered, or a tool is missing.
pub fn compose_site_uki(
    image_dir: &Path,
    site: &SiteArguments,
    words: &str,
    keys: &Path,
    out: &Path,
) -> Result<SiteUki, BuildError> {
    let manifest = Manifest::parse(&read_file(&image_dir.join(file::MANIFEST))?)?;
    let part = |name: &str| -> Result<Vec<u8>, BuildError> {
        let bytes = read_file(&image_dir.join(name))?;
        manifest.check_file(name, &bytes)?;
        Ok(bytes)
    };
    let (stub, kernel, initrd) = (part(file::STUB)?, part(file::KERNEL)?, part(file::INITRD)?);
    let command_line = render(&ImageArguments::of(&manifest), site);
    let command_line = format!("{command_line} {words}").trim_end().to_owned();
    let os_release = uki::render_os_release(&manifest.version);
    let parts = uki::Parts {
        os_release: &os_release,
        command_line: &command_line,
        kernel: &kernel,
        initrd: &initrd,
    };
    let image = uki::compose(&stub, &parts)?;
    let certificate = make_keys(keys)?;
    let unsigned = out.with_extension("unsigned");
    write_file(&unsigned, &image)?;
    let mut sign = tool::command("sbsign");
    sign.arg("--key").arg(keys.join(KEY_FILE)).arg("--cert").arg(&certificate);
    tool::output(sign.arg("--output").arg(out).arg(&unsigned))?;
    fs::remove_file(&unsigned).map_err(BuildError::write(&unsigned))?;
    Ok(SiteUki { path: out.to_owned(), command_line, certificate })
}

/// Makes sure that key and certificate are there.
///
/// RSA 2048, because that is what firmware must support; our own libraries make no such keys.
fn make_keys(keys: &Path) -> Result<PathBuf, BuildError> {
    let (key, certificate) = (keys.join(KEY_FILE), keys.join(CERTIFICATE_FILE));
    if key.exists() && certificate.exists() {
        return Ok(certificate);
    }
    fs::create_dir_all(keys).map_err(BuildError::write(keys))?;
    // openssl writes private keys for the owner's eyes only.
    let mut command = tool::command("openssl");
    command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-sha256"]);
    command.args(["-days", CERTIFICATE_DAYS, "-subj", "/CN=Muster site boot key/", "-keyout"]);
    tool::output(command.arg(&key).arg("-out").arg(&certificate))?;
    Ok(certificate)
}
