//! METEOR equals METEOR 1.5: on made-up word lists and paraphrases, of which the folder is built here, and with the
//! official data where `METEOR_DATA` names it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use flamingo_eval::metrics::captions::CaptionPair;
use flamingo_eval::metrics::meteor::{FOLDER_VARIABLE, Meteor, MeteorCounts};
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder};
use serde_json::{Value, json};
use tempfile::TempDir;

const PARITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/parity");

const FUNCTION_WORDS: &str = "a\nthe\nof\non\nin\nis\nand\n'\nwith\n";

const PREFIXES: &str = "# What ends no sentence.\nMr\nNo #NUMERIC_ONLY#\n";

const SENSES: &str = "couch\n11 12\nsofa\n11\nlounge\n12 13\ngoose\n21\nbird\n22 31\nfowl\n31\ngander\n21\n\
    little\n41\nsmall\n41\nwalk\n61\nstroll\n61\npasse\n71\npass\n72\ndated\n71\ngo\n72\n";

const EXCEPTIONS: &str = "goose\ngeese\nwalk\nwalken\n";

const PARAPHRASES: [(&str, &str); 14] = [
    ("big", "large"),
    ("large", "big"),
    ("on top of", "upon"),
    ("sits on", "is seated on"),
    ("in front of", "before"),
    ("red and white", "white and red"),
    ("small kid", "boy"),
    ("boy", "kid"),
    ("boy", "little kid"),
    ("a pair of", "two"),
    ("two", "a couple of"),
    ("next to", "beside"),
    ("mast", "the pole"),
    ("pole blue", "mast"),
];

/// A prediction, its references, and its score: that of `java -jar meteor-1.5.jar - - -stdio -l en -norm -s WORDS
/// -d SYNONYMS -a PARAPHRASES` for the tokens of `CoreNLP` 3.4.1, with the lists above.
type Scored = (&'static str, &'static [&'static str], f64);

#[expect(clippy::unreadable_literal, reason = "as the program writes them")]
const SCORED: [Scored; 15] = [
    ("a dog sits on a couch", &["a dog sits on a couch", "the dog is here"], 1.0),
    (
        "two geese walked on the sofas",
        &["a goose strolls on a couch", "two ganders walk"],
        0.3827852772508516,
    ),
    ("a large bird", &["a big fowl", "the bird is large"], 0.7428571428571429),
    (
        "a little kid sits on top of a lounge",
        &["a boy is seated on a couch", "a small kid upon the couch"],
        0.3613100747529431,
    ),
    (
        "a cat next to a dog and a cat",
        &["a dog beside a cat and a cat", "cats and dogs", "a a a cat"],
        0.4437576777928289,
    ),
    ("the U.S. No. 5 well-known dog's ball", &["us no. 5 known dog ' s ball"], 0.4915146192919586),
    ("", &["a dog"], 0.0),
    ("zebra", &["a dog", "the lion of the north"], 0.0),
    ("cats", &["cat cat", "a cat and a cat"], 0.0),
    ("x a", &["a a", "a x a"], 0.39395436043078397),
    ("a pair of passes", &["two dated things", "two go", "a couple of passe"], 0.2536417007026274),
    (
        "a red and white kite in front of a red and white house",
        &["a white and red kite before a house white and red"],
        0.411001144713084,
    ),
    (
        "small boy in a town",
        &["a kid in a town", "the little kid and the small kid in town"],
        0.39870303272245033,
    ),
    ("the pole blue", &["mast"], 0.24093586684636228),
    ("on top of on top of a box", &["upon a box on top of upon a box"], 0.31907754383306064),
];

/// Of all of them.
#[expect(clippy::unreadable_literal, reason = "as the program writes it")]
const CORPUS_SCORE: f64 = 0.37765126240281804;

/// A zip archive of deflated files.
fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, text) in files {
        let mut packed = DeflateEncoder::new(Vec::new(), Compression::default());
        packed.write_all(text.as_bytes()).unwrap();
        let packed = packed.finish().unwrap();
        let mut crc = flate2::Crc::new();
        crc.update(text.as_bytes());
        let [size, packed_size] = [text.len(), packed.len()].map(|n| u32::try_from(n).unwrap());
        let offset = u32::try_from(bytes.len()).unwrap();
        // Version, flags, deflate, time and date; checksum, sizes; lengths of the name and of what is beside it.
        let mut entry: Vec<u8> =
            [20_u16, 0, 8, 0, 33].iter().flat_map(|n| n.to_le_bytes()).collect();
        entry.extend([crc.sum(), packed_size, size].iter().flat_map(|n| n.to_le_bytes()));
        entry.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
        entry.extend([0, 0]);
        bytes.extend(b"PK\x03\x04");
        bytes.extend(&entry);
        bytes.extend(name.as_bytes());
        bytes.extend(packed);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&entry);
        // No comment, the first disk, no attributes.
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let n = u16::try_from(files.len()).unwrap().to_le_bytes();
    let [size, offset] = [directory.len(), bytes.len()].map(|n| u32::try_from(n).unwrap());
    bytes.extend(directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend([n, n].concat());
    bytes.extend([size.to_le_bytes(), offset.to_le_bytes()].concat());
    bytes.extend([0, 0]);
    bytes
}

fn gzip(text: &str) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(text.as_bytes()).unwrap();
    packed.finish().unwrap()
}

/// A folder as METEOR's, with word lists and a table of our own.
fn folder(senses: &str, table: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let program = archive(&[
        ("function/english.words", FUNCTION_WORDS),
        ("nonbreaking/english.prefixes", PREFIXES),
        ("synonym/english.synsets", senses),
        ("synonym/english.exceptions", EXCEPTIONS),
    ]);
    std::fs::write(folder.path().join("meteor-1.5.jar"), program).unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    std::fs::write(folder.path().join("data/paraphrase-en.gz"), table).unwrap();
    folder
}

fn table() -> String {
    PARAPHRASES.iter().flat_map(|(phrase, other)| ["0.1\n", phrase, "\n", other, "\n"]).collect()
}

fn made_up() -> TempDir {
    folder(SENSES, &gzip(&table()))
}

fn counts(folder: &Path, scored: &[Scored]) -> Vec<MeteorCounts> {
    let pair = |(prediction, references, _): &Scored| CaptionPair {
        prediction,
        references: references.to_vec(),
    };
    let pairs: Vec<CaptionPair<'_>> = scored.iter().map(pair).collect();
    Meteor::open(Some(folder)).unwrap().counts(&pairs).unwrap()
}

fn total(counts: &[MeteorCounts]) -> MeteorCounts {
    let mut sum = MeteorCounts::default().terms();
    for counts in counts {
        sum.iter_mut().zip(counts.terms()).for_each(|(sum, term)| *sum += term);
    }
    MeteorCounts::of_terms(sum)
}

fn eval(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
    command.env_remove(FOLDER_VARIABLE).args(args).output().unwrap()
}

fn printed(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Files of annotations and predictions, of which the first `n` are as they are in `SCORED`.
fn files(folder: &Path, n: usize) -> [PathBuf; 2] {
    let rows = SCORED.iter().enumerate();
    let annotations = rows.clone().flat_map(|(i, (_, references, _))| {
        let row = move |(j, text)| json!({ "image_id": i, "id": 10 * i + j, "caption": text });
        references.iter().enumerate().map(row)
    });
    let annotations = json!({ "images": [], "annotations": annotations.collect::<Value>() });
    let said = rows.map(|(i, (prediction, ..))| {
        json!({ "image_id": i, "caption": if i < n { prediction } else { "a zebra" } })
    });
    let [truth, predictions] = ["truth.json", "said.json"].map(|name| folder.join(name));
    std::fs::write(&truth, annotations.to_string()).unwrap();
    std::fs::write(&predictions, said.collect::<Value>().to_string()).unwrap();
    [truth, predictions]
}

#[test]
fn every_prediction_scores_as_in_the_program_of_the_authors() {
    let folder = made_up();
    let counts = counts(folder.path(), &SCORED);
    for ((prediction, references, expected), counts) in SCORED.iter().zip(&counts) {
        let score = counts.score();
        assert!(
            (score - expected).abs() < 1e-15,
            "{prediction:?}, {references:?}: {score}, not {expected}"
        );
        assert_eq!(MeteorCounts::of_terms(counts.terms()), *counts);
    }
    let score = total(&counts).score();
    assert!((score - CORPUS_SCORE).abs() < 1e-15, "{score}, not {CORPUS_SCORE}");
}

#[test]
fn score_and_compare_make_it_of_summed_counts() {
    let data = made_up();
    let place = tempfile::tempdir().unwrap();
    let score = |n: usize, samples: &str| {
        let [truth, said] = files(place.path(), n).map(|path| path.to_str().unwrap().to_owned());
        let samples = place.path().join(samples).to_str().unwrap().to_owned();
        let data = data.path().to_str().unwrap();
        let args = ["score", "--json", "--metric", "meteor:coco", "--meteor-data", data];
        let files = ["--annotations", &truth, "--predictions", &said, "--samples", &samples];
        let found = printed(&eval(&[&args[..], &files].concat()));
        (found["scores"]["meteor:coco"].clone(), samples)
    };
    let ((all, a), (some, b)) = (score(SCORED.len(), "a.jsonl"), score(5, "b.jsonl"));
    let value = |score: &Value| score["value"].as_f64().unwrap();
    assert!((value(&all) - CORPUS_SCORE).abs() < 1e-15, "{all}");
    let [low, high] = [0, 1].map(|at| all["ci95"][at].as_f64().unwrap());
    assert!(0.1 < low && low < CORPUS_SCORE && CORPUS_SCORE < high && high < 0.9, "{all}");

    let compared = printed(&eval(&["compare", "--json", &a, &b]));
    let metric = &compared["tasks"][0]["metrics"][0];
    assert_eq!(metric["metric"], "meteor:coco");
    let difference = metric["difference"]["value"].as_f64().unwrap();
    assert!((difference - (value(&some) - value(&all))).abs() < 1e-15, "{metric}");
    assert!(difference < -0.01, "{metric}");
}

#[test]
fn data_that_is_not_there_or_not_whole_is_named() {
    let place = tempfile::tempdir().unwrap();
    let [truth, said] = files(place.path(), 3).map(|path| path.to_str().unwrap().to_owned());
    let check = |data: Option<&Path>, expected: &[&str]| {
        let mut args = vec!["score", "--metric", "meteor:coco", "--annotations", &truth];
        args.extend(["--predictions", &said]);
        args.extend(data.iter().flat_map(|data| ["--meteor-data", data.to_str().unwrap()]));
        let output = eval(&args);
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(expected.iter().all(|part| text.contains(part)), "{expected:?} in {text}");
    };
    check(None, &["--meteor-data or METEOR_DATA", "pycocoevalcap"]);
    check(Some(place.path()), &["meteor-1.5.jar: it comes with the Python package pycocoevalcap"]);

    let whole = gzip(&table());
    let data = folder(SENSES, &whole);
    std::fs::remove_file(data.path().join("data/paraphrase-en.gz")).unwrap();
    check(Some(data.path()), &["no file of METEOR 1.5 at", "paraphrase-en.gz"]);
    std::fs::write(data.path().join("meteor-1.5.jar"), "no archive").unwrap();
    std::fs::write(data.path().join("data/paraphrase-en.gz"), &whole).unwrap();
    check(Some(data.path()), &["meteor-1.5.jar is no file of METEOR 1.5"]);
    std::fs::write(data.path().join("meteor-1.5.jar"), archive(&[("a", "b")])).unwrap();
    check(Some(data.path()), &["nonbreaking/english.prefixes is no file of METEOR 1.5"]);

    let check_table = |table: &[u8], expected: &[&str]| {
        check(Some(folder(SENSES, table).path()), expected);
    };
    check_table(&whole[..whole.len() / 2], &["paraphrase-en.gz"]);
    check_table(b"0.1\na\nb\n", &["paraphrase-en.gz"]);
    check_table(&gzip("0.1\na\nb\n0.2\nc"), &["line 5: the table ends within an entry"]);
    check_table(&gzip("0.1\na\nb\nc\n0.2\nd\n"), &["line 4: it is no probability"]);
    check_table(&gzip(&"9".repeat(1 << 19)), &["line 1: it has more than 262144 bytes"]);
    let senses = SENSES.replace("11 12", "11 twelve");
    let of_senses = ["synonym/english.synsets", "`twelve` for `couch` is no number of a sense"];
    check(Some(folder(&senses, &whole).path()), &of_senses);
    let senses = format!("{SENSES}zebra\n");
    let of_senses = ["synonym/english.synsets", "it ends within an entry, at line 31"];
    check(Some(folder(&senses, &whole).path()), &of_senses);
}

#[test]
fn a_long_prediction_is_scored_and_a_longer_pair_refused_by_its_id() {
    let data = made_up();
    let long = "a ".repeat(50_000);
    let pair = |references: Vec<&'static str>| CaptionPair { prediction: &long, references };
    let mut meteor = Meteor::open(Some(data.path())).unwrap();
    let counts = meteor.counts(&[pair(vec!["a dog", "a a a cat"])]).unwrap();
    assert_eq!((counts[0].words[0].all, counts[0].matched[0][1].all), (50_000, 3));

    let both = CaptionPair { prediction: &long, references: vec![&long] };
    let error = meteor.counts(&[pair(vec!["a"]), both]).unwrap_err().to_string();
    assert!(error.contains("prediction 1 of 50000 words"), "{error}");
}

#[test]
fn every_image_of_the_official_data_scores_as_in_pycocoevalcap() {
    let Some(data) = std::env::var_os(FOLDER_VARIABLE) else {
        eprintln!("skipped: no folder of METEOR 1.5 in {FOLDER_VARIABLE}");
        return;
    };
    if !Path::new(PARITY).exists() {
        eprintln!("skipped: no parity data at {PARITY}");
        return;
    }
    let args = ["self-check", "--data", PARITY, "--meteor-data", data.to_str().unwrap()];
    let text = String::from_utf8(eval(&args).stdout).unwrap();
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("meteor:coco")).collect();
    assert_eq!(rows.len(), 2, "{text}");
    for (row, n) in rows.iter().zip(["1001", "5001"]) {
        assert!(row.contains(" equal ") && row.contains(n), "{row}");
    }
}
