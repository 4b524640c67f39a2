//! Whatever is wrong, there is one clear line, an exit code, and nothing half-written.

use std::path::Path;

use flamingo_fixtures::broken;
use flamingo_fixtures::web::{self, WebSize};

use crate::program::{files, folder, real, run, succeed};

/// Runs the program, which must fail with `code` and one line that has all of `parts`.
fn check(arguments: &[&str], code: i32, parts: &[&str]) {
    let output = run(arguments);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
    let errors: Vec<_> = message.lines().collect();
    assert_eq!(errors.len(), 1, "{arguments:?}: {message}");
    assert!(errors[0].starts_with("error: "), "{message}");
    for part in parts {
        assert!(message.contains(part), "{arguments:?}: `{part}` is not in {message}");
    }
}

struct Place {
    _folder: tempfile::TempDir,
    root: String,
}

impl Place {
    fn new() -> Self {
        let (folder, root) = folder();
        let size = WebSize { pages: 3, pairs: 2, clips: 0, support: 1, queries: 1 };
        web::write(Path::new(&format!("{root}/web")), &size, 1).unwrap();
        Self { _folder: folder, root }
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.root)
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    /// Runs with this input, which must fail and leave no output.
    fn check(&self, command: &str, input: &str, code: i32, parts: &[&str]) {
        let out = self.path("out");
        check(&[command, "--input", input, "--out", &out], code, parts);
        assert!(!Path::new(&out).exists(), "{command} {input} left {:?}", files(Path::new(&out)));
    }
}

#[test]
fn inputs_that_are_missing_or_of_another_kind() {
    let place = Place::new();
    let missing = place.path("nothing.warc.gz");
    place.check("webpages", &missing, 1, &["nothing.warc.gz", "No such file"]);
    let text = place.file("notes.txt", "hello");
    for command in ["webpages", "video-text"] {
        place.check(command, &text, 2, &["notes.txt", "is not one of"]);
    }
    // It may be a list of addresses, which lacks captions.
    place.check("alt-text", &text, 2, &["notes.txt", "expected `caption`", "caption.chars_min"]);
    let clip = place.file("clip.mp4", "hello");
    place.check("alt-text", &clip, 2, &["clip.mp4", "is not one of"]);
    std::fs::create_dir(place.path("empty")).unwrap();
    place.check("webpages", &place.path("empty"), 2, &["empty", "holds none of .warc"]);
    let fake = place.file("fake.warc.gz", "this is no archive");
    place.check("webpages", &fake, 1, &["fake.warc.gz", "no WARC file"]);
    let hollow = place.file("hollow.warc", "");
    place.check("webpages", &hollow, 1, &["hollow.warc", "no whole record"]);
}

#[test]
fn inputs_that_cannot_be_used_that_way() {
    let place = Place::new();
    let list = place.file("a.csv", "file,caption\na.jpg,a\n");
    let again = format!("{}/./a.csv", place.root);
    let out = place.path("out");
    check(&["alt-text", "--input", &list, &again, "--out", &out], 2, &["a.csv", "given twice"]);
    // A folder of clips on a store cannot be listed; a list or a clip there is read.
    place.check("video-text", "s3://bucket/clips", 2, &["s3://bucket/clips", ".webm"]);
    let pipe = place.path("pipe.csv");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    place.check("alt-text", &pipe, 1, &["pipe.csv", "it is not a file"]);
    place.check("webpages", &pipe, 2, &["pipe.csv", "is not one of"]);
}

#[test]
fn a_file_address_is_a_path() {
    let place = Place::new();
    let (input, out) = (place.path("web/pages.warc.gz"), place.path("new/pages"));
    let address = |path: &str| format!("file://{path}");
    succeed(&["webpages", "--input", &address(&input), "--out", &address(&out)]);
    succeed(&["check", &out]);
    assert!(!Path::new(&out).join("journal").exists());
}

#[test]
fn archives_that_are_cut_off() {
    let place = Place::new();
    let cut = place.file("cut.warc.gz", broken::truncated_gzip_warc());
    // The whole records are used.
    let lines = succeed(&["webpages", "--input", &cut, "--out", &place.path("kept")]);
    assert!(lines.contains("rejected: 1 read/truncated_archive"), "{lines}");
    // Unless the plan wants whole archives.
    let plan = place.file("fail.toml", "[archive]\ncut_off = \"fail\"\n");
    let out = place.path("out");
    let fail = |input: &str, parts: &[&str]| {
        check(&["webpages", "--plan", &plan, "--input", input, "--out", &out], 1, parts);
        assert!(!Path::new(&out).exists());
    };
    fail(&cut, &["cut.warc.gz", "cut off in the record at byte", "archive.cut_off"]);
    fail(&place.file("fake.warc", "no archive"), &["fake.warc", "no WARC file"]);
    let Some(archive) = real("openstax-warc/astronomy-mini.warc.gz") else { return };
    let whole = std::fs::read(archive).unwrap();
    let cut = place.file("real.warc.gz", &whole[..whole.len() / 2]);
    fail(&cut, &["real.warc.gz", "cut off"]);
}

#[test]
fn plans_that_are_wrong() {
    let place = Place::new();
    let input = place.path("web/pages.warc.gz");
    let out = place.path("out");
    let check = |plan: &str, parts: &[&str]| {
        check(&["webpages", "--plan", plan, "--input", &input, "--out", &out], 2, parts);
        assert!(!Path::new(&out).exists());
    };
    check(&place.path("nothing.toml"), &["nothing.toml"]);
    check(
        &place.file("key.toml", "[image]\n\nside_mni = 3\n"),
        &["key.toml", "side_mni", "line 3"],
    );
    check(&place.file("value.toml", "[image]\naspect_max = 0.1\n"), &["image.aspect_max", "0.1"]);
    check(&place.file("type.toml", "[image]\nside_min = \"x\"\n"), &["type.toml", "line 2"]);
    check(&place.file("toml.toml", "[image"), &["toml.toml"]);
}

#[test]
fn outputs_that_are_taken() {
    let place = Place::new();
    let input = place.path("web/pages.warc.gz");
    let taken = place.path("taken");
    std::fs::create_dir(&taken).unwrap();
    place.file("taken/mine.txt", "keep me");
    let before = files(Path::new(&taken));
    check(&["webpages", "--input", &input, "--out", &taken], 2, &["taken", "exists"]);
    let resume = ["webpages", "--input", &input, "--out", &taken, "--resume"];
    check(&resume, 2, &["mine.txt", "no run of flamingo-ingest wrote"]);
    assert_eq!(files(Path::new(&taken)), before);
    let file = place.file("file", "x");
    check(&["webpages", "--input", &input, "--out", &file], 2, &["file", "exists"]);
    check(
        &["webpages", "--input", &input, "--out", "/proc/nowhere/out"],
        1,
        &["/proc/nowhere/out"],
    );
}

#[test]
fn images_that_are_none_and_bombs() {
    let place = Place::new();
    place.file("page.jpg", broken::not_an_image());
    place.file("bomb.png", broken::png_bomb(30_000, 30_000));
    place.file("empty.png", "");
    let only_bad = place.file("bad.csv", "file,caption\npage.jpg,a\nbomb.png,b\nempty.png,c\n");
    let reasons = ["1 image/html_page", "1 image/too_many_pixels", "bad.csv at 0 (page.jpg)"];
    place.check("alt-text", &only_bad, 1, &reasons);
    // Among good ones they cost themselves.
    place.file(
        "good.jpg",
        flamingo_fixtures::image::jpeg(
            flamingo_fixtures::scene::Scene::random(1, 1),
            flamingo_fixtures::image::SIZE,
            1,
        ),
    );
    let mixed = place.file(
        "mixed.csv",
        "file,caption\npage.jpg,a\ngood.jpg,fine\nbomb.png,b\n/etc/hostname,c\n../x.jpg,d\nnone.jpg,e\ngood.jpg,\n",
    );
    let lines = succeed(&["alt-text", "--input", &mixed, "--out", &place.path("mixed")]);
    assert!(lines.contains("1 pairs, 1 images"), "{lines}");
    let dropped = [
        "1 image/html_page",
        "1 image/too_many_pixels",
        "2 read/path_outside",
        "1 read/file_not_found",
        "1 caption/no_caption",
    ];
    for reason in dropped {
        assert!(lines.contains(&format!("rejected: {reason}\n")), "{reason}: {lines}");
    }
    let urls = place.file("urls.csv", "url,caption\nhttps://a.example/x.jpg,a\n");
    place.check("alt-text", &urls, 2, &["`fetch.contact` is empty"]);
}

#[test]
fn lists_that_are_broken() {
    let place = Place::new();
    let columns = place.file("columns.csv", "address,text\na,b\n");
    place.check("alt-text", &columns, 2, &["columns.csv", "`address`, `text`", "`file` or `url`"]);
    let parquet = place.file("fake.parquet", "PAR1 but not really PAR1");
    place.check("alt-text", &parquet, 1, &["fake.parquet"]);
    let gzip = place.file("fake.csv.gz", "file,caption\n");
    place.check("alt-text", &gzip, 1, &["fake.csv.gz"]);
    let endless = format!("file,caption\n\"{}", "x".repeat(17 << 20));
    let endless = place.file("endless.csv", endless);
    place.check("alt-text", &endless, 1, &["endless.csv", "row 0", "longer than"]);
    let Some(bad) = real("bad/parquet") else { return };
    for (name, _) in files(&bad).iter().filter(|(name, _)| name.ends_with(".parquet")) {
        let input = bad.join(name);
        let output =
            run(&["alt-text", "--input", input.to_str().unwrap(), "--out", &place.path("out")]);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{name}: {output:?}");
        assert!(!Path::new(&place.path("out")).exists(), "{name}");
    }
}

#[test]
fn a_folder_that_is_not_a_corpus() {
    let place = Place::new();
    let web = place.path("web");
    check(&["check", &web], 1, &["web is not a corpus"]);
    check(&["report", &web], 1, &["web is not a corpus"]);
    check(&["check", &place.path("nowhere")], 1, &["nowhere"]);
}

#[test]
fn a_corpus_that_was_changed() {
    let place = Place::new();
    let out = place.path("out");
    succeed(&["webpages", "--input", &place.path("web/pages.warc.gz"), "--out", &out]);
    assert!(succeed(&["check", &out]).contains("ok, interleaved, 3 rows"));
    let plan = format!("{out}/plan.toml");
    let text = std::fs::read_to_string(&plan).unwrap();
    std::fs::write(&plan, text.replace("side_min = 64", "side_min = 32")).unwrap();
    check(&["check", &out], 1, &["plan.toml is not the plan"]);
    std::fs::write(&plan, text).unwrap();
    let shard = format!("{out}/shard-00000.parquet");
    let mut bytes = std::fs::read(&shard).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    check(&["check", &out], 1, &["shard-00000.parquet"]);
}

#[test]
fn a_full_disk() {
    let place = Place::new();
    // A limit on the size of files stands for the full disk. What is done stays, to be resumed.
    let out = place.path("out");
    std::fs::create_dir(&out).unwrap();
    let limited = format!(
        "ulimit -f 8; exec {} alt-text --input {} --out {out}",
        env!("CARGO_BIN_EXE_flamingo-ingest"),
        place.path("web/pairs.parquet"),
    );
    let output = std::process::Command::new("sh")
        .args(["-c", &format!("trap '' XFSZ; {limited}")])
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(
        message.contains("error: cannot write") && message.contains("File too large"),
        "{message}"
    );
    assert!(!Path::new(&out).join("manifest.json").exists());
    // With space again, the run goes on.
    succeed(&["alt-text", "--input", &place.path("web/pairs.parquet"), "--out", &out, "--resume"]);
    assert!(!Path::new(&out).join("journal").exists());
    succeed(&["check", &out]);
}
