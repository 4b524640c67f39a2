//! What is written is what is read, row by row, and what is not a corpus says so.

#![expect(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use std::collections::HashSet;

use bytes::Bytes;
use flamingo_dataset::{
    Corpus, CorpusError, CorpusKind, CorpusStore, Interleaved, Manifest, Row, Slot, encode_shard,
    schema,
};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaDataReader, RowGroupMetaData};
use parquet::file::page_index::offset_index::PageLocation;
use proptest::prelude::*;
use support::{clip, meta, page, pair, png, write_corpus};

/// A page with nothing that may be absent.
fn bare_page(slots: Vec<Slot>) -> Row {
    Row::Interleaved(Interleaved {
        doc_id: String::new(),
        url: String::new(),
        slots,
        title: None,
        lang: None,
        lang_score: None,
        warc: None,
        fetched_at_us: None,
    })
}

fn bare_pair() -> Row {
    let Row::ImageText(mut bare) = pair(9) else { unreachable!() };
    (bare.url, bare.source, bare.image.path) = (None, None, None);
    bare.scores.clear();
    bare.image.bytes = Bytes::new();
    Row::ImageText(bare)
}

fn rows_of(kind: CorpusKind) -> Vec<Row> {
    match kind {
        CorpusKind::Interleaved => {
            let image = || Slot::Image { image: png(1, 60), meta: meta(1) };
            let rows = vec![
                page(1, 3),
                bare_page(vec![]),
                bare_page(vec![image(), image()]),
                bare_page(vec![Slot::Text(String::new()), Slot::Text("a <image>".to_owned())]),
            ];
            rows.into_iter().chain((5..80).map(|i| page(i, i % 4))).collect()
        }
        CorpusKind::ImageText => {
            [pair(1), bare_pair()].into_iter().chain((2..90).map(pair)).collect()
        }
        CorpusKind::VideoText => {
            [clip(1, 3), clip(2, 0)].into_iter().chain((3..70).map(|i| clip(i, i % 5))).collect()
        }
    }
}

const KINDS: [CorpusKind; 3] =
    [CorpusKind::Interleaved, CorpusKind::ImageText, CorpusKind::VideoText];

#[test]
fn rows_come_back_in_any_order_and_by_scan() {
    for kind in KINDS {
        let rows = rows_of(kind);
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = rows.split_at(rows.len() / 3);
        let corpus = Corpus::open(&write_corpus(folder.path(), kind, &[a, &[], b])).unwrap();
        assert_eq!(corpus.n_rows(), rows.len() as u64);
        for idx in (0..rows.len()).rev() {
            assert_eq!(corpus.read(idx as u64).unwrap(), rows[idx], "{kind} row {idx}");
        }
        let scanned: Vec<Row> = corpus.scan().map(Result::unwrap).collect();
        assert_eq!(scanned, rows);
        corpus.verify().unwrap();
    }
}

#[test]
fn many_threads_may_read_at_once() {
    let rows = rows_of(CorpusKind::ImageText);
    let folder = tempfile::tempdir().unwrap();
    let location = write_corpus(folder.path(), CorpusKind::ImageText, &[&rows]);
    let corpus = Corpus::open(&location).unwrap();
    std::thread::scope(|scope| {
        for first in 0..4 {
            let (corpus, rows) = (&corpus, &rows);
            scope.spawn(move || {
                for idx in (first..rows.len()).step_by(3) {
                    assert_eq!(corpus.read(idx as u64).unwrap(), rows[idx]);
                }
            });
        }
    });
}

#[test]
fn the_same_rows_give_the_same_bytes() {
    for kind in KINDS {
        let encode = || encode_shard(kind, &rows_of(kind)).unwrap();
        assert_eq!(encode(), encode());
    }
}

/// The image bytes of row r are exactly the r-th page of their column.
#[test]
fn an_image_is_a_page_of_its_own_and_stored_plain() {
    let rows: Vec<Row> = (0..40)
        .map(|i| {
            let Row::ImageText(mut row) = pair(i) else { unreachable!() };
            row.image.bytes = Bytes::from(vec![i; 5000 + usize::from(i)]);
            Row::ImageText(row)
        })
        .collect();
    let file = Bytes::from(encode_shard(CorpusKind::ImageText, &rows).unwrap());
    let metadata = ParquetMetaDataReader::new()
        .with_page_index_policy(PageIndexPolicy::Required)
        .parse_and_finish(&file)
        .unwrap();
    let columns = metadata.row_group(0).columns();
    let leaf = columns.iter().position(|c| c.column_path().string() == "image.bytes").unwrap();
    assert!(columns[leaf].statistics().is_none());
    assert!(columns[leaf].dictionary_page_offset().is_none());
    assert_eq!(columns[leaf].compression(), parquet::basic::Compression::UNCOMPRESSED);
    let pages = metadata.offset_index().unwrap()[0][leaf].page_locations();
    assert_eq!(pages.len(), rows.len());
    for (row, place) in pages.iter().enumerate() {
        assert_eq!(place.first_row_index, row as i64);
        let (start, size) = (place.offset as usize, place.compressed_page_size as usize);
        let page = &file[start..start + size];
        let image = vec![row as u8; 5000 + row];
        assert!(page.windows(image.len()).any(|w| w == image), "row {row} is in its page");
        assert!(size < image.len() + 64, "and nothing else: {size}");
    }
}

#[test]
fn a_row_group_is_closed_before_100_megabytes() {
    let image = Bytes::from(vec![7; 30_000_000]);
    let rows: Vec<Row> = (0..5)
        .map(|i| {
            let Row::ImageText(mut row) = pair(i) else { unreachable!() };
            row.image.bytes = image.clone();
            Row::ImageText(row)
        })
        .collect();
    let file = Bytes::from(encode_shard(CorpusKind::ImageText, &rows).unwrap());
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&file).unwrap();
    let sizes: Vec<_> = metadata.row_groups().iter().map(RowGroupMetaData::num_rows).collect();
    assert_eq!(sizes, [3, 2]);
}

#[test]
fn hugging_face_finds_its_features_in_the_metadata() {
    let features = |kind| {
        let json = schema(kind).metadata()["huggingface"].clone();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        json["info"]["features"].clone()
    };
    let image = serde_json::json!({ "_type": "Image" });
    let list = serde_json::json!({ "feature": image, "_type": "List" });
    assert_eq!(features(CorpusKind::ImageText)["image"], image);
    assert_eq!(features(CorpusKind::Interleaved)["images"], list);
    assert_eq!(features(CorpusKind::VideoText)["frames"], list);
    let fetched = &features(CorpusKind::Interleaved)["fetched_at"];
    assert_eq!(fetched["dtype"], "timestamp[us, tz=UTC]");
}

#[test]
fn rows_of_another_kind_are_refused() {
    let error = encode_shard(CorpusKind::VideoText, &[pair(3)]).unwrap_err();
    assert!(matches!(error, CorpusError::Unwritable { .. }));
    assert!(error.to_string().contains("pair-3"), "{error}");
}

#[test]
fn what_is_not_a_corpus_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let location = folder.path().to_str().unwrap();
    let message = |location: &str| Corpus::open(location).err().unwrap().to_string();
    assert_eq!(message(location), format!("{location} is not a corpus: no manifest.json"));
    let missing = format!("{location}/missing");
    assert!(message(&missing).starts_with(&format!("cannot open {missing}: ")));
    let file = format!("{location}/file");
    std::fs::write(&file, b"x").unwrap();
    assert!(message(&file).contains(&file) && message(&file).contains("it is a file"));
    assert!(message("gopher://bucket/x").contains("gopher://bucket/x"));
    std::fs::write(format!("{location}/manifest.json"), b"{").unwrap();
    assert_eq!(message(location), format!("{location}/manifest.json is not a corpus manifest"));
}

#[test]
fn a_newer_schema_is_refused_whatever_else_it_holds() {
    let json = r#"{ "schema_version": 99, "kind": "hologram" }"#;
    let error = Manifest::from_json(json).unwrap_err();
    assert!(matches!(error, CorpusError::NewerSchema { found: 99, .. }), "{error}");
}

#[test]
fn a_shard_that_is_not_the_one_in_the_manifest_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let location = write_corpus(folder.path(), CorpusKind::ImageText, &[&[pair(1), pair(2)]]);
    let shard = folder.path().join("shard-00000.parquet");
    let good = std::fs::read(&shard).unwrap();
    let read = || Corpus::open(&location).unwrap().read(1);

    std::fs::write(&shard, &good[..good.len() - 1]).unwrap();
    let error = read().unwrap_err();
    assert!(matches!(error, CorpusError::ShardMismatch { what: "bytes", .. }), "{error}");

    let mut flipped = good.clone();
    flipped[100] ^= 1;
    std::fs::write(&shard, &flipped).unwrap();
    let error = Corpus::open(&location).unwrap().verify().unwrap_err();
    assert!(matches!(error, CorpusError::ShardMismatch { what: "sha256", .. }), "{error}");

    let mut no_footer = good.clone();
    let end = no_footer.len();
    no_footer[end - 4..].fill(0);
    std::fs::write(&shard, &no_footer).unwrap();
    assert!(matches!(read().unwrap_err(), CorpusError::Footer { .. }));

    std::fs::remove_file(&shard).unwrap();
    let error = read().unwrap_err();
    assert!(error.to_string().contains("shard-00000.parquet"), "{error}");
}

#[test]
fn a_row_past_the_end_does_not_exist() {
    let folder = tempfile::tempdir().unwrap();
    let location = write_corpus(folder.path(), CorpusKind::ImageText, &[&[pair(1)]]);
    let error = Corpus::open(&location).unwrap().read(1).unwrap_err();
    assert!(matches!(error, CorpusError::NoSuchRow { row: 1, n_rows: 1, .. }), "{error}");
}

/// Pages with texts of some kilobytes that do not compress well.
fn long_pages(n: u8) -> Vec<Row> {
    let page = |number: u8| {
        let Row::Interleaved(mut page) = page(number, 1) else { unreachable!() };
        let mut word = u64::from(number) + 1;
        let words = (0..900).map(|_| {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            format!("{:x} ", word >> 40)
        });
        page.slots.push(Slot::Text(words.collect()));
        Row::Interleaved(page)
    };
    (0..n).map(page).collect()
}

/// The pages of a shard, of all columns: which column, and their bytes.
fn parquet_pages(shard: &[u8]) -> Vec<(String, Vec<u8>)> {
    let bytes = Bytes::copy_from_slice(shard);
    let mut reader =
        ParquetMetaDataReader::new().with_offset_index_policy(PageIndexPolicy::Required);
    reader.try_parse(&bytes).unwrap();
    let metadata = reader.finish().unwrap();
    let groups = metadata.row_groups().iter().zip(metadata.offset_index().unwrap());
    let columns = groups.flat_map(|(group, index)| group.columns().iter().zip(index));
    let pages = columns.flat_map(|(column, index)| {
        let name = column.column_path().string();
        index.page_locations().iter().map(move |page| (name.clone(), page))
    });
    let bytes_of = |(name, page): (String, &PageLocation)| {
        let start = page.offset as usize;
        (name, shard[start..start + page.compressed_page_size as usize].to_vec())
    };
    pages.map(bytes_of).collect()
}

/// What stores that keep equal bytes once keep of a corpus that was made again.
#[test]
fn a_row_put_before_the_others_leaves_the_pages_of_their_images() {
    let mut random = 1_u64;
    let mut noise = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
        (random >> 56) as u8
    };
    let row = |number: u8| {
        let Row::ImageText(mut row) = pair(number) else { unreachable!() };
        row.image.bytes = (0..20_000).map(|_| noise()).collect();
        Row::ImageText(row)
    };
    let rows: Vec<Row> = (0..100).map(row).collect();
    let with = encode_shard(CorpusKind::ImageText, &rows).unwrap();
    let without = encode_shard(CorpusKind::ImageText, &rows[1..]).unwrap();
    let before: HashSet<_> = parquet_pages(&without).into_iter().collect();
    let pages = parquet_pages(&with);
    let kept: usize = pages.iter().filter(|page| before.contains(page)).map(|p| p.1.len()).sum();
    assert!(kept * 100 > with.len() * 97, "{kept} of {} bytes are as they were", with.len());
}

#[test]
fn damaged_texts_cost_the_rows_of_their_page_alone() {
    let folder = tempfile::tempdir().unwrap();
    let rows = long_pages(60);
    let location = write_corpus(folder.path(), CorpusKind::Interleaved, &[&rows]);
    let path = folder.path().join("shard-00000.parquet");
    let mut shard = std::fs::read(&path).unwrap();
    let pages = parquet_pages(&shard);
    let texts: Vec<_> =
        pages.iter().filter(|(name, _)| name == "texts.list.element").map(|(_, b)| b).collect();
    assert!(texts.len() > 3, "{} pages of texts", texts.len());
    let damaged = texts[1];
    let at = shard.windows(damaged.len()).position(|bytes| bytes == &damaged[..]).unwrap();
    // Past the head of the page.
    shard[at + 60..at + damaged.len()].fill(0xa5);
    std::fs::write(&path, shard).unwrap();
    let corpus = Corpus::open(&location).unwrap();
    let (mut sound, mut lost) = (0, 0);
    for (row, expected) in (0..).zip(&rows) {
        match corpus.read(row) {
            Ok(found) => {
                assert_eq!(&found, expected);
                sound += 1;
            }
            Err(error) => {
                assert!(error.is_about_one_row(), "{error}");
                lost += 1;
            }
        }
    }
    assert!(lost > 0 && sound > 30, "{sound} sound, {lost} lost");
}

#[test]
fn objects_are_replaced_whole_and_listed_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let store = CorpusStore::create(folder.path().join("new").to_str().unwrap()).unwrap();
    for (object, text) in [("b/2", "x"), ("a", "old"), ("b/1", "y"), ("a", "new")] {
        store.put(object, Bytes::from(text)).unwrap();
    }
    assert_eq!(store.list("").unwrap(), ["a", "b/1", "b/2"]);
    assert_eq!(store.list("b").unwrap(), ["b/1", "b/2"]);
    assert_eq!(store.list("none").unwrap(), Vec::<String>::new());
    assert_eq!(store.get("a").unwrap(), "new");
    assert_eq!(store.get_range("a", 1..3).unwrap(), "ew");
    assert_eq!(store.size("a").unwrap(), 3);
    store.delete("a").unwrap();
    store.delete("a").unwrap();
    assert!(!store.exists("a").unwrap());
    assert!(store.get("a").unwrap_err().to_string().ends_with("new/a"));
    assert!(store.put("../outside", Bytes::new()).is_err());
}

fn any_slot() -> impl Strategy<Value = Slot> {
    prop_oneof![
        "(?s).{0,20}".prop_map(Slot::Text),
        (any::<u8>(), proptest::collection::vec(any::<u8>(), 0..9000)).prop_map(|(n, bytes)| {
            let mut image = png(n, 1);
            image.bytes = Bytes::from(bytes);
            Slot::Image { image, meta: meta(n) }
        })
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_page_comes_back(
        pages in proptest::collection::vec(proptest::collection::vec(any_slot(), 0..6), 1..6),
    ) {
        let rows: Vec<Row> = pages.into_iter().map(bare_page).collect();
        let folder = tempfile::tempdir().unwrap();
        let location = write_corpus(folder.path(), CorpusKind::Interleaved, &[&rows]);
        let corpus = Corpus::open(&location).unwrap();
        for (idx, row) in rows.iter().enumerate() {
            prop_assert_eq!(&corpus.read(idx as u64).unwrap(), row);
        }
    }
}
