//! Addresses of the web and of mail: rules that look ahead to the end of a stretch without spaces.
//!
//! Where most of a long stretch is no address, each of its tokens would look through the rest of it, which takes
//! hours for a megabyte. What lies ahead is the same for all of them, so it is looked for once.

use super::scan::{Hit, is_space, run, starts_with};

/// What was found ahead of the last positions that were asked for, in characters from the start of the text.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Where the name before an `@` would end.
    name_end: usize,
    plain: Labels,
    www: Labels,
}

/// Texts with full stops between, `site.com`.
#[derive(Debug, Default)]
struct Labels {
    end: usize,
    /// Of the last one that is a domain, the full stop before it and where it ends.
    domain: Option<(usize, usize)>,
}

/// Domains that the original knows.
const DOMAINS: [&str; 4] = ["com", "net", "org", "edu"];

/// Characters of addresses.
fn is_plain(c: char) -> bool {
    !is_space(c) && !"`<>|.!?,\"".contains(c)
}

/// Characters of sites that do not start with `www`.
fn is_of_site(c: char) -> bool {
    is_plain(c) && !"-/$".contains(c)
}

/// Characters of names and hosts of mail.
fn is_of_mail(c: char) -> bool {
    !is_space(c) && !"\"<>|()@".contains(c)
}

fn is_known_domain(label: &[char]) -> bool {
    DOMAINS.iter().any(|domain| label.iter().copied().eq(domain.chars()))
}

fn is_short_word(label: &[char]) -> bool {
    (2..=4).contains(&label.len()) && label.iter().all(char::is_ascii_alphabetic)
}

impl Labels {
    /// The labels from `at` on.
    fn of(
        chars: &[char],
        at: usize,
        is_inner: impl Fn(char) -> bool,
        is_domain: fn(&[char]) -> bool,
    ) -> Self {
        let mut end = run(chars, at, &is_inner);
        let mut domain = None;
        while chars.get(end) == Some(&'.') {
            let next = run(chars, end + 1, &is_inner);
            if next == end + 1 {
                break;
            }
            let label_end = run(&chars[..next], end + 1, |c| c != '/');
            if is_domain(&chars[end + 1..label_end]) {
                domain = Some((end, label_end));
            }
            end = next;
        }
        Self { end, domain }
    }

    /// Where the last domain ends that `at` is before.
    fn domain_end(&self, at: usize) -> Option<usize> {
        self.domain.filter(|(stop, _)| *stop > at).map(|(_, end)| end)
    }
}

impl Ahead {
    /// `http://...`, `www.site.tld`, and `site.com` with the four domains the original knows.
    pub(super) fn web_address(&mut self, chars: &[char], at: usize) -> Option<Hit> {
        let rest = &chars[at..];
        let scheme = ["http://", "https://", "ftp://"].iter().find(|p| starts_with(rest, p));
        if let Some(scheme) = scheme {
            let end = run(rest, scheme.len(), |c| !is_space(c) && !"<>|\"()".contains(c));
            return (end > scheme.len()).then(|| Hit::of(end));
        }
        let is_www = starts_with(rest, "www") && rest.get(3) == Some(&'.');
        let end = if is_www {
            if self.www.end <= at {
                self.www = Labels::of(chars, at, is_plain, is_short_word);
            }
            self.www.domain_end(at)?
        } else {
            if self.plain.end <= at {
                self.plain = Labels::of(chars, at, is_of_site, is_known_domain);
            }
            self.plain.domain_end(at)?
        };
        let has_slash = chars.get(end) == Some(&'/');
        let path = if has_slash { run(chars, end + 1, |c| is_plain(c) || c == '.') } else { end };
        Some(Hit::of(if path > end + 1 { path } else { end } - at))
    }

    /// `name@host`.
    pub(super) fn email(&mut self, chars: &[char], at: usize) -> Option<Hit> {
        chars.get(at).filter(|c| c.is_ascii_alphanumeric())?;
        if self.name_end <= at {
            self.name_end = run(chars, at, is_of_mail);
        }
        let host = self.name_end + 1;
        if chars.get(self.name_end) != Some(&'@') {
            return None;
        }
        let end = run(chars, host, |c| is_of_mail(c) && c != '.');
        (end > host).then(|| Hit::of(end - at))
    }
}
