//! Local files as an object store that is durable.
//!
//! The idea: everything is written to a file in the dot-directory `.staged` beside its place, synced, and then linked
//! (create-only) or renamed (overwrite) to its name, and the directory synced. So a name shows either nothing or all of
//! it, and after power loss nothing outlives what it depends on, if the writer waits for one put before the next.
//!
//! Everything that touches the disk goes through a [`FileLayer`], so that a test can watch the order of writes and syncs.
//!
//! Not promised: durability where the setting `checkpoint.fsync` is false, or where the disk lies about it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use object_store::local::LocalFileSystem;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::way::RightOfWay;

/// The directory beside a file in which it is staged.
pub const STAGED: &str = ".staged";

/// So many bytes of a file that nobody waits for are synced by themselves.
const PIECE: usize = 256 * 1024;

/// An extension of [`PutOptions`]: nobody waits for this file, so that others had better not wait because of it.
#[derive(Debug, Clone, Copy)]
pub struct Unawaited;

/// The few operations on files that durability depends on.
pub trait FileLayer: fmt::Debug + Send + Sync + 'static {
    /// Appends to a file, which is created if it is not there.
    fn append(&self, path: &FilePath, payload: &PutPayload) -> io::Result<()>;
    /// Syncs a file's data.
    fn sync(&self, path: &FilePath) -> io::Result<()>;
    /// Creates one directory; an existing one is an error of kind `AlreadyExists`.
    fn create_dir(&self, path: &FilePath) -> io::Result<()>;
    /// Syncs a directory's entries.
    fn sync_dir(&self, path: &FilePath) -> io::Result<()>;
    /// A second name for a file; an existing one is an error of kind `AlreadyExists`.
    fn link(&self, from: &FilePath, to: &FilePath) -> io::Result<()>;
    /// Another name for a file, in place of what had it.
    fn rename(&self, from: &FilePath, to: &FilePath) -> io::Result<()>;
    /// Removes a file's name.
    fn remove(&self, path: &FilePath) -> io::Result<()>;
}

/// The operating system's files.
#[derive(Debug)]
pub struct SystemFiles;

impl FileLayer for SystemFiles {
    fn append(&self, path: &FilePath, payload: &PutPayload) -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        payload.iter().try_for_each(|bytes| file.write_all(bytes))
    }

    fn sync(&self, path: &FilePath) -> io::Result<()> {
        File::open(path)?.sync_data()
    }

    fn create_dir(&self, path: &FilePath) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn sync_dir(&self, path: &FilePath) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn link(&self, from: &FilePath, to: &FilePath) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn rename(&self, from: &FilePath, to: &FilePath) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &FilePath) -> io::Result<()> {
        fs::remove_file(path)
    }
}

/// An object store over the machine's files: reads are `object_store`'s own, writes are durable.
#[derive(Debug, Clone)]
pub struct LocalStore {
    reads: Arc<LocalFileSystem>,
    writes: Writes,
}

/// The write side, cheap to move to a blocking thread.
#[derive(Debug, Clone)]
struct Writes {
    files: Arc<dyn FileLayer>,
    way: Arc<RightOfWay>,
    sync: bool,
    /// Tells this store's staged files from those of other processes.
    token: u64,
    next: Arc<AtomicU64>,
}

impl LocalStore {
    /// A store over `files`; `way` is shared by those on one disk, and `token` is random, so that two processes never stage
    /// under one name.
    pub fn new(files: Arc<dyn FileLayer>, way: Arc<RightOfWay>, sync: bool, token: u64) -> Self {
        let writes = Writes { files, way, sync, token, next: Arc::default() };
        Self { reads: Arc::new(LocalFileSystem::new()), writes }
    }

    /// An answer for each, and one more for each directory that cannot be synced.
    fn delete(&self, locations: Vec<Result<Path>>) -> Vec<Result<Path>> {
        let mut touched = BTreeMap::new();
        let mut delete = |location: Path| {
            let path = self.reads.path_to_filesystem(&location)?;
            let removed = self.writes.files.remove(&path).map_err(|e| failed(&location, e));
            touched.extend(path.parent().map(|directory| (directory.to_owned(), location.clone())));
            removed.map(|()| location)
        };
        let mut answers: Vec<_> = locations.into_iter().map(|location| location.and_then(&mut delete)).collect();
        for (directory, location) in touched {
            answers.extend(self.writes.sync_dir(&directory).err().map(|e| Err(failed(&location, e))));
        }
        answers
    }

    async fn blocking<T: Send + 'static>(
        &self,
        location: &Path,
        work: impl FnOnce(Writes, PathBuf) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let path = self.reads.path_to_filesystem(location)?;
        let (writes, name) = (self.writes.clone(), location.clone());
        let worked = tokio::task::spawn_blocking(move || work(writes, path).map_err(|e| failed(&name, e)));
        worked.await.map_err(|join| Error::JoinError { source: join })?
    }
}

/// Trouble with a file, as the store's error.
fn failed(location: &Path, e: io::Error) -> Error {
    let path = location.to_string();
    match e.kind() {
        io::ErrorKind::AlreadyExists => Error::AlreadyExists { path, source: e.into() },
        io::ErrorKind::NotFound => Error::NotFound { path, source: e.into() },
        io::ErrorKind::PermissionDenied => Error::PermissionDenied { path, source: e.into() },
        _ => Error::Generic { store: "local files", source: format!("{path}: {e}").into() },
    }
}

impl Writes {
    /// A fresh name in the dot-directory beside `path`, whose directories exist when this returns.
    fn stage(&self, path: &FilePath) -> io::Result<PathBuf> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::other("a file needs a directory and a name"));
        };
        let staged = parent.join(STAGED);
        self.ensure_dir(&staged)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Ok(staged.join(format!("{}.{:016x}.{number}", name.to_string_lossy(), self.token)))
    }

    /// Creates what is missing of `path`, and syncs the parent of each directory that it made.
    fn ensure_dir(&self, path: &FilePath) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        let parent = path.parent().ok_or_else(|| io::Error::other("no such root directory"))?;
        self.ensure_dir(parent)?;
        match self.files.create_dir(path) {
            Ok(()) => self.sync_dir(parent),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn sync_dir(&self, path: &FilePath) -> io::Result<()> {
        if self.sync { self.files.sync_dir(path) } else { Ok(()) }
    }

    /// Writes a staged file, and syncs each piece of it, with others between the pieces.
    fn fill_by_pieces(&self, staged: &FilePath, payload: &PutPayload) -> io::Result<()> {
        self.files.append(staged, &PutPayload::new())?;
        for bytes in payload {
            for from in (0..bytes.len()).step_by(PIECE) {
                self.way.give();
                let piece = bytes.slice(from..bytes.len().min(from + PIECE));
                self.files.append(staged, &piece.into())?;
                self.files.sync(staged)?;
            }
        }
        // The name is synced, too.
        self.way.give();
        Ok(())
    }

    /// Gives a staged file its name: data first, then the name, then the directory.
    fn settle(&self, staged: &FilePath, path: &FilePath, create_only: bool) -> io::Result<()> {
        if self.sync {
            self.files.sync(staged)?;
        }
        if create_only {
            let linked = self.files.link(staged, path);
            self.files.remove(staged)?;
            linked?;
        } else {
            self.files.rename(staged, path)?;
        }
        match path.parent() {
            Some(parent) => self.sync_dir(parent),
            None => Ok(()),
        }
    }

    fn put(&self, path: &FilePath, payload: &PutPayload, create_only: bool, is_awaited: bool) -> io::Result<()> {
        let _first = is_awaited.then(|| self.way.take());
        let staged = self.stage(path)?;
        let filled = match is_awaited || !self.sync {
            true => self.files.append(&staged, payload),
            false => self.fill_by_pieces(&staged, payload),
        };
        let put = filled.and_then(|()| self.settle(&staged, path, create_only));
        if put.is_err() {
            // What it was must not fill the disk; it may be gone already.
            let _ = self.files.remove(&staged);
        }
        put
    }
}

const DONE: PutResult = PutResult { e_tag: None, version: None };

#[async_trait]
impl ObjectStore for LocalStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let create_only = match options.mode {
            PutMode::Create => true,
            PutMode::Overwrite => false,
            PutMode::Update(_) => {
                return Err(Error::NotImplemented { operation: "update".into(), implementer: self.to_string() });
            }
        };
        let is_awaited = options.extensions.get::<Unawaited>().is_none();
        self.blocking(location, move |writes, path| writes.put(&path, &payload, create_only, is_awaited)).await?;
        Ok(DONE)
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotImplemented { operation: "anonymous uploads".into(), implementer: self.to_string() })
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.reads.get_opts(location, options).await
    }

    /// What is gone stays gone: the directories are synced, each once, before the first answer.
    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let deleted = async move {
            let locations: Vec<Result<Path>> = locations.collect().await;
            // All of them in one call: there may be many, and each is done in no time.
            let deleted = tokio::task::spawn_blocking(move || store.delete(locations)).await;
            stream::iter(deleted.unwrap_or_else(|join| vec![Err(Error::JoinError { source: join })]))
        };
        deleted.into_stream().flatten().boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.reads.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.reads.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.reads.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.reads.copy_opts(from, to, options).await
    }
}

/// An upload is a staged file, its id the file's name. Parts must come in order.
#[async_trait]
impl MultipartStore for LocalStore {
    async fn create_multipart(&self, path: &Path) -> Result<MultipartId> {
        self.blocking(path, |writes, path| {
            let staged = writes.stage(&path)?;
            writes.files.append(&staged, &PutPayload::new())?;
            Ok(staged.to_string_lossy().into_owned())
        })
        .await
    }

    async fn put_part(&self, path: &Path, id: &MultipartId, part_idx: usize, data: PutPayload) -> Result<PartId> {
        let staged = PathBuf::from(id);
        self.blocking(path, move |writes, _| writes.files.append(&staged, &data)).await?;
        Ok(PartId { content_id: part_idx.to_string() })
    }

    async fn complete_multipart(&self, path: &Path, id: &MultipartId, _parts: Vec<PartId>) -> Result<PutResult> {
        let staged = PathBuf::from(id);
        let settled = self.blocking(path, move |writes, path| {
            let _first = writes.way.take();
            writes.settle(&staged, &path, false)
        });
        settled.await?;
        Ok(DONE)
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        let staged = PathBuf::from(id);
        self.blocking(path, move |writes, _| match writes.files.remove(&staged) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        })
        .await
    }
}

impl fmt::Display for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("local files")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use object_store::ObjectStoreExt;

    fn store() -> (tempfile::TempDir, LocalStore, Path) {
        let dir = tempfile::tempdir().unwrap();
        let root = Path::from_absolute_path(dir.path()).unwrap();
        (dir, LocalStore::new(Arc::new(SystemFiles), Arc::default(), true, 7), root)
    }

    #[tokio::test]
    async fn a_create_happens_once_and_leaves_nothing_staged() {
        let (dir, store, root) = store();
        let path = root.join("a").join("b");
        let create = || store.put_opts(&path, PutPayload::from_static(b"x"), PutMode::Create.into());
        create().await.unwrap();
        assert!(matches!(create().await, Err(Error::AlreadyExists { .. })));
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "x");
        assert_eq!(fs::read_dir(dir.path().join("a").join(STAGED)).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn an_upload_is_invisible_until_it_is_complete() {
        let (_dir, store, root) = store();
        let path = root.join("big");
        let id = store.create_multipart(&path).await.unwrap();
        store.put_part(&path, &id, 0, PutPayload::from_static(b"a")).await.unwrap();
        store.put_part(&path, &id, 1, PutPayload::from_static(b"b")).await.unwrap();
        assert!(matches!(store.get(&path).await, Err(Error::NotFound { .. })));
        store.complete_multipart(&path, &id, vec![]).await.unwrap();
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "ab");
        let id = store.create_multipart(&path).await.unwrap();
        store.abort_multipart(&path, &id).await.unwrap();
        store.abort_multipart(&path, &id).await.unwrap();
    }

    /// Files of the system, and who is told of what was done with them.
    struct Watched<F>(F);

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Done {
        Append(usize),
        Sync,
        Name,
    }

    impl<F> fmt::Debug for Watched<F> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Watched")
        }
    }

    impl<F: Fn(Done, &FilePath) + Send + Sync + 'static> FileLayer for Watched<F> {
        fn append(&self, path: &FilePath, payload: &PutPayload) -> io::Result<()> {
            SystemFiles.append(path, payload).map(|()| (self.0)(Done::Append(payload.content_length()), path))
        }
        fn sync(&self, path: &FilePath) -> io::Result<()> {
            SystemFiles.sync(path).map(|()| (self.0)(Done::Sync, path))
        }
        fn create_dir(&self, path: &FilePath) -> io::Result<()> {
            SystemFiles.create_dir(path)
        }
        fn sync_dir(&self, path: &FilePath) -> io::Result<()> {
            SystemFiles.sync_dir(path)
        }
        fn link(&self, from: &FilePath, to: &FilePath) -> io::Result<()> {
            SystemFiles.link(from, to).map(|()| (self.0)(Done::Name, to))
        }
        fn rename(&self, from: &FilePath, to: &FilePath) -> io::Result<()> {
            SystemFiles.rename(from, to).map(|()| (self.0)(Done::Name, to))
        }
        fn remove(&self, path: &FilePath) -> io::Result<()> {
            SystemFiles.remove(path)
        }
    }

    fn unawaited() -> PutOptions {
        let mut options = PutOptions::from(PutMode::Create);
        options.extensions.insert(Unawaited);
        options
    }

    #[tokio::test]
    async fn a_file_that_nobody_waits_for_is_synced_piece_by_piece() {
        let dir = tempfile::tempdir().unwrap();
        // How much of the file is not synced: now, and at most.
        let unsynced = Arc::new(Mutex::new((0, 0)));
        let seen = Arc::clone(&unsynced);
        let files = Watched(move |done, _: &FilePath| {
            let mut unsynced = seen.lock().unwrap();
            match done {
                Done::Append(bytes) => unsynced.0 += bytes,
                Done::Sync => unsynced.0 = 0,
                Done::Name => assert_eq!(unsynced.0, 0, "a name, before all of it is synced"),
            }
            unsynced.1 = unsynced.1.max(unsynced.0);
        });
        let store = LocalStore::new(Arc::new(files), Arc::default(), true, 7);
        let path = Path::from_absolute_path(dir.path()).unwrap().join("large");
        let body: Vec<u8> = (0..9 * PIECE + 5).map(|i| (i / 1000) as u8).collect();
        store.put_opts(&path, body.clone().into(), unawaited()).await.unwrap();
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), body);
        assert_eq!(unsynced.lock().unwrap().1, PIECE);
    }

    #[tokio::test]
    async fn a_file_that_nobody_waits_for_is_synced_after_those_that_somebody_does() {
        // So often that one that does not wait would be first now and then.
        for _ in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            let root = Path::from_absolute_path(dir.path()).unwrap();
            let order = Arc::new(Mutex::new(vec![]));
            let (seen, has_begun) = (Arc::clone(&order), [std::sync::OnceLock::new(), std::sync::OnceLock::new()]);
            // Each is written, but not synced, before the other goes on.
            let files = Watched(move |done, path: &FilePath| {
                let is_awaited = path.to_string_lossy().contains("somebody");
                match done {
                    Done::Append(0) if !is_awaited => {
                        let _ = has_begun[0].set(());
                        has_begun[1].wait();
                    }
                    Done::Append(_) if is_awaited => {
                        let _ = has_begun[1].set(());
                        has_begun[0].wait();
                    }
                    Done::Sync | Done::Name => seen.lock().unwrap().push((is_awaited, done)),
                    Done::Append(_) => {}
                }
            });
            let way = Arc::new(RightOfWay::new(std::time::Duration::ZERO, std::time::Duration::MAX));
            let store = LocalStore::new(Arc::new(files), way, true, 7);
            let (somebody, nobody) = (root.clone().join("somebody"), root.join("nobody"));
            let awaited = store.put_opts(&somebody, PutPayload::from_static(b"x"), PutMode::Create.into());
            let other = store.put_opts(&nobody, PutPayload::from_static(b"x"), unawaited());
            let (awaited, other) = tokio::join!(awaited, other);
            awaited.and(other).unwrap();
            let expected = [(true, Done::Sync), (true, Done::Name), (false, Done::Sync)];
            assert_eq!(order.lock().unwrap()[..3], expected);
        }
    }
}
