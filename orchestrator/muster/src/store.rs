//! The store: where a master keeps it.

use anyhow::{Result, bail};
use apiserver::{EtcdOptions, Storage};

use crate::args::{EtcdArgs, StoreArgs, StoreKind};

/// What the arguments of `muster master` say about its store.
pub(crate) fn storage(args: &StoreArgs) -> Result<Storage> {
    match args.store {
        StoreKind::Embedded if args.etcd.etcd_endpoints.is_empty() => Ok(Storage::Embedded),
        StoreKind::Embedded => bail!("--etcd-endpoints is for --store etcd"),
        StoreKind::Etcd => Ok(Storage::Etcd(etcd(&args.etcd)?)),
    }
}

fn etcd(args: &EtcdArgs) -> Result<EtcdOptions> {
    if args.etcd_endpoints.is_empty() {
        bail!("--store etcd needs --etcd-endpoints");
    }
    Ok(EtcdOptions {
        endpoints: args.etcd_endpoints.clone(),
        ca_cert: args.etcd_cacert.clone(),
        identity: args.etcd_cert.clone().zip(args.etcd_key.clone()),
        prefix: args.etcd_prefix.clone(),
    })
}
