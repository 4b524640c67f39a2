//! The words of a `WebVTT` file, without times, settings, notes and tags.

/// The text of all cues, in order, joined by spaces.
pub(crate) fn text(vtt: &str) -> String {
    let lines = vtt.replace("\r\n", "\n").replace('\r', "\n");
    let mut words = Vec::new();
    for block in lines.split("\n\n") {
        // What stands before the times is the cue's name; a block without times is no cue.
        let mut lines = block.lines().skip_while(|line| !line.contains("-->"));
        if lines.next().is_some() {
            words.extend(lines.map(plain));
        }
    }
    words.join(" ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A line without tags, its entities replaced.
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
    text.replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_are_left() {
        let vtt = "WEBVTT - title\r\n\r\nNOTE hidden\r\n\r\nSTYLE\n::cue { color: red }\n\n\
                   1\n00:00:00.000 --> 00:00:01.000 line:80%\n<v Ann>Tom &amp; <i>I</i>\n- went\n\n\
                   00:02.000 --> 00:03.000\nhome &lt;3";
        assert_eq!(text(vtt), "Tom & I - went home <3");
        assert_eq!(text(""), "");
    }
}
