//! The few-shot layout (paper, figure 8 and appendix B.1.5):
//! `<BOS><image>Output: a dog<EOC><image>Output: a cat<EOC><image>Output:`.
//!
//! A caption follows its prompt after one space, as the trained texts have it; the tokenizer splits
//! before that space, so a prompt and its continuation can be encoded apart.

use flamingo_dataset::{Attend, Tokenizer, media_mask};

/// An image of a prompt, by where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImagePlace {
    /// Example of the support corpus.
    Support(usize),
    /// Example of the query corpus.
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

/// What stands between image and caption, and how a caption follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Text after the image; may be empty.
    pub prompt: String,
}

impl Template {
    /// The text that follows the prompt when the answer is `caption`.
    pub fn continuation(&self, caption: &str) -> String {
        if self.prompt.is_empty() { caption.to_owned() } else { format!(" {caption}") }
    }

    /// An answered example; `image` is left out in text-only shots.
    pub fn shot(&self, image: Option<ImagePlace>, caption: &str) -> Vec<Piece> {
        let text = format!("{}{}", self.prompt, self.continuation(caption));
        let image = image.map(Piece::Image);
        image.into_iter().chain([Piece::Text(text), Piece::EndOfChunk]).collect()
    }

    /// The question at the end.
    pub fn query(&self, image: Option<ImagePlace>) -> Vec<Piece> {
        image.map(Piece::Image).into_iter().chain([Piece::Text(self.prompt.clone())]).collect()
    }

    /// Tokens of an answer and the `<EOC>` that ends it.
    pub fn answer_tokens(&self, caption: &str, tokenizer: &Tokenizer) -> Vec<u32> {
        let mut tokens = tokenizer.encode(&self.continuation(caption));
        tokens.push(tokenizer.eoc_id());
        tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        let texts = ["shows: red", "shows: two green squares, one blue circle", "Output: a star"];
        let texts = texts.iter().cycle().take(30).map(|text| (*text).to_owned());
        Tokenizer::train(texts, 300).unwrap()
    }

    fn template() -> Template {
        Template { prompt: "shows:".into() }
    }

    #[test]
    fn layout_is_that_of_the_paper() {
        let tokenizer = tokenizer();
        let (shot, query) = (ImagePlace::Support(3), ImagePlace::Query(0));
        let mut pieces = template().shot(Some(shot), "red");
        pieces.extend(template().query(Some(query)));
        let prompt = Prompt::encode(&pieces, &tokenizer);
        let mut expected = vec![tokenizer.bos_id(), tokenizer.image_id()];
        expected.extend(tokenizer.encode("shows: red"));
        expected.extend([tokenizer.eoc_id(), tokenizer.image_id()]);
        expected.extend(tokenizer.encode("shows:"));
        assert_eq!(prompt.tokens, expected);
        assert_eq!(prompt.images, [shot, query]);
        let phi = prompt.phi(&tokenizer);
        assert_eq!((phi[0], phi[1], *phi.last().unwrap()), (-1, 0, 1));
    }

    #[test]
    fn an_answer_continues_the_prompt_as_trained_text_does() {
        let tokenizer = tokenizer();
        for caption in ["red", "two green squares, one blue circle", "un\u{e9} \"odd\" one's"] {
            let prompt = Prompt::encode(&template().query(None), &tokenizer);
            let answered = prompt.followed_by(&template().answer_tokens(caption, &tokenizer));
            let trained = Prompt::encode(&template().shot(None, caption), &tokenizer);
            assert_eq!(answered, trained, "{caption}");
        }
    }

    #[test]
    fn an_empty_prompt_adds_no_space() {
        let template = Template { prompt: String::new() };
        assert_eq!(template.shot(None, "red")[0], Piece::Text("red".into()));
    }
}
