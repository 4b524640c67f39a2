//! Web pages that a browser or a mirror program saved: `page.html`, and its images in files beside it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead as _, Read as _};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use url::Url;

use crate::error::IngestError;
use crate::http::{self, Head};
use crate::image;
use crate::reject::DropReason;
use crate::source::{self, Source, has_suffix};
use crate::warc::{Fields, Record};

/// Endings of saved pages.
pub(crate) const SUFFIXES: &[&str] = &[".html", ".htm", ".html.gz", ".htm.gz"];
/// Bytes of a page in which its address is looked for.
const HEAD_BYTES: usize = 64 << 10;
/// What stands before the address that browsers write into a saved page.
const SAVED_FROM: &str = "<!-- saved from url=(";

/// Whether a file begins like a web page.
pub(crate) fn begins(source: &Source) -> bool {
    let mut reader = source.reader_of(0, 4096);
    reader.fill_buf().is_ok_and(|bytes| {
        let begin = bytes.trim_ascii_start();
        let begin = begin.strip_prefix(b"\xef\xbb\xbf").unwrap_or(begin);
        begin.starts_with(b"<") && image::is_html(begin)
    })
}

/// Whether a file belongs to a saved page: it lies in `page_files` beside `page.html`.
pub(crate) fn is_part(file: &str) -> bool {
    if source::is_url(file) || !has_suffix(file, SUFFIXES) {
        return false;
    }
    Path::new(file).ancestors().skip(1).any(|folder| {
        let name = folder.file_name().and_then(|name| name.to_str());
        let Some(stem) = name.and_then(|name| name.strip_suffix("_files")) else { return false };
        ["html", "htm"]
            .iter()
            .any(|ending| folder.with_file_name(format!("{stem}.{ending}")).exists())
    })
}

/// The address of a saved page: where its browser says that it was saved from, else what it says of
/// itself (`<link rel="canonical">`), else where it lies.
pub(crate) fn address(source: &Source) -> io::Result<String> {
    let mut bytes = Vec::new();
    source.reader_of(0, HEAD_BYTES as u64).take(HEAD_BYTES as u64).read_to_end(&mut bytes)?;
    let body = http::decode_body(&head(), &bytes, 16 * HEAD_BYTES as u64);
    let body = body.as_deref().unwrap_or(&bytes);
    let text = String::from_utf8_lossy(body);
    let is_web = |url: &String| url.starts_with("http://") || url.starts_with("https://");
    let stated = saved_from(&text).filter(is_web).or_else(|| canonical(&text).filter(is_web));
    Ok(stated.unwrap_or_else(|| own_address(source)))
}

fn own_address(source: &Source) -> String {
    let input = source.input();
    if source::is_url(input) {
        return input.to_owned();
    }
    let path = Path::new(input).canonicalize().ok();
    let url = path.and_then(|path| Url::from_file_path(path).ok());
    url.map_or_else(|| input.to_owned(), Url::into)
}

/// The address in `<!-- saved from url=(0022)https://a.example/ -->`.
fn saved_from(text: &str) -> Option<String> {
    let comment = &text[text.find(SAVED_FROM)? + SAVED_FROM.len()..];
    let address = comment.split_once(')')?.1.split_once("-->")?.0;
    parsed(address.trim())
}

/// The address in `<link rel="canonical" href="...">`.
fn canonical(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let mut from = 0;
    while let Some(at) = lower[from..].find("<link") {
        let start = from + at;
        let end = lower[start..].find('>').map_or(lower.len(), |end| start + end);
        let rel = attribute(&text[start..end], "rel");
        if rel
            .is_some_and(|rel| rel.split_whitespace().any(|r| r.eq_ignore_ascii_case("canonical")))
        {
            return attribute(&text[start..end], "href").and_then(parsed);
        }
        from = end;
    }
    None
}

/// The value of an attribute of a tag.
fn attribute<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    let lower = tag.to_ascii_lowercase();
    let mut from = 0;
    loop {
        let at = from + lower[from..].find(name)?;
        from = at + name.len();
        let begins = lower[..at].ends_with(|c: char| c.is_ascii_whitespace());
        let value = tag[from..].trim_start().strip_prefix('=').map(str::trim_start);
        if let Some(value) = value.filter(|_| begins) {
            return match value.chars().next()? {
                quote @ ('"' | '\'') => value[1..].split(quote).next(),
                _ => value.split(|c: char| c.is_ascii_whitespace()).next(),
            };
        }
    }
}

/// An address in the form of the URL standard, without fragment.
fn parsed(address: &str) -> Option<String> {
    let mut url = Url::parse(&address.replace("&amp;", "&")).ok()?;
    url.set_fragment(None);
    Some(url.into())
}

fn head() -> Head {
    Head { status: 200, headers: vec![("Content-Type".to_owned(), "text/html".to_owned())] }
}

/// A saved page as the record that it might have been.
pub(crate) fn read(
    source: &Source,
    bytes_max: u64,
) -> Result<Result<(Record, Head, Bytes), DropReason>, IngestError> {
    if source.len() > bytes_max {
        let drop = DropReason::limit("too_many_bytes", source.len() as f64, bytes_max as f64);
        return Ok(Err(drop));
    }
    let bytes = source.read_all().map_err(|error| IngestError::InputRead {
        input: source.input().to_owned(),
        source: error,
    })?;
    let head = head();
    let body = http::decode_body(&head, &bytes, bytes_max);
    Ok(body.map(|body| (record(source.len()), head, Bytes::from(body.into_owned()))))
}

fn record(length: u64) -> Record {
    let (fields, block) = (Fields::default(), Vec::new());
    Record { offset: 0, length, is_first: true, fields, block, is_cut: false }
}

/// The files beside saved pages, found by the addresses that the pages give them.
#[derive(Default)]
pub(crate) struct LocalFiles {
    /// Folders by the address that stands for them: the page's, up to its last slash.
    folders: HashMap<String, Vec<PathBuf>>,
    /// Files that were found, and their numbers.
    found: Mutex<(Vec<PathBuf>, HashMap<PathBuf, usize>)>,
}

impl LocalFiles {
    /// The folders of all saved pages among the inputs.
    pub(crate) fn of(sources: &[Arc<Source>]) -> Self {
        let mut local = Self::default();
        let mut common: Option<PathBuf> = None;
        let is_page = |source: &&Arc<Source>| {
            has_suffix(source.input(), SUFFIXES) || {
                !has_suffix(source.input(), crate::archive::SUFFIXES) && begins(source)
            }
        };
        for source in sources.iter().filter(is_page) {
            if source::is_url(source.input()) {
                continue;
            }
            let path = Path::new(source.input()).canonicalize().ok();
            let folder = path.as_deref().and_then(Path::parent).map(Path::to_owned);
            let (Some(folder), Ok(url)) = (folder, address(source)) else { continue };
            if let Some((base, _)) = url.rsplit_once('/') {
                let folders = local.folders.entry(format!("{base}/")).or_default();
                if !folders.contains(&folder) {
                    folders.push(folder.clone());
                }
            }
            common = Some(common.map_or(folder.clone(), |common| shared(&common, &folder)));
        }
        // Pages of a mirrored site refer to each other's folders.
        if let Some(folder) = common.filter(|folder| folder.components().count() > 2)
            && let Ok(url) = Url::from_directory_path(&folder)
        {
            local.folders.entry(url.into()).or_default().push(folder);
        }
        local
    }

    /// Number and length of the file that has this address.
    pub(crate) fn find(&self, url: &str) -> Option<(usize, u64)> {
        if self.folders.is_empty() {
            return None;
        }
        let end = url.find(['?', '#']).unwrap_or(url.len());
        let url = &url[..end];
        let slashes = url.rmatch_indices('/').map(|(at, _)| at + 1);
        for at in slashes.take_while(|&at| at > "http://".len()) {
            let Some(rest) = decoded(&url[at..]) else { continue };
            for folder in self.folders.get(&url[..at]).into_iter().flatten() {
                let path = folder.join(&rest);
                if let Ok(metadata) = path.metadata()
                    && metadata.is_file()
                {
                    return Some((self.number(path), metadata.len()));
                }
            }
        }
        None
    }

    fn number(&self, path: PathBuf) -> usize {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let (files, numbers) = &mut *found;
        if let Some(number) = numbers.get(&path) {
            return *number;
        }
        files.push(path.clone());
        numbers.insert(path, files.len() - 1);
        files.len() - 1
    }

    /// A file as the record that it might have been.
    pub(crate) fn read(
        &self,
        number: usize,
        bytes_max: u64,
    ) -> Result<(Record, Head, Bytes), DropReason> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let path = found.0[number].clone();
        drop(found);
        let read = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            File::open(&path)?.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        // The file was there a moment ago, and costs one image if it is not any more.
        let bytes = read().map_err(|e| DropReason::detail("file_not_read", e.to_string()))?;
        let length = bytes.len() as u64;
        if length > bytes_max {
            return Err(DropReason::limit("too_many_bytes", length as f64, bytes_max as f64));
        }
        Ok((record(length), Head { status: 200, headers: Vec::new() }, Bytes::from(bytes)))
    }
}

/// The deepest folder that holds both.
fn shared(a: &Path, b: &Path) -> PathBuf {
    let both = a.components().zip(b.components());
    both.take_while(|(a, b)| a == b).map(|(a, _)| a.as_os_str()).collect()
}

/// A path below a folder, its percent signs undone; none where it leads elsewhere.
fn decoded(path: &str) -> Option<PathBuf> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = after.get(..2).filter(|_| byte == b'%');
        let hex = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(hex.unwrap_or(byte));
        rest = if hex.is_some() { &after[2..] } else { after };
    }
    let path = PathBuf::from(String::from_utf8(bytes).ok().filter(|path| !path.contains('\0'))?);
    let is_below = path.components().all(|part| matches!(part, Component::Normal(_)));
    (is_below && path.components().next().is_some()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_page_has_the_address_that_it_names() {
        let check = |html: &str, expected: &str| {
            let source = Source::of_bytes("a.html", html.as_bytes().to_vec());
            assert_eq!(address(&source).unwrap(), expected, "{html}");
        };
        check("<!-- saved from url=(0020)https://a.example/b#c --><html>", "https://a.example/b");
        check("<LINK HREF='https://a.example/?a&amp;b' REL=Canonical>", "https://a.example/?a&b");
        check(
            "<link rel=icon href=https://b.example/><link rel=canonical href=https://a.example/>",
            "https://a.example/",
        );
        check("<link data-rel=canonical href=https://b.example/>", "a.html");
        check("<link rel=canonical href=/relative>", "a.html");
        check("<link rel=canonical href=javascript:x>", "a.html");
    }

    #[test]
    fn files_beside_a_page_are_found_and_none_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::create_dir_all(path("site/page_files")).unwrap();
        std::fs::write(path("site/page.html"), "<link rel=canonical href=https://a.example/x/y>")
            .unwrap();
        std::fs::write(path("site/page_files/a b.png"), "png").unwrap();
        std::fs::write(path("secret.png"), "png").unwrap();
        let sources = [Arc::new(Source::open(&path("site/page.html")).unwrap())];
        let local = LocalFiles::of(&sources);
        let check =
            |url: &str, is_there: bool| assert_eq!(local.find(url).is_some(), is_there, "{url}");
        check("https://a.example/x/page_files/a%20b.png?v=1", true);
        check("https://a.example/x/page_files", false);
        check("https://a.example/page_files/a%20b.png", false);
        check("https://a.example/x/..%2Fsecret.png", false);
        check("https://a.example/x/%2Fetc%2Fhostname", false);
        let own = Url::from_file_path(
            folder.path().canonicalize().unwrap().join("site/page_files/a b.png"),
        );
        check(own.unwrap().as_str(), true);
        assert!(is_part(&path("site/page_files/frame.html")) && !is_part(&path("site/page.html")));
    }
}
