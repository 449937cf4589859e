//! Stores as a whole, while no server uses them: looked over, copied, filled, moved.
//!
//! Whatever is moved or restored ends at a revision that no client has seen, so nobody's clock
//! goes back: those who come with an older one are told to list anew.

use crate::contents::{Contents, Report};
use crate::embedded::{self, OpenError, Options};
use crate::etcd::{self, EtcdError, EtcdOptions};

/// Where a store is kept.
#[derive(Debug, Clone)]
pub enum Place {
    /// In a directory.
    Embedded(Options),
    /// In an etcd cluster.
    Etcd(EtcdOptions),
}

/// May what is there be replaced?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Only a store that holds nothing, was moved away, or was not filled to its end.
    Nothing,
    /// Any store.
    Anything,
}

/// Why a store cannot be looked at or changed as a whole.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The embedded store.
    #[error("cannot use the embedded store")]
    Embedded(#[from] OpenError),
    /// The store in etcd.
    #[error("cannot use the store in etcd")]
    Etcd(#[from] EtcdError),
}

/// Looks at every record of a store and changes nothing.
///
/// # Errors
///
/// When there is no store or it is in use. What is wrong with its records stands in the report.
pub async fn verify(place: &Place) -> Result<Report, TransferError> {
    match place {
        Place::Embedded(options) => Ok(embedded::verify(options)?),
        Place::Etcd(options) => Ok(Report::of(&etcd::contents(options).await?)),
    }
}

/// Reads a whole store. A store in etcd may be in use meanwhile; an embedded one may not.
///
/// # Errors
///
/// When there is no store, it is in use, or damaged.
pub async fn read(place: &Place) -> Result<Contents, TransferError> {
    match place {
        Place::Embedded(options) => Ok(embedded::contents(options)?),
        Place::Etcd(options) => Ok(etcd::contents(options).await?),
    }
}

/// Makes a store of these contents, at a revision of at least `revision` and newer than any that
/// was there; the new newest revision.
///
/// # Errors
///
/// When the place is in use or holds what may not be replaced.
pub async fn fill(
    place: &Place,
    contents: &Contents,
    revision: u64,
    over: Over,
) -> Result<u64, TransferError> {
    match place {
        Place::Embedded(options) => Ok(embedded::fill(options, contents, revision, over)?),
        Place::Etcd(options) => Ok(etcd::fill(options, contents, revision, over).await?),
    }
}

/// Moves a store: afterwards the old place refuses to be used. When it fails, the old place is
/// as before. The new newest revision, and how many items were moved.
///
/// # Errors
///
/// As for [`read`] and [`fill`].
pub async fn migrate(from: &Place, to: &Place) -> Result<(u64, usize), TransferError> {
    // Retired first, so that no write can come between the copy and the end.
    retire(from, true).await?;
    let moved = async {
        let contents = read(from).await?;
        let revision = fill(to, &contents, contents.revision, Over::Nothing).await?;
        Ok((revision, contents.items.len()))
    };
    let moved = moved.await;
    if moved.is_err() {
        retire(from, false).await?;
    }
    moved
}

async fn retire(place: &Place, retired: bool) -> Result<(), TransferError> {
    match place {
        Place::Embedded(options) => Ok(embedded::retire(options, retired)?),
        Place::Etcd(options) => Ok(etcd::retire(options, retired).await?),
    }
}

#[cfg(test)]
mod tests;
