//! Where a site's state is kept on the operator's host, and what is in it.
//!
//! ```text
//! DIR/rack.yaml   the file as it was when the site came up
//! DIR/site.json   site name, plan hash, whether it is simulated
//! DIR/kubeconfig  for the operator's kubectl
//! DIR/master/     data of `muster master`
//! DIR/boot/       data of `muster boot`
//! DIR/site/       the site's UKI, CA certificate, kernel command line
//! DIR/keys/       the site's image-signing key
//! DIR/rig/        the simulated rack
//! DIR/logs/       what the daemons said
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use cluster::plan::Plan;
use serde::{Deserialize, Serialize};

use crate::args::SiteArgs;

/// Where sites are kept unless said otherwise.
const HOME: &str = ".muster";

/// One site's directory.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    dir: PathBuf,
}

/// What `up` remembers of a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    /// The site's name.
    pub site: String,
    /// Hash of the plan it was brought up with.
    pub plan_hash: String,
    /// Simulated on this host.
    pub simulated: bool,
    /// The node image.
    pub image: PathBuf,
}

impl Site {
    /// Opens, or makes, the directory of a site that comes up.
    pub(crate) fn make(dir: Option<&Path>, name: &str) -> Result<Self> {
        let dir = dir.map_or_else(|| Path::new(HOME).join(name), Path::to_owned);
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        // Daemons run in other directories.
        Ok(Self { dir: std::fs::canonicalize(&dir)? })
    }

    /// Finds the site that is meant: the given directory, or the only one there is.
    pub(crate) fn find(args: &SiteArgs) -> Result<Self> {
        let dir = match &args.dir {
            Some(dir) => dir.clone(),
            None => only_site()?,
        };
        ensure!(
            dir.join("site.json").exists(),
            "{}: no site is up there; bring one up with `muster up FILE --dir {0}`",
            dir.display()
        );
        Ok(Self { dir: std::fs::canonicalize(dir)? })
    }

    /// A file or directory of the site.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The directory itself.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What was remembered, if the site was ever up.
    pub(crate) fn record(&self) -> Result<Option<Record>> {
        let path = self.path("site.json");
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path)?;
        let record = serde_json::from_str(&text);
        record.with_context(|| format!("{} is damaged", path.display())).map(Some)
    }

    /// Remembers the plan's file and its hash.
    pub(crate) fn remember(&self, rack_yaml: &str, record: &Record) -> Result<()> {
        runtime::pki::write_public(&self.path("rack.yaml"), rack_yaml)?;
        let text = serde_json::to_string_pretty(record)?;
        runtime::pki::write_public(&self.path("site.json"), &text)?;
        Ok(())
    }

    /// The plan the site was brought up with.
    pub(crate) fn plan(&self) -> Result<Plan> {
        let path = self.path("rack.yaml");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        crate::plan::parse(&text, &path)
    }

    /// An API client with the operator's rights.
    pub(crate) fn client(&self) -> Result<runtime::Client> {
        let path = self.path("kubeconfig");
        let client = runtime::Client::from_kubeconfig(&path);
        client.with_context(|| format!("cannot use {}", path.display()))
    }
}

fn only_site() -> Result<PathBuf> {
    let entries = std::fs::read_dir(HOME).into_iter().flatten().filter_map(Result::ok);
    let mut sites: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    sites.retain(|path| path.join("site.json").exists());
    sites.sort();
    match sites.as_slice() {
        [only] => Ok(only.clone()),
        [] => bail!("no site is up below {HOME}; say which with --dir, or use `muster up`"),
        several => {
            let names: Vec<String> =
                several.iter().map(|path| path.display().to_string()).collect();
            bail!("several sites are up ({}); say which with --dir", names.join(", "))
        }
    }
}
