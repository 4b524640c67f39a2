//! Pieces of the objects of distant stores, kept on a local disk within a bound.
//!
//! An object is cut into pieces of one size. What is wanted of it is read from pieces that are there,
//! and pieces that are missing side by side are fetched with one request; so a row brings those
//! beside it, which a shuffled epoch reads about the same time. Pieces that were not used for longest
//! go first.
//!
//! A piece is written under another name and renamed. Its last bytes are a digest, which is looked at
//! when a process first uses a piece that another one wrote: one that a crash has spoilt is fetched again.
//! Several processes may share a folder, each of which keeps to the bound by itself.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::digest::sha256_hex;
use crate::{CorpusError, CorpusStore};

/// A piece under another name is one that a killed process left behind once it is this old.
const LEFT_BEHIND: Duration = Duration::from_hours(1);

/// Numbers the pieces that this process writes.
static WRITES: AtomicU64 = AtomicU64::new(0);

/// Bytes of the digest after the content of a piece.
const DIGEST_BYTES: u64 = 32;

/// Where pieces are kept, and how many.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskCacheConfig {
    /// Folder on a local disk, which datasets and runs may share.
    pub folder: PathBuf,
    /// Most bytes of all pieces. The default shuffle works on 16,384 neighbouring rows at a time; with
    /// room for fewer a piece is fetched more than once.
    #[serde(default = "default_bytes_max")]
    pub bytes_max: u64,
    /// Bytes of a piece: what one request fetches at least.
    #[serde(default = "default_piece_bytes")]
    pub piece_bytes: u64,
}

fn default_bytes_max() -> u64 {
    20_000_000_000
}

fn default_piece_bytes() -> u64 {
    1 << 20
}

/// The pieces of a folder.
#[derive(Debug)]
pub(crate) struct DiskCache {
    config: DiskCacheConfig,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pieces: HashMap<PieceKey, Piece>,
    /// Size and folder of each object that was asked for.
    objects: HashMap<String, Object>,
    bytes: u64,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PieceKey {
    /// Digest of where the object is and of its version.
    object: Arc<str>,
    number: u64,
    /// Bytes of a piece when it was written.
    piece_bytes: u64,
}

#[derive(Debug)]
struct Piece {
    /// Held by the one who fetches it.
    lock: Arc<Mutex<()>>,
    /// Bytes on the disk; 0 where it is not there.
    bytes: u64,
    /// Whether its digest was found right, or this process wrote it.
    is_sound: bool,
    used: u64,
}

#[derive(Debug, Clone)]
struct Object {
    digest: Arc<str>,
    size: u64,
}

/// The caches of this process, so that datasets with one setting share its bound.
static OPEN: LazyLock<Mutex<HashMap<DiskCacheConfig, Weak<DiskCache>>>> =
    LazyLock::new(Mutex::default);

impl DiskCache {
    /// The cache of a folder; pieces that are there are used.
    pub(crate) fn open(config: &DiskCacheConfig) -> Result<Arc<Self>, CorpusError> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cache) = open.get(config).and_then(Weak::upgrade) {
            return Ok(cache);
        }
        if config.piece_bytes == 0 {
            return Err(failed(&config.folder, &"pieces of 0 bytes, at least 1 expected"));
        }
        let mut cache = Self { config: config.clone(), state: Mutex::default() };
        cache.find_pieces().map_err(|e| failed(&config.folder, &e))?;
        let cache = Arc::new(cache);
        open.insert(config.clone(), Arc::downgrade(&cache));
        Ok(cache)
    }

    /// Size of an object, as the store said when it was first asked for it.
    pub(crate) fn size(&self, store: &CorpusStore, object: &str) -> Result<u64, CorpusError> {
        Ok(self.object(store, object)?.size)
    }

    /// Ranges of an object.
    pub(crate) fn get_ranges(
        &self,
        store: &CorpusStore,
        object: &str,
        ranges: &[Range<u64>],
    ) -> Result<Vec<Bytes>, CorpusError> {
        let known = self.object(store, object)?;
        let read = |range: &Range<u64>| {
            if range.is_empty() && range.end <= known.size {
                return Ok(Bytes::new());
            }
            if range.start > range.end || range.end > known.size {
                let Range { start, end } = range;
                let problem = format!("bytes {start} to {end} wanted of {}", known.size);
                return Err(failed(&self.config.folder.join(object), &problem));
            }
            self.range(store, object, &known, range.clone())
        };
        ranges.iter().map(read).collect()
    }

    fn range(
        &self,
        store: &CorpusStore,
        name: &str,
        object: &Object,
        range: Range<u64>,
    ) -> Result<Bytes, CorpusError> {
        let piece_bytes = self.config.piece_bytes;
        let pieces = range.start / piece_bytes..range.end.div_ceil(piece_bytes);
        let mut found = BytesMut::with_capacity((range.end - range.start) as usize);
        let mut number = pieces.start;
        while number < pieces.end {
            let key_of =
                |number| PieceKey { object: Arc::clone(&object.digest), number, piece_bytes };
            let key = key_of(number);
            let place = number * piece_bytes;
            let wanted = range.start.max(place) - place..range.end.min(place + piece_bytes) - place;
            let lock = self.lock_of(&key);
            let held = lock.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(bytes) = self.read_piece(&key, object, wanted.clone()) {
                found.extend_from_slice(&bytes);
                number += 1;
                continue;
            }
            // Those after it come with it that are missing too and that no other thread fetches.
            let after: Vec<_> =
                (number + 1..pieces.end).map(|number| self.lock_of(&key_of(number))).collect();
            let mut end = number + 1;
            let mut all_held = vec![held];
            for lock in &after {
                match lock.try_lock() {
                    Ok(held) if !self.is_there(&key_of(end)) => all_held.push(held),
                    _ => break,
                }
                end += 1;
            }
            let bytes = place..(end * piece_bytes).min(object.size);
            let fetched = store.fetch_range(name, bytes.clone())?;
            if fetched.len() as u64 != bytes.end - bytes.start {
                let Range { start, end } = bytes;
                let problem = format!("{} bytes came of {start} to {end}", fetched.len());
                return Err(CorpusError::DiskCache { path: store.name_of(name), problem });
            }
            for (number, piece) in (number..).zip(fetched.chunks(piece_bytes as usize)) {
                self.write_piece(&key_of(number), piece)?;
            }
            drop(all_held);
            let upto = range.end.min(bytes.end);
            let from = range.start.max(place);
            found.extend_from_slice(&fetched[(from - place) as usize..(upto - place) as usize]);
            number = end;
        }
        Ok(found.freeze())
    }

    /// What is wanted of a piece, if it is on the disk and sound.
    fn read_piece(&self, key: &PieceKey, object: &Object, wanted: Range<u64>) -> Option<Bytes> {
        let is_sound = self.state().pieces.get(key).filter(|piece| piece.bytes > 0)?.is_sound;
        let first = key.number * self.config.piece_bytes;
        let size = self.config.piece_bytes.min(object.size.checked_sub(first)?);
        let found = read_sound(&self.path(key), size, wanted, is_sound);
        let mut state = self.state();
        state.clock += 1;
        let used = state.clock;
        let piece = state.pieces.get_mut(key)?;
        let Some(found) = found else {
            // Spoilt, or taken away by another process.
            let bytes = std::mem::take(&mut piece.bytes);
            state.bytes -= bytes;
            return None;
        };
        (piece.is_sound, piece.used) = (true, used);
        Some(found)
    }

    /// Writes a piece, and lets others go.
    fn write_piece(&self, key: &PieceKey, content: &[u8]) -> Result<(), CorpusError> {
        let path = self.path(key);
        let folder = path.parent().unwrap_or(&self.config.folder);
        // Another process, or another cache of this one, may write the same piece.
        let (process, number) = (std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed));
        let temporary = path.with_extension(format!("{process}-{number}.new"));
        let mut bytes = Vec::with_capacity(content.len() + DIGEST_BYTES as usize);
        bytes.extend_from_slice(content);
        bytes.extend_from_slice(&Sha256::digest(content));
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&temporary, &bytes))
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|e| failed(&path, &e))?;
        let mut state = self.state();
        state.clock += 1;
        let used = state.clock;
        let new = || Piece { lock: Arc::default(), bytes: 0, is_sound: true, used };
        let piece = state.pieces.entry(key.clone()).or_insert_with(new);
        let was = std::mem::replace(&mut piece.bytes, bytes.len() as u64);
        (piece.is_sound, piece.used) = (true, used);
        state.bytes = state.bytes - was + bytes.len() as u64;
        self.evict(&mut state, Some(key));
        Ok(())
    }

    /// Takes pieces away until the rest is within the bound.
    fn evict(&self, state: &mut State, kept: Option<&PieceKey>) {
        if state.bytes <= self.config.bytes_max {
            return;
        }
        // A tenth at once, so that the oldest are not looked for at each piece.
        let aim = self.config.bytes_max - self.config.bytes_max / 10;
        let there =
            state.pieces.iter().filter(|(key, piece)| piece.bytes > 0 && Some(*key) != kept);
        let mut oldest: Vec<_> = there.map(|(key, piece)| (piece.used, key.clone())).collect();
        oldest.sort_unstable_by_key(|(used, _)| *used);
        for (_, key) in oldest {
            if state.bytes <= aim {
                return;
            }
            // One that is gone already takes no room either.
            let _ = std::fs::remove_file(self.path(&key));
            let bytes = state.pieces.remove(&key).map_or(0, |piece| piece.bytes);
            state.bytes -= bytes;
        }
    }

    fn lock_of(&self, key: &PieceKey) -> Arc<Mutex<()>> {
        let mut state = self.state();
        let used = state.clock;
        let new = || Piece { lock: Arc::default(), bytes: 0, is_sound: false, used };
        Arc::clone(&state.pieces.entry(key.clone()).or_insert_with(new).lock)
    }

    fn is_there(&self, key: &PieceKey) -> bool {
        self.state().pieces.get(key).is_some_and(|piece| piece.bytes > 0)
    }

    fn object(&self, store: &CorpusStore, object: &str) -> Result<Object, CorpusError> {
        let name = store.name_of(object);
        if let Some(known) = self.state().objects.get(&name) {
            return Ok(known.clone());
        }
        let (size, version) = store.version(object)?;
        let digest = sha256_hex(format!("{name}\n{size}\n{version}").as_bytes());
        let known = Object { digest: digest[..32].into(), size };
        self.state().objects.insert(name, known.clone());
        Ok(known)
    }

    fn path(&self, key: &PieceKey) -> PathBuf {
        let name = format!("{}-{}.piece", key.number, key.piece_bytes);
        self.config.folder.join(&*key.object).join(name)
    }

    /// Takes note of the pieces in the folder, those that were written first as the oldest.
    fn find_pieces(&mut self) -> io::Result<()> {
        std::fs::create_dir_all(&self.config.folder)?;
        let mut found: Vec<(SystemTime, PieceKey, u64)> = Vec::new();
        for folder in std::fs::read_dir(&self.config.folder)? {
            let folder = folder?.path();
            let Some(object) = folder.file_name().and_then(|name| name.to_str()) else { continue };
            let Ok(files) = std::fs::read_dir(&folder) else { continue };
            for file in files {
                let file = file?;
                // Another process may take it away at this moment.
                let Ok(meta) = file.metadata() else { continue };
                let written = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                let name = file.file_name().to_string_lossy().into_owned();
                let is_old = written.elapsed().is_ok_and(|age| age > LEFT_BEHIND);
                if is_old && is_unfinished(object, &name) {
                    let _ = std::fs::remove_file(file.path());
                }
                let numbers = name.strip_suffix(".piece").and_then(|name| name.split_once('-'));
                let numbers = numbers.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
                let Some((number, piece_bytes)) = numbers else { continue };
                let key = PieceKey { object: object.into(), number, piece_bytes };
                found.push((written, key, meta.len()));
            }
        }
        found.sort_unstable_by_key(|(written, ..)| *written);
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (_, key, bytes) in found {
            state.clock += 1;
            state.bytes += bytes;
            let used = state.clock;
            let piece = Piece { lock: Arc::default(), bytes, is_sound: false, used };
            state.pieces.insert(key, piece);
        }
        self.evict(&mut self.state(), None);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a file is a piece under the name that it has while it is written.
fn is_unfinished(folder: &str, name: &str) -> bool {
    let is_number = |c: char| c.is_ascii_digit() || matches!(c, '-' | '.');
    let of_object = folder.len() == 32 && folder.chars().all(|c| c.is_ascii_hexdigit());
    of_object && name.strip_suffix(".new").is_some_and(|name| name.chars().all(is_number))
}

fn failed(path: &Path, problem: &dyn std::fmt::Display) -> CorpusError {
    CorpusError::DiskCache { path: path.display().to_string(), problem: problem.to_string() }
}

/// Part of a piece of `size` bytes, if the file is whole, and, where that is not known yet, its digest right.
fn read_sound(path: &Path, size: u64, wanted: Range<u64>, is_sound: bool) -> Option<Bytes> {
    if !is_sound {
        let bytes = std::fs::read(path).ok()?;
        let (content, digest) = bytes.split_at_checked(size as usize)?;
        let is_sound = Sha256::digest(content).as_slice() == digest;
        return is_sound
            .then(|| Bytes::copy_from_slice(&content[wanted.start as usize..wanted.end as usize]));
    }
    let file = std::fs::File::open(path).ok()?;
    if file.metadata().ok()?.len() != size + DIGEST_BYTES {
        return None;
    }
    let mut bytes = vec![0; (wanted.end - wanted.start) as usize];
    file.read_exact_at(&mut bytes, wanted.start).ok()?;
    Some(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(range: Range<u64>) -> Vec<Range<u64>> {
        vec![range]
    }

    fn content() -> Vec<u8> {
        (0..100_003_u32).map(|i| (i.wrapping_mul(i) >> 3) as u8).collect()
    }

    #[test]
    fn many_threads_read_what_the_store_has_within_the_bound() {
        let folder = tempfile::tempdir().unwrap();
        let store = CorpusStore::create(folder.path().join("store").to_str().unwrap()).unwrap();
        store.put("object", content().into()).unwrap();
        for bytes_max in [1 << 30, 30_000, 0] {
            let config = DiskCacheConfig {
                folder: folder.path().join(format!("cache-{bytes_max}")),
                bytes_max,
                piece_bytes: 1000,
            };
            let cache = DiskCache::open(&config).unwrap();
            let read = |seed: u64| {
                let mut random = seed;
                for _ in 0..200 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99_991);
                    let start = (random >> 33) % 100_003;
                    let end = (start + (random >> 20) % 9000).min(100_003);
                    let ranges = [start..end, end..end, 0..1];
                    let found = cache.get_ranges(&store, "object", &ranges).unwrap();
                    assert_eq!(found[0], content()[start as usize..end as usize]);
                    assert_eq!((found[1].len(), found[2][0]), (0, content()[0]));
                }
            };
            std::thread::scope(|scope| {
                for seed in 0..8 {
                    scope.spawn(move || read(seed));
                }
            });
            let files = std::fs::read_dir(&config.folder).unwrap().flat_map(|object| {
                std::fs::read_dir(object.unwrap().path()).unwrap().map(|file| file.unwrap())
            });
            let sizes: Vec<u64> = files.map(|file| file.metadata().unwrap().len()).collect();
            // The piece that was written last stays, whatever the bound.
            assert!(sizes.iter().sum::<u64>() <= bytes_max.max(1032), "{} pieces", sizes.len());
            assert_eq!(cache.state().bytes, sizes.iter().sum::<u64>());
            assert!(cache.get_ranges(&store, "object", &one(5..100_004)).is_err());
        }
    }

    #[test]
    fn another_start_finds_the_pieces_and_those_of_another_size_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let store = CorpusStore::create(folder.path().join("store").to_str().unwrap()).unwrap();
        store.put("object", content().into()).unwrap();
        let config = |piece_bytes| DiskCacheConfig {
            folder: folder.path().join("cache"),
            bytes_max: 60_000,
            piece_bytes,
        };
        let first = DiskCache::open(&config(5000)).unwrap();
        first.get_ranges(&store, "object", &one(0..50_000)).unwrap();
        assert_eq!(first.state().bytes, 10 * 5032);
        drop(first);
        // The store is gone, and the pieces are not: only its size is asked for.
        let second = DiskCache::open(&config(5000)).unwrap();
        assert_eq!(second.state().bytes, 10 * 5032);
        let found = second.get_ranges(&store, "object", &one(7..49_000)).unwrap();
        assert_eq!(found[0], content()[7..49_000]);
        drop(second);
        let third = DiskCache::open(&config(2000)).unwrap();
        third.get_ranges(&store, "object", &one(0..40_000)).unwrap();
        assert!(third.state().bytes <= 60_000, "{}", third.state().bytes);
        assert!(DiskCache::open(&config(0)).is_err());
    }
}
