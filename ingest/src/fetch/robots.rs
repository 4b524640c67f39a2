//! robots.txt after RFC 9309: the groups of a file to the rules of one agent, and an address to yes
//! or no.

/// Bytes of a file that are read (RFC 9309, section 2.5: at least 500 KiB).
pub(crate) const BYTES_MAX: usize = 500 << 10;
/// Bytes of a rule that are read, and of an address that is compared with it.
const PATTERN_BYTES_MAX: usize = 2048;
/// Rules of one agent that are kept.
const RULES_MAX: usize = 10_000;

/// What a site asks of one agent.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Robots {
    rules: Vec<Rule>,
    /// Seconds between two requests; no part of the standard, but widely used.
    pub(crate) crawl_delay: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    allows: bool,
    /// Normalized; `*` stands for anything and a last `$` for the end.
    pattern: Vec<u8>,
}

impl Robots {
    /// Reads the rules for `agent`: those of all groups that name it, else those of `*`.
    pub(crate) fn parse(text: &[u8], agent: &str) -> Self {
        let text = match text.get(..BYTES_MAX) {
            // Half a rule would forbid, or allow, more than the whole one.
            Some(text) => &text[..text.iter().rposition(|&byte| byte == b'\n').unwrap_or(0)],
            None => text,
        };
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let (mut own, mut any) = (None::<Self>, Self::default());
        let (mut names_own, mut names_any, mut in_rules) = (false, false, false);
        for line in text.split(|byte| matches!(byte, b'\n' | b'\r')) {
            let line = line.split(|&byte| byte == b'#').next().unwrap_or_default();
            let Some(at) = line.iter().position(|&byte| byte == b':') else { continue };
            let key = line[..at].trim_ascii().to_ascii_lowercase();
            let value = line[at + 1..].trim_ascii();
            match key.as_slice() {
                b"user-agent" | b"useragent" => {
                    if std::mem::take(&mut in_rules) {
                        (names_own, names_any) = (false, false);
                    }
                    names_any |= value == b"*";
                    if names_agent(value, agent) {
                        names_own = true;
                        own.get_or_insert_default();
                    }
                }
                b"allow" | b"disallow" | b"crawl-delay" => {
                    in_rules |= key != b"crawl-delay";
                    if names_own {
                        own.get_or_insert_default().add(&key, value);
                    }
                    if names_any {
                        any.add(&key, value);
                    }
                }
                _ => {}
            }
        }
        own.unwrap_or(any)
    }

    fn add(&mut self, key: &[u8], value: &[u8]) {
        if key == b"crawl-delay" {
            let seconds = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            self.crawl_delay =
                seconds.filter(|&seconds: &f64| seconds.is_finite() && seconds > 0.0);
        } else if !value.is_empty() && self.rules.len() < RULES_MAX {
            let pattern = normalized(&value[..value.len().min(PATTERN_BYTES_MAX)], false);
            self.rules.push(Rule { allows: key == b"allow", pattern });
        }
    }

    /// Whether an address, given by its path and query, may be asked for: the longest rule that
    /// matches decides, and of two equally long ones the one that allows.
    pub(crate) fn allows(&self, path: &str) -> bool {
        if path == "/robots.txt" || self.rules.is_empty() {
            return true;
        }
        let path = path.as_bytes();
        let path = normalized(&path[..path.len().min(PATTERN_BYTES_MAX)], true);
        let matching = self.rules.iter().filter(|rule| matches(&rule.pattern, &path));
        let longest = matching.max_by_key(|rule| (rule.pattern.len(), rule.allows));
        longest.is_none_or(|rule| rule.allows)
    }
}

/// Whether a `User-agent` line means `agent`: its product token is compared, whatever the case.
fn names_agent(value: &[u8], agent: &str) -> bool {
    let is_token = |byte: &u8| byte.is_ascii_alphabetic() || matches!(byte, b'-' | b'_');
    let end = value.iter().position(|byte| !is_token(byte)).unwrap_or(value.len());
    value[..end].eq_ignore_ascii_case(agent.as_bytes())
}

/// Percent-encodes what must be, decodes what need not be, and writes the rest in capitals, so that
/// two spellings of an address are compared as one. In an address, as opposed to a rule, `*` and `$`
/// are characters like others.
fn normalized(text: &[u8], is_address: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut i = 0;
    while i < text.len() {
        let byte = text[i];
        let hex = |at: usize| char::from(*text.get(at)?).to_digit(16).map(|digit| digit as u8);
        if byte == b'%'
            && let Some((high, low)) = hex(i + 1).zip(hex(i + 2))
        {
            push(&mut out, high << 4 | low, true, is_address);
            i += 3;
        } else {
            push(&mut out, byte, false, is_address);
            i += 1;
        }
    }
    out
}

fn push(out: &mut Vec<u8>, byte: u8, was_encoded: bool, is_address: bool) {
    let is_unreserved = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let stays = byte.is_ascii_graphic()
        && !was_encoded
        && byte != b'%'
        && !(is_address && b"*$".contains(&byte));
    if is_unreserved || stays {
        out.push(byte);
    } else {
        out.push(b'%');
        out.extend([byte >> 4, byte & 15].map(|digit| b"0123456789ABCDEF"[usize::from(digit)]));
    }
}

/// Whether a pattern fits the beginning of `path`, or all of it where it ends in `$`.
fn matches(pattern: &[u8], path: &[u8]) -> bool {
    let (pattern, to_end) = match pattern.strip_suffix(b"$") {
        Some(pattern) => (pattern, true),
        None => (pattern, false),
    };
    let (mut p, mut i) = (0, 0);
    // Where to go on when what follows the last star does not fit here.
    let mut star = None;
    loop {
        if p == pattern.len() && (!to_end || i == path.len()) {
            return true;
        }
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            star = Some((p, i));
        } else if p < pattern.len() && path.get(i) == Some(&pattern[p]) {
            (p, i) = (p + 1, i + 1);
        } else {
            match star {
                Some((after, from)) if from < path.len() => {
                    star = Some((after, from + 1));
                    (p, i) = (after, from + 1);
                }
                _ => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, path: &str, expected: bool) {
        let robots = Robots::parse(text.as_bytes(), "ExampleBot");
        let shown = &text[..text.len().min(80)];
        assert_eq!(robots.allows(path), expected, "{path:.80} of {shown:?}");
    }

    /// The examples of RFC 9309, section 5.
    #[test]
    fn the_examples_of_the_standard_hold() {
        let simple = "User-Agent: *\nDisallow: *.gif$\nDisallow: /example/\nAllow: /publications/\n\n\
             User-Agent: foobot\nDisallow:/\nAllow:/example/page.html\nAllow:/example/allowed.gif\n\n\
             User-Agent: barbot\nUser-Agent: bazbot\nDisallow: /example/page.html\n\n\
             User-Agent: quxbot\n";
        let rules = |agent: &str, path: &str, expected: bool| {
            let robots = Robots::parse(simple.as_bytes(), agent);
            assert_eq!(robots.allows(path), expected, "{agent} {path}");
        };
        rules("other", "/a.gif", false);
        rules("other", "/a.gif?x", true);
        rules("other", "/example/", false);
        rules("other", "/publications/x", true);
        rules("foobot", "/example/page.html", true);
        rules("foobot", "/example/allowed.gif", true);
        rules("foobot", "/", false);
        rules("barbot", "/example/page.html", false);
        rules("bazbot", "/example/page.html", false);
        rules("bazbot", "/a.gif", true);
        rules("quxbot", "/a.gif", true);
        let longest =
            "User-Agent: foobot\nAllow: /example/page/\nDisallow: /example/page/disallowed.gif\n";
        let robots = Robots::parse(longest.as_bytes(), "foobot");
        assert!(robots.allows("/example/page/x") && !robots.allows("/example/page/disallowed.gif"));
    }

    /// The table of RFC 9309, section 2.2.2.
    #[test]
    fn spellings_of_one_address_are_one() {
        let table = [
            ("/foo/bar?baz=quz", "/foo/bar?baz=quz"),
            ("/foo/bar?baz=https://foo.bar", "/foo/bar?baz=https://foo.bar"),
            ("/foo/bar/\u{30c4}", "/foo/bar/%E3%83%84"),
            ("/foo/bar/%E3%83%84", "/foo/bar/%e3%83%84"),
            ("/foo/bar/%62%61%7A", "/foo/bar/baz"),
            ("/path/file-with-a-%2A.html", "/path/file-with-a-*.html"),
            ("/path/foo-%24", "/path/foo-$"),
        ];
        for (rule, path) in table {
            check(&format!("User-agent: ExampleBot\nDisallow: {rule}"), path, false);
        }
        check("User-agent: ExampleBot\nDisallow: /a%2Fb", "/a/b", true);
    }

    #[test]
    fn groups_are_joined_and_names_compared_by_token() {
        let text = "user-agent: EXAMPLEBOT/2.1\ndisallow: /a # why\nsitemap: x\n\n\
                    User-agent: other\nUser-agent: examplebot\nDisallow: /b\nUser-agent: *\nDisallow: /\n";
        for (path, expected) in [("/a", false), ("/b", false), ("/c", true)] {
            check(text, path, expected);
        }
        check("User-agent: ExampleBotNews\nDisallow: /", "/x", true);
        check("User-agent: examplebot\n\nUser-agent: *\nDisallow: /", "/x", false);
        check("Disallow: /\nUser-agent: *\nDisallow:", "/x", true);
        check("\u{feff}User-agent: *\r\nDisallow: /x\rAllow: /x/y", "/x/y", true);
        check("User-agent: *\nDisallow: /", "/robots.txt", true);
        check("User-agent: *\nDisallow: /x\nAllow: /x", "/x", true);
        check("<!doctype html><a href='x:y'>", "/x", true);
        let robots = Robots::parse(b"User-agent: *\nCrawl-delay: 2.5\nDisallow: /x", "a");
        assert_eq!(robots.crawl_delay, Some(2.5));
    }

    #[test]
    fn stars_and_ends() {
        for (pattern, path, expected) in [
            ("/fish*", "/fishheads/yummy.html", true),
            ("/*.php", "/folder/any.php.file.html", true),
            ("/*.php$", "/filename.php?parameters", false),
            ("/*.php$", "/a.php/b.php", true),
            ("/fish*.php", "/Fish.php", false),
            ("/a*b*c$", "/aXbYbZc", true),
            ("/a*b*c$", "/aXbYbZ", false),
            ("*", "/", true),
            ("/$", "/", true),
            ("/$", "/x", false),
        ] {
            let found = matches(&normalized(pattern.as_bytes(), false), path.as_bytes());
            assert_eq!(found, expected, "{pattern} {path}");
        }
    }

    #[test]
    fn hostile_files_take_no_time() {
        let stars = format!("User-agent: *\nDisallow: /{}$", "*a".repeat(1000));
        let many = format!("{stars}\n").repeat(400);
        check(&many, &format!("/{}", "a".repeat(5000)), false);
        check(&many, &format!("/{}b", "a".repeat(1500)), true);
        let late = format!("{}\nUser-agent: *\nDisallow: /", "#".repeat(BYTES_MAX));
        check(&late, "/x", true);
    }
}
