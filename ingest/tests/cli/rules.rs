//! Rules for texts, languages, addresses and scores, and what is stored of them.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, RecordBatch, StringArray};
use arrow::datatypes::Float32Type;
use flamingo_dataset::{Corpus, Interleaved, Row};
use flamingo_fixtures::http::Response;
use flamingo_fixtures::image;
use flamingo_fixtures::scene::Scene;
use flamingo_fixtures::warc::{Record, gzipped};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::program::{folder, real, run, succeed};

const ENGLISH: &str = "The telescope was built in the mountains, and it was far from the lights of the \
                       city. On clear nights it shows thousands of stars, which have been there for \
                       longer than people have been on this planet. Visitors come to see them with \
                       their own eyes, and to hear what is known about them. Most of them say that \
                       they never saw so many.";
const GERMAN: &str = "Das Teleskop wurde in den Bergen gebaut, weit weg von den Lichtern der Stadt. In \
                      klaren Nächten zeigt es Tausende von Sternen, die schon länger dort sind als \
                      Menschen auf diesem Planeten. Besucher kommen, um sie mit eigenen Augen zu sehen.";

/// A small web in one archive.
struct Web {
    _folder: tempfile::TempDir,
    root: String,
    records: Vec<Record>,
}

impl Web {
    fn new() -> Self {
        let (folder, root) = folder();
        Self { _folder: folder, root, records: Vec::new() }
    }

    fn page(&mut self, url: &str, paragraphs: &[&str], images: &[&str]) {
        self.answer(url, paragraphs, images, &[]);
    }

    fn answer(
        &mut self,
        url: &str,
        paragraphs: &[&str],
        images: &[&str],
        headers: &[(&str, &str)],
    ) {
        let mut html = String::from("<html><body><main><h1>A page about stars</h1>");
        for paragraph in paragraphs {
            write!(html, "<p>{paragraph}</p>").unwrap();
        }
        for image in images {
            write!(html, "<img src=\"{image}\" alt=\"a picture\">").unwrap();
        }
        html.push_str("</main></body></html>");
        let mut response = Response::ok("text/html; charset=utf-8", html.into_bytes());
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        response.headers.extend(headers.iter().map(own));
        self.records.push(Record::response(url, &response));
    }

    fn image(&mut self, url: &str, seed: u64) {
        let jpeg = image::jpeg(Scene::random(seed, 0), 96, seed);
        self.records.push(Record::response(url, &Response::ok("image/jpeg", jpeg)));
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = format!("{}/{name}", self.root);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Makes a corpus with this plan; returns what was printed, its rows and its figures.
    fn ingest(&self, name: &str, plan: &str) -> Made {
        let archive = self.file("web.warc.gz", gzipped(&self.records));
        let plan = self.file(&format!("{name}.toml"), plan);
        let out = format!("{}/{name}", self.root);
        let printed = succeed(&["webpages", "--plan", &plan, "--input", &archive, "--out", &out]);
        succeed(&["check", &out]);
        Made { printed, documents: documents(&out), figures: figures(&out), out }
    }
}

struct Made {
    printed: String,
    documents: Vec<Interleaved>,
    figures: Vec<RecordBatch>,
    out: String,
}

impl Made {
    fn urls(&self) -> Vec<&str> {
        self.documents.iter().map(|document| document.url.as_str()).collect()
    }

    /// Address, what dropped it and one figure, for all rows of a level.
    fn figure(&self, level: &str, name: &str) -> Vec<(String, Option<String>, Option<f32>)> {
        let mut rows = Vec::new();
        for batch in &self.figures {
            let text = |column: &str, row: usize| {
                let column = batch[column].as_string::<i32>();
                column.is_valid(row).then(|| column.value(row).to_owned())
            };
            let values = batch[name].as_primitive::<Float32Type>();
            for row in (0..batch.num_rows()).filter(|row| text("level", *row).unwrap() == level) {
                let value = values.is_valid(row).then(|| values.value(row));
                assert_eq!(
                    batch["kept"].as_boolean().value(row),
                    text("dropped_by", row).is_none()
                );
                rows.push((text("url", row).unwrap(), text("dropped_by", row), value));
            }
        }
        rows
    }
}

fn documents(out: &str) -> Vec<Interleaved> {
    let document = |row| match row {
        Row::Interleaved(document) => document,
        other => panic!("{other:?}"),
    };
    let rows = Corpus::open(out).unwrap().scan().collect::<Result<Vec<_>, _>>().unwrap();
    rows.into_iter().map(document).collect()
}

fn figures(out: &str) -> Vec<RecordBatch> {
    let file = std::fs::File::open(format!("{out}/figures/part-00000.parquet")).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
    reader.collect::<Result<_, _>>().unwrap()
}

#[test]
fn languages_are_told_stored_and_kept_by_plan() {
    let mut web = Web::new();
    web.page("http://a.example/en", &[ENGLISH], &["/1.jpg"]);
    web.page("http://a.example/de", &[GERMAN], &["/2.jpg"]);
    web.image("http://a.example/1.jpg", 1);
    web.image("http://a.example/2.jpg", 2);
    let all = web.ingest("all", "");
    let langs: Vec<_> = all.documents.iter().map(|d| d.lang.as_deref().unwrap()).collect();
    assert_eq!(langs, ["en", "de"]);
    assert!(all.documents.iter().all(|d| d.lang_score.unwrap() > 0.9));
    let english = web.ingest("english", "[language]\nkeep = [\"en\"]\nscore_min = 0.5\n");
    assert_eq!(english.urls(), ["http://a.example/en"]);
    assert!(english.printed.contains("rejected: 1 text/language\n"), "{}", english.printed);
    // What was dropped has its figures all the same.
    let words = english.figure("document", "words");
    let expected = GERMAN.split_whitespace().count() as f32 + 4.0;
    assert_eq!(words[1].1.as_deref(), Some("text/language"));
    assert_eq!(words[1].2, Some(expected));
}

#[test]
fn the_presets_drop_bad_texts_and_say_why() {
    let mut web = Web::new();
    let repeated = "It is on sale now and it is cheap. ".repeat(40);
    web.page("http://a.example/good", &[ENGLISH, "x y z", "Click here"], &["/1.jpg"]);
    web.page("http://a.example/again", &[&repeated], &["/2.jpg"]);
    web.page("http://a.example/short", &["Too short for a page."], &["/3.jpg"]);
    for i in 1..4 {
        web.image(&format!("http://a.example/{i}.jpg"), i);
    }
    let kept = web.ingest("default", "");
    assert_eq!(kept.documents.len(), 3);
    let m3w = web.ingest("m3w", "preset = \"m3w\"\n");
    assert_eq!(m3w.urls(), ["http://a.example/good"]);
    let dropped = m3w.figure("document", "top_2_gram");
    let reason = |i: usize| dropped[i].1.as_deref();
    assert_eq!(reason(0), None);
    assert!(reason(1).unwrap().starts_with("text/"), "{dropped:?}");
    assert_eq!(reason(2), Some("text/gopher_few_words"));
    // OBELICS takes paragraphs out; its images must have 150 pixels, which the plan lifts here.
    let plan =
        "preset = \"obelics\"\n[image]\nside_min = 64\n[text.document]\nstop_words_min = 0.3\n";
    let obelics = web.ingest("obelics", plan);
    let text = obelics.documents[0].texts().collect::<Vec<_>>().join("\n");
    assert!(text.contains("telescope") && !text.contains("x y z") && !text.contains("Click"));
    let paragraphs = obelics.figure("paragraph", "words");
    let reasons: Vec<_> =
        paragraphs.iter().filter_map(|(_, reason, _)| reason.as_deref()).collect();
    assert!(reasons.contains(&"paragraph/few_words"), "{paragraphs:?}");
    // The effective plan spells the preset out, and gives the same corpus again.
    let effective = std::fs::read_to_string(format!("{}/plan.toml", obelics.out)).unwrap();
    assert!(
        effective.contains("char_repetition_max = 0.1")
            && effective.contains("stop_words_min = 0.3")
    );
    let again = web.ingest("again", &effective);
    let manifest = |out: &str| std::fs::read_to_string(format!("{out}/manifest.json")).unwrap();
    assert_eq!(manifest(&obelics.out), manifest(&again.out));
}

#[test]
fn registries_and_blocks_are_for_documents_and_images() {
    let mut web = Web::new();
    web.page("http://a.example/1", &[ENGLISH], &["/1.jpg", "http://img.no.example/2.jpg"]);
    web.page("http://www.no.example/2", &[ENGLISH], &["http://a.example/1.jpg"]);
    web.page("http://a.example/3", &[ENGLISH], &["/3.jpg"]);
    web.answer("http://a.example/4", &[ENGLISH], &["/3.jpg"], &[("X-Robots-Tag", "anybot: noai")]);
    web.answer("http://a.example/5", &[ENGLISH], &["/3.jpg"], &[("X-Robots-Tag", "noindex")]);
    for (url, seed) in [("a.example/1.jpg", 1), ("img.no.example/2.jpg", 2), ("a.example/3.jpg", 3)]
    {
        web.image(&format!("http://{url}"), seed);
    }
    let domains = web.file("domains.txt", "# opted out\nno.example\n");
    let urls = web.file("urls.txt", "http://a.example/3\n");
    let plan = format!("[opt_out]\ndomains_file = '{domains}'\n[block]\nurls_file = '{urls}'\n");
    let made = web.ingest("made", &plan);
    assert_eq!(made.urls(), ["http://a.example/1", "http://a.example/5"]);
    assert_eq!(made.documents[0].images().count(), 1);
    for line in ["2 opt_out/registry", "1 page/blocked", "1 opt_out/x_robots_tag"] {
        assert!(made.printed.contains(&format!("rejected: {line}\n")), "{line}: {}", made.printed);
    }
    // The plan says which list it was.
    let effective = std::fs::read_to_string(format!("{}/plan.toml", made.out)).unwrap();
    std::fs::write(&domains, "other.example\n").unwrap();
    let plan = web.file("effective.toml", effective);
    let archive = format!("{}/web.warc.gz", web.root);
    let out = format!("{}/other", web.root);
    let output = run(&["webpages", "--plan", &plan, "--input", &archive, "--out", &out]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains("opt_out.domains_sha256") && message.contains("domains.txt"),
        "{message}"
    );
    assert_eq!((output.status.code(), Path::new(&out).exists()), (Some(2), false));
    let plan = "[opt_out]\ndirectives = [\"noai\", \"noindex\"]\n";
    assert!(!web.ingest("wide", plan).urls().contains(&"http://a.example/5"));
}

#[test]
fn scores_of_outside_classifiers_join_by_key() {
    let mut web = Web::new();
    for i in 1..4 {
        web.page(&format!("http://a.example/{i}"), &[ENGLISH], &["/1.jpg", &format!("/p{i}.jpg")]);
        web.image(&format!("http://a.example/p{i}.jpg"), i);
    }
    web.image("http://a.example/1.jpg", 9);
    let image_scores = web
        .file("nsfw.csv", "url,nsfw\nhttp://a.example/1.jpg,0.99\nhttp://a.example/p1.jpg,0.5\n");
    let keys: ArrayRef =
        Arc::new(StringArray::from(vec!["http://a.example/1", "http://a.example/2"]));
    let values: ArrayRef = Arc::new(Float64Array::from(vec![100.0, 2000.0]));
    let batch = RecordBatch::try_from_iter([("page", keys), ("perplexity", values)]).unwrap();
    let table = format!("{}/perplexity.parquet", web.root);
    let mut writer =
        ArrowWriter::try_new(std::fs::File::create(&table).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let plan = format!(
        "[[scores]]\nfile = '{image_scores}'\nkey = 'url'\ncolumns = ['nsfw']\n\
         [[scores.rule]]\nname = 'nsfw'\nlevel = 'image'\nmax = 0.9\n\
         [[scores]]\nfile = '{table}'\nkey = 'url'\nkey_column = 'page'\ncolumns = ['perplexity']\n\
         [[scores.rule]]\nname = 'perplexity'\nlevel = 'document'\nmax = 1500\nmissing = 'drop'\n"
    );
    let made = web.ingest("made", &plan);
    assert_eq!(made.urls(), ["http://a.example/1"]);
    assert_eq!(made.documents[0].images().count(), 1);
    for line in ["1 image/score_nsfw", "1 text/score_perplexity", "1 text/score_perplexity_missing"]
    {
        assert!(made.printed.contains(&format!("rejected: {line}\n")), "{line}: {}", made.printed);
    }
    let scores = made.figures[0]["scores"].as_list::<i32>();
    let levels = made.figures[0]["level"].as_string::<i32>();
    let scored = (0..scores.len()).filter(|row| scores.is_valid(*row));
    let mut scored: Vec<_> = scored.map(|row| levels.value(row)).collect();
    scored.sort_unstable();
    // Two pages have a perplexity, and both images of the one that is judged have a score.
    assert_eq!(scored, ["document", "document", "image", "image"]);
}

#[test]
fn captions_are_judged_and_scored() {
    let (_folder, root) = folder();
    let mut list = String::from("url,file,caption\n");
    let captions = [
        "a red car stands in front of the old house",
        "too short",
        "ein rotes Auto steht vor dem alten Haus in der Stadt",
        "the dog looks at the other dog near the tree",
    ];
    for (i, caption) in captions.iter().enumerate() {
        std::fs::write(format!("{root}/{i}.jpg"), image::jpeg(Scene::random(i as u64, 1), 224, 1))
            .unwrap();
        writeln!(list, "http://a.example/{i},{i}.jpg,{caption}").unwrap();
    }
    std::fs::write(format!("{root}/list.csv"), list).unwrap();
    std::fs::write(
        format!("{root}/clip.csv"),
        "key,clip,aesthetic\nlist.csv:000000000,0.31,5\nlist.csv:000000003,0.1,4\n",
    )
    .unwrap();
    let plan = format!(
        "preset = 'datacomp-basic'\n[[scores]]\nfile = '{root}/clip.csv'\nkey = 'key'\ncolumns = ['clip', 'aesthetic']\n\
         [[scores.rule]]\nname = 'clip'\nlevel = 'image'\nmin = 0.28\n"
    );
    std::fs::write(format!("{root}/plan.toml"), plan).unwrap();
    let (plan, input, out) =
        (format!("{root}/plan.toml"), format!("{root}/list.csv"), format!("{root}/out"));
    let printed = succeed(&["alt-text", "--plan", &plan, "--input", &input, "--out", &out]);
    for line in ["1 caption/few_words", "1 caption/language", "1 image/score_clip"] {
        assert!(printed.contains(&format!("rejected: {line}\n")), "{line}: {printed}");
    }
    let rows = Corpus::open(&out).unwrap().scan().collect::<Result<Vec<_>, _>>().unwrap();
    let [Row::ImageText(pair)] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!(pair.scores, [("clip".to_owned(), 0.31), ("aesthetic".to_owned(), 5.0)]);
    succeed(&["check", &out]);
}

#[test]
fn presets_are_printed_as_plans() {
    let list = succeed(&["presets"]);
    let (_folder, root) = folder();
    for name in ["m3w", "obelics", "mmc4", "datacomp-basic"] {
        assert!(list.contains(name), "{list}");
        let plan = succeed(&["presets", name]);
        assert!(plan.contains(&format!("preset = \"{name}\"")), "{plan}");
        std::fs::write(format!("{root}/{name}.toml"), plan).unwrap();
    }
    let output = run(&["presets", "laion"]);
    assert_eq!(output.status.code(), Some(2));
}

/// Of real textbook pages, the paper's rules keep nearly all.
#[test]
fn textbooks_pass_the_rules_of_the_paper() {
    let Some(data) = real("openstax-warc/astronomy.warc.gz") else { return };
    let (_folder, root) = folder();
    let count = |name: &str, plan: &str| {
        let (file, out) = (format!("{root}/{name}.toml"), format!("{root}/{name}"));
        std::fs::write(&file, plan).unwrap();
        let printed = succeed(&[
            "webpages",
            "--plan",
            &file,
            "--input",
            data.to_str().unwrap(),
            "--out",
            &out,
        ]);
        println!("{printed}");
        documents(&out).len()
    };
    let (all, kept) = (count("all", ""), count("m3w", "preset = 'm3w'"));
    assert!(kept < all && kept as f64 > 0.8 * all as f64, "{kept} of {all}");
}
