//! Loads the kernel's modules that services, policies and pods will make it ask for.
//!
//! The kernel would start modprobe for each of them. Only when the first table is about to be loaded:
//! checking two dozen signatures takes a slow machine seconds, which it has while it waits for the
//! API, the router or the runtime.
//! Which they are is written in the node image; elsewhere there is no such list, and the kernel
//! asks by itself, as it does for what cannot be loaded here.

use std::path::Path;

use kernel::module::Modules;
use runtime::report;
use tokio::sync::OnceCell;
use tracing::{debug, warn};

/// The modules' names, one a line; `#` begins a comment.
const LIST: &str = "/usr/lib/modules-load.d/muster.conf";
/// Where the modules of each kernel are.
const TREES: &str = "/usr/lib/modules";

/// Loads what the list names, once in the life of this process.
pub(crate) async fn load() {
    static DONE: OnceCell<()> = OnceCell::const_new();
    let work = || async {
        // A panic there is seen in what is missing, and nothing is missing for good.
        drop(tokio::task::spawn_blocking(load_list).await);
    };
    DONE.get_or_init(work).await;
}

fn load_list() {
    let Ok(list) = std::fs::read_to_string(LIST) else { return };
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut modules = match Modules::open_names(&Path::new(TREES).join(release.trim())) {
        Ok(modules) => modules,
        Err(err) => return warn!(err = report(&err), "the kernel asks for its modules itself"),
    };
    let names = list.lines().map(str::trim).filter(|name| !name.is_empty());
    for name in names.filter(|name| !name.starts_with('#')) {
        if let Err(err) = modules.load(name) {
            debug!(name, err = report(&err), "a module is left to the kernel");
        }
    }
}
