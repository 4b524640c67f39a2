//! Corpora of others give the same batches wherever they lie and wherever a run was resumed, and broken
//! ones say what is wrong.

#![expect(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use flamingo_dataset::{
    Batch, Corpus, CorpusError, CorpusKind, EncodedImage, Fit, ImageConfig, Layout, Loader,
    LossMask, MissingImage, Mixture, MixtureEntry, MixtureMode, PixelType, Row, SampleConfig,
    Shuffle, Slot, Tokenizer, Verify,
};
use support::{clip, page, pair, png, write_corpus};

const WEBDATASET: Layout = Layout::Webdataset {};

fn mmc4(images: &Path) -> Layout {
    Layout::Mmc4 {
        images: images.to_str().unwrap().to_owned(),
        similarity_min: 0.0,
        missing: MissingImage::Corrupt,
    }
}

/// Two tars of pairs with side data; the sixth caption is only in the JSON.
fn write_tars(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    for part in 0..2_u8 {
        let file = std::fs::File::create(folder.join(format!("{part}.tar"))).unwrap();
        let mut tar = tar::Builder::new(file);
        let mut add = |name: String, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, bytes).unwrap();
        };
        for i in 5 * part..5 * part + 5 {
            add(format!("a.b/{i:03}.png"), &png(i, 16).bytes);
            let json = if i == 6 { "{\"caption\": \"six\"}" } else { "{\"score\": NaN}" };
            add(format!("a.b/{i:03}.json"), json.as_bytes());
            if i != 6 {
                add(format!("a.b/{i:03}.txt"), format!("caption {i}").as_bytes());
            }
        }
        tar.finish().unwrap();
    }
}

/// Ten pages of two images each, and the images.
fn write_mmc4(folder: &Path) {
    std::fs::create_dir_all(folder.join("pages")).unwrap();
    std::fs::create_dir_all(folder.join("images")).unwrap();
    let mut lines = String::new();
    for i in 0..10_u8 {
        for n in [2 * i, 2 * i + 1] {
            std::fs::write(folder.join(format!("images/{n}.png")), &png(n, 16).bytes).unwrap();
        }
        let image = |n: u8, at: u8| {
            serde_json::json!({ "image_name": format!("{n}.png"), "raw_url": format!("u/{n}"),
                "matched_text_index": at, "matched_sim": 0.3 })
        };
        let page = serde_json::json!({ "url": format!("page {i}"),
            "text_list": ["First sentence.", "Second one."],
            "image_info": [image(2 * i, 1), image(2 * i + 1, 0)] });
        lines += &page.to_string();
        lines.push('\n');
    }
    std::fs::write(folder.join("pages/docs_0.jsonl"), lines).unwrap();
}

fn entry(name: &str, corpus: &Path, layout: Layout, images: usize) -> MixtureEntry {
    MixtureEntry {
        name: name.to_owned(),
        corpus: corpus.to_str().unwrap().to_owned(),
        layout,
        disk_cache: None,
        batch: 3,
        weight: 1.0,
        sample: SampleConfig {
            tokens: 24,
            images,
            frames: 1,
            next_image_probability: 0.5,
            space_prefix_probability: 0.5,
            flip_probability: 0.5,
            colour_jitter: 0.2,
            image: ImageConfig { size: 6, fit: Fit::CenterCrop, mean: [0.5; 3], std: [0.3; 3] },
            pixels: PixelType::F32,
            loss: LossMask::Paper,
            pack: 1,
            learn_after: None,
            verify: Verify::Nothing,
        },
        shuffle: Shuffle { block_rows: 2, group_blocks: 2 },
        skip_rows: BTreeSet::new(),
        corrupt_share_max: 1.0,
    }
}

fn loader(entries: Vec<MixtureEntry>, step: u64) -> Loader {
    let texts = ["First sentence. caption".to_owned()];
    let tokenizer = Arc::new(Tokenizer::train(texts.into_iter(), 270).unwrap());
    let mixture = Mixture::open(entries, tokenizer, MixtureMode::Accumulate, 5).unwrap();
    Loader::start(mixture, step, 2)
}

fn hashes(entries: &[MixtureEntry], steps: std::ops::Range<u64>) -> Vec<String> {
    let mut loader = loader(entries.to_vec(), steps.start);
    let batches = steps.flat_map(|_| loader.next_step().unwrap());
    batches.map(|batch| batch.sha256()).collect()
}

#[test]
fn batches_are_the_same_in_another_place_and_after_a_stop() {
    let folder = tempfile::tempdir().unwrap();
    let entries = |name: &str| {
        let place = folder.path().join(name);
        write_tars(&place.join("tars"));
        write_mmc4(&place);
        let pages = entry("pages", &place.join("pages"), mmc4(&place.join("images")), 2);
        vec![entry("pairs", &place.join("tars"), WEBDATASET, 1), pages]
    };
    let (one, other) = (entries("one"), entries("the/other"));
    let whole = hashes(&one, 0..9);
    assert_eq!(hashes(&other, 0..9), whole);
    assert_eq!(hashes(&one, 5..9), whole[10..]);
    let digest = |entry: &MixtureEntry| {
        Corpus::open_as(&entry.corpus, &entry.layout, None).unwrap().manifest().sha256()
    };
    assert_eq!(digest(&one[1]), digest(&other[1]));
}

#[test]
fn text_alone_reads_no_image() {
    let folder = tempfile::tempdir().unwrap();
    write_mmc4(folder.path());
    let text = |layout: &Layout| {
        let pages = entry("pages", &folder.path().join("pages"), layout.clone(), 0);
        let mut loader = loader(vec![pages], 0);
        let step: Vec<Batch> = loader.next_step().unwrap();
        assert!(step[0].pixels.is_empty() && step[0].corrupt.is_empty(), "{:?}", step[0].corrupt);
        step[0].tokens.clone()
    };
    let layout = mmc4(&folder.path().join("images"));
    let expected = text(&layout);
    for image in std::fs::read_dir(folder.path().join("images")).unwrap() {
        std::fs::remove_file(image.unwrap().path()).unwrap();
    }
    assert_eq!(text(&layout), expected);
    // A corpus of this project, too.
    let pairs: Vec<Row> = (0..9)
        .map(|i| {
            let Row::ImageText(mut row) = pair(i) else { unreachable!() };
            row.image.bytes = b"no image".to_vec().into();
            Row::ImageText(row)
        })
        .collect();
    let own = folder.path().join("own");
    write_corpus(&own, CorpusKind::ImageText, &[&pairs]);
    let step = loader(vec![entry("own", &own, Layout::Corpus, 0)], 0).next_step().unwrap();
    assert!(step[0].corrupt.is_empty());
}

#[test]
fn rows_without_images_are_the_same_but_for_their_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let rows: [Vec<Row>; 3] = [
        (0..9).map(|i| page(i, i % 3)).collect(),
        (0..9).map(pair).collect(),
        (0..9).map(|i| clip(i, i % 4)).collect(),
    ];
    for rows in rows {
        let place = folder.path().join(rows[0].kind().name());
        let corpus = Corpus::open(&write_corpus(&place, rows[0].kind(), &[&rows])).unwrap();
        for (number, row) in (0..).zip(rows) {
            assert_eq!(corpus.read_texts(number).unwrap(), without_images(row));
        }
    }
}

fn without_images(mut row: Row) -> Row {
    let images: Vec<&mut EncodedImage> = match &mut row {
        Row::Interleaved(page) => page
            .slots
            .iter_mut()
            .filter_map(|slot| match slot {
                Slot::Image { image, .. } => Some(image),
                Slot::Text(_) => None,
            })
            .collect(),
        Row::ImageText(pair) => vec![&mut pair.image],
        Row::VideoText(clip) => clip.frames.iter_mut().collect(),
    };
    for image in images {
        image.bytes.clear();
    }
    row
}

#[test]
fn broken_files_and_rows_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    let open = |layout: &Layout| Corpus::open_as(place.to_str().unwrap(), layout, None);
    let problem = |layout: &Layout| open(layout).err().unwrap().to_string();
    assert!(problem(&WEBDATASET).contains("no file *.tar"));
    write_tars(place);
    let whole = std::fs::read(place.join("1.tar")).unwrap();
    for end in [700, 1100, whole.len() / 2] {
        std::fs::write(place.join("1.tar"), &whole[..end]).unwrap();
        // Cut between two members it is a shorter tar; nothing else may pass.
        if let Ok(corpus) = open(&WEBDATASET) {
            assert!(corpus.n_rows() < 10, "{end}");
        } else {
            assert!(problem(&WEBDATASET).contains("1.tar"), "{end}");
        }
    }
    std::fs::write(place.join("a.parquet"), b"PAR1 nothing PAR1").unwrap();
    let hugging_face = Layout::HuggingFace {
        image: "image".to_owned(),
        text: "text".to_owned(),
        files: String::new(),
    };
    assert!(problem(&hugging_face).contains("a.parquet"));
    // A corpus of this project is Parquet as well.
    let pairs: Vec<Row> = (0..4).map(pair).collect();
    write_corpus(&place.join("own"), CorpusKind::ImageText, &[&pairs]);
    std::fs::remove_file(place.join("a.parquet")).unwrap();
    assert!(problem(&hugging_face).contains("no column `text`"));
    let captions = Layout::HuggingFace {
        image: "image".to_owned(),
        text: "caption".to_owned(),
        files: "own/".to_owned(),
    };
    let corpus = open(&captions).unwrap();
    for (row, expected) in (0..4).zip(&pairs) {
        let Row::ImageText(expected) = expected else { unreachable!() };
        let Row::ImageText(found) = corpus.read(row).unwrap() else { unreachable!() };
        assert_eq!(
            (found.caption, found.image),
            (expected.caption.clone(), expected.image.clone())
        );
    }
    // Damaged pages cost rows; a file that is gone stops, unless it is open.
    let shard = place.join("own/shard-00000.parquet");
    let mut bytes = std::fs::read(&shard).unwrap();
    let head = bytes.len() / 3;
    bytes[4..head].fill(0xa5);
    std::fs::write(&shard, &bytes).unwrap();
    let damaged = (0..4).filter_map(|row| corpus.read(row).err()).collect::<Vec<_>>();
    assert!(!damaged.is_empty());
    for error in damaged {
        assert!(error.is_about_one_row(), "{error}");
    }
    let is_sound = |corpus: &Corpus| (0..4).map(|row| corpus.read(row).is_ok()).collect::<Vec<_>>();
    let before = is_sound(&corpus);
    let own = Corpus::open(place.join("own").to_str().unwrap()).unwrap();
    std::fs::remove_file(&shard).unwrap();
    let gone = open(&captions).err();
    assert!(gone.is_some(), "no file is left");
    assert_eq!(is_sound(&corpus), before);
    let error = own.read(0).unwrap_err();
    assert!(!error.is_about_one_row() && matches!(error, CorpusError::Object { .. }), "{error}");

    // Lines that are no pages, and images that are not there.
    std::fs::create_dir(place.join("lines")).unwrap();
    let image = |name: &str, at: u8| {
        format!(
            "{{\"text_list\": [\"a\"], \"image_info\": [{{\"image_name\": \"{name}\", \
             \"matched_text_index\": {at}, \"matched_sim\": 1}}]}}\n"
        )
    };
    let lines = ["{}\n".to_owned(), image("x.png", 7), image("../x", 0), image("x.png", 0)];
    std::fs::write(place.join("lines/a.jsonl"), lines.concat()).unwrap();
    let lines = place.join("lines");
    let corpus = Corpus::open_as(lines.to_str().unwrap(), &mmc4(place), None).unwrap();
    for (row, word) in ["text_list", "sentence 7 of 1", "../x", "not among"].iter().enumerate() {
        let error = corpus.read(row as u64).unwrap_err();
        assert!(error.is_about_one_row() && error.to_string().contains(word), "{error}");
    }
}

#[test]
fn texts_are_read_from_files_lines_and_columns() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    let open = |name: &str, layout: &Layout| {
        Corpus::open_as(place.join(name).to_str().unwrap(), layout, None)
    };
    let texts = |corpus: &Corpus| -> Vec<Result<String, String>> {
        let text = |row| match corpus.read_texts(row) {
            Ok(Row::Interleaved(page)) => match &page.slots[..] {
                [Slot::Text(text)] => Ok(text.clone()),
                slots => Err(format!("{slots:?}")),
            },
            other => Err(other.err().map_or_else(String::new, |error| error.to_string())),
        };
        (0..corpus.n_rows()).map(text).collect()
    };
    let write = |name: &str, bytes: &[u8]| {
        std::fs::create_dir_all(place.join(name).parent().unwrap()).unwrap();
        std::fs::write(place.join(name), bytes).unwrap();
    };
    let ok = |texts: &[&str]| texts.iter().map(|text| Ok((*text).to_owned())).collect::<Vec<_>>();

    write("plain/a.txt", b"\n\n one\n two\n \n\nthree\r\n\r\nfour");
    write("plain/b.txt", b"five\n");
    write("plain/other.md", b"no text file");
    let plain = |separator: &str| Layout::TextFiles { separator: separator.to_owned() };
    let corpus = open("plain", &plain("")).unwrap();
    assert_eq!(texts(&corpus), ok(&["one\n two", "three", "four", "five"]));
    assert_eq!(corpus.kind(), CorpusKind::Interleaved);

    write("marked/a.txt", b"one\n\ntwo\n<end>\n<end>\n three \n <end> \n\xff\n");
    let marked = texts(&open("marked", &plain("<end>")).unwrap());
    assert_eq!(marked[..2], ok(&["one\n\ntwo", "three"]));
    assert!(marked[2].as_ref().unwrap_err().contains("not UTF-8"), "{marked:?}");

    for separator in [" <end>", "\n\n"] {
        let error = open("marked", &plain(separator)).err().unwrap().to_string();
        assert!(error.contains("`separator` is"), "{error}");
    }
    write("long/a.txt", &b"0123456789abcde\n".repeat((16 << 16) + 1));
    let error = open("long", &plain("")).err().unwrap().to_string();
    assert!(error.contains("the document at byte 0 has more than"), "{error}");

    write("lines/a.jsonl", b"{\"body\": \"one\\ntwo\"}\n\n{\"body\": 3}\n{\"body\"\n");
    let lines = texts(&open("lines", &Layout::JsonLines { text: "body".to_owned() }).unwrap());
    assert_eq!(lines[0], Ok("one\ntwo".to_owned()));
    for (line, word) in lines[1..].iter().zip(["`body`", "line"]) {
        assert!(line.as_ref().unwrap_err().contains(word), "{line:?}");
    }

    // A corpus of this project has a column of texts, too.
    write_corpus(&place.join("own"), CorpusKind::ImageText, &[&[pair(1), pair(2)]]);
    let column = |text: &str| Layout::TextColumn { text: text.to_owned(), files: "shard".into() };
    assert_eq!(
        texts(&open("own", &column("caption")).unwrap()),
        ok(&["a red circle, number 1", "a red circle, number 2"])
    );
    let error = open("own", &column("words")).err().unwrap().to_string();
    assert!(error.contains("no column `words` among `"), "{error}");
    let error = open("marked", &column("text")).err().unwrap().to_string();
    assert!(error.contains("no file shard*.parquet, as a writer of texts writes them"), "{error}");
}
