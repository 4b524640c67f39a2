//! `masks`: a row as the trainer sees it, and corpora whose rows are wrong.

use std::process::Command;

use flamingo_dataset::{Row, Tokenizer};

use crate::world::{FLAMINGO, Finished, World, pair};

fn masks(world: &World, corpus: &str, more: &[&str]) -> Finished {
    let tokenizer = world.path("tokenizer.json");
    let texts = ["here we see a red square .".to_owned()];
    Tokenizer::train(texts.into_iter(), 300).unwrap().save(&tokenizer).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-train"));
    command.arg("masks").arg("--corpus").arg(world.path(corpus)).arg("--tokenizer").arg(tokenizer);
    Finished(command.args(more).output().unwrap())
}

#[test]
fn a_row_is_shown_by_the_images_that_its_tokens_see() {
    let world = World::new();
    let out = world.path("row.html");
    let more = ["--row", "2", "--next-image-probability", "0", "--out", out.to_str().unwrap()];
    let shown = masks(&world, "pages", &more);
    shown.expect_success();
    let text = shown.stdout();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("row 2 (page-2): ") && lines[0].ends_with("2 images"), "{text}");
    // What sees no image, the first image, the second; marks are not learned.
    assert_eq!(lines[1], "   -  [<BOS>]");
    assert_eq!(lines[2], "   0  [<image>]here we see a blue square .<EOC>");
    assert_eq!(lines[3], "   1  [<image>]here we see a yellow square .<EOC><EOS>");
    let html = std::fs::read_to_string(out).unwrap();
    assert_eq!(html.matches("<img ").count(), 2);
    assert!(html.contains("<span class=\"t1\" title=\"sees image 1\">"), "{html}");

    let ahead = masks(&world, "pages", &["--row", "2", "--next-image-probability", "1"]).stdout();
    assert!(ahead.contains("   1  here we see a blue square .<EOC>[<image>]"), "{ahead}");
    let none = masks(&world, "pages", &["--row", "77"]);
    assert_eq!(none.code(), Some(1));
    assert!(none.stderr().contains("77"), "{}", none.stderr());
}

#[test]
fn the_numbers_of_a_config_are_those_of_its_run() {
    let world = World::with_towers();
    let tokenizer = world.path("language/tokenizer.json");
    let config = world.path("masks.toml");
    std::fs::write(&config, FLAMINGO.replace("[[data]]", "[[data]]\nloss = \"open_flamingo\""))
        .unwrap();
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-train"));
        command.arg("masks").arg("--config").arg(&config).arg("--root").arg(world.path(""));
        Finished(command.arg("--tokenizer").arg(&tokenizer).args(more).output().unwrap())
    };
    let row = ["--data", "pages", "--row", "2", "--next-image-probability", "0"];
    let shown = run(&row);
    shown.expect_success();
    let ends = |text: &str| text.lines().last().unwrap_or_default().to_owned();
    // What follows the end of a chunk is not learned by this rule, and is by the paper's.
    assert!(ends(&shown.stdout()).ends_with("<EOC>[<EOS>]"), "{}", shown.stdout());
    let paper = run(&[&row[..], &["--loss", "paper"]].concat()).stdout();
    assert!(ends(&paper).ends_with("<EOC><EOS>"), "{paper}");
    let unknown = run(&["--data", "nothing"]);
    assert_eq!(unknown.code(), Some(2));
    assert!(unknown.stderr().contains("pages"), "{}", unknown.stderr());
}

#[test]
fn a_trained_tokenizer_is_written_once_and_serves() {
    let world = World::new();
    let out = world.path("trained.json");
    let train = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-train"));
        command.arg("train-tokenizer").arg("--corpus").arg(world.path("pages"));
        command.arg("--corpus").arg(world.path("pairs")).args(["--vocabulary", "290"]);
        Finished(command.arg("--out").arg(&out).output().unwrap())
    };
    train().expect_success();
    let tokenizer = Tokenizer::load(&out).unwrap();
    assert_eq!(tokenizer.n_tokens(), 290);
    assert!(tokenizer.encode("here we see a blue square .").len() < 20);
    let again = train();
    assert_eq!(again.code(), Some(1));
    assert!(again.stderr().contains("trained.json"), "{}", again.stderr());
}

#[test]
fn rows_with_faults_are_named_and_fail_the_check() {
    let world = World::new();
    for corpus in ["pages", "pairs", "clips"] {
        let sound = masks(&world, corpus, &["--lint"]);
        assert_eq!(sound.code(), Some(0), "{}{}", sound.stdout(), sound.stderr());
        assert!(sound.stdout().ends_with(" rows, 0 problems\n"), "{}", sound.stdout());
    }
    let Row::ImageText(mut broken) = pair(1) else { unreachable!("pairs are image_text rows") };
    broken.image.bytes = b"<html>404</html>".to_vec().into();
    broken.key = "broken".to_owned();
    world.write_corpus("broken", &[pair(0), Row::ImageText(broken), pair(2)]);
    let found = masks(&world, "broken", &["--lint"]);
    assert_eq!(found.code(), Some(1));
    assert!(found.stdout().starts_with("row 1 (broken): "), "{}", found.stdout());
    assert!(found.stdout().ends_with("3 rows, 1 problems\n"), "{}", found.stdout());
    let first = masks(&world, "broken", &["--lint", "--rows", "1"]);
    assert_eq!(first.stdout(), "1 rows, 0 problems\n");
    // Characters of several tokens are whole, and nothing of a text steers the terminal.
    let Row::ImageText(mut foreign) = pair(3) else { unreachable!("pairs are image_text rows") };
    foreign.caption = "日本\u{1b}[2J".to_owned();
    world.write_corpus("foreign", &[Row::ImageText(foreign)]);
    let shown = masks(&world, "foreign", &["--space-prefix-probability", "0"]).stdout();
    assert!(shown.contains("日本\u{fffd}[2J<EOC>") && !shown.contains('\u{1b}'), "{shown}");
    // An example of two tokens ends before the caption.
    let short = masks(&world, "pairs", &["--lint", "--tokens", "2"]);
    assert_eq!(short.stdout().matches("no token is learned").count(), 6, "{}", short.stdout());
}
