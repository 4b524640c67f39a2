//! The cues of a `WebVTT` or `SubRip` file: words without settings, notes and tags, with their times.

use std::borrow::Cow;

use encoding_rs::{Encoding, UTF_8, WINDOWS_1252};

/// Milliseconds up to which two cues count as one after the other without a gap.
const TOUCH_MS: i64 = 50;

/// Words that are shown for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cue {
    /// When they appear, in milliseconds.
    pub(crate) start_ms: i64,
    /// When they go.
    pub(crate) end_ms: i64,
    /// The words, in one line.
    pub(crate) text: String,
}

/// The text of a file: by its byte order mark, else UTF-8, else, where it is none, Windows-1252, in
/// which old subtitles are written.
pub(crate) fn decoded(bytes: &[u8]) -> Cow<'_, str> {
    if let Some((encoding, mark)) = Encoding::for_bom(bytes) {
        return encoding.decode_without_bom_handling(&bytes[mark..]).0;
    }
    let utf8 = UTF_8.decode_without_bom_handling_and_without_replacement(bytes);
    utf8.unwrap_or_else(|| WINDOWS_1252.decode_without_bom_handling(bytes).0)
}

/// All cues that have words and a length, in the order of their start. A line that the cue before has
/// shown and that stands on is not repeated: live captions roll up that way.
pub(crate) fn cues(text: &str) -> Vec<Cue> {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut cues = Vec::new();
    let mut shown: (i64, Vec<String>) = (i64::MIN, Vec::new());
    let blocks = text.split('\n').collect::<Vec<_>>();
    for block in blocks.split(|line| line.trim().is_empty()) {
        // What stands before the times is the cue's name; a block without times is no cue.
        let Some(at) = block.iter().position(|line| times(line).is_some()) else { continue };
        let Some((start_ms, end_ms)) = times(block[at]).filter(|(start, end)| end > start) else {
            continue;
        };
        let lines = block[at + 1..].iter().map(|line| plain(line));
        let lines: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
        let is_shown = |line: &&String| start_ms <= shown.0 + TOUCH_MS && shown.1.contains(line);
        let new: Vec<_> = lines.iter().filter(|line| !is_shown(line)).cloned().collect();
        shown = (end_ms, lines);
        if !new.is_empty() {
            cues.push(Cue { start_ms, end_ms, text: new.join(" ") });
        }
    }
    cues.sort_by_key(|cue| cue.start_ms);
    cues
}

/// The text of all cues, in order, joined by spaces.
pub(crate) fn text(cues: &[Cue]) -> String {
    cues.iter().map(|cue| cue.text.as_str()).collect::<Vec<_>>().join(" ")
}

/// Cues that follow each other within `gap_ms_max`, joined until they last `ms_min`. What stays
/// shorter is left as it is.
pub(crate) fn joined(cues: Vec<Cue>, ms_min: u32, gap_ms_max: u32) -> Vec<Cue> {
    let mut joined: Vec<Cue> = Vec::new();
    for cue in cues {
        match joined.last_mut() {
            Some(last)
                if last.end_ms - last.start_ms < i64::from(ms_min)
                    && cue.start_ms - last.end_ms <= i64::from(gap_ms_max) =>
            {
                last.end_ms = last.end_ms.max(cue.end_ms);
                last.text = format!("{} {}", last.text, cue.text);
            }
            _ => joined.push(cue),
        }
    }
    joined
}

/// Start and end of a line of times: `00:01.000 --> 00:00:02,500 line:80%`.
fn times(line: &str) -> Option<(i64, i64)> {
    let (start, rest) = line.split_once("-->")?;
    let end = rest.split_whitespace().next()?;
    Some((clock_ms(start.trim())?, clock_ms(end)?))
}

/// Milliseconds of a time: `[[hours:]minutes:]seconds[.fraction]`, with a point or a comma.
pub(crate) fn clock_ms(time: &str) -> Option<i64> {
    let time = time.replace(',', ".");
    let mut parts = time.rsplit(':');
    let seconds = parts.next()?;
    // Exponents, signs and words like `inf` are numbers, but no times.
    if seconds.is_empty() || !seconds.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let seconds: f64 = seconds.parse().ok()?;
    let (mut ms, mut unit) = (1000.0 * seconds, 60_000.0);
    for (i, part) in parts.enumerate() {
        if i == 2 || part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        ms += unit * part.parse::<f64>().ok()?;
        unit *= 60.0;
    }
    (ms < 1e12).then(|| ms.round() as i64)
}

/// A line without tags, its entities replaced, its white space joined.
fn plain(line: &str) -> String {
    let mut text = String::new();
    let mut is_tag = false;
    for c in line.chars() {
        match c {
            '<' => is_tag = true,
            '>' if is_tag => is_tag = false,
            c if !is_tag => text.push(c),
            _ => {}
        }
    }
    let entities = [("&lt;", "<"), ("&gt;", ">"), ("&nbsp;", " "), ("&lrm;", ""), ("&rlm;", "")];
    let text = entities.iter().fold(text, |text, (entity, c)| text.replace(entity, c));
    // `SubRip` has tags in braces, too: {\an8} puts words at the top.
    let text = text.replace("&amp;", "&");
    let text = match text.strip_prefix("{\\").and_then(|rest| rest.split_once('}')) {
        Some((_, rest)) => rest.to_owned(),
        None => text,
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_are_left() {
        let vtt = "WEBVTT - title\r\n\r\nNOTE hidden\r\n\r\nSTYLE\n::cue { color: red }\n\n\
                   1\n00:00:00.000 --> 00:00:01.000 line:80%\n<v Ann>Tom &amp; <i>I</i>\n- went\n\n\
                   00:02.000 --> 00:03.000\nhome &lt;3";
        assert_eq!(text(&cues(vtt)), "Tom & I - went home <3");
        assert!(cues("").is_empty());
    }

    #[test]
    fn both_formats_have_the_same_cues() {
        let cue = |start_ms, end_ms, text: &str| Cue { start_ms, end_ms, text: text.into() };
        let expected = [cue(500, 2000, "One two"), cue(3_723_004, 3_724_000, "Three")];
        let vtt = "WEBVTT\n\nname\n00:00.500 --> 00:02.000\nOne\ntwo\n\n\
                   01:02:03.004 --> 01:02:04.000 align:start\nThree\n";
        let srt = "1\r\n00:00:00,500 --> 00:00:02,000\r\n{\\an8}One\r\n<i>two</i>\r\n \r\n\
                   2\r\n01:02:03,004 --> 01:02:04,000\r\nThree";
        assert_eq!(cues(vtt), expected);
        assert_eq!(cues(srt), expected);
    }

    #[test]
    fn what_has_no_length_or_no_time_is_no_cue() {
        for block in ["00:02.000 --> 00:01.000\nx", "a --> b\nx", "00:01.000 -->\nx", "1\n2\n3"] {
            assert!(cues(block).is_empty(), "{block}");
        }
    }

    #[test]
    fn lines_that_roll_up_come_once() {
        let vtt = "00:00.000 --> 00:02.000\nhello there\n\n00:02.000 --> 00:02.010\nhello there\n\n\
                   00:02.010 --> 00:04.000\nhello there\nmy friend\n\n00:09.000 --> 00:10.000\nmy friend\n";
        assert_eq!(text(&cues(vtt)), "hello there my friend my friend");
    }

    #[test]
    fn short_cues_are_joined_within_their_gap() {
        let cue = |start_ms, end_ms, text: &str| Cue { start_ms, end_ms, text: text.into() };
        let given = || vec![cue(0, 900, "a"), cue(1000, 1900, "b"), cue(5000, 5100, "c")];
        let check = |ms_min, gap, expected: &[Cue]| {
            assert_eq!(joined(given(), ms_min, gap), expected, "{ms_min} {gap}");
        };
        check(0, 1000, &given());
        check(1500, 1000, &[cue(0, 1900, "a b"), cue(5000, 5100, "c")]);
        check(9000, 9000, &[cue(0, 5100, "a b c")]);
        check(1500, 50, &given());
    }

    #[test]
    fn times_are_read_in_every_form() {
        let check = |time: &str, ms| assert_eq!(clock_ms(time), ms, "{time}");
        check("12", Some(12_000));
        check("12.5", Some(12_500));
        check("01:02", Some(62_000));
        check("1:00:00,250", Some(3_600_250));
        for time in ["", "-1", "1e9", "inf", "a:1", ":1", "1:1:1:1", "1..2"] {
            check(time, None);
        }
    }

    #[test]
    fn old_files_are_read_in_their_encoding() {
        assert_eq!(decoded(b"caf\xe9"), "caf\u{e9}");
        assert_eq!(decoded("caf\u{e9}".as_bytes()), "caf\u{e9}");
        assert_eq!(decoded(b"\xff\xfea\0b\0"), "ab");
        assert_eq!(decoded(b"\xef\xbb\xbfWEBVTT"), "WEBVTT");
    }
}
