//! Tokenizers of others give the ids and texts that the Python package `tokenizers` gives.

#![expect(clippy::unwrap_used, reason = "a failure here fails the test")]

use std::path::Path;

use flamingo_dataset::Tokenizer;
use serde_json::Value;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/golden/tokenizers");

/// Text, ids and decoded text of each case; none where the data is not at hand.
fn cases(name: &str) -> Vec<(String, Vec<u32>, String)> {
    let path = Path::new(GOLDEN).join(format!("{name}.jsonl"));
    let Ok(lines) = std::fs::read_to_string(&path) else {
        eprintln!("skipped: no golden data at {}", path.display());
        return Vec::new();
    };
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let case = |line: &str| {
        let case: Value = serde_json::from_str(line).unwrap();
        let ids = serde_json::from_value(case["ids"].clone()).unwrap();
        (text(&case["text"]), ids, text(&case["decoded"]))
    };
    let cases: Vec<_> = lines.lines().filter(|line| !line.is_empty()).map(case).collect();
    assert!(cases.len() >= 200, "{name}: {} cases", cases.len());
    cases
}

fn check(name: &str, tokenizer: &Tokenizer) {
    let marks = [tokenizer.image_id(), tokenizer.eoc_id(), tokenizer.pad_id(), tokenizer.eos_id()];
    for (text, ids, decoded) in cases(name) {
        if ids.iter().any(|id| marks.contains(id)) {
            // Spelled in a text, a mark is that text.
            let spelled = tokenizer.encode(&text);
            let is_text = !spelled.is_empty() && spelled.iter().all(|id| !marks.contains(id));
            assert!(is_text, "{name}: {text:?}");
            continue;
        }
        assert_eq!(tokenizer.encode(&text), ids, "{name}: {text:?}");
        assert_eq!(tokenizer.decode(&ids), decoded, "{name}: {text:?}");
    }
}

#[test]
fn files_of_hugging_face_encode_and_decode_as_in_python() {
    for name in ["byte-level", "byte-fallback"] {
        let path = Path::new(GOLDEN).join(format!("{name}.json"));
        if cases(name).is_empty() {
            return;
        }
        let tokenizer = Tokenizer::load(&path).unwrap();
        check(name, &tokenizer);
        let ids = [tokenizer.image_id(), tokenizer.eoc_id(), tokenizer.pad_id()];
        assert_eq!(tokenizer.tokens_text(&ids), "<image><|endofchunk|><PAD>");
        // What is written is read back as the same.
        let folder = tempfile::tempdir().unwrap();
        tokenizer.save(folder.path().join("tokenizer.json")).unwrap();
        let again = Tokenizer::load(folder.path()).unwrap();
        check(name, &again);
        assert_eq!([again.bos_id(), again.eos_id()], [tokenizer.bos_id(), tokenizer.eos_id()]);
        assert_eq!(again.n_tokens(), tokenizer.n_tokens());
    }
}

#[test]
fn a_vocabulary_with_merges_encodes_as_the_one_file_does() {
    if cases("byte-level").is_empty() {
        return;
    }
    let json = std::fs::read(Path::new(GOLDEN).join("byte-level.json")).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let vocabulary = json["model"]["vocab"].to_string();
    std::fs::write(folder.path().join("vocab.json"), vocabulary).unwrap();
    let merge = |merge: &Value| match merge {
        Value::String(pair) => format!("{pair}\n"),
        pair => format!("{} {}\n", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
    };
    let merges: String = json["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
    std::fs::write(folder.path().join("merges.txt"), format!("#version: 0.2\n{merges}")).unwrap();
    check("byte-level", &Tokenizer::load(folder.path()).unwrap());
}

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/real/text");

/// The published merges of CLIP and ranks of GPT-2; none where the data is not at hand.
fn published(name: &str) -> Option<Tokenizer> {
    let path = Path::new(TEXT).join(name);
    if !path.exists() {
        eprintln!("skipped: no {}", path.display());
        return None;
    }
    Some(Tokenizer::load(path).unwrap())
}

/// Ids by CLIP's own `clip` (its README has the first three) and by `open_clip` 3.3.0.
#[test]
fn merges_of_clip_give_its_ids() {
    let Some(t) = published("bpe_simple_vocab_16e6.txt.gz") else { return };
    assert_eq!((t.bos_id(), t.eos_id()), (49_406, 49_407));
    for (text, ids) in [
        ("a diagram", &[320, 22_697][..]),
        ("a dog", &[320, 1929]),
        ("a cat", &[320, 2368]),
        (
            "Two  FLAMINGOS don't stand\nin 3.14 lakes \u{e9}t\u{e9} \u{1f9a9}!",
            &[
                1237, 42_693, 5693, 847, 713, 2087, 530, 274, 269, 272, 275, 9265, 3459, 39_694,
                6040, 102, 256,
            ],
        ),
    ] {
        assert_eq!(t.encode(text), ids, "{text}");
    }
}

/// Ids by tiktoken 0.14.0 with these ranks and GPT-2's pattern.
#[test]
fn ranks_of_gpt2_give_its_ids() {
    let Some(t) = published("gpt2.tiktoken") else { return };
    assert_eq!((t.bos_id(), t.eos_id(), t.image_id()), (50_256, 50_256, 50_258));
    for (text, ids) in [
        ("Hello, world!", &[15_496, 11, 995, 0][..]),
        (
            " The cat's 3.14 \n\n  hats\u{e9} \u{1f9a9}",
            &[383, 3797, 338, 513, 13, 1415, 220, 628, 220, 23_910, 2634, 12_520, 99, 102],
        ),
        (
            "tokenization of multimodal few-shot learners",
            &[30_001, 1634, 286, 43_104, 375, 282, 1178, 12, 9442, 46_184],
        ),
    ] {
        assert_eq!(t.encode(text), ids, "{text}");
        assert_eq!(t.decode(ids), text);
    }
}
