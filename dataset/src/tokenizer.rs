//! Text to token ids and back: any tokenizer in the format of Hugging Face, with the five special tokens of
//! the model.
//!
//! Special tokens enter a sequence only by their ids. A page that contains the characters
//! `<image>` is encoded as those characters, so that text from the web cannot forge a mark.
//!
//! A tokenizer that others trained has names of its own for some of the five, and lacks others:
//! `tokenizer_config.json` beside it names begin, end and padding, else the usual names are looked
//! for, and what is missing is added after its tokens as `OpenFlamingo` adds it.

use std::collections::HashSet;
use std::path::Path;

use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, TokenizerBuilder};

use crate::bpe_ranks::{ranks_json, vocabulary_json};
use crate::{CorpusError, write_durably};

/// The special tokens in the order of their ids in a tokenizer trained here.
const SPECIAL_TOKENS: [&str; 5] = ["<PAD>", "<BOS>", "<EOS>", "<image>", "<EOC>"];

/// Tokens of the smallest vocabulary: the special ones and one for each byte.
const VOCABULARY_MIN: usize = SPECIAL_TOKENS.len() + 256;

/// Names of padding, begin and end in tokenizers of others, the likeliest first.
const PAD_NAMES: [&str; 4] = ["<PAD>", "<pad>", "[PAD]", "<|pad|>"];
const BOS_NAMES: [&str; 5] = ["<BOS>", "<s>", "<|startoftext|>", "<|begin_of_text|>", "<bos>"];
const EOS_NAMES: [&str; 5] = ["<EOS>", "</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>"];
const UNKNOWN_NAMES: [&str; 2] = ["<unk>", "[UNK]"];
/// Names of the end of a chunk; the second one is `OpenFlamingo`'s.
const EOC_NAMES: [&str; 2] = ["<EOC>", "<|endofchunk|>"];
/// The mark of an image.
const IMAGE_NAMES: [&str; 1] = ["<image>"];

/// Name for messages while no file is involved.
const TRAINING: &str = "(training)";

/// Names begin, end and padding for other programs, and for this one where they are unusual.
const CONFIG_FILE: &str = "tokenizer_config.json";

/// Largest number of a token: far above that of any vocabulary, and little to add to.
const ID_MAX: u32 = 1 << 24;

/// A text with a character that no vocabulary has by chance.
const RARE: &str = "\u{1f9a9}";

/// A tokenizer in the `tokenizer.json` format of Hugging Face.
pub struct Tokenizer {
    bpe: tokenizers::Tokenizer,
    /// Padding, begin, end, image, end of chunk.
    special_ids: [u32; SPECIAL_TOKENS.len()],
    /// The special tokens spelled in other tokens.
    spelled: [Vec<u32>; SPECIAL_TOKENS.len()],
    n_tokens: usize,
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
        Self::from_json(TRAINING, json.as_bytes(), &Value::Null)
    }

    /// Reads a `tokenizer.json`, a folder with one or with `vocab.json` and `merges.txt`, the merges
    /// alone as GPT-2 (`vocab.bpe`) and CLIP (`bpe_simple_vocab_16e6.txt.gz`) were published, or the ranks
    /// of tiktoken (`gpt2.tiktoken`). Special tokens that are not there are added.
    ///
    /// # Errors
    /// When a file cannot be read, is no tokenizer, drops characters that it does not know, or has no
    /// token that begins or ends a text.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, CorpusError> {
        let path = path.as_ref();
        let (file, json) = if path.is_dir() && !path.join("tokenizer.json").exists() {
            (path.join("vocab.json"), vocabulary_json(path)?)
        } else if path.is_dir() {
            let file = path.join("tokenizer.json");
            let json = read(&file)?;
            (file, json)
        } else if path.extension().is_some_and(|extension| extension == "json") {
            (path.to_owned(), read(path)?)
        } else {
            (path.to_owned(), ranks_json(path)?)
        };
        let config = file.with_file_name(CONFIG_FILE);
        let has_config = file.extension().is_some_and(|extension| extension == "json");
        let config = if has_config && config.exists() {
            serde_json::from_slice(&read(&config)?)
                .map_err(|e| failed(&config.display().to_string(), e.to_string()))?
        } else {
            Value::Null
        };
        Self::from_json(&path.display().to_string(), &json, &config)
    }

    /// Writes a `tokenizer.json`, all or nothing; and where its names do not tell what begins, ends and
    /// pads, a `tokenizer_config.json` beside it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), CorpusError> {
        let path = path.as_ref();
        let write = |path: &Path, json: &str| {
            let name = path.display().to_string();
            write_durably(path, json.as_bytes()).map_err(|e| failed(&name, e.to_string()))
        };
        let json = self.bpe.to_string(true);
        let json = json.map_err(|e| failed(&path.display().to_string(), e.to_string()))?;
        let by_names = Self::from_json(TRAINING, json.as_bytes(), &Value::Null);
        let names_suffice = by_names.is_ok_and(|named| named.special_ids == self.special_ids);
        // One that is there would be taken for this tokenizer's.
        if names_suffice && !path.with_file_name(CONFIG_FILE).exists() {
            return write(path, &json);
        }
        let [pad, bos, eos, ..] = self.special_ids.map(|id| self.name_of(id));
        let config = serde_json::json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": eos,
            "pad_token": pad,
        });
        write(&path.with_file_name(CONFIG_FILE), &format!("{config:#}\n"))?;
        write(path, &json)
    }

    fn from_json(name: &str, json: &[u8], config: &Value) -> Result<Self, CorpusError> {
        let problem = |problem: String| failed(name, problem);
        let mut bpe: tokenizers::Tokenizer =
            serde_json::from_slice(json).map_err(|e| problem(e.to_string()))?;
        // Rows are cut and padded elsewhere, with their masks.
        bpe.with_truncation(None).map_err(|e| problem(e.to_string()))?;
        bpe.with_padding(None);
        if let Some((name, id)) = bpe.get_vocab(true).iter().find(|(_, id)| **id > ID_MAX) {
            return Err(problem(format!("token `{name}` has number {id}, at most {ID_MAX}")));
        }
        let special_ids = special_ids(&mut bpe, config).map_err(problem)?;
        if let ModelWrapper::BPE(model) = bpe.get_model() {
            if model.dropout.is_some_and(|dropout| dropout > 0.0) {
                return Err(problem("its merges are left out at random (`dropout`)".to_owned()));
            }
            let unknown = model.unk_token.as_ref();
            if let Some(name) = unknown.filter(|name| bpe.token_to_id(name).is_none()) {
                return Err(problem(format!("its unknown token `{name}` has no number")));
            }
        }
        // Not part of the file: text that spells a special token is encoded as text.
        let mut added = bpe.get_added_vocabulary().clone();
        added.set_encode_special_tokens(true);
        bpe.with_added_vocabulary(added);
        let n_tokens = bpe.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let spelled = special_ids.map(|id| {
            let mut ids = spelled(&bpe, id);
            ids.retain(|id| !special_ids.contains(id));
            ids
        });
        let tokenizer = Self { bpe, special_ids, spelled, n_tokens };
        // Every byte that text can have, so that no text fails later.
        let all = (0..0x800).chain((0x800..0x11_0000).step_by(0x941)).filter_map(char::from_u32);
        let tried = tokenizer.bpe.encode_fast(all.collect::<String>(), false);
        if let Err(error) = tried {
            return Err(problem(format!("it cannot encode every text: {error}")));
        }
        match tokenizer.bpe.encode_fast(RARE, false) {
            Ok(encoding) if !encoding.is_empty() => Ok(tokenizer),
            Ok(_) => Err(problem(format!("it drops what it does not know, such as {RARE}"))),
            Err(error) => Err(problem(format!("it cannot encode {RARE}: {error}"))),
        }
    }

    /// The ids of a text. Never contains the id of a special token.
    ///
    /// # Panics
    /// Never: that unknown characters can be encoded was tried when the tokenizer was made.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let encoding = self.bpe.encode_fast(text, false).expect("unknown characters were tried");
        let ids = encoding.get_ids();
        let special = |id: &u32| self.special_ids.iter().position(|special| special == id);
        if ids.iter().all(|id| special(id).is_none()) {
            return ids.to_vec();
        }
        // Merges may make a mark of text that spells it.
        let plain = ids.iter().flat_map(|id| match special(id) {
            Some(at) => &self.spelled[at][..],
            None => std::slice::from_ref(id),
        });
        plain.copied().collect()
    }

    /// The text of ids; special tokens are left out. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Panics
    /// Never: ids that are not in the vocabulary are left out.
    pub fn decode(&self, ids: &[u32]) -> String {
        // Of the tokens that a file calls special only the five are: some have their bytes among them.
        let plain: Vec<u32> =
            ids.iter().filter(|id| !self.special_ids.contains(id)).copied().collect();
        self.bpe.decode(&plain, false).expect("decoders accept every sequence")
    }

    /// Tokens as a reader sees them: a special one by its name.
    pub fn tokens_text(&self, ids: &[u32]) -> String {
        let is_special = |id: &u32| self.special_ids.contains(id);
        let runs = ids.chunk_by(|one, other| !is_special(one) && !is_special(other));
        let text = |run: &[u32]| match run {
            [id] if is_special(id) => self.name_of(*id),
            run => self.decode(run),
        };
        runs.map(text).collect()
    }

    fn name_of(&self, id: u32) -> String {
        self.bpe.id_to_token(id).unwrap_or_default()
    }

    /// Id of `<PAD>`.
    pub fn pad_id(&self) -> u32 {
        self.special_ids[0]
    }

    /// Id of `<BOS>`.
    pub fn bos_id(&self) -> u32 {
        self.special_ids[1]
    }

    /// Whether it puts `<BOS>` before a text by itself, as `LLaMA`'s does and GPT-2's does not.
    pub fn adds_bos(&self) -> bool {
        let alone = self.bpe.encode_fast("", true);
        alone.is_ok_and(|alone| alone.get_ids().first() == Some(&self.bos_id()))
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

    /// Rows that a model needs for the vocabulary, special tokens included: the highest id and one.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }
}

/// GPT-2's: no space is added before the first word.
fn byte_level() -> ByteLevel {
    ByteLevel::new(false, true, true)
}

/// Padding, begin, end, image and end of chunk, added where they are missing.
fn special_ids(
    bpe: &mut tokenizers::Tokenizer,
    config: &Value,
) -> Result<[u32; SPECIAL_TOKENS.len()], String> {
    // A name is a text or an object with a text; one that is no token of the file is no help.
    let named = |bpe: &tokenizers::Tokenizer, role: &str| {
        let name = config.get(role)?;
        bpe.token_to_id(name.as_str().or_else(|| name.get("content")?.as_str())?)
    };
    let usual = |bpe: &tokenizers::Tokenizer, names: &[&str]| {
        names.iter().find_map(|name| bpe.token_to_id(name))
    };
    let bos = named(bpe, "bos_token").or_else(|| usual(bpe, &BOS_NAMES));
    let eos = named(bpe, "eos_token").or_else(|| usual(bpe, &EOS_NAMES));
    // GPT-2 has one token for both.
    let (Some(bos), Some(eos)) = (bos.or(eos), eos.or(bos)) else {
        let names = [&BOS_NAMES[..], &EOS_NAMES].concat().join("`, `");
        return Err(format!("no special token begins or ends a text: none of `{names}`"));
    };
    let eoc = usual(bpe, &EOC_NAMES).map_or_else(|| added(bpe, EOC_NAMES[1]), Ok)?;
    let image = usual(bpe, &IMAGE_NAMES).map_or_else(|| added(bpe, IMAGE_NAMES[0]), Ok)?;
    // Padding is not learned, and what stands in texts, or ends them, is.
    let mut taken = vec![Some(bos), Some(eos), Some(image), Some(eoc), named(bpe, "unk_token")];
    taken.extend(UNKNOWN_NAMES.map(|name| bpe.token_to_id(name)));
    // A word that a config calls padding stays a word.
    let is_special = |id: &u32| {
        let name = bpe.id_to_token(*id).unwrap_or_default();
        bpe.get_added_vocabulary().is_special_token(&name)
    };
    let pad = named(bpe, "pad_token").filter(is_special).or_else(|| usual(bpe, &PAD_NAMES));
    let pad = pad.filter(|pad| !taken.contains(&Some(*pad)));
    let pad = pad.map_or_else(|| added(bpe, PAD_NAMES[0]), Ok)?;
    let ids = [pad, bos, eos, image, eoc];
    if [pad, image, eoc].iter().any(|id| ids.iter().filter(|other| *other == id).count() > 1) {
        return Err(format!("its marks must be five tokens, begin and end perhaps one: {ids:?}"));
    }
    for id in ids {
        let name = bpe.id_to_token(id).unwrap_or_default();
        // In a vocabulary with holes a new token may have got the number of another one.
        if let Some((other, _)) = bpe.get_vocab(true).iter().find(|(n, i)| **i == id && **n != name)
        {
            return Err(format!("`{name}` and `{other}` have the same number {id}"));
        }
        // Text that spells it is text, whatever the file says.
        bpe.add_special_tokens([AddedToken::from(name, true)]).map_err(|e| e.to_string())?;
    }
    Ok(ids)
}

/// A token in the tokens of its characters, or of their bytes; what has none is left out.
fn spelled(bpe: &tokenizers::Tokenizer, id: u32) -> Vec<u32> {
    let of_character = |character: char| {
        let text = character.to_string();
        let bytes = || text.bytes().filter_map(|byte| bpe.token_to_id(&format!("<0x{byte:02X}>")));
        bpe.token_to_id(&text).map_or_else(|| bytes().collect(), |id| vec![id])
    };
    bpe.id_to_token(id).unwrap_or_default().chars().flat_map(of_character).collect()
}

/// The id of a special token that is new.
fn added(bpe: &mut tokenizers::Tokenizer, name: &str) -> Result<u32, String> {
    bpe.add_special_tokens([AddedToken::from(name, true)]).map_err(|e| e.to_string())?;
    bpe.token_to_id(name).ok_or_else(|| format!("`{name}` cannot be added"))
}

fn read(path: &Path) -> Result<Vec<u8>, CorpusError> {
    std::fs::read(path).map_err(|e| failed(&path.display().to_string(), e.to_string()))
}

pub(crate) fn failed(path: &str, problem: String) -> CorpusError {
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
        let json = trained(300).bpe.to_string(false).unwrap();
        let nameless = json.replace("<BOS>", "<a>").replace("<EOS>", "<b>");
        std::fs::write(&other, nameless).unwrap();
        assert!(message(&other).contains("`<BOS>`"));
        assert!(Tokenizer::train(std::iter::empty(), 260).is_err());
    }

    /// Words only, without a token for others.
    fn words_json(unknown: &str) -> Value {
        serde_json::json!({
            "version": "1.0", "truncation": { "direction": "Right", "max_length": 2, "strategy":
            "LongestFirst", "stride": 0 }, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
            "model": { "type": "WordLevel", "unk_token": unknown, "vocab":
                { "<unk>": 0, "</s>": 1, "red": 2, "circle": 3 } },
        })
    }

    #[test]
    fn a_tokenizer_of_others_is_taken_as_it_is_and_gets_what_it_lacks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, words_json("<unk>").to_string()).unwrap();
        let t = Tokenizer::load(folder.path()).unwrap();
        assert_eq!(t.encode("red circle blue red"), [2, 3, 0, 2], "not cut at two");
        assert_eq!((t.bos_id(), t.eos_id()), (1, 1));
        assert_eq!((t.eoc_id(), t.image_id(), t.pad_id(), t.n_tokens()), (4, 5, 6, 7));
        assert_eq!(t.tokens_text(&[1, 5, 2, 4]), "</s><image>red<|endofchunk|>");
        assert!(t.encode("<image>").iter().all(|id| *id < 4));
        // A text that is the end in the vocabulary of words has no letters to be spelled in.
        assert_eq!(t.encode("red </s>").iter().filter(|id| **id == 1).count(), 0);
        // Padding that is also the end would keep the end from being learned, and so would a word.
        let config = folder.path().join(CONFIG_FILE);
        std::fs::write(&config, r#"{"eos_token": {"content": "circle"}, "pad_token": "circle"}"#)
            .unwrap();
        let t = Tokenizer::load(&path).unwrap();
        assert_eq!((t.bos_id(), t.eos_id(), t.pad_id()), (3, 3, 6));
        let copy = folder.path().join("copy/tokenizer.json");
        std::fs::create_dir(copy.parent().unwrap()).unwrap();
        t.save(&copy).unwrap();
        let copy = Tokenizer::load(&copy).unwrap();
        assert_eq!((copy.special_ids, copy.n_tokens), (t.special_ids, t.n_tokens));
    }

    #[test]
    fn a_tokenizer_that_cannot_encode_every_text_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, words_json("<none>").to_string()).unwrap();
        let message = Tokenizer::load(&path).err().unwrap().to_string();
        assert!(message.contains("cannot encode"), "{message}");
        let mut drops = words_json("<unk>");
        drops["model"] = serde_json::json!({ "type": "BPE", "merges": [],
            "vocab": { "</s>": 0, "a": 1 } });
        std::fs::write(&path, drops.to_string()).unwrap();
        let message = Tokenizer::load(&path).err().unwrap().to_string();
        assert!(message.contains("drops"), "{message}");
        drops["model"]["unk_token"] = "a".into();
        drops["model"]["dropout"] = 0.0.into();
        std::fs::write(&path, drops.to_string()).unwrap();
        assert!(Tokenizer::load(&path).is_ok());
        drops["model"]["dropout"] = 0.1.into();
        std::fs::write(&path, drops.to_string()).unwrap();
        assert!(Tokenizer::load(&path).err().unwrap().to_string().contains("dropout"));
        drops["model"]["vocab"]["a"] = u32::MAX.into();
        std::fs::write(&path, drops.to_string()).unwrap();
        assert!(Tokenizer::load(&path).err().unwrap().to_string().contains("4294967295"));
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
