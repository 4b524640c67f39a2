//! The place a corpus lies: a folder, or a prefix of an object store.
//!
//! Everything but ranges of local files goes through `object_store`, so a local folder and a bucket
//! behave alike. The API is
//! synchronous: futures run on one small runtime shared by the whole process, and a caller may be
//! on any thread, inside another runtime included.

use std::fs::File;
use std::future::Future;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::{Arc, LazyLock, mpsc};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::runtime::{Builder, Runtime};
use url::Url;

use crate::CorpusError;
use crate::disk_cache::{DiskCache, DiskCacheConfig};
use crate::open_files::OpenFiles;

/// Threads that drive network requests; local files use the runtime's blocking pool.
const RUNTIME_THREADS: usize = 2;

/// Bytes of one piece of an upload: stores take up to 10,000 pieces of at least 5 MB.
const UPLOAD_PIECE_BYTES: usize = 16 << 20;

/// Environment variables that configure a store (credentials, endpoint, region).
const STORE_VARIABLES: [&str; 3] = ["AWS_", "AZURE_", "GOOGLE_"];

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .thread_name("corpus-store")
        .enable_all()
        .build()
        .expect("the operating system lets this process start two threads")
});

/// A folder or object-store prefix, addressed by path or URL (`s3://`, `gs://`, `az://`, `http(s)://`).
#[derive(Clone, Debug)]
pub struct CorpusStore {
    location: Arc<str>,
    objects: Arc<dyn ObjectStore>,
    /// The same, where it is a folder of this machine.
    folder: Option<Arc<OpenFiles>>,
    /// Pieces of it, where it is not.
    cache: Option<Arc<DiskCache>>,
}

impl CorpusStore {
    /// Opens a location that exists.
    ///
    /// # Errors
    /// When a local path is missing, is a file or cannot be entered, or a URL has an unknown scheme.
    pub fn open(location: &str) -> Result<Self, CorpusError> {
        match parse_url(location)? {
            Some(url) => open_url(location, &url),
            None => open_folder(location),
        }
    }

    /// Opens a location to write to; a local folder is made where it is missing.
    ///
    /// # Errors
    /// As [`CorpusStore::open`], and when the folder cannot be made.
    pub fn create(location: &str) -> Result<Self, CorpusError> {
        if parse_url(location)?.is_none() {
            std::fs::create_dir_all(local_path(location))
                .map_err(|e| bad_location(location, e.to_string()))?;
        }
        Self::open(location)
    }

    /// Opens a location that exists, and keeps pieces of what is read of it on a local disk. A folder of
    /// this machine needs none.
    ///
    /// # Errors
    /// As [`CorpusStore::open`], and when the folder of the pieces cannot be used.
    pub fn open_with(location: &str, cache: Option<&DiskCacheConfig>) -> Result<Self, CorpusError> {
        let mut store = Self::open(location)?;
        if let (None, Some(config)) = (&store.folder, cache) {
            store.cache = Some(DiskCache::open(config)?);
        }
        Ok(store)
    }

    /// The path or URL as it was given.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// Whether it is no folder of this machine.
    pub(crate) fn is_distant(&self) -> bool {
        self.folder.is_none()
    }

    /// Size of one object in bytes.
    ///
    /// # Errors
    /// When the object does not exist or cannot be read.
    pub fn size(&self, object: &str) -> Result<u64, CorpusError> {
        match &self.cache {
            Some(cache) => cache.size(self, object),
            None => Ok(self.version(object)?.0),
        }
    }

    /// Size of one object, and what the store says to tell its versions apart.
    pub(crate) fn version(&self, object: &str) -> Result<(u64, String), CorpusError> {
        let path = self.path(object)?;
        let meta = self.run(move |objects| async move { objects.head(&path).await });
        let meta = meta.map_err(|e| self.failed("read", object, e))?;
        let version = meta.e_tag.unwrap_or_else(|| meta.last_modified.to_rfc3339());
        Ok((meta.size, version))
    }

    /// Size of one object; none where there is none, or where the store denies it, as stores do of missing
    /// objects to those who may not list.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub fn size_if_any(&self, object: &str) -> Result<Option<u64>, CorpusError> {
        match self.size(object) {
            Ok(size) => Ok(Some(size)),
            Err(error) if error.is_not_found() || error.is_denied() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The bytes of one object.
    ///
    /// # Errors
    /// When the object does not exist or cannot be read.
    pub fn get(&self, object: &str) -> Result<Bytes, CorpusError> {
        let path = self.path(object)?;
        self.run(move |objects| async move { objects.get(&path).await?.bytes().await })
            .map_err(|e| self.failed("read", object, e))
    }

    /// The bytes of one object, of pieces on the local disk where such are kept.
    pub(crate) fn get_kept(&self, object: &str) -> Result<Bytes, CorpusError> {
        match &self.cache {
            Some(_) => self.get_range(object, 0..self.size(object)?),
            None => self.get(object),
        }
    }

    /// The bytes `range` of one object.
    ///
    /// # Errors
    /// When the object does not exist, is shorter, or cannot be read.
    pub fn get_range(&self, object: &str, range: Range<u64>) -> Result<Bytes, CorpusError> {
        Ok(self.get_ranges(object, vec![range])?.swap_remove(0))
    }

    /// Several ranges of one object, in as few requests as the store allows.
    ///
    /// # Errors
    /// When the object does not exist, is shorter, or cannot be read.
    pub fn get_ranges(
        &self,
        object: &str,
        ranges: Vec<Range<u64>>,
    ) -> Result<Vec<Bytes>, CorpusError> {
        if let Some(cache) = &self.cache {
            return cache.get_ranges(self, object, &ranges);
        }
        self.fetch_ranges(object, ranges)
    }

    /// A range of one object, of which no piece is kept.
    pub(crate) fn fetch_range(
        &self,
        object: &str,
        range: Range<u64>,
    ) -> Result<Bytes, CorpusError> {
        Ok(self.fetch_ranges(object, vec![range])?.swap_remove(0))
    }

    fn fetch_ranges(
        &self,
        object: &str,
        ranges: Vec<Range<u64>>,
    ) -> Result<Vec<Bytes>, CorpusError> {
        // A disk answers sooner than another thread is woken.
        let read = if let Some(folder) = &self.folder {
            folder.read(object, &ranges)
        } else {
            let path = self.path(object)?;
            self.run(move |objects| async move { objects.get_ranges(&path, &ranges).await })
        };
        read.map_err(|e| self.failed("read", object, e))
    }

    /// Whether an object exists.
    ///
    /// # Errors
    /// When the store cannot tell.
    pub fn exists(&self, object: &str) -> Result<bool, CorpusError> {
        let path = self.path(object)?;
        match self.run(move |objects| async move { objects.head(&path).await }) {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(self.failed("read", object, e)),
        }
    }

    /// Writes one object, all or nothing, replacing any of the same name.
    ///
    /// On a local disk the bytes go to a temporary name in the same folder, are synced, and are
    /// renamed; file and folder are on disk when this returns.
    ///
    /// # Errors
    /// When the store refuses the write, e.g. for lack of space.
    pub fn put(&self, object: &str, bytes: Bytes) -> Result<(), CorpusError> {
        let path = self.path(object)?;
        let put = self.run(move |objects| async move { objects.put(&path, bytes.into()).await });
        self.forget(object);
        put.map_err(|e| self.failed("write", object, e))?;
        Ok(())
    }

    /// Publishes the local `file` as one object, all or nothing, and removes the file.
    ///
    /// Below a local folder it is synced and renamed, so it should lie on the same disk; to an object
    /// store it goes in pieces, and only one of them is in memory at a time.
    ///
    /// # Errors
    /// When the file cannot be read, or the store refuses the write.
    pub fn put_file(&self, object: &str, file: &FilePath) -> Result<(), CorpusError> {
        let path = self.path(object)?;
        let moved = if parse_url(&self.location)?.is_none() {
            let target = local_path(&self.location).join(object);
            let published = publish_local(file, &target);
            self.forget(object);
            published.map_err(|source| object_store::Error::Generic {
                store: "LocalFileSystem",
                source: Box::new(source),
            })
        } else {
            let file = file.to_owned();
            self.run(move |objects| async move { upload(objects.as_ref(), &path, &file).await })
        };
        moved.map_err(|e| self.failed("write", object, e))
    }

    /// Names of all objects under `prefix` (a folder name, or empty), relative, sorted, recursive.
    ///
    /// # Errors
    /// When the store cannot list.
    pub fn list(&self, prefix: &str) -> Result<Vec<String>, CorpusError> {
        let path = self.path(prefix)?;
        let found: Result<Vec<_>, _> =
            self.run(move |objects| async move { objects.list(Some(&path)).try_collect().await });
        let found = found.map_err(|e| self.failed("list", prefix, e))?;
        let mut names: Vec<String> = found.into_iter().map(|m| m.location.to_string()).collect();
        names.sort();
        Ok(names)
    }

    /// Deletes one object; one that does not exist is no error.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn delete(&self, object: &str) -> Result<(), CorpusError> {
        let path = self.path(object)?;
        let deleted = self.run(move |objects| async move { objects.delete(&path).await });
        self.forget(object);
        match deleted {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.failed("delete", object, e)),
        }
    }

    /// Location and object in one string, for messages.
    pub fn name_of(&self, object: &str) -> String {
        format!("{}/{object}", self.location.trim_end_matches('/'))
    }

    fn path(&self, object: &str) -> Result<Path, CorpusError> {
        Path::parse(object).map_err(|e| bad_location(&self.name_of(object), e.to_string()))
    }

    /// Sees to it that an object is read as it now is.
    fn forget(&self, object: &str) {
        if let Some(folder) = &self.folder {
            folder.forget(object);
        }
    }

    fn failed(
        &self,
        action: &'static str,
        object: &str,
        source: object_store::Error,
    ) -> CorpusError {
        CorpusError::Object { action, object: self.name_of(object), source }
    }

    /// Runs one request to its end. A channel is used, since blocking on a future is forbidden on
    /// the threads of another runtime.
    fn run<T, F>(&self, request: impl FnOnce(Arc<dyn ObjectStore>) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (sender, receiver) = mpsc::sync_channel(1);
        let request = request(Arc::clone(&self.objects));
        RUNTIME.spawn(async move {
            // The receiver waits below, so sending fails only if the caller's thread is gone.
            let _ = sender.send(request.await);
        });
        receiver.recv().expect("the request runs to its end on the shared runtime")
    }
}

/// Moves a finished file to its name; file and folder are on disk when this returns.
fn publish_local(file: &FilePath, target: &FilePath) -> io::Result<()> {
    let folder = target.parent().unwrap_or(FilePath::new("."));
    File::open(file)?.sync_all()?;
    std::fs::rename(file, target)?;
    File::open(folder)?.sync_all()
}

/// Sends a file in pieces; a store shows the object when the last one is there.
async fn upload(
    objects: &dyn ObjectStore,
    path: &Path,
    file: &FilePath,
) -> Result<(), object_store::Error> {
    let unreadable = |source: io::Error| object_store::Error::Generic {
        store: "file to upload",
        source: Box::new(source),
    };
    let mut reader = File::open(file).map_err(unreadable)?;
    let piece = read_piece(&mut reader).map_err(unreadable)?;
    if piece.len() < UPLOAD_PIECE_BYTES {
        objects.put(path, piece.into()).await?;
    } else {
        let mut upload = objects.put_multipart(path).await?;
        let mut piece = piece;
        while !piece.is_empty() {
            if let Err(error) = upload.put_part(piece.into()).await {
                // A store that took the pieces so far would charge for them.
                let _ = upload.abort().await;
                return Err(error);
            }
            piece = read_piece(&mut reader).map_err(unreadable)?;
        }
        upload.complete().await?;
    }
    std::fs::remove_file(file).map_err(unreadable)
}

fn read_piece(reader: &mut File) -> io::Result<Vec<u8>> {
    let mut piece = Vec::new();
    reader.take(UPLOAD_PIECE_BYTES as u64).read_to_end(&mut piece)?;
    Ok(piece)
}

/// The URL in `location`, or `None` where it is a local path.
fn parse_url(location: &str) -> Result<Option<Url>, CorpusError> {
    if !location.contains("://") || location.starts_with("file://") {
        return Ok(None);
    }
    Url::parse(location).map(Some).map_err(|e| bad_location(location, e.to_string()))
}

fn local_path(location: &str) -> &FilePath {
    FilePath::new(location.strip_prefix("file://").unwrap_or(location))
}

fn open_folder(location: &str) -> Result<CorpusStore, CorpusError> {
    let folder = local_path(location);
    let found = std::fs::metadata(folder).map_err(|e| bad_location(location, e.to_string()))?;
    if !found.is_dir() {
        return Err(bad_location(location, "it is a file, a folder was expected".to_owned()));
    }
    std::fs::read_dir(folder).map_err(|e| bad_location(location, e.to_string()))?;
    let files = LocalFileSystem::new_with_prefix(folder)
        .map_err(|e| bad_location(location, e.to_string()))?
        .with_fsync(true);
    let files = Arc::new(files);
    let folder = Some(Arc::new(OpenFiles::new(Arc::clone(&files))));
    Ok(CorpusStore { location: location.into(), objects: files, folder, cache: None })
}

fn open_url(location: &str, url: &Url) -> Result<CorpusStore, CorpusError> {
    let settings = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(key, _)| STORE_VARIABLES.iter().any(|prefix| key.starts_with(prefix)));
    // An address without encryption is meant as it is written.
    let plain = (url.scheme() == "http").then(|| ("allow_http".to_owned(), "true".to_owned()));
    let settings = settings.chain(plain);
    let (store, prefix) = object_store::parse_url_opts(url, settings)
        .map_err(|e| bad_location(location, e.to_string()))?;
    Ok(CorpusStore {
        location: location.into(),
        objects: Arc::new(PrefixStore::new(store, prefix)),
        folder: None,
        cache: None,
    })
}

fn bad_location(location: &str, problem: String) -> CorpusError {
    CorpusError::Location { location: location.to_owned(), problem }
}
