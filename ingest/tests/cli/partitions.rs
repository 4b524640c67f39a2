//! A run that several machines share gives the same rows as one, whoever finishes last.

use std::collections::BTreeMap;
use std::path::Path;

use flamingo_dataset::{Corpus, Row};
use flamingo_fixtures::web::{self, WebSize};

use crate::program::{files, folder, ingest, run, succeed};

/// Rows by their key.
fn rows(out: &str) -> BTreeMap<String, Row> {
    let corpus = Corpus::open(out).unwrap();
    let rows = corpus.scan().map(|row| row.unwrap());
    let rows: BTreeMap<_, _> = rows.map(|row| (row.key().to_owned(), row)).collect();
    assert_eq!(rows.len() as u64, corpus.n_rows());
    // Any row is found by its number, in whatever folder its shard lies.
    for row in 0..corpus.n_rows() {
        assert_eq!(rows[corpus.read(row).unwrap().key()], corpus.read(row).unwrap());
    }
    rows
}

#[test]
fn partitions_in_any_order_are_the_whole() {
    let (_folder, root) = folder();
    let size = WebSize { pages: 10, pairs: 11, clips: 4, support: 1, queries: 1 };
    web::write(Path::new(&format!("{root}/web")), &size, 3).unwrap();
    for (command, input) in
        [("webpages", "pages.warc.gz"), ("alt-text", "pairs.parquet"), ("video-text", "clips")]
    {
        let input = format!("{root}/web/{input}");
        let (whole, shared) = (format!("{root}/{command}"), format!("{root}/{command}-shared"));
        succeed(&[command, "--input", &input, "--out", &whole]);
        for index in ["2/3", "0/3", "1/3"] {
            assert!(!Path::new(&shared).join("manifest.json").exists());
            let lines = succeed(&[command, "--input", &input, "--out", &shared, "--index", index]);
            assert_eq!(lines.contains("all partitions: "), index == "1/3", "{lines}");
        }
        assert_eq!(rows(&shared), rows(&whole));
        succeed(&["check", &shared]);
        succeed(&["check", &format!("{shared}/part-00000-of-00003")]);
        succeed(&["report", &shared]);
        // Whoever comes again finds everything done, and writes the same bytes.
        let before = files(Path::new(&shared));
        std::fs::remove_file(format!("{shared}/manifest.json")).unwrap();
        let again = ["--out", &shared, "--index", "0/3", "--resume"];
        succeed(&[&[command, "--input", &input], &again[..]].concat());
        assert!(files(Path::new(&shared)) == before);
        // The joined corpus is that of the same run on one machine, and of no run on four.
        let again = [command, "--input", &input, "--out", &shared];
        assert!(succeed(&[&again[..], &["--resume"]].concat()).contains("complete already"));
        let output = run(&[&again[..], &["--index", "0/4"]].concat());
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}

#[test]
fn partitions_at_the_same_time_are_the_whole() {
    let (_folder, root) = folder();
    let size = WebSize { pages: 12, pairs: 1, clips: 0, support: 1, queries: 1 };
    web::write(Path::new(&format!("{root}/web")), &size, 3).unwrap();
    let (input, out) = (format!("{root}/web/pages.warc.gz"), format!("{root}/shared"));
    let start = |index: usize| {
        let index = format!("{index}/4");
        let arguments = ["webpages", "--input", &input, "--out", &out, "--index", &index];
        ingest(&arguments).stdout(std::process::Stdio::null()).spawn().unwrap()
    };
    let children: Vec<_> = (0..4).map(start).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    succeed(&["check", &out]);
    let whole = format!("{root}/whole");
    succeed(&["webpages", "--input", &input, "--out", &whole]);
    assert_eq!(rows(&out), rows(&whole));
}

#[test]
fn many_lists_are_dealt_out_whole() {
    let (_folder, root) = folder();
    let size = WebSize { pages: 1, pairs: 3, clips: 0, support: 1, queries: 1 };
    web::write(Path::new(&format!("{root}/web")), &size, 3).unwrap();
    std::fs::create_dir(format!("{root}/lists")).unwrap();
    for list in 0..9 {
        let to = format!("{root}/lists/{list}.parquet");
        std::fs::copy(format!("{root}/web/pairs.parquet"), to).unwrap();
    }
    let input = format!("{root}/lists");
    let (whole, shared) = (format!("{root}/whole"), format!("{root}/shared"));
    succeed(&["alt-text", "--input", &input, "--out", &whole]);
    for index in ["0/2", "1/2"] {
        succeed(&["alt-text", "--input", &input, "--out", &shared, "--index", index]);
    }
    assert_eq!(rows(&shared), rows(&whole));
    // The first one has every second list, with all of its rows.
    let first: Vec<_> = rows(&format!("{shared}/part-00000-of-00002")).into_keys().collect();
    assert_eq!(first.len(), 5 * 3);
    assert!(first.iter().all(|key| "02468".contains(&key[..1])), "{first:?}");
}

#[test]
fn a_partition_without_items_is_no_error_but_a_run_that_keeps_nothing_is() {
    let (_folder, root) = folder();
    let size = WebSize { pages: 2, pairs: 1, clips: 0, support: 1, queries: 1 };
    web::write(Path::new(&format!("{root}/web")), &size, 3).unwrap();
    let (input, out) = (format!("{root}/web/pages.warc.gz"), format!("{root}/few"));
    for index in ["0/3", "1/3", "2/3"] {
        succeed(&["webpages", "--input", &input, "--out", &out, "--index", index]);
    }
    succeed(&["check", &out]);
    assert_eq!(rows(&out).len(), 2);
    // One machine does not go on with what several began.
    let (input_of_one, begun) = (["webpages", "--input", &input], format!("{root}/begun"));
    succeed(&[&input_of_one[..], &["--out", &begun, "--index", "0/2"]].concat());
    let output = run(&[&input_of_one[..], &["--out", &begun, "--resume"]].concat());
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    // Only pages of a million words are kept: none is.
    let (plan, out) = (format!("{root}/none.toml"), format!("{root}/none"));
    std::fs::write(&plan, "[document]\nwords_min = 1000000\nwords_max = 2000000\n").unwrap();
    let arguments = ["webpages", "--plan", &plan, "--input", &input, "--out", &out, "--index"];
    succeed(&[&arguments[..], &["0/2"]].concat());
    let output = run(&[&arguments[..], &["1/2"]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing was kept"), "{output:?}");
    let output = run(&[&arguments[..], &["2/2"]].concat());
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}
