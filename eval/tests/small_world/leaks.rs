//! `leaks` finds queries among examples and in corpora, by the real binary.

use std::process::Output;

use flamingo_dataset::{Row, image_hash, sha256_hex};
use serde_json::Value;

use crate::world::{self, World};

/// A 16 x 16 bitmap with a pattern of its own, lighter by `lift`.
fn patterned(seed: u32, lift: u8) -> Vec<u8> {
    let mut file = b"BM".to_vec();
    let words: [u32; 13] = [54 + 768, 0, 54, 40, 16, 16, 1 | 24 << 16, 0, 768, 2835, 2835, 0, 0];
    file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    let mut state = seed;
    for _ in 0..256 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = (state >> 25) as u8 + lift;
        file.extend([value; 3]);
    }
    file
}

fn row(key: &str, image: &[u8]) -> Row {
    let mut row = world::row(key.to_owned(), format!("a {key}"), image, "full");
    if let Row::ImageText(pair) = &mut row {
        pair.phash = image_hash(image).unwrap();
        pair.sha256 = sha256_hex(image);
    }
    row
}

fn leaks(world: &World, tasks: &[&str], more: &[&str]) -> Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
    command.arg("leaks").args(more);
    for task in tasks {
        command.args(["--task", task, "--annotations"]).arg(world.path(task));
    }
    command.output().unwrap()
}

#[test]
fn the_same_picture_is_found_by_id_bytes_and_looks() {
    let world = World::new();
    let all: Vec<Vec<u8>> = (1..7).map(|seed| patterned(seed, 0)).collect();
    let lighter = patterned(2, 1);
    assert_ne!(all[1], lighter);
    let write = |name: &str, rows: &[Row]| world::write_corpus(&world.path(name), rows);
    // Query 1 is an example of its own task, and looks like one of the other task.
    write("caption/query", &[row("q1", &all[0]), row("q2", &all[1]), row("q3", &all[2])]);
    write("caption/support", &[row("s1", &all[0]), row("s2", &all[3])]);
    write("label/query", &[row("l1", &all[4]), row("l2", &all[0])]);
    write("label/support", &[row("l1", &all[4]), row("l2", &lighter), row("l3", &all[0])]);
    write("pages", &[row("p1", &all[5]), row("p2", &lighter)]);

    let pages = world.path("pages");
    let more = ["--json", "--corpus", pages.to_str().unwrap()];
    let output = leaks(&world, &["caption", "label"], &more);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let pairs = |queries: &str, seen: &str| -> Vec<String> {
        let overlap = found.iter().find(|it| {
            it["queries_of"] == queries && it["seen_in"].as_str().unwrap().ends_with(seen)
        });
        let text = |pair: &Value| {
            let text = |key: &str| pair[key].as_str().unwrap().to_owned();
            format!("{} {} {}", text("query"), text("seen"), text("reason"))
        };
        overlap.unwrap()["pairs"].as_array().unwrap().iter().map(text).collect()
    };
    assert_eq!(pairs("caption", "examples of caption"), ["q1 s1 id"]);
    assert_eq!(pairs("caption", "examples of label"), ["q2 l2 phash", "q1 l3 sha256"]);
    assert_eq!(pairs("label", "examples of caption"), ["l2 s1 sha256"]);
    assert_eq!(pairs("caption", "pages"), ["q2 p2 phash"]);
    assert_eq!(pairs("label", "pages"), [""; 0]);

    let text = |more: &[&str]| {
        let output = leaks(&world, &["caption"], more);
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(
        text(&[])
            .contains("caption: 1 of 3 queries in examples of caption\n  by id: 1 pairs: q1 = s1")
    );
    let with_pages = text(&["--corpus", pages.to_str().unwrap()]);
    assert!(
        with_pages.contains("caption: 1 of 3 queries in") && with_pages.contains("q2 = p2 ("),
        "{with_pages}"
    );
    let output = leaks(&world, &["caption"], &["--corpus", "nowhere"]);
    assert!(
        !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("nowhere")
    );
}
