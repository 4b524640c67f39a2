//! Text to token ids and back: byte-level BPE with the five special tokens of the model.
//!
//! Special tokens enter a sequence only by their ids. A page that contains the characters
//! `<image>` is encoded as those characters, so that text from the web cannot forge a mark.

use std::collections::HashSet;
use std::path::Path;

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, TokenizerBuilder};

use crate::{CorpusError, write_durably};

/// The special tokens in the order of their ids in a tokenizer trained here.
const SPECIAL_TOKENS: [&str; 5] = ["<PAD>", "<BOS>", "<EOS>", "<image>", "<EOC>"];

/// Tokens of the smallest vocabulary: the special ones and one for each byte.
const VOCABULARY_MIN: usize = SPECIAL_TOKENS.len() + 256;

/// Name for messages while no file is involved.
const TRAINING: &str = "(training)";

/// A byte-level BPE tokenizer in the `tokenizer.json` format of Hugging Face.
pub struct Tokenizer {
    bpe: tokenizers::Tokenizer,
    special_ids: [u32; SPECIAL_TOKENS.len()],
}

impl Tokenizer {
    /// Trains a tokenizer as GPT-2's was: byte-level BPE over words, at most `vocab_size` tokens.
    /// The special tokens have ids 0 to 4. The same texts give the same tokenizer.
    ///
    /// # Errors
    /// When `vocab_size` is below 261, the five special tokens and the 256 bytes.
    pub fn train(
        texts: impl Iterator<Item = String> + Send,
        vocab_size: usize,
    ) -> Result<Self, CorpusError> {
        if vocab_size < VOCABULARY_MIN {
            let problem = format!("a vocabulary of {vocab_size}, at least {VOCABULARY_MIN} needed");
            return Err(failed(TRAINING, problem));
        }
        let alphabet: HashSet<char> = ByteLevel::alphabet().into_iter().collect();
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocab_size)
            .show_progress(false)
            .special_tokens(SPECIAL_TOKENS.map(|t| AddedToken::from(t, true)).to_vec())
            .initial_alphabet(alphabet)
            .build();
        let mut bpe =
            TokenizerBuilder::<BPE, tokenizers::NormalizerWrapper, _, ByteLevel, _>::new()
                .with_model(BPE::default())
                .with_pre_tokenizer(Some(byte_level()))
                .with_post_processor(Some(byte_level()))
                .with_decoder(Some(byte_level()))
                .build()
                .map_err(|e| failed(TRAINING, e.to_string()))?;
        bpe.train(&mut trainer, texts).map_err(|e| failed(TRAINING, e.to_string()))?;
        let json = bpe.to_string(false).map_err(|e| failed(TRAINING, e.to_string()))?;
        Self::from_json(TRAINING, json.as_bytes())
    }

    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// When the file cannot be read, is no tokenizer, or lacks one of the special tokens.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, CorpusError> {
        let name = path.as_ref().display().to_string();
        let json = std::fs::read(path).map_err(|e| failed(&name, e.to_string()))?;
        Self::from_json(&name, &json)
    }

    /// Writes a `tokenizer.json`, all or nothing.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), CorpusError> {
        let name = path.as_ref().display().to_string();
        let json = self.bpe.to_string(true).map_err(|e| failed(&name, e.to_string()))?;
        write_durably(path.as_ref(), json.as_bytes()).map_err(|e| failed(&name, e.to_string()))
    }

    fn from_json(name: &str, json: &[u8]) -> Result<Self, CorpusError> {
        let mut bpe: tokenizers::Tokenizer =
            serde_json::from_slice(json).map_err(|e| failed(name, e.to_string()))?;
        let mut special_ids = [0; SPECIAL_TOKENS.len()];
        for (id, token) in special_ids.iter_mut().zip(SPECIAL_TOKENS) {
            *id = bpe
                .token_to_id(token)
                .ok_or_else(|| failed(name, format!("no special token `{token}`")))?;
        }
        // Not part of the file: text that spells a special token is encoded as text.
        let mut added = bpe.get_added_vocabulary().clone();
        added.set_encode_special_tokens(true);
        bpe.with_added_vocabulary(added);
        Ok(Self { bpe, special_ids })
    }

    /// The ids of a text. Never contains the id of a special token.
    ///
    /// # Panics
    /// Never for a tokenizer trained here: every byte has a token.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let encoding = self.bpe.encode_fast(text, false).expect("every byte has a token");
        encoding.get_ids().to_vec()
    }

    /// The text of ids; special tokens are left out. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Panics
    /// Never: ids that are not in the vocabulary are left out.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.bpe.decode(ids, true).expect("byte-level decoding accepts every sequence")
    }

    /// Tokens as a reader sees them: a special one by its name.
    pub fn tokens_text(&self, ids: &[u32]) -> String {
        let special = |id: &u32| self.special_ids.iter().position(|special| special == id);
        let runs = ids.chunk_by(|one, other| special(one).is_none() && special(other).is_none());
        let text = |run: &[u32]| match special(&run[0]) {
            Some(at) => SPECIAL_TOKENS[at].to_owned(),
            None => self.decode(run),
        };
        runs.map(text).collect()
    }

    /// Id of `<PAD>`.
    pub fn pad_id(&self) -> u32 {
        self.special_ids[0]
    }

    /// Id of `<BOS>`.
    pub fn bos_id(&self) -> u32 {
        self.special_ids[1]
    }

    /// Id of `<EOS>`.
    pub fn eos_id(&self) -> u32 {
        self.special_ids[2]
    }

    /// Id of `<image>`, the mark of one image or clip.
    pub fn image_id(&self) -> u32 {
        self.special_ids[3]
    }

    /// Id of `<EOC>`, the end of the text that belongs to an image.
    pub fn eoc_id(&self) -> u32 {
        self.special_ids[4]
    }

    /// Size of the vocabulary, special tokens included.
    pub fn n_tokens(&self) -> usize {
        self.bpe.get_vocab_size(true)
    }
}

/// GPT-2's: no space is added before the first word.
fn byte_level() -> ByteLevel {
    ByteLevel::new(false, true, true)
}

fn failed(path: &str, problem: String) -> CorpusError {
    CorpusError::Tokenizer { path: path.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXTS: [&str; 4] = [
        "Two red circles left of a blue square.",
        "A blue square above two red circles.",
        "Three green triangles and a circle, <image> or not.",
        "squares, circles, triangles: all the shapes",
    ];

    fn trained(vocab_size: usize) -> Tokenizer {
        Tokenizer::train(TEXTS.iter().map(|&t| t.to_owned()), vocab_size).unwrap()
    }

    #[test]
    fn special_tokens_have_the_first_ids() {
        let t = trained(300);
        let ids = [t.pad_id(), t.bos_id(), t.eos_id(), t.image_id(), t.eoc_id()];
        assert_eq!(ids, [0, 1, 2, 3, 4]);
        assert_eq!(t.n_tokens(), 300);
        assert_eq!(trained(261).n_tokens(), 261);
    }

    #[test]
    fn training_twice_gives_the_same_file() {
        let json = |t: Tokenizer| t.bpe.to_string(false).unwrap();
        assert_eq!(json(trained(300)), json(trained(300)));
    }

    #[test]
    fn a_saved_tokenizer_encodes_alike() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let t = trained(300);
        t.save(&path).unwrap();
        let loaded = Tokenizer::load(&path).unwrap();
        for text in TEXTS {
            assert_eq!(loaded.encode(text), t.encode(text));
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing left behind");
    }

    #[test]
    fn marks_spelled_in_text_are_text() {
        let t = trained(320);
        for text in ["<image>", "a <image><EOC> b", "<BOS><EOS><PAD>", " <image>", "<image"] {
            let ids = t.encode(text);
            assert!(ids.iter().all(|&id| id > 4), "{text}: {ids:?}");
            assert_eq!(t.decode(&ids), text);
        }
    }

    #[test]
    fn decoding_leaves_special_tokens_out() {
        let t = trained(300);
        let mut ids = vec![t.bos_id(), t.image_id()];
        ids.extend(t.encode("red circle"));
        ids.extend([t.eoc_id(), t.eos_id(), t.pad_id()]);
        assert_eq!(t.decode(&ids), "red circle");
        assert_eq!(t.tokens_text(&ids), "<BOS><image>red circle<EOC><EOS><PAD>");
    }

    #[test]
    fn errors_name_the_file_and_the_token() {
        let folder = tempfile::tempdir().unwrap();
        let message = |path: &Path| Tokenizer::load(path).err().unwrap().to_string();
        let missing = folder.path().join("missing.json");
        assert!(message(&missing).contains("missing.json"));
        let other = folder.path().join("other.json");
        std::fs::write(&other, b"{}").unwrap();
        assert!(message(&other).contains("other.json"));
        let json = trained(300).bpe.to_string(false).unwrap().replace("<EOC>", "<end>");
        std::fs::write(&other, json).unwrap();
        assert!(message(&other).contains("`<EOC>`"));
        assert!(Tokenizer::train(std::iter::empty(), 260).is_err());
    }

    proptest! {
        #[test]
        fn any_text_comes_back_and_forges_no_mark(text in "(?s).*|(<image>|<EOC>| |a|\\n)*") {
            let t = trained(280);
            let ids = t.encode(&text);
            prop_assert!(ids.iter().all(|&id| id > 4));
            prop_assert_eq!(t.decode(&ids), text);
        }
    }
}
