//! The few-shot layout (paper, figure 8 and appendix B.1.5):
//! `<BOS><image>Output: a dog<EOC><image>Output: a cat<EOC><image>Output:`.
//!
//! An answer follows its prompt after one space, as the trained texts have it; the tokenizer splits
//! before that space, so a prompt and its continuation can be encoded apart.

use flamingo_dataset::{Attend, Tokenizer, media_mask};
use serde::{Deserialize, Serialize};

use crate::item::{Item, ShownAnswer};
use crate::task_file::{Decoding, ZeroShot};

/// An image or film of a prompt, by the item that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImagePlace {
    /// Item of the split that examples are drawn from.
    Support(usize),
    /// Item of the split that is asked about.
    Query(usize),
}

/// One place of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// An image mark.
    Image(ImagePlace),
    /// Text that stands as it is.
    Text(String),
    /// `<EOC>`, the end of what belongs to an image.
    EndOfChunk,
}

/// A sequence for the model: tokens, and the images that its marks stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Tokens `[L]`.
    pub tokens: Vec<u32>,
    /// Images in the order of their marks.
    pub images: Vec<ImagePlace>,
}

impl Prompt {
    /// Encodes pieces after `<BOS>`.
    pub fn encode(pieces: &[Piece], tokenizer: &Tokenizer) -> Self {
        let mut prompt = Self { tokens: vec![tokenizer.bos_id()], images: Vec::new() };
        for piece in pieces {
            match piece {
                Piece::Image(place) => {
                    prompt.tokens.push(tokenizer.image_id());
                    prompt.images.push(*place);
                }
                Piece::Text(text) => prompt.tokens.extend(tokenizer.encode(text)),
                Piece::EndOfChunk => prompt.tokens.push(tokenizer.eoc_id()),
            }
        }
        prompt
    }

    /// The prompt with `tokens` after it.
    #[must_use]
    pub fn followed_by(&self, tokens: &[u32]) -> Self {
        let mut longer = self.clone();
        longer.tokens.extend(tokens);
        longer
    }

    /// Which image each token sees `[L]`: the last one before it.
    pub fn phi(&self, tokenizer: &Tokenizer) -> Vec<i32> {
        media_mask::phi(&self.tokens, tokenizer.image_id(), Attend::Previous)
    }
}

/// The layout of one item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// What stands before the answer: `<image>` is where the picture or film goes, `{question}` and other
    /// names of the item's fields stand for their texts.
    pub prompt: String,
    /// How an answer follows.
    #[serde(default = "after_a_space")]
    pub answer: String,
    /// What stands between an example and what comes after it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub between: String,
    /// A written answer ends where one of these begins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cut_at: Vec<String>,
    /// Characters that are left out of a written answer.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub drop: String,
    /// Which human answer an example is shown with, if not the one that the task says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown_answer: Option<ShownAnswer>,
    /// How answers come about, if not as the task says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoding: Option<Decoding>,
    /// What is shown at 0 shots, if not what the task says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zero_shot: Option<ZeroShot>,
}

/// Where the picture or film goes.
const IMAGE_MARK: &str = "<image>";

/// What stands for the answer in [`Template::answer`].
pub(crate) const ANSWER_MARK: &str = "{answer}";

fn after_a_space() -> String {
    format!(" {ANSWER_MARK}")
}

impl Template {
    /// A layout in which answers follow after a space.
    pub fn new(prompt: &str) -> Self {
        Self {
            prompt: prompt.to_owned(),
            answer: after_a_space(),
            between: String::new(),
            cut_at: Vec::new(),
            drop: String::new(),
            shown_answer: None,
            decoding: None,
            zero_shot: None,
        }
    }

    /// The same with this text behind the image.
    #[must_use]
    pub fn with_prompt(&self, prompt: &str) -> Self {
        Self { prompt: format!("{IMAGE_MARK}{prompt}"), ..self.clone() }
    }

    /// The same without text-only shots at 0 shots.
    #[must_use]
    pub fn bare(self) -> Self {
        Self { zero_shot: None, ..self }
    }

    /// How many pictures or films an item has in it.
    pub fn n_images(&self) -> usize {
        parts(&self.prompt).filter(|part| matches!(part, Part::Image)).count()
    }

    /// Names of the fields that it needs.
    pub fn fields(&self) -> Vec<&str> {
        let names = parts(&self.prompt).filter_map(|part| match part {
            Part::Field(name) => Some(name),
            Part::Image | Part::Text(_) => None,
        });
        names.collect()
    }

    /// The text that follows the prompt when the answer is `answer`. No space comes first in a text.
    pub fn continuation(&self, answer: &str) -> String {
        let text = self.answer.replace(ANSWER_MARK, answer);
        let is_first = self.prompt.is_empty() || self.prompt.ends_with(IMAGE_MARK);
        if is_first { text.strip_prefix(' ').unwrap_or(&text).to_owned() } else { text }
    }

    /// An answered example; `image` is left out in text-only shots. None where the item's answer is not known.
    pub fn shot(
        &self,
        item: &Item,
        image: Option<ImagePlace>,
        rule: ShownAnswer,
    ) -> Option<Vec<Piece>> {
        let mut pieces = self.query(item, image);
        push_text(&mut pieces, &self.continuation(item.shown_answer(rule)?));
        pieces.push(Piece::EndOfChunk);
        push_text(&mut pieces, &self.between);
        Some(pieces)
    }

    /// The question at the end.
    pub fn query(&self, item: &Item, image: Option<ImagePlace>) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for part in parts(&self.prompt) {
            match part {
                Part::Image => pieces.extend(image.map(Piece::Image)),
                Part::Text(text) => push_text(&mut pieces, text),
                Part::Field(name) => {
                    push_text(&mut pieces, item.fields.get(name).map_or("", String::as_str));
                }
            }
        }
        pieces
    }

    /// The answer in what a model wrote.
    pub fn answer_in(&self, written: &str) -> String {
        let ends = self.cut_at.iter().filter_map(|mark| written.find(mark.as_str()));
        let kept = &written[..ends.min().unwrap_or(written.len())];
        kept.replace(|c: char| self.drop.contains(c), "").trim().to_owned()
    }

    /// Whether one of the marks that end answers stands in what a model wrote.
    pub fn ends_in(&self, written: &str) -> bool {
        self.cut_at.iter().any(|mark| written.contains(mark.as_str()))
    }

    /// Tokens of an answer and the `<EOC>` that ends it.
    pub fn answer_tokens(&self, answer: &str, tokenizer: &Tokenizer) -> Vec<u32> {
        let mut tokens = tokenizer.encode(&self.continuation(answer));
        tokens.push(tokenizer.eoc_id());
        tokens
    }
}

/// Text that follows text is one text: tokens may span both.
fn push_text(pieces: &mut Vec<Piece>, text: &str) {
    if text.is_empty() {
        return;
    }
    match pieces.last_mut() {
        Some(Piece::Text(before)) => before.push_str(text),
        _ => pieces.push(Piece::Text(text.to_owned())),
    }
}

/// A part of a template.
enum Part<'a> {
    Image,
    Text(&'a str),
    Field(&'a str),
}

/// The parts of a template. A brace that opens no name is text.
fn parts(template: &str) -> impl Iterator<Item = Part<'_>> {
    let mut rest = template;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        if let Some(after) = rest.strip_prefix(IMAGE_MARK) {
            rest = after;
            return Some(Part::Image);
        }
        if let Some((name, after)) = field_at_start(rest) {
            rest = after;
            return Some(Part::Field(name));
        }
        let first = rest.chars().next().map_or(0, char::len_utf8);
        let is_mark = |at: &usize| {
            rest[*at..].starts_with(IMAGE_MARK) || field_at_start(&rest[*at..]).is_some()
        };
        let starts = rest[first..].char_indices().map(|(at, _)| at + first);
        let end = starts.into_iter().find(is_mark).unwrap_or(rest.len());
        let (text, after) = rest.split_at(end);
        rest = after;
        Some(Part::Text(text))
    })
}

/// `{name}` at the start of a text, and what comes after.
fn field_at_start(text: &str) -> Option<(&str, &str)> {
    let (name, after) = text.strip_prefix('{')?.split_once('}')?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    is_name.then_some((name, after))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::item::Truth;

    fn tokenizer() -> Tokenizer {
        let texts = ["shows: red", "shows: two green squares, one blue circle", "Output: a star"];
        let texts = texts.iter().cycle().take(30).map(|text| (*text).to_owned());
        Tokenizer::train(texts, 300).unwrap()
    }

    fn template() -> Template {
        Template::new("<image>shows:")
    }

    fn item(caption: &str) -> Item {
        Item {
            id: "1".into(),
            medium_id: "1".into(),
            medium: None,
            fields: [("question", "what is {text} {question}?".to_owned())].into(),
            truth: Truth::Captions(vec![caption.into()]),
            candidates: Arc::default(),
            category: None,
        }
    }

    fn shot(template: &Template, image: Option<ImagePlace>, caption: &str) -> Vec<Piece> {
        template.shot(&item(caption), image, ShownAnswer::First).unwrap()
    }

    #[test]
    fn layout_is_that_of_the_paper() {
        let tokenizer = tokenizer();
        let (place, query) = (ImagePlace::Support(3), ImagePlace::Query(0));
        let mut pieces = shot(&template(), Some(place), "red");
        pieces.extend(template().query(&item(""), Some(query)));
        let prompt = Prompt::encode(&pieces, &tokenizer);
        let mut expected = vec![tokenizer.bos_id(), tokenizer.image_id()];
        expected.extend(tokenizer.encode("shows: red"));
        expected.extend([tokenizer.eoc_id(), tokenizer.image_id()]);
        expected.extend(tokenizer.encode("shows:"));
        assert_eq!(prompt.tokens, expected);
        assert_eq!(prompt.images, [place, query]);
        let phi = prompt.phi(&tokenizer);
        assert_eq!((phi[0], phi[1], *phi.last().unwrap()), (-1, 0, 1));
    }

    #[test]
    fn an_answer_continues_the_prompt_as_trained_text_does() {
        let tokenizer = tokenizer();
        for caption in ["red", "two green squares, one blue circle", "un\u{e9} \"odd\" one's"] {
            let prompt = Prompt::encode(&template().query(&item(caption), None), &tokenizer);
            let answered = prompt.followed_by(&template().answer_tokens(caption, &tokenizer));
            let trained = Prompt::encode(&shot(&template(), None, caption), &tokenizer);
            assert_eq!(answered, trained, "{caption}");
        }
    }

    #[test]
    fn an_empty_prompt_adds_no_space() {
        for prompt in ["", "<image>"] {
            let pieces = shot(&Template::new(prompt), None, "red");
            assert_eq!(pieces[0], Piece::Text("red".into()));
        }
    }

    #[test]
    fn fields_are_filled_in_once_and_other_braces_are_text() {
        let template = Template {
            prompt: "{x y} <image>Question:{question} {} Short answer:".into(),
            answer: "{answer}".into(),
            between: "\n".into(),
            ..Template::new("")
        };
        assert_eq!(template.fields(), ["question"]);
        let place = ImagePlace::Query(0);
        let expected = [
            Piece::Text("{x y} ".into()),
            Piece::Image(place),
            Piece::Text("Question:what is {text} {question}? {} Short answer:red".into()),
            Piece::EndOfChunk,
            Piece::Text("\n".into()),
        ];
        assert_eq!(shot(&template, Some(place), "red"), expected);
    }

    #[test]
    fn an_answer_ends_at_the_first_mark() {
        let plain = Template::new("");
        assert_eq!(plain.answer_in(" a \"dog\"\n"), "a \"dog\"");
        let cut_at = ["Question", ", "].map(str::to_owned).to_vec();
        let cutting = Template { cut_at, drop: "\"".into(), ..plain };
        assert_eq!(cutting.answer_in(" a \"dog\" Question: b, c"), "a dog");
        assert_eq!(cutting.answer_in("red, or blue Question"), "red");
        assert_eq!(cutting.answer_in("Question"), "");
    }
}
