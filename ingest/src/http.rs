//! HTTP responses as archives hold them: status, headers, and the body with its codings removed.

use std::borrow::Cow;
use std::io::Read;

use encoding_rs::Encoding;

use crate::reject::DropReason;

/// Most header lines of a response.
const HEADERS_MAX: usize = 256;
/// Bytes of a page in which a charset declaration is looked for. HTML allows 1024; some pages are late.
const CHARSET_WINDOW: usize = 4096;

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
/// # Errors
/// When it is no HTTP response, has too many header lines, or its head is not complete.
pub fn parse_head(response: &[u8]) -> Result<(Head, &[u8]), DropReason> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut headers);
    let status = httparse::ParserConfig::default()
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true)
        .allow_multiple_spaces_in_response_status_delimiters(true)
        .ignore_invalid_headers_in_responses(true)
        .parse_response(&mut parsed, response);
    let length = match status {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => {
            let bytes = response.len() as f64;
            return Err(DropReason {
                measured: Some(bytes),
                ..DropReason::because("head_not_whole")
            });
        }
        Err(httparse::Error::TooManyHeaders) => {
            return Err(DropReason {
                limit: Some(HEADERS_MAX as f64),
                ..DropReason::because("too_many_headers")
            });
        }
        Err(error) => return Err(DropReason::detail("bad_http_head", error.to_string())),
    };
    let text = |value: &[u8]| {
        let text = String::from_utf8_lossy(value);
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let status = parsed.code.ok_or_else(|| DropReason::because("bad_http_head"))?;
    let headers = parsed.headers.iter().map(|h| (h.name.to_owned(), text(h.value))).collect();
    Ok((Head { status, headers }, &response[length..]))
}

/// The body without chunks and content encodings, at most `bytes_max` bytes.
///
/// # Errors
/// When it is longer, damaged, or encoded in a way that is not read.
pub fn decode_body<'a>(
    head: &Head,
    body: &'a [u8],
    bytes_max: u64,
) -> Result<Cow<'a, [u8]>, DropReason> {
    let mut body = Cow::Borrowed(body);
    let codings = head.header("Transfer-Encoding").unwrap_or("").to_lowercase();
    if codings.contains("chunked") {
        // Some archives keep the header after removing the chunks: then the body is taken as it is.
        if let Some(joined) = join_chunks(&body) {
            body = Cow::Owned(joined);
        }
    }
    let codings = head.header("Content-Encoding").unwrap_or("").to_lowercase();
    for coding in codings.split(',').map(str::trim).rev() {
        body = match coding {
            "" | "identity" | "none" => body,
            // The same goes for archives that store the body already inflated.
            "gzip" | "x-gzip" if !body.starts_with(&[0x1f, 0x8b]) => body,
            "gzip" | "x-gzip" => {
                Cow::Owned(inflate(flate2::read::MultiGzDecoder::new(&*body), bytes_max)?)
            }
            // The name means zlib, but several servers send bare deflate.
            "deflate" if is_zlib(&body) => {
                Cow::Owned(inflate(flate2::read::ZlibDecoder::new(&*body), bytes_max)?)
            }
            "deflate" => Cow::Owned(inflate(flate2::read::DeflateDecoder::new(&*body), bytes_max)?),
            other => return Err(DropReason::detail("unsupported_encoding", other)),
        };
    }
    if body.len() as u64 > bytes_max {
        return Err(DropReason::limit("too_many_bytes", body.len() as f64, bytes_max as f64));
    }
    Ok(body)
}

fn is_zlib(body: &[u8]) -> bool {
    matches!(body, [a, b, ..] if a & 0x0f == 8 && (u16::from(*a) << 8 | u16::from(*b)) % 31 == 0)
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
/// declaration, else UTF-8 where it is valid and windows-1252 where not (the web's habit).
pub fn decode_text<'a>(head: &Head, body: &'a [u8]) -> Cow<'a, str> {
    let declared = head.charset().or_else(|| meta_charset(body));
    let encoding = declared.and_then(|name| Encoding::for_label(name.as_bytes()));
    match (encoding, std::str::from_utf8(body)) {
        // `decode` lets a byte order mark win over its own encoding.
        (Some(encoding), _) => encoding.decode(body).0,
        (None, Ok(_)) => encoding_rs::UTF_8.decode(body).0,
        (None, Err(error)) if error.error_len().is_none() => encoding_rs::UTF_8.decode(body).0,
        (None, Err(_)) => encoding_rs::WINDOWS_1252.decode(body).0,
    }
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
        assert_eq!(reason("Content-Encoding: br", b"x"), "unsupported_encoding");
        assert_eq!(reason("Content-Encoding: gzip", &[0x1f, 0x8b, 0xff]), "bad_content_encoding");
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
        check("Content-Type: text/html", b"caf\xc3", "caf\u{fffd}");
    }
}
