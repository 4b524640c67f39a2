//! What is done with a finished corpus: check, view, report, export, purge.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use flamingo_dataset::{Corpus, CorpusStore, Manifest, Row, Slot, encode_shard, sha256_hex};
use flamingo_fixtures::broken;
use flamingo_fixtures::web::{self, WebSize};

use crate::program::{files, folder, ingest, real, run, succeed};

/// Small shards, so that a purge touches some and not others.
const PLAN: &str = "[shard]\nrows_max = 4\n";

/// Three corpora of a made-up web.
struct Made {
    _folder: tempfile::TempDir,
    root: String,
}

impl Made {
    fn new() -> Self {
        let (folder, root) = folder();
        let size = WebSize { pages: 14, pairs: 9, clips: 3, support: 1, queries: 1 };
        web::write(Path::new(&format!("{root}/web")), &size, 7).unwrap();
        std::fs::write(format!("{root}/plan.toml"), PLAN).unwrap();
        Self { _folder: folder, root }
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.root)
    }

    fn ingest(&self, command: &str, input: &str) -> String {
        let out = self.path(command);
        let (plan, input) = (self.path("plan.toml"), self.path(&format!("web/{input}")));
        succeed(&[command, "--plan", &plan, "--input", &input, "--out", &out]);
        out
    }

    fn pages(&self) -> String {
        self.ingest("webpages", "pages.warc.gz")
    }

    fn pairs(&self) -> String {
        self.ingest("alt-text", "pairs.parquet")
    }

    fn clips(&self) -> String {
        self.ingest("video-text", "clips")
    }
}

fn rows(corpus: &str) -> Vec<Row> {
    Corpus::open(corpus).unwrap().scan().collect::<Result<_, _>>().unwrap()
}

fn manifest(corpus: &str) -> Manifest {
    Manifest::read(&CorpusStore::open(corpus).unwrap()).unwrap()
}

/// Checks a corpus, which must have a problem in each of `places` with the words beside it.
fn expect_problems(corpus: &str, expected: &[(&str, &str)]) {
    let output = run(&["check", corpus, "--json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let problems = found["problems"].as_array().unwrap();
    for (place, words) in expected {
        let is_there = problems.iter().any(|problem| {
            problem["place"].as_str().unwrap().contains(place)
                && problem["problem"].as_str().unwrap().contains(words)
        });
        assert!(is_there, "{place}: {words}: not in {found:#}");
    }
    assert_eq!(found["n_problems"], expected.len(), "{found:#}");
    assert_eq!(found["ok"], false);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(errors.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{errors}");
}

/// Replaces the rows of the first shard, with checksums that fit.
fn rewrite(corpus: &str, change: impl Fn(&mut Vec<Row>)) {
    let store = CorpusStore::open(corpus).unwrap();
    let mut manifest = manifest(corpus);
    let n = manifest.shards[0].rows as usize;
    let mut first: Vec<Row> = rows(corpus).into_iter().take(n).collect();
    change(&mut first);
    let bytes = encode_shard(manifest.kind, &first).unwrap();
    let entry = &mut manifest.shards[0];
    entry.rows = first.len() as u64;
    entry.images = first.iter().map(|row| row.n_images() as u64).sum();
    entry.words = first.iter().map(|row| row.words() as u64).sum();
    entry.bytes = bytes.len() as u64;
    entry.sha256 = sha256_hex(&bytes);
    store.put(&entry.file, bytes.into()).unwrap();
    Manifest::new(manifest.kind, manifest.plan_sha256, manifest.shards).write(&store).unwrap();
}

#[test]
fn a_check_finds_all_that_is_wrong() {
    let made = Made::new();
    let corpus = made.pages();
    let lines = succeed(&["check", &corpus, "--workers", "3"]);
    let n = rows(&corpus).len();
    assert!(lines.contains(&format!("ok, interleaved, {n} rows")), "{lines}");
    let sampled = succeed(&["check", &corpus, "--sample", "5"]);
    assert!(sampled.contains("sampled 5 rows"), "{sampled}");
    succeed(&["check", &corpus, "--sample", "0.3"]);
    for wrong in ["0", "2.0", "some"] {
        assert_eq!(run(&["check", &corpus, "--sample", wrong]).status.code(), Some(2));
    }

    // Files: one too many, one missing, one of a table cut short.
    std::fs::write(format!("{corpus}/mine.txt"), "x").unwrap();
    std::fs::write(format!("{corpus}/shard-00099.parquet"), "x").unwrap();
    std::fs::create_dir_all(format!("{corpus}/ledger")).unwrap();
    std::fs::write(format!("{corpus}/ledger/part-00000.parquet"), "PAR1 not").unwrap();
    let last = manifest(&corpus).shards.last().unwrap().file.clone();
    let bytes = std::fs::read(format!("{corpus}/{last}")).unwrap();
    std::fs::remove_file(format!("{corpus}/{last}")).unwrap();
    let expected = [
        ("mine.txt", "no run of flamingo-ingest writes"),
        ("shard-00099.parquet", "the manifest does not list"),
        ("ledger/part-00000.parquet", "decode"),
        (&*last, "missing"),
    ];
    expect_problems(&corpus, &expected);
    std::fs::remove_file(format!("{corpus}/mine.txt")).unwrap();
    std::fs::remove_file(format!("{corpus}/shard-00099.parquet")).unwrap();
    std::fs::remove_dir_all(format!("{corpus}/ledger")).unwrap();
    std::fs::write(format!("{corpus}/{last}"), bytes).unwrap();
    succeed(&["check", &corpus]);

    // Rows whose checksums fit, and which are wrong.
    rewrite(&corpus, |rows| {
        rows[1] = rows[0].clone();
        let Row::Interleaved(page) = &mut rows[2] else { panic!() };
        let image = page.slots.iter_mut().find_map(|slot| match slot {
            Slot::Image { image, meta } => Some((image, meta)),
            Slot::Text(_) => None,
        });
        let (image, meta) = image.unwrap();
        image.bytes = broken::not_an_image().into();
        meta.sha256 = sha256_hex(&image.bytes);
    });
    expect_problems(&corpus, &[("row 1", "is that of row 0 already"), ("row 2", "image 0: ")]);
}

#[test]
fn a_check_of_pairs_and_clips() {
    let made = Made::new();
    let (pairs, clips) = (made.pairs(), made.clips());
    rewrite(&pairs, |rows| {
        let Row::ImageText(pair) = &mut rows[1] else { panic!() };
        pair.width += 1;
        let Row::ImageText(pair) = &mut rows[2] else { panic!() };
        pair.sha256 = "00".repeat(32);
    });
    expect_problems(&pairs, &[("row 1", "its size is"), ("row 2", "sha256")]);
    rewrite(&clips, |rows| {
        let Row::VideoText(clip) = &mut rows[0] else { panic!() };
        clip.frame_ms.reverse();
    });
    expect_problems(&clips, &[("row 0", "not in order")]);
}

#[test]
fn a_row_is_shown_by_number_key_or_address() {
    let made = Made::new();
    let corpus = made.pages();
    let all = rows(&corpus);
    let Row::Interleaved(page) = &all[9] else { panic!() };
    let html = made.path("row.html");
    let by_number = succeed(&["view", &corpus, "--row", "9", "--out", &html]);
    assert_eq!(succeed(&["view", &corpus, "--key", &page.doc_id]), by_number);
    assert_eq!(succeed(&["view", &corpus, "--url", &page.url]), by_number);
    assert!(by_number.contains(&page.url) && by_number.contains("<image> image/"), "{by_number}");
    let html = std::fs::read_to_string(html).unwrap();
    assert_eq!(html.matches("<img ").count(), page.images().count());
    let missing = run(&["view", &corpus, "--url", "https://nowhere.example/"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("https://nowhere.example/"));
    succeed(&["view", &made.pairs()]);
    succeed(&["view", &made.clips(), "--row", "2"]);
}

/// What a purge leaves: every row but those with `gone`, and files of untouched shards as they were.
#[test]
fn what_is_purged_is_gone_and_stays_gone() {
    let made = Made::new();
    let corpus = made.pages();
    let before = rows(&corpus);
    let shards_before = files(Path::new(&corpus));
    let Row::Interleaved(gone) = &before[1] else { panic!() };
    let Row::Interleaved(other) = &before[6] else { panic!() };
    let image = other.slots.iter().find_map(|slot| match slot {
        Slot::Image { meta, .. } => Some(meta.clone()),
        Slot::Text(_) => None,
    });
    let image = image.unwrap();

    let arguments = ["purge", &corpus, "--url", &gone.url, "--sha256", &image.sha256];
    let dry = succeed(&[&arguments[..], &["--dry-run"]].concat());
    assert!(dry.contains("to remove: 1 rows"), "{dry}");
    assert_eq!(files(Path::new(&corpus)), shards_before);
    let lines = succeed(&arguments);
    assert!(lines.contains("removed: 1 rows"), "{lines}");
    succeed(&["check", &corpus]);

    let after = rows(&corpus);
    let has_image = |row: &Row| match row {
        Row::Interleaved(page) => page
            .slots
            .iter()
            .any(|slot| matches!(slot, Slot::Image { meta, .. } if meta.sha256 == image.sha256)),
        _ => false,
    };
    assert!(!after.iter().any(|row| row.key() == gone.doc_id || has_image(row)));
    // All others are there, and those without the image as they were.
    let left: BTreeSet<&str> = after.iter().map(Row::key).collect();
    for row in before.iter().filter(|row| row.key() != gone.doc_id) {
        let stays = !has_image(row) || row.n_images() > 1;
        assert_eq!(left.contains(row.key()), stays, "{}", row.key());
        if !has_image(row) {
            assert!(after.contains(row), "{} changed", row.key());
        }
    }
    // Shards without anything to remove keep name and bytes.
    let names = manifest(&corpus).shards.into_iter().map(|shard| shard.file);
    let shards_after = files(Path::new(&corpus));
    let kept = names.filter(|name| !name.contains("-g")).inspect(|name| {
        let bytes = |files: &[(String, Vec<u8>)]| {
            files.iter().find(|(file, _)| file == name).map(|(_, bytes)| bytes.clone())
        };
        assert_eq!(bytes(&shards_before), bytes(&shards_after), "{name}");
    });
    assert!(kept.count() > 0);
    let n_shards = shards_after.iter().filter(|(name, _)| name.starts_with("shard-")).count();
    assert_eq!(n_shards, manifest(&corpus).shards.len(), "old shards are gone");

    // Again: nothing to do, nothing changes but the count of what was not found.
    let again = succeed(&arguments);
    assert!(again.contains("removed: 0 rows"), "{again}");
    assert_eq!(files(Path::new(&corpus)), shards_after);

    // The run begun anew in the same place does not bring it back.
    std::fs::remove_file(format!("{corpus}/manifest.json")).unwrap();
    let (plan, input) = (made.path("plan.toml"), made.path("web/pages.warc.gz"));
    let resume = ["webpages", "--plan", &plan, "--input", &input, "--out", &corpus, "--resume"];
    let lines = succeed(&resume);
    assert!(lines.contains("opt_out/purged"), "{lines}");
    let resumed = rows(&corpus);
    let keys = |rows: &[Row]| rows.iter().map(|row| row.key().to_owned()).collect::<Vec<_>>();
    assert_eq!(keys(&resumed), keys(&after));
    assert!(!resumed.iter().any(has_image));
}

#[test]
fn a_purge_of_everything_leaves_an_empty_corpus() {
    let made = Made::new();
    let corpus = made.pairs();
    let urls: Vec<String> = rows(&corpus)
        .into_iter()
        .map(|row| match row {
            Row::ImageText(pair) => pair.sha256,
            other => panic!("{other:?}"),
        })
        .collect();
    let list = made.path("list.txt");
    std::fs::write(&list, urls.join("\n")).unwrap();
    succeed(&["purge", &corpus, "--list", &list]);
    assert_eq!(manifest(&corpus).rows, 0);
    succeed(&["check", &corpus]);
    let wrong = run(&["purge", &corpus, "--sha256", "12"]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    assert_eq!(run(&["purge", &made.path("web"), "--domain", "a.example"]).status.code(), Some(1));
}

#[test]
fn a_purge_that_is_killed_leaves_the_old_corpus_or_the_new_one() {
    let made = Made::new();
    let corpus = made.pages();
    let before: Vec<Row> = rows(&corpus);
    let urls: Vec<String> = before
        .iter()
        .step_by(2)
        .map(|row| match row {
            Row::Interleaved(page) => page.url.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected: Vec<&Row> = before.iter().skip(1).step_by(2).collect();
    let mut n_old = 0;
    for kill in 0..12u64 {
        let mut arguments = vec!["purge", &corpus, "--url"];
        arguments.extend(urls.iter().map(String::as_str));
        let mut child =
            ingest(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(2 + kill * 3));
        child.kill().unwrap();
        child.wait().unwrap();
        let output = run(&["check", &corpus, "--json"]);
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        // New shards, or old ones, that are not listed may lie about until the next purge.
        for problem in found["problems"].as_array().unwrap() {
            let words = problem["problem"].as_str().unwrap();
            let place = problem["place"].as_str().unwrap();
            let is_leftover = words.contains("does not list") || place.contains('#');
            assert!(is_leftover, "{found:#}");
        }
        let now = rows(&corpus);
        let is_new = now.iter().eq(expected.iter().copied());
        assert!(is_new || now == before, "neither old nor new after kill {kill}");
        n_old += u64::from(!is_new);
    }
    println!("{n_old} of 12 kills hit before the manifest");
    // Without anything to remove, it ends what was begun.
    let mut arguments = vec!["purge", &corpus, "--url"];
    arguments.extend(urls.iter().map(String::as_str));
    succeed(&arguments);
    succeed(&["purge", &corpus]);
    assert!(rows(&corpus).iter().eq(expected.iter().copied()));
    succeed(&["check", &corpus]);
}

#[test]
fn exports_are_whole_or_absent_and_always_the_same() {
    let made = Made::new();
    let (pages, pairs, clips) = (made.pages(), made.pairs(), made.clips());
    for corpus in [&pages, &pairs, &clips] {
        let n = rows(corpus).len();
        for format in ["webdataset", "jsonl", "nemo", "mmc4"] {
            let export = |out: &str| {
                run(&["export", corpus, "--format", format, "--out", out, "--file-rows", "4"])
            };
            let (one, two) = (made.path("one"), made.path("two"));
            let output = export(&one);
            if format == "mmc4" && corpus != &pages {
                assert_eq!(output.status.code(), Some(2), "{output:?}");
                assert!(!Path::new(&one).exists());
                continue;
            }
            let lines = String::from_utf8(output.stdout).unwrap();
            assert!(lines.contains(&format!("{n} rows")), "{format}: {lines}");
            let found = files(Path::new(&one));
            let ending = match format {
                "jsonl" => ".jsonl",
                "nemo" => ".parquet",
                _ => ".tar",
            };
            let n_files = found.iter().filter(|(name, _)| name.ends_with(ending)).count();
            assert_eq!(n_files, n.div_ceil(4), "{format}");
            // What is there is not written over.
            assert_eq!(export(&one).status.code(), Some(2));
            // What a killed export left is.
            std::fs::create_dir(made.path(".two.partial")).unwrap();
            std::fs::write(made.path(".two.partial/export.json"), "{}").unwrap();
            std::fs::write(made.path(".two.partial/00000.tar"), "half").unwrap();
            assert!(export(&two).status.success());
            assert!(files(Path::new(&two)) == found, "{format} differs");
            for folder in [one, two] {
                std::fs::remove_dir_all(folder).unwrap();
            }
        }
    }
}

#[test]
fn lines_of_an_export_are_the_rows() {
    let made = Made::new();
    let corpus = made.pages();
    let out = made.path("lines");
    succeed(&["export", &corpus, "--format", "jsonl", "--out", &out]);
    let lines = std::fs::read_to_string(format!("{out}/part-00000.jsonl")).unwrap();
    let all = rows(&corpus);
    assert_eq!(lines.lines().count(), all.len());
    for (line, row) in lines.lines().zip(&all) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let Row::Interleaved(page) = row else { panic!() };
        let (texts, urls) = (line["texts"].as_array().unwrap(), line["images"].as_array().unwrap());
        let paths = line["image_files"].as_array().unwrap();
        assert_eq!([texts.len(), urls.len(), paths.len()], [page.slots.len(); 3]);
        for (i, slot) in page.slots.iter().enumerate() {
            match slot {
                Slot::Text(text) => {
                    assert_eq!((&texts[i], urls[i].is_null()), (&text.as_str().into(), true));
                }
                Slot::Image { image, .. } => {
                    let file = format!("{out}/{}", paths[i].as_str().unwrap());
                    assert_eq!(std::fs::read(file).unwrap(), image.bytes);
                    assert!(texts[i].is_null() && urls[i].is_string());
                }
            }
        }
        let about: serde_json::Value =
            serde_json::from_str(line["general_metadata"].as_str().unwrap()).unwrap();
        assert_eq!(about["url"], page.url.as_str());
    }
}

#[test]
fn a_report_shows_what_was_kept_and_dropped_and_is_always_the_same() {
    let (_folder, root) = folder();
    let mut list = String::from("file,caption\n");
    let picture = |width, height| {
        let mut png = std::io::Cursor::new(Vec::new());
        image::RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 90]))
            .write_to(&mut png, image::ImageFormat::Png)
            .unwrap();
        png.into_inner()
    };
    for i in 0..30u32 {
        // A third is too small, a third too long.
        let (width, height) = [(100 + i, 100), (20 + i / 3, 40), (900, 70 + i)][i as usize % 3];
        std::fs::write(format!("{root}/{i}.png"), picture(width, height)).unwrap();
        writeln!(list, "{i}.png,picture {i}").unwrap();
    }
    std::fs::write(format!("{root}/list.csv"), list).unwrap();
    let out = format!("{root}/out");
    succeed(&["alt-text", "--input", &format!("{root}/list.csv"), "--out", &out]);
    succeed(&["check", &out]);
    let report = std::fs::read_to_string(format!("{out}/report.html")).unwrap();
    for part in ["image / too_small", "image / aspect", "pairs kept", "Images that were dropped"] {
        assert!(report.contains(part), "{part} is not in the report");
    }
    // Up to eight pictures a rule, and eight rows.
    assert_eq!(report.matches("<img ").count(), 24);
    for outside in ["http://", "https://", "<script", "@import", "url("] {
        assert!(!report.contains(outside), "{outside}");
    }
    std::fs::remove_file(format!("{out}/report.html")).unwrap();
    succeed(&["report", &out]);
    assert_eq!(std::fs::read_to_string(format!("{out}/report.html")).unwrap(), report);
}

#[test]
fn a_real_book_goes_through_every_tool() {
    let Some(archive) = real("openstax-warc/astronomy-mini.warc.gz") else { return };
    let (_folder, root) = folder();
    let out = format!("{root}/book");
    succeed(&["webpages", "--input", archive.to_str().unwrap(), "--out", &out]);
    let checked = succeed(&["check", &out]);
    println!("{checked}");
    let n = rows(&out).len();
    succeed(&["export", &out, "--format", "webdataset", "--out", &format!("{root}/tars")]);
    succeed(&["view", &out, "--row", &(n - 1).to_string()]);
    let Row::Interleaved(page) = &rows(&out)[0] else { panic!() };
    let lines = succeed(&["purge", &out, "--url", &page.url]);
    println!("{lines}");
    assert_eq!(rows(&out).len(), n - 1);
    succeed(&["check", &out]);
}
