//! The images of pages that are known by their URLs or names only.

use std::collections::HashMap;

use bytes::Bytes;

use super::{Layout, Place};
use crate::digest::{sha256_hex, sha256_u64};
use crate::{
    Corpus, CorpusError, CorpusKind, CorpusStore, DiskCacheConfig, EncodedImage, ImageMeta,
    MANIFEST_FILE, Row,
};

/// Where images are.
pub(super) enum ImageSource {
    /// One object for each.
    Objects(CorpusStore),
    /// A corpus of pairs, with the row of each URL.
    Pairs { corpus: Box<Corpus>, rows: HashMap<u64, u64> },
}

impl ImageSource {
    pub(super) fn open(
        location: &str,
        cache: Option<&DiskCacheConfig>,
    ) -> Result<Self, CorpusError> {
        let store = CorpusStore::open_with(location, cache)?;
        if store.size_if_any(MANIFEST_FILE)?.is_none() {
            return Ok(Self::Objects(store));
        }
        let corpus = Corpus::open_as(location, &Layout::Corpus, cache)?;
        if corpus.kind() != CorpusKind::ImageText {
            let problem = format!("a corpus of {} rows, pairs expected", corpus.kind());
            return Err(CorpusError::Layout { object: location.to_owned(), problem });
        }
        let urls = corpus.urls()?;
        let rows = (0..).zip(urls).filter_map(|(row, url)| Some((url_key(&url?), row)));
        let rows = rows.collect();
        Ok(Self::Pairs { corpus: Box::new(corpus), rows })
    }

    /// Names the images of a corpus; of single objects nothing is known.
    pub(super) fn sha256(&self) -> String {
        match self {
            Self::Objects(_) => String::new(),
            Self::Pairs { corpus, .. } => corpus.manifest().sha256(),
        }
    }

    /// The image of a URL, which as an object is called `name`, or by the digest of the URL.
    pub(super) fn find(
        &self,
        url: &str,
        name: Option<&str>,
        place: &Place,
    ) -> Result<Option<EncodedImage>, CorpusError> {
        match self {
            Self::Objects(store) => {
                let object = name.map_or_else(|| sha256_hex(url.as_bytes()), str::to_owned);
                let found = match store.get_kept(&object) {
                    Ok(bytes) => Some(bytes),
                    Err(error) if error.is_not_found() => None,
                    // Perhaps it is only missing; left out without a word it would be lost.
                    Err(error) if error.is_denied() => {
                        return Err(place.wrong("images", error.to_string()));
                    }
                    Err(CorpusError::Location { .. }) => {
                        return Err(place.wrong("images", format!("`{object}` names no object")));
                    }
                    Err(error) => return Err(error),
                };
                Ok(found.map(|bytes| EncodedImage { bytes, path: Some(object) }))
            }
            Self::Pairs { corpus, rows } => {
                let Some(row) = rows.get(&url_key(url)) else { return Ok(None) };
                match corpus.read(*row)? {
                    // Two URLs may have one key.
                    Row::ImageText(pair) if pair.url.as_deref() == Some(url) => {
                        Ok(Some(pair.image))
                    }
                    _ => Ok(None),
                }
            }
        }
    }
}

fn url_key(url: &str) -> u64 {
    sha256_u64(url.as_bytes())
}

/// What is known of an image of which only the URL is.
pub(super) fn meta(url: Option<String>) -> ImageMeta {
    ImageMeta {
        url,
        alt: None,
        width: 0,
        height: 0,
        sha256: String::new(),
        phash: 0,
        mime: String::new(),
    }
}

/// An image whose bytes are not wanted.
pub(super) fn no_image() -> EncodedImage {
    EncodedImage { bytes: Bytes::new(), path: None }
}
