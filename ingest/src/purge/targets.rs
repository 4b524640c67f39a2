//! What is to be removed: addresses, domains, hashes.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use flamingo_dataset::CorpusStore;
use url::{Host, Url};

use super::tables::{self, Record};
use crate::error::IngestError;

/// How a target names what it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum By {
    /// The address of a document, image, pair or clip.
    Url,
    /// A host with all its subdomains.
    Domain,
    /// Hex SHA-256 of a stored image, or of a clip's file.
    Sha256,
}

impl By {
    /// Name in `purged/`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Url => "url",
            Self::Domain => "domain",
            Self::Sha256 => "sha256",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Url, Self::Domain, Self::Sha256].into_iter().find(|by| by.name() == name)
    }
}

/// One thing to remove, in its normal form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// How it is named.
    pub by: By,
    /// The address without its fragment, the host in lower case, or the hash in lower case.
    pub value: String,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.by.name(), self.value)
    }
}

impl Target {
    /// A target from what a person wrote.
    ///
    /// # Errors
    /// When it is not an address, a domain or a hash.
    pub fn parse(by: By, text: &str) -> Result<Self, IngestError> {
        let text = text.trim();
        let value = match by {
            By::Url => Url::parse(text).ok().filter(|_| text.contains("://")).map(|_| normal(text)),
            By::Domain => domain(text),
            By::Sha256 => {
                let is_hash = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
                is_hash.then(|| text.to_ascii_lowercase())
            }
        };
        let expected = match by {
            By::Url => "an absolute address such as https://a.example/b.jpg",
            By::Domain => "a domain such as a.example",
            By::Sha256 => "64 hexadecimal digits",
        };
        let wrong = || IngestError::Target { by: by.name(), value: text.to_owned(), expected };
        Ok(Self { by, value: value.ok_or_else(wrong)? })
    }
}

/// A set of targets. What runs and retries ask before they add something to a corpus.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Targets(BTreeSet<Target>);

impl Targets {
    /// What was purged from the corpus in `store` before, by whatever process.
    ///
    /// # Errors
    /// When the tables cannot be read.
    pub fn recorded(store: &CorpusStore) -> Result<Self, IngestError> {
        let named = tables::recorded(store)?.into_iter();
        let targets =
            named.filter_map(|(by, value)| Some(Target { by: By::from_name(&by)?, value }));
        Ok(Self(targets.collect()))
    }

    /// What was purged from the corpus that a run writes to, or from the one that it is a partition of.
    ///
    /// # Errors
    /// When the tables cannot be read.
    pub fn of_run(store: &CorpusStore) -> Result<Self, IngestError> {
        let mut targets = Self::recorded(store)?;
        let location = store.location().trim_end_matches('/');
        if let Some((whole, folder)) = location.rsplit_once('/')
            && folder.starts_with("part-")
            && folder.contains("-of-")
        {
            targets.extend(Self::recorded(&CorpusStore::open(whole)?)?);
        }
        Ok(targets)
    }

    /// Reads a file with a target on each line: `url ...`, `domain ...`, `sha256 ...`, or the bare
    /// thing. Empty lines and those that begin with `#` say nothing.
    ///
    /// # Errors
    /// When the file cannot be read, or a line is no target.
    pub fn read(path: &Path) -> Result<Self, IngestError> {
        let input = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| IngestError::InputRead { input: input.clone(), source })?;
        let mut targets = Self::default();
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let target = parse_line(line).map_err(|error| {
                let message = format!("line {}: {error}", i + 1);
                IngestError::InputFormat { input: input.clone(), message }
            })?;
            targets.add(target);
        }
        Ok(targets)
    }

    /// Adds one.
    pub fn add(&mut self, target: Target) {
        self.0.insert(target);
    }

    /// Adds all of `others`.
    pub fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// All in order.
    pub fn iter(&self) -> impl Iterator<Item = &Target> {
        self.0.iter()
    }

    /// Those that `others` lack.
    #[must_use]
    pub fn without(&self, others: &Self) -> Self {
        Self(self.0.difference(&others.0).cloned().collect())
    }

    /// Both together.
    #[must_use]
    pub fn with(&self, others: &Self) -> Self {
        Self(self.0.union(&others.0).cloned().collect())
    }

    /// The target that an address is, or lies in.
    pub fn of_url(&self, url: &str) -> Option<&Target> {
        if self.0.is_empty() {
            return None;
        }
        let find = |by, value: &str| {
            let target = Target { by, value: value.to_owned() };
            self.0.get(&target)
        };
        if let Some(target) = find(By::Url, &normal(url)) {
            return Some(target);
        }
        let url = Url::parse(url).ok()?;
        let host = url.host_str()?.to_ascii_lowercase();
        let host = host.trim_end_matches('.');
        if !matches!(url.host(), Some(Host::Domain(_))) {
            return find(By::Domain, host);
        }
        let mut rest = host;
        loop {
            if let Some(target) = find(By::Domain, rest) {
                return Some(target);
            }
            rest = rest.split_once('.')?.1;
        }
    }

    /// The target that a hash is.
    pub fn of_sha256(&self, sha256: &str) -> Option<&Target> {
        let value = sha256.to_ascii_lowercase();
        self.0.get(&Target { by: By::Sha256, value })
    }

    /// Those that removed nothing.
    pub(super) fn not_among(&self, records: &[Record]) -> Vec<String> {
        let found: BTreeSet<&Target> = records.iter().map(|record| &record.target).collect();
        self.iter().filter(|target| !found.contains(target)).map(ToString::to_string).collect()
    }
}

fn parse_line(line: &str) -> Result<Target, IngestError> {
    if let Some((name, value)) = line.split_once(char::is_whitespace)
        && let Some(by) = By::from_name(name)
    {
        return Target::parse(by, value);
    }
    let is_hash = line.len() == 64 && line.bytes().all(|b| b.is_ascii_hexdigit());
    let by = match () {
        () if line.contains("://") => By::Url,
        () if is_hash => By::Sha256,
        () => By::Domain,
    };
    Target::parse(by, line)
}

/// An address as it is compared: what browsers make of it, without the fragment.
fn normal(url: &str) -> String {
    Url::parse(url).map_or_else(
        |_| url.to_owned(),
        |mut url| {
            url.set_fragment(None);
            url.to_string()
        },
    )
}

/// A host in the form that addresses have.
fn domain(text: &str) -> Option<String> {
    let text = text.trim_start_matches("*.").trim_matches('.');
    if text.is_empty() || text.contains(['/', '@', ' ', '?', '#']) {
        return None;
    }
    let url = Url::parse(&format!("http://{text}/")).ok()?;
    let is_host_only = url.port().is_none() && url.path() == "/";
    url.host_str().filter(|_| is_host_only).map(str::to_ascii_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(all: &[(By, &str)]) -> Targets {
        Targets(all.iter().map(|(by, text)| Target::parse(*by, text).unwrap()).collect())
    }

    #[test]
    fn an_address_is_found_by_itself_and_by_its_domain() {
        let targets = targets(&[
            (By::Url, "HTTPS://A.example:443/x?q=1#part"),
            (By::Domain, "*.B.example."),
            (By::Domain, "127.0.0.1"),
            (By::Domain, "bücher.example"),
        ]);
        let check = |url: &str, expected: Option<&str>| {
            assert_eq!(targets.of_url(url).map(|t| t.value.as_str()), expected, "{url}");
        };
        check("https://a.example/x?q=1", Some("https://a.example/x?q=1"));
        check("https://a.example/x?q=1#other", Some("https://a.example/x?q=1"));
        check("https://a.example/x", None);
        check("http://a.example/x?q=1", None);
        check("http://b.example/any", Some("b.example"));
        check("https://img.cdn.b.example/any", Some("b.example"));
        check("https://notb.example/any", None);
        check("https://b.example.org/any", None);
        check("http://127.0.0.1:8080/a", Some("127.0.0.1"));
        check("http://1.127.0.0.1.example/a", None);
        check("https://www.xn--bcher-kva.example/", Some("xn--bcher-kva.example"));
        check("not an address", None);
    }

    #[test]
    fn a_target_that_means_nothing_is_refused() {
        let check = |by, text: &str| {
            let error = Target::parse(by, text).unwrap_err();
            assert!(error.to_string().contains(text.trim()), "{error}");
            assert_eq!(error.exit_code(), 2);
        };
        check(By::Url, "a.example/x");
        check(By::Domain, "https://a.example");
        check(By::Domain, "a.example/x");
        check(By::Domain, "");
        check(By::Sha256, "abc");
    }

    #[test]
    fn a_list_says_what_each_line_is_or_shows_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.txt");
        let hash = "AB".repeat(32);
        let text = format!(
            "# takedown\n\nurl https://a.example/1\nhttps://a.example/2\n{hash}\nb.example\n"
        );
        std::fs::write(&path, text).unwrap();
        let names: Vec<_> = Targets::read(&path).unwrap().iter().map(ToString::to_string).collect();
        let hash = hash.to_lowercase();
        let expected = [
            "url https://a.example/1",
            "url https://a.example/2",
            "domain b.example",
            &format!("sha256 {hash}"),
        ];
        assert_eq!(names, expected);
        std::fs::write(&path, "b.example\nsha256 12\n").unwrap();
        let error = Targets::read(&path).unwrap_err().to_string();
        assert!(error.contains("list.txt") && error.contains("line 2"), "{error}");
    }
}
