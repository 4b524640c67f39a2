//! HTTP responses as archives hold them: status, headers, and the body with its codings removed.

use std::borrow::Cow;
use std::io::Read;

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::Encoding;

use crate::reject::DropReason;
use crate::source::Source;
use crate::unpack::{Broken, GZIP_MAGIC, Unpacked, ZSTD_MAGIC};

/// Most header lines of a response.
const HEADERS_MAX: usize = 256;
/// Bytes of a page in which a charset declaration is looked for. HTML allows 1024; some pages are late.
const CHARSET_WINDOW: usize = 4096;
/// Bytes of a page without a declaration from which its encoding is guessed.
const GUESS_WINDOW: usize = 256 << 10;
/// Most content encodings on top of each other.
const CODINGS_MAX: usize = 8;
/// Bytes of a brotli body that are read at a time.
const BROTLI_BUFFER_BYTES: usize = 16 << 10;
/// Longest piece of a header in the detail of a reject.
const DETAIL_BYTES: usize = 100;

/// Status and headers of a response.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Head {
    /// Status code.
    pub status: u16,
    /// Header lines in order, names as written, folded lines joined.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// The first value of a header, whatever the case of its name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// All values of a header.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        let same = move |(key, _): &&(String, String)| key.eq_ignore_ascii_case(name);
        self.headers.iter().filter(same).map(|(_, value)| value.as_str())
    }

    /// The media type in lower case, without parameters; empty where the header lacks.
    pub fn media_type(&self) -> String {
        let value = self.header("Content-Type").unwrap_or("");
        value.split(';').next().unwrap_or("").trim().to_lowercase()
    }

    /// The `charset` parameter of the content type.
    pub fn charset(&self) -> Option<&str> {
        self.header("Content-Type").and_then(charset_parameter)
    }
}

/// Reads a response's head; the bytes after it are the body.
///
/// Archives hold what servers really sent: lines that end with LF only, folded lines, lines without a
/// colon, bytes that are no UTF-8, heads without a status line, and pages without any head (HTTP/0.9)
/// are all read. Interim answers (`100 Continue`) are skipped.
///
/// # Errors
/// When it is no HTTP response, has too many header lines, or its head is not complete.
pub fn parse_head(response: &[u8]) -> Result<(Head, &[u8]), DropReason> {
    let mut rest = response;
    loop {
        let (head, body) = parse_one_head(rest)?;
        let is_interim = (100..200).contains(&head.status) && head.status != 101;
        if !(is_interim && is_status_line(first_line(body).0)) {
            return Ok((head, body));
        }
        rest = body;
    }
}

fn parse_one_head(response: &[u8]) -> Result<(Head, &[u8]), DropReason> {
    let trimmed = response.trim_ascii_start();
    let unmarked = trimmed.strip_prefix(b"\xef\xbb\xbf").unwrap_or(trimmed);
    if unmarked.starts_with(b"<") {
        return Ok((Head { status: 200, headers: Vec::new() }, response));
    }
    let (line, after) = first_line(trimmed);
    let (status, mut rest) = if is_status_line(line) {
        let text = String::from_utf8_lossy(line);
        let code = text.split_whitespace().nth(1).and_then(|code| code.parse().ok());
        let code = code.filter(|code| (100..1000).contains(code));
        (code.ok_or_else(|| DropReason::detail("bad_http_head", shorten(&text)))?, after)
    } else if header_line(line).is_some() {
        (200, trimmed)
    } else {
        let text = String::from_utf8_lossy(&line[..line.len().min(DETAIL_BYTES)]);
        return Err(DropReason::detail("bad_http_head", shorten(&text)));
    };
    let mut headers: Vec<(String, String)> = Vec::new();
    loop {
        let Some(end) = memchr::memchr(b'\n', rest) else {
            let measured = Some(response.len() as f64);
            return Err(DropReason { measured, ..DropReason::because("head_not_whole") });
        };
        let line = rest[..end].trim_ascii_end();
        if line.is_empty() {
            return Ok((Head { status, headers }, &rest[end + 1..]));
        }
        // A page that begins without the empty line before it.
        if line.starts_with(b"<") {
            return Ok((Head { status, headers }, rest));
        }
        rest = &rest[end + 1..];
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            if let Some((_, value)) = headers.last_mut() {
                value.push(' ');
                value.push_str(&words(line));
            }
        } else if let Some((name, value)) = header_line(line) {
            if headers.len() == HEADERS_MAX {
                let limit = Some(HEADERS_MAX as f64);
                return Err(DropReason { limit, ..DropReason::because("too_many_headers") });
            }
            headers.push((String::from_utf8_lossy(name).into_owned(), words(value)));
        }
    }
}

/// The first line without its end, and what comes after it.
fn first_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = memchr::memchr(b'\n', bytes);
    let (line, rest) = end.map_or((bytes, &[][..]), |end| (&bytes[..end], &bytes[end + 1..]));
    (line.trim_ascii_end(), rest)
}

fn is_status_line(line: &[u8]) -> bool {
    let begins = |with: &[u8]| line.get(..with.len()).is_some_and(|s| s.eq_ignore_ascii_case(with));
    begins(b"HTTP/") || begins(b"ICY ")
}

/// Name and value of a header line; none where it is something else.
fn header_line(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr::memchr(b':', line)?;
    let name = line[..at].trim_ascii_end();
    let is_name = !name.is_empty() && name.iter().all(|&b| b > b' ' && b != 0x7f && b != b'<');
    is_name.then(|| (name, &line[at + 1..]))
}

/// A value with single spaces, as UTF-8 or in the web's old habit.
fn words(value: &[u8]) -> String {
    let text = std::str::from_utf8(value).map_or_else(
        |_| encoding_rs::WINDOWS_1252.decode_without_bom_handling(value).0,
        Cow::Borrowed,
    );
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn shorten(text: &str) -> String {
    text.chars().take(DETAIL_BYTES).collect()
}

/// The body without chunks and content encodings, at most `bytes_max` bytes.
///
/// Headers that do not fit the body are common: many archives keep them after undoing a coding, and
/// servers state codings that they did not apply. What the bytes say goes before the header.
///
/// # Errors
/// When it is longer, damaged, or encoded in a way that is not read.
pub fn decode_body<'a>(
    head: &Head,
    body: &'a [u8],
    bytes_max: u64,
) -> Result<Cow<'a, [u8]>, DropReason> {
    let mut body = Cow::Borrowed(body);
    let is_chunked = head.all("Transfer-Encoding").any(|c| c.to_lowercase().contains("chunked"));
    // Some archives keep the header after removing the chunks: then the body is taken as it is.
    if is_chunked && let Some(joined) = join_chunks(&body) {
        body = Cow::Owned(joined);
    }
    let codings = head.all("Content-Encoding").collect::<Vec<_>>().join(",").to_lowercase();
    let codings: Vec<_> = codings.split([',', ';']).map(str::trim).collect();
    if codings.len() > CODINGS_MAX {
        let measured = codings.len() as f64;
        return Err(DropReason::limit("too_many_encodings", measured, CODINGS_MAX as f64));
    }
    for coding in codings.into_iter().rev() {
        if let Some(decoded) = undo(coding, &body, bytes_max)? {
            body = Cow::Owned(decoded);
        }
    }
    // A compressed page whose server says nothing of it.
    if body.starts_with(&GZIP_MAGIC)
        && head.media_type().starts_with("text/")
        && let Some(decoded) = undo("gzip", &body, bytes_max)?
    {
        body = Cow::Owned(decoded);
    }
    if body.len() as u64 > bytes_max {
        return Err(DropReason::limit("too_many_bytes", body.len() as f64, bytes_max as f64));
    }
    Ok(body)
}

/// The body without one content encoding; nothing where it does not have it.
fn undo(coding: &str, body: &[u8], bytes_max: u64) -> Result<Option<Vec<u8>>, DropReason> {
    match coding {
        // Several servers call gzip deflate, too.
        "gzip" | "x-gzip" | "deflate" if body.starts_with(&GZIP_MAGIC) => {
            inflate(flate2::read::MultiGzDecoder::new(body), bytes_max).map(Some)
        }
        "zstd" if body.starts_with(&ZSTD_MAGIC) => unpack_zstd(body, bytes_max).map(Some),
        "deflate" | "br" if body.is_empty() => Ok(None),
        // The name means zlib, but several servers send bare deflate.
        "deflate" if is_zlib(body) => {
            inflate(flate2::read::ZlibDecoder::new(body), bytes_max).map(Some)
        }
        "deflate" => text_or(inflate(flate2::read::DeflateDecoder::new(body), bytes_max), body),
        "br" => {
            let decoder = brotli_decompressor::Decompressor::new(body, BROTLI_BUFFER_BYTES);
            text_or(inflate(decoder, bytes_max), body)
        }
        // Codings that were undone, names that stand for nothing, and charsets that went astray.
        "gzip" | "x-gzip" | "zstd" | "" | "identity" | "none" | "binary" | "8bit" | "7bit"
        | "text" | "plain" => Ok(None),
        name if Encoding::for_label(name.as_bytes()).is_some() || is_plain(body) => Ok(None),
        other => Err(DropReason::detail("unsupported_encoding", shorten(other))),
    }
}

/// What a coding without a mark of its own gave; nothing where it failed on a body that is text.
fn text_or(
    decoded: Result<Vec<u8>, DropReason>,
    body: &[u8],
) -> Result<Option<Vec<u8>>, DropReason> {
    match decoded {
        Err(drop) if drop.reason == "bad_content_encoding" && is_plain(body) => Ok(None),
        decoded => decoded.map(Some),
    }
}

/// Whether a body can be used as it is: it is text, or an image of a known format.
fn is_plain(body: &[u8]) -> bool {
    let window = &body[..body.len().min(CHARSET_WINDOW)];
    window.iter().all(|&byte| byte >= b' ' || matches!(byte, b'\t' | b'\r' | b'\n' | 0x0c))
        || image::guess_format(body).is_ok()
}

fn is_zlib(body: &[u8]) -> bool {
    matches!(body, [a, b, ..] if a & 0x0f == 8 && (u16::from(*a) << 8 | u16::from(*b)) % 31 == 0)
}

fn unpack_zstd(body: &[u8], bytes_max: u64) -> Result<Vec<u8>, DropReason> {
    let source = Source::of_bytes("body", body.to_vec());
    let mut frames = Unpacked::new(&source, source.reader(0));
    let mut bytes = Vec::new();
    let mut read = || -> Result<bool, Broken> {
        while frames.next_member()? {
            while frames.more()? {
                bytes.extend_from_slice(frames.data());
                frames.consume(frames.data().len());
                if bytes.len() as u64 > bytes_max {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    };
    match read() {
        Ok(false) => Err(DropReason::limit("too_many_bytes", bytes.len() as f64, bytes_max as f64)),
        // A cut stream gives its beginning.
        Err(_) if bytes.is_empty() => Err(DropReason::because("bad_content_encoding")),
        _ => Ok(bytes),
    }
}

/// Everything a decoder gives, up to the limit; a cut stream gives its beginning.
fn inflate(decoder: impl Read, bytes_max: u64) -> Result<Vec<u8>, DropReason> {
    let mut bytes = Vec::new();
    let result = decoder.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes);
    if bytes.len() as u64 > bytes_max {
        return Err(DropReason::limit("too_many_bytes", bytes.len() as f64, bytes_max as f64));
    }
    match result {
        Err(error) if bytes.is_empty() => {
            Err(DropReason::detail("bad_content_encoding", error.to_string()))
        }
        _ => Ok(bytes),
    }
}

/// The chunks of a chunked body joined; none where the first chunk has no size. A cut body gives
/// what is there.
fn join_chunks(body: &[u8]) -> Option<Vec<u8>> {
    let mut joined = Vec::with_capacity(body.len());
    let mut rest = body;
    loop {
        let Ok(httparse::Status::Complete((length, size))) = httparse::parse_chunk_size(rest)
        else {
            return (!joined.is_empty()).then_some(joined);
        };
        rest = &rest[length..];
        if size == 0 {
            return Some(joined);
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX).min(rest.len());
        joined.extend_from_slice(&rest[..size]);
        rest = &rest[size..];
        rest = rest.strip_prefix(b"\r\n").or(rest.strip_prefix(b"\n")).unwrap_or(rest);
        if rest.is_empty() {
            return Some(joined);
        }
    }
}

/// The page as text: by byte order mark, else by the header's charset, else by the page's own
/// declaration, else UTF-8 where it is valid, else by what the bytes look like. A declared UTF-8 that
/// most letters of the page contradict does not count.
pub fn decode_text<'a>(head: &Head, body: &'a [u8]) -> Cow<'a, str> {
    let is_utf8 = std::str::from_utf8(body).map_or_else(|e| e.error_len().is_none(), |_| true);
    let known = |name: &str| Encoding::for_label(name.as_bytes());
    let fits = |encoding: &&'static Encoding| {
        *encoding != encoding_rs::UTF_8 || is_utf8 || is_mostly_utf8(body)
    };
    let declared = head.charset().and_then(known).filter(fits);
    let declared = declared.or_else(|| declared_inside(body).filter(fits));
    // `decode` lets a byte order mark win over its own encoding.
    let encoding =
        declared.unwrap_or_else(|| if is_utf8 { encoding_rs::UTF_8 } else { guess(body) });
    encoding.decode(body).0
}

/// The encoding that bytes without a declaration look like.
fn guess(body: &[u8]) -> &'static Encoding {
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Deny);
    detector.feed(&body[..body.len().min(GUESS_WINDOW)], body.len() <= GUESS_WINDOW);
    detector.guess(None, Utf8Detection::Deny)
}

/// Whether most of what is not ASCII is UTF-8.
fn is_mostly_utf8(body: &[u8]) -> bool {
    let (mut letters, mut errors) = (0_usize, 0_usize);
    for chunk in body.utf8_chunks() {
        letters += chunk.valid().chars().filter(|c| !c.is_ascii()).count();
        errors += usize::from(!chunk.invalid().is_empty());
    }
    letters >= errors
}

/// The encoding that a page declares in its first bytes, in a `meta` tag or as XML does.
fn declared_inside(body: &[u8]) -> Option<&'static Encoding> {
    let name = meta_charset(body).or_else(|| xml_encoding(body))?;
    let encoding = Encoding::for_label(name.as_bytes())?;
    // A declaration that can be read byte by byte is in no such encoding.
    let is_wide = encoding == encoding_rs::UTF_16LE || encoding == encoding_rs::UTF_16BE;
    Some(if is_wide { encoding_rs::UTF_8 } else { encoding })
}

/// The encoding in `<?xml version="1.0" encoding="..."?>`.
fn xml_encoding(body: &[u8]) -> Option<&str> {
    let body = body.trim_ascii_start();
    let line = &body[..find(&body[..body.len().min(CHARSET_WINDOW)], b"?>")?];
    let text = std::str::from_utf8(line.strip_prefix(b"<?xml")?).ok()?;
    let value = text.split_once("encoding")?.1.trim_start().strip_prefix('=')?.trim_start();
    let quote = value.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
    value[1..].split(quote).next()
}

/// The charset that a page declares in its first bytes.
fn meta_charset(body: &[u8]) -> Option<&str> {
    let window = &body[..body.len().min(CHARSET_WINDOW)];
    let lower = window.to_ascii_lowercase();
    let mut from = 0;
    while let Some(at) = find(&lower[from..], b"<meta") {
        let start = from + at;
        let end = find(&lower[start..], b">").map_or(lower.len(), |end| start + end);
        if let Some(charset) =
            std::str::from_utf8(&window[start..end]).ok().and_then(charset_parameter)
        {
            return Some(charset);
        }
        from = end;
    }
    None
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// The value of `charset=` in a header or a tag.
fn charset_parameter(text: &str) -> Option<&str> {
    let at = text.to_ascii_lowercase().find("charset")?;
    let value = text[at + "charset".len()..].trim_start().strip_prefix('=')?.trim_start();
    let value = value.trim_start_matches(['"', '\'']);
    let end = value.find(|c: char| !(c.is_ascii_alphanumeric() || "-_:.".contains(c)));
    let value = &value[..end.unwrap_or(value.len())];
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn head(lines: &str) -> Head {
        parse_head(format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n").as_bytes()).unwrap().0
    }

    #[test]
    fn odd_heads_are_read() {
        let response = b"HTTP/1.1 301 Moved\r\nx-FOLDED: one\r\n two\r\nbroken line\r\nLOCATION: /a b\r\n\r\nrest";
        let (head, body) = parse_head(response).unwrap();
        assert_eq!((head.status, body), (301, &b"rest"[..]));
        assert_eq!(head.header("X-Folded"), Some("one two"));
        assert_eq!(head.header("location"), Some("/a b"));
        let reason = |response: &[u8]| parse_head(response).unwrap_err().reason;
        assert_eq!(reason(b"GET / HTTP/1.1\r\n\r\n"), "bad_http_head");
        assert_eq!(reason(b"HTTP/1.1 200 OK\r\nA: b\r\n"), "head_not_whole");
        let many = "A: b\r\n".repeat(HEADERS_MAX + 1);
        let many = format!("HTTP/1.1 200 OK\r\n{many}\r\n");
        assert_eq!(reason(many.as_bytes()), "too_many_headers");
    }

    #[test]
    fn heads_are_read_as_servers_send_them() {
        let check = |response: &[u8], status: u16, headers: &[(&str, &str)], body: &[u8]| {
            let (head, rest) = parse_head(response).unwrap();
            let found: Vec<_> =
                head.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            assert_eq!((head.status, &*found, rest), (status, headers, body));
        };
        check(b"HTTP/1.0 200\nA:b\nC : d\n\nx", 200, &[("A", "b"), ("C", "d")], b"x");
        check(b"\r\nHTTP/2 404 \r\n\r\n", 404, &[], b"");
        check(b"ICY 200 OK\r\n\r\n", 200, &[], b"");
        check(b"HTTP/1.1 200 OK\r\nA: caf\xe9\r\n\r\n", 200, &[("A", "caf\u{e9}")], b"");
        check(b"Content-Type: text/html\r\n\r\nx", 200, &[("Content-Type", "text/html")], b"x");
        check(b"<!doctype html><p>HTTP/0.9", 200, &[], b"<!doctype html><p>HTTP/0.9");
        check(b"HTTP/1.1 200 OK\r\nA: b\r\n<html>x\n", 200, &[("A", "b")], b"<html>x\n");
        check(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nx", 200, &[], b"x");
        check(b"HTTP/1.1 103 Early\r\nA: b\r\n\r\n", 103, &[("A", "b")], b"");
        let reason = |response: &[u8]| parse_head(response).unwrap_err().reason;
        assert_eq!(reason(b"HTTP/1.1 OK\r\n\r\n"), "bad_http_head");
        assert_eq!(reason(b""), "bad_http_head");
    }

    #[test]
    fn bodies_lose_their_codings() {
        let gzip = |bytes: &[u8]| {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let zlib = |bytes: &[u8]| {
            let mut encoder =
                flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let check = |lines: &str, body: &[u8], expected: &[u8]| {
            assert_eq!(&*decode_body(&head(lines), body, 100).unwrap(), expected, "{lines}");
        };
        check("A: b", b"plain", b"plain");
        check("Transfer-Encoding: chunked", b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", b"abcde");
        check("Transfer-Encoding: chunked", b"3\r\nabc\r\n9\r\nde", b"abcde");
        check("Transfer-Encoding: chunked", b"<html>already joined", b"<html>already joined");
        check("Content-Encoding: gzip", &gzip(b"text"), b"text");
        check("Content-Encoding: gzip", b"already inflated", b"already inflated");
        check("Content-Encoding: deflate", &zlib(b"text"), b"text");
        check("Content-Encoding: deflate", &zlib(b"text")[2..], b"text");
        check("Content-Encoding: deflate", &gzip(b"text"), b"text");
        check("Content-Encoding: deflate", b"<p>plain text", b"<p>plain text");
        check("Content-Encoding: gzip\r\nContent-Encoding: gzip", &gzip(&gzip(b"text")), b"text");
        check("Content-Encoding: deflate, gzip", &gzip(&zlib(b"text")), b"text");
        check("Content-Encoding: utf-8", b"text", b"text");
        check("Content-Encoding: snappy", b"<p>text", b"<p>text");
        check("Content-Type: text/html", &gzip(b"text"), b"text");
        check("Content-Type: application/gzip", &gzip(b"")[..10], &gzip(b"")[..10]);
        // "text" in brotli, uncompressed; a web page cannot be the start of such a stream.
        check("Content-Encoding: br", b"\x8b\x01\x80text\x03", b"text");
        check("Content-Encoding: br", b"<p>plain", b"<p>plain");
        let mut zstd = Vec::with_capacity(100);
        zstd_safe::compress(&mut zstd, b"text", 3).unwrap();
        check("Content-Encoding: zstd", &[&*zstd, &*zstd].concat(), b"texttext");
        check("Content-Encoding: zstd", b"text", b"text");
    }

    #[test]
    fn bombs_and_unknown_codings_are_dropped() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&vec![0; 1 << 20]).unwrap();
        let bomb = encoder.finish().unwrap();
        let reason =
            |lines: &str, body: &[u8]| decode_body(&head(lines), body, 1000).unwrap_err().reason;
        assert_eq!(reason("Content-Encoding: gzip", &bomb), "too_many_bytes");
        assert_eq!(reason("A: b", &[0; 1001]), "too_many_bytes");
        assert_eq!(reason("Content-Encoding: compress", &[0x1f, 0x9d]), "unsupported_encoding");
        assert_eq!(reason("Content-Encoding: br", &[0xff, 0, 1, 2]), "bad_content_encoding");
        assert_eq!(
            reason(&format!("Content-Encoding: {}", "gzip,".repeat(9)), b"x"),
            "too_many_encodings"
        );
        let mut zstd = Vec::with_capacity(1000);
        zstd_safe::compress(&mut zstd, &vec![0; 1 << 20], 3).unwrap();
        assert_eq!(reason("Content-Encoding: zstd", &zstd), "too_many_bytes");
        assert_eq!(
            reason("Content-Encoding: gzip", &[0x1f, 0x8b, 8, 0xff]),
            "bad_content_encoding"
        );
    }

    #[test]
    fn text_is_decoded_by_mark_then_header_then_page_then_habit() {
        let check = |lines: &str, body: &[u8], expected: &str| {
            assert_eq!(decode_text(&head(lines), body), expected, "{lines}");
        };
        check("Content-Type: text/html", "é".as_bytes(), "é");
        check("Content-Type: text/html", b"\xe9\x93.", "é“.");
        check("Content-Type: text/html; Charset=\"iso-8859-1\"", b"\xe9", "é");
        check("Content-Type: text/html; charset=iso-8859-1", b"\xef\xbb\xbf\xc3\xa9", "é");
        check(
            "Content-Type: text/html",
            b"<META charset=windows-1251>\xe9",
            "<META charset=windows-1251>й",
        );
        check("Content-Type: text/html; charset=nonsense", "é".as_bytes(), "é");
        // UTF-8 that is none, in Russian; then a page that was cut in a letter.
        let russian = "Съешь же ещё этих мягких французских булок, да выпей чаю";
        let (bytes, ..) = encoding_rs::WINDOWS_1251.encode(russian);
        check("Content-Type: text/html", &bytes, russian);
        check("Content-Type: text/html; charset=utf-8", &bytes, russian);
        let xml = [b"<?xml version='1.0' encoding='windows-1251'?>", &*bytes].concat();
        check("A: b", &xml, &format!("<?xml version='1.0' encoding='windows-1251'?>{russian}"));
        check("Content-Type: text/html; charset=utf-8", "éé\u{fffd}".as_bytes(), "éé\u{fffd}");
        check("A: b", b"<meta charset=utf-16>\xc3\xa9", "<meta charset=utf-16>é");
        check("Content-Type: text/html", b"caf\xc3", "caf\u{fffd}");
    }
}
