//! Byte-level BPE as GPT-2 and CLIP were published: merges in the order of their ranks, with or
//! without a vocabulary beside them, or tokens with their ranks as tiktoken has them.
//!
//! Alone the merges are enough: GPT-2 numbers the 256 bytes, then what each merge makes, then
//! `<|endoftext|>`; CLIP numbers the bytes, the bytes that end a word, the merges, then
//! `<|startoftext|>` and `<|endoftext|>`. CLIP lowers the case and joins white space; its repair
//! of garbled text is not done here.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use crate::CorpusError;
use crate::tokenizer::failed;

/// What marks the end of a word in CLIP's tokens.
const WORD_END: &str = "</w>";

/// CLIP publishes more merges than it has tokens for.
const CLIP_MERGES: usize = 49_152 - 256 - 2;

/// Longest token of a file of ranks; GPT-2's longest has 128 bytes.
const TOKEN_BYTES_MAX: usize = 1024;

/// Largest file that is read: GPT-2's and CLIP's have a megabyte, after unpacking.
const BYTES_MAX: u64 = 256 << 20;

/// The `tokenizer.json` of a folder with `vocab.json` and `merges.txt`.
pub(crate) fn vocabulary_json(folder: &Path) -> Result<Vec<u8>, CorpusError> {
    let path = folder.join("vocab.json");
    let name = path.display().to_string();
    let vocabulary: Map<String, Value> =
        serde_json::from_str(&read(&path)?).map_err(|e| failed(&name, e.to_string()))?;
    if let Some((token, id)) = vocabulary.iter().find(|(_, id)| !id.is_u64()) {
        return Err(failed(&name, format!("token `{token}` has the id {id}, a number expected")));
    }
    let merges = merges(&folder.join("merges.txt"))?;
    Ok(tokenizer_json(&vocabulary, &merges))
}

/// The `tokenizer.json` of merges alone, or of a file of tiktoken.
pub(crate) fn ranks_json(path: &Path) -> Result<Vec<u8>, CorpusError> {
    if path.extension().is_some_and(|extension| extension == "tiktoken") {
        return tiktoken_json(path);
    }
    let mut merges = merges(path)?;
    let of_words = merges.iter().any(|(_, right)| right.ends_with(WORD_END));
    if of_words {
        merges.truncate(CLIP_MERGES);
    }
    let mut tokens = bytes_in_order();
    if of_words {
        let ends: Vec<_> = tokens.iter().map(|byte| format!("{byte}{WORD_END}")).collect();
        tokens.extend(ends);
    }
    tokens.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
    if of_words {
        tokens.push("<|startoftext|>".to_owned());
    }
    tokens.push("<|endoftext|>".to_owned());
    let vocabulary = tokens.into_iter().zip(0..).map(|(token, id)| (token, Value::from(id)));
    Ok(tokenizer_json(&vocabulary.collect(), &merges))
}

/// The `tokenizer.json` of lines with a token in base64 and its rank, split as GPT-2 splits text.
///
/// A merge is any two tokens that make a token, in the order of the ranks of what they make.
fn tiktoken_json(path: &Path) -> Result<Vec<u8>, CorpusError> {
    let name = path.display().to_string();
    let characters = characters_of_bytes();
    let shown =
        |bytes: &[u8]| bytes.iter().map(|b| characters[usize::from(*b)]).collect::<String>();
    let mut ranks: HashMap<Vec<u8>, u32> = HashMap::new();
    for (line, number) in read(path)?.lines().zip(1..).filter(|(line, _)| !line.is_empty()) {
        let parts = line.split_once(' ');
        let token = parts.and_then(|(token, rank)| Some((STANDARD.decode(token).ok()?, rank)));
        let token = token.and_then(|(token, rank)| Some((token, rank.parse().ok()?)));
        let fits = |token: &(Vec<u8>, u32)| (1..=TOKEN_BYTES_MAX).contains(&token.0.len());
        let Some((token, rank)) = token.filter(fits) else {
            let number: usize = number;
            let problem = format!("line {number} is not a token in base64 and its rank");
            return Err(failed(&name, problem));
        };
        ranks.insert(token, rank);
    }
    let mut merges = Vec::new();
    for (token, rank) in &ranks {
        let splits = (1..token.len()).map(|at| token.split_at(at));
        let known = splits.filter_map(|(a, b)| Some((*ranks.get(a)?, *ranks.get(b)?, a, b)));
        merges.extend(known.map(|(left, right, a, b)| (*rank, left, right, shown(a), shown(b))));
    }
    merges.sort_unstable();
    let merges: Vec<_> = merges.into_iter().map(|(.., a, b)| (a, b)).collect();
    let end = ranks.values().max().map_or(0, |rank| rank.saturating_add(1));
    let tokens = ranks.iter().map(|(token, rank)| (shown(token), Value::from(*rank)));
    let tokens = tokens.chain([("<|endoftext|>".to_owned(), Value::from(end))]);
    Ok(tokenizer_json(&tokens.collect(), &merges))
}

/// The character that stands for each byte: itself where it can be printed, else the next one from
/// U+0100 on.
fn characters_of_bytes() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte as u8),
        _ => {
            next += 1;
            char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
        }
    })
}

/// The characters that stand for bytes, in GPT-2's order: those that can be printed come first, each by
/// itself, then the others as characters from U+0100 on.
fn bytes_in_order() -> Vec<String> {
    let mut characters: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    characters.sort_unstable();
    characters.into_iter().map(String::from).collect()
}

/// The pairs of a file of merges: two tokens a line, after a line that names the version.
fn merges(path: &Path) -> Result<Vec<(String, String)>, CorpusError> {
    let name = path.display().to_string();
    let text = read(path)?;
    let lines = text.lines().zip(1..).skip_while(|(line, _)| {
        line.starts_with("#version") || line.contains("bpe_simple_vocab") || line.starts_with('"')
    });
    let lines = lines.filter(|(line, _)| !line.is_empty());
    let pairs = lines.map(|(line, number): (&str, usize)| match line.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
            Ok((left.to_owned(), right.to_owned()))
        }
        _ => Err(failed(&name, format!("line {number} is not two tokens with a space between"))),
    });
    let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
    if pairs.is_empty() {
        return Err(failed(&name, "it has no merges".to_owned()));
    }
    Ok(pairs)
}

fn tokenizer_json(vocabulary: &Map<String, Value>, merges: &[(String, String)]) -> Vec<u8> {
    // Merges whose tokens are not in the vocabulary would be refused; CLIP's file has such.
    let known: HashMap<&str, &Value> = vocabulary.iter().map(|(t, id)| (t.as_str(), id)).collect();
    let is_known = |(left, right): &&(String, String)| {
        let made = format!("{left}{right}");
        [left, right, &made].iter().all(|token| known.contains_key(token.as_str()))
    };
    let merges: Vec<_> = merges.iter().filter(is_known).map(|(a, b)| json!([a, b])).collect();
    let of_words = vocabulary.keys().any(|token| token.ends_with(WORD_END));
    let special = ["<|startoftext|>", "<|endoftext|>"].into_iter().filter_map(|token| {
        let id = vocabulary.get(token)?;
        Some(json!({ "id": id, "content": token, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true }))
    });
    let special: Vec<_> = special.collect();
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": !of_words });
    let (normalizer, pre_tokenizer, decoder) = if of_words {
        let words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
        (
            json!({ "type": "Sequence", "normalizers": [
                { "type": "NFC" },
                { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
                { "type": "Lowercase" },
            ]}),
            json!({ "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": words }, "behavior": "Removed",
                  "invert": true },
                bytes,
            ]}),
            json!({ "type": "Sequence", "decoders": [
                { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                  "use_regex": true },
                { "type": "Replace", "pattern": { "String": WORD_END }, "content": " " },
                { "type": "Strip", "content": " ", "start": 0, "stop": 1 },
            ]}),
        )
    } else {
        (Value::Null, bytes.clone(), bytes)
    };
    let model = json!({ "type": "BPE", "dropout": null, "unk_token": null,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": of_words.then_some(WORD_END), "fuse_unk": false,
        "byte_fallback": false, "vocab": vocabulary, "merges": merges });
    let json = json!({ "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": special, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "post_processor": null, "decoder": decoder, "model": model });
    json.to_string().into_bytes()
}

/// A text file, unpacked where its name ends in `.gz`.
fn read(path: &Path) -> Result<String, CorpusError> {
    let unreadable = |e: io::Error| failed(&path.display().to_string(), e.to_string());
    let file = File::open(path).map_err(unreadable)?;
    let packed = path.extension().is_some_and(|extension| extension == "gz");
    let mut reader: Box<dyn Read> =
        if packed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut text = String::new();
    let n = reader.by_ref().take(BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
    if n as u64 == BYTES_MAX {
        return Err(failed(&path.display().to_string(), format!("larger than {BYTES_MAX} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tokenizer;

    #[test]
    fn merges_alone_number_tokens_as_gpt2_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vocab.bpe");
        std::fs::write(&path, "#version: 0.2\n\u{120} t\n\u{120}t h\nr e\n").unwrap();
        let t = Tokenizer::load(&path).unwrap();
        assert_eq!(t.encode("! the"), [0, 257, 68]);
        assert_eq!(t.encode("\n"), [198]);
        assert_eq!((t.bos_id(), t.eos_id()), (259, 259));
        assert_eq!(t.decode(&t.encode(" there \u{e9}\n")), " there \u{e9}\n");
        std::fs::write(&path, "#version: 0.2\nab\n").unwrap();
        let message = Tokenizer::load(&path).err().unwrap().to_string();
        assert!(message.contains("line 2"), "{message}");
    }

    #[test]
    fn ranks_of_tiktoken_merge_whatever_makes_a_token() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ranks.tiktoken");
        let bytes = (0..=255_u8).map(|byte| (vec![byte], u32::from(byte)));
        let longer = [&b"bc"[..], b"ab", b"abc"].into_iter().map(<[u8]>::to_vec).zip(256..);
        let lines = bytes.chain(longer).map(|(t, rank)| format!("{} {rank}\n", STANDARD.encode(t)));
        std::fs::write(&path, lines.collect::<String>()).unwrap();
        let t = Tokenizer::load(&path).unwrap();
        // `bc` comes before `ab`, and `a` with `bc` makes `abc` as `ab` with `c` would.
        assert_eq!(t.encode("abc"), [258]);
        assert_eq!(t.encode("ab\n"), [257, 10]);
        assert_eq!((t.eos_id(), t.bos_id()), (259, 259));
        assert_eq!(t.decode(&t.encode("\u{e9}abc \u{1f9a9}")), "\u{e9}abc \u{1f9a9}");
        std::fs::write(&path, "IQ== 0\nIg==\n").unwrap();
        let message = Tokenizer::load(&path).err().unwrap().to_string();
        assert!(message.contains("line 2"), "{message}");
    }

    #[test]
    fn merges_of_words_number_tokens_as_clip_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ranks.txt");
        std::fs::write(&path, "\"bpe_simple_vocab_16e6.txt#version: 0.2\ni n\nt h\nth e</w>\n")
            .unwrap();
        let t = Tokenizer::load(&path).unwrap();
        assert_eq!(t.encode("The  in"), [514, 72, 256 + 77]);
        assert_eq!((t.bos_id(), t.eos_id()), (515, 516));
        assert_eq!(t.decode(&t.encode("The THE")), "the the");
    }
}
