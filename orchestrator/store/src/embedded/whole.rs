//! The embedded store as a whole, while no server uses it.

use std::path::Path;
use std::sync::Arc;

use redb::{Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _};

use crate::contents::{Contents, Report};
use crate::embedded::{
    ENGINE_CACHE_BYTES, FILE, FORMAT, ITEMS, META, OpenError, Options, SHELVES, decode_record,
    prepare, render_record,
};
use crate::item::Item;
use crate::transfer::Over;

/// Records of one transaction while a store is filled.
const FILL_ITEMS: usize = 5_000;

fn engine(err: impl Into<redb::Error>) -> OpenError {
    OpenError::Engine(err.into())
}

fn open_existing(dir: &Path) -> Result<Database, OpenError> {
    let path = dir.join(FILE);
    if !path.exists() {
        return Err(OpenError::Missing { path });
    }
    let db = Database::builder().set_cache_size(ENGINE_CACHE_BYTES).open(&path).map_err(engine)?;
    match number(&db, "format")? {
        FORMAT => Ok(db),
        found => Err(OpenError::Format { found }),
    }
}

fn number(db: &Database, key: &str) -> Result<u64, OpenError> {
    let transaction = db.begin_read().map_err(engine)?;
    let meta = transaction.open_table(META).map_err(engine)?;
    Ok(meta.get(key).map_err(engine)?.map_or(0, |value| value.value()))
}

/// Calls with shelf, name and item of each record; the item is `None` when it is damaged.
fn each(
    db: &Database,
    mut take: impl FnMut(&str, &str, Option<Item>) -> Result<(), OpenError>,
) -> Result<(), OpenError> {
    let transaction = db.begin_read().map_err(engine)?;
    let items = transaction.open_table(ITEMS).map_err(engine)?;
    for row in items.iter().map_err(engine)? {
        let (key, record) = row.map_err(engine)?;
        let (shelf, name) = key.value();
        take(shelf, name, decode_record(shelf, name, record.value()))?;
    }
    Ok(())
}

pub(crate) fn contents(options: &Options) -> Result<Contents, OpenError> {
    let db = open_existing(&options.dir)?;
    let mut items = Vec::new();
    each(&db, |shelf, name, item| {
        let damaged = || OpenError::Damaged { shelf: shelf.to_owned(), name: name.to_owned() };
        items.push((shelf.into(), Arc::new(item.ok_or_else(damaged)?)));
        Ok(())
    })?;
    Ok(Contents { revision: number(&db, "revision")?, items })
}

pub(crate) fn verify(options: &Options) -> Result<Report, OpenError> {
    let db = open_existing(&options.dir)?;
    let mut report = Report { revision: number(&db, "revision")?, ..Report::default() };
    let mut damaged = Vec::new();
    each(&db, |shelf, name, item| {
        match item {
            Some(item) => report.add(shelf, &item),
            None => damaged.push(format!("the record of {shelf}/{name} is damaged")),
        }
        Ok(())
    })?;
    report.faults.extend(damaged);
    if number(&db, "moved")? != 0 {
        report.faults.push("the store was moved away from here".to_owned());
    }
    if let Some(fault) = check_pages(&options.dir)? {
        report.faults.push(fault);
    }
    Ok(report)
}

/// Lets the engine check its own structure; on a copy, for it mends what it finds.
fn check_pages(dir: &Path) -> Result<Option<String>, OpenError> {
    let copy = dir.join("store.redb.check");
    let file = |source| OpenError::Dir { dir: dir.to_owned(), source };
    std::fs::copy(dir.join(FILE), &copy).map_err(file)?;
    let checked = Database::builder()
        .set_cache_size(ENGINE_CACHE_BYTES)
        .open(&copy)
        .and_then(|mut db| db.check_integrity());
    std::fs::remove_file(&copy).map_err(file)?;
    // Not closed properly, and so mended, is any file that is open: no fault.
    Ok(checked.err().map(|err| format!("the engine's file is damaged: {err}")))
}

pub(crate) fn retire(options: &Options, retired: bool) -> Result<(), OpenError> {
    let db = open_existing(&options.dir)?;
    let transaction = db.begin_write().map_err(engine)?;
    transaction
        .open_table(META)
        .map_err(engine)?
        .insert("moved", u64::from(retired))
        .map_err(engine)?;
    transaction.commit().map_err(engine)
}

pub(crate) fn fill(
    options: &Options,
    contents: &Contents,
    revision: u64,
    over: Over,
) -> Result<u64, OpenError> {
    let dir = &options.dir;
    let file = |source| OpenError::Dir { dir: dir.clone(), source };
    std::fs::create_dir_all(dir).map_err(file)?;
    // The old store stays open, and so locked, until the new one has taken its place.
    let old = match open_existing(dir) {
        Ok(db) => Some(db),
        Err(OpenError::Missing { .. }) => None,
        Err(err) => return Err(err),
    };
    let mut revision = revision.max(contents.revision);
    if let Some(old) = &old {
        let transaction = old.begin_read().map_err(engine)?;
        let items = transaction.open_table(ITEMS).map_err(engine)?.len().map_err(engine)?;
        if over == Over::Nothing && items > 0 && number(old, "moved")? == 0 {
            return Err(OpenError::NotEmpty { dir: dir.clone() });
        }
        revision = revision.max(number(old, "revision")? + 1);
    }
    let new = dir.join("store.redb.new");
    if new.exists() {
        std::fs::remove_file(&new).map_err(file)?;
    }
    let db = Database::builder().set_cache_size(64 << 20).create(&new).map_err(engine)?;
    prepare(&db)?;
    for items in contents.items.chunks(FILL_ITEMS) {
        write_items(&db, items, revision).map_err(OpenError::Engine)?;
    }
    let transaction = db.begin_write().map_err(engine)?;
    {
        let mut meta = transaction.open_table(META).map_err(engine)?;
        meta.insert("revision", revision).map_err(engine)?;
        meta.insert("base", revision).map_err(engine)?;
    }
    transaction.commit().map_err(engine)?;
    drop(db);
    std::fs::rename(&new, dir.join(FILE)).map_err(file)?;
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(file)?;
    drop(old);
    Ok(revision)
}

fn write_items(
    db: &Database,
    items: &[(Box<str>, Arc<Item>)],
    revision: u64,
) -> Result<(), redb::Error> {
    let transaction = db.begin_write()?;
    {
        let mut table = transaction.open_table(ITEMS)?;
        let mut shelves = transaction.open_table(SHELVES)?;
        let mut record = Vec::new();
        for (shelf, item) in items {
            render_record(shelf, item, &mut record);
            table.insert((&**shelf, item.name()), record.as_slice())?;
            shelves.insert(&**shelf, revision)?;
        }
    }
    Ok(transaction.commit()?)
}
