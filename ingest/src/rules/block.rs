//! Lists of domains and addresses: those that are blocked, and registries of those who opted out.

use url::Url;

use crate::error::IngestError;

use super::files;
use super::tokens::hash;

/// Most entries of a list; each takes eight bytes.
const ENTRIES_MAX: usize = 64 << 20;

/// Domains and addresses, by their hashes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Addresses {
    domains: Vec<u64>,
    urls: Vec<u64>,
}

impl Addresses {
    /// Reads the two lists; an empty name is an empty list.
    ///
    /// # Errors
    /// When a list cannot be read, or has a line that is no domain or address.
    pub(super) fn read(domains_file: &str, urls_file: &str) -> Result<Self, IngestError> {
        Ok(Self { domains: read(domains_file, domain)?, urls: read(urls_file, address)? })
    }

    /// The domain or address of the list that `url` falls under.
    pub(super) fn find(&self, url: &str) -> Option<String> {
        if self.domains.is_empty() && self.urls.is_empty() {
            return None;
        }
        let url = Url::parse(url).ok()?;
        let host = url.host_str().unwrap_or("").trim_end_matches('.');
        let domain = suffixes(host).find(|domain| has(&self.domains, domain));
        domain.map(str::to_owned).or_else(|| {
            let address = plain(url.clone());
            has(&self.urls, &address).then_some(address)
        })
    }
}

/// A host and the domains it belongs to.
fn suffixes(host: &str) -> impl Iterator<Item = &str> {
    let starts = host.match_indices('.').map(|(dot, _)| dot + 1);
    std::iter::once(0).chain(starts).map(|start| &host[start..])
}

fn has(list: &[u64], text: &str) -> bool {
    list.binary_search(&hash(text.as_bytes())).is_ok()
}

/// The address without a fragment, which no server ever sees.
fn plain(mut url: Url) -> String {
    url.set_fragment(None);
    url.into()
}

/// A line of a list of domains: `example.org`, `*.example.org` or an address there.
fn domain(line: &str) -> Option<String> {
    let line = line.strip_prefix("*.").unwrap_or(line).trim_start_matches('.');
    let address = if line.contains("://") { line.to_owned() } else { format!("http://{line}") };
    let url = Url::parse(&address).ok()?;
    Some(url.host_str()?.trim_end_matches('.').to_owned()).filter(|host| !host.is_empty())
}

fn address(line: &str) -> Option<String> {
    Url::parse(line).ok().map(plain)
}

fn read(file: &str, entry: fn(&str) -> Option<String>) -> Result<Vec<u64>, IngestError> {
    if file.is_empty() {
        return Ok(Vec::new());
    }
    let wrong = |message: String| IngestError::InputFormat { input: file.to_owned(), message };
    let mut hashes = Vec::new();
    for (n, line) in files::read_text(file)?.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let entry = entry(line)
            .ok_or_else(|| wrong(format!("line {} is `{line}`, expected an address", n + 1)))?;
        if hashes.len() == ENTRIES_MAX {
            return Err(wrong(format!("more than {ENTRIES_MAX} entries")));
        }
        hashes.push(hash(entry.as_bytes()));
    }
    hashes.sort_unstable();
    hashes.dedup();
    Ok(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_means_its_subdomains_and_an_address_itself() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let domains =
            write("d.txt", "# a registry\nBad.example\n\n*.worse.example\nmünchen.example\n");
        let urls = write("u.txt", "https://a.example/x.png#top\n");
        let list = Addresses::read(&domains, &urls).unwrap();
        let check = |url: &str, expected: Option<&str>| {
            assert_eq!(list.find(url).as_deref(), expected, "{url}");
        };
        check("http://bad.example/x", Some("bad.example"));
        check("https://IMG.bad.example:8080/x", Some("bad.example"));
        check("https://img.worse.example./x", Some("worse.example"));
        check("https://xn--mnchen-3ya.example/", Some("xn--mnchen-3ya.example"));
        check("https://notbad.example/", None);
        check("https://a.example/x.png#end", Some("https://a.example/x.png"));
        check("https://a.example/x.png?size=1", None);
        check("no address", None);
        let broken = write("b.txt", "fine.example\nhttp://[\n");
        let error = Addresses::read(&broken, "").unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }
}
