//! Where in the tokens of an answer the words stand that only the image tells.

use std::ops::Range;

use flamingo_dataset::Tokenizer;

use crate::prompt::Template;

/// Token ranges of the content words of `caption`, counted from the first token of the answer.
///
/// Words are compared in lower case and without the punctuation around them. The tokenizer splits
/// before every space and between letters and punctuation, so words can be encoded one by one; an
/// answer for which that does not hold has no ranges.
pub fn content_ranges(
    template: &Template,
    caption: &str,
    content_words: &[String],
    tokenizer: &Tokenizer,
) -> Vec<Range<usize>> {
    let answer = template.continuation(caption);
    let mut ranges = Vec::new();
    let mut at = 0;
    for word in words_with_spaces(&answer) {
        let letters = word.trim_end_matches(|c: char| !c.is_alphanumeric());
        if content_words.contains(&letters.trim_start().to_lowercase()) {
            ranges.push(at..at + tokenizer.encode(letters).len());
        }
        at += tokenizer.encode(word).len();
    }
    if at == tokenizer.encode(&answer).len() { ranges } else { Vec::new() }
}

/// Cuts before every space that follows something else.
fn words_with_spaces(text: &str) -> Vec<&str> {
    let bytes = text.as_bytes();
    let mut cuts = vec![0];
    cuts.extend((1..bytes.len()).filter(|&i| bytes[i] == b' ' && bytes[i - 1] != b' '));
    cuts.push(bytes.len());
    cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(prompt: &str, caption: &str, expected: &[&str]) {
        let texts = ["shows: two green squares, one blue circle"; 20].map(str::to_owned);
        let tokenizer = Tokenizer::train(texts.into_iter(), 290).unwrap();
        let template = Template::new(prompt);
        let words = ["green", "squares", "blue"].map(str::to_owned);
        let tokens = template.answer_tokens(caption, &tokenizer);
        let ranges = content_ranges(&template, caption, &words, &tokenizer);
        let found: Vec<String> =
            ranges.into_iter().map(|r| tokenizer.decode(&tokens[r]).trim().to_owned()).collect();
        assert_eq!(found, expected, "{caption}");
    }

    #[test]
    fn ranges_cover_exactly_the_content_words() {
        check("shows:", "two green squares, one blue circle", &["green", "squares", "blue"]);
        check("", "Blue or green?", &["Blue", "green"]);
        check("shows:", "a greenish bluebird", &[]);
        check("shows:", "", &[]);
    }
}
