//! `report.html` of a run, by the real binary.

use std::process::{Command, Output};

use crate::models::error;
use crate::server::{Reaction, Server};
use crate::world::World;

/// Runs a task, renamed, against a server that says one thing, at 4 shots.
fn report(world: &World, name: &str, base: &str, says: &'static str) -> String {
    report_with(world, name, base, says, &["--shots", "4"])
}

fn report_with(world: &World, name: &str, base: &str, says: &'static str, more: &[&str]) -> String {
    let server = Server::start(move |_, _| Reaction::Says(says.to_owned()));
    let path = world.path("task.toml");
    let text =
        std::fs::read_to_string(format!("{}/src/tasks/{base}.toml", env!("CARGO_MANIFEST_DIR")));
    let text = text.unwrap().replace(&format!("name = \"{base}\""), &format!("name = \"{name}\""));
    std::fs::write(&path, text).unwrap();
    let out = world.path(name);
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
    command.args(["run", "--model", "openai:m", "--endpoint", &server.address]).args(more);
    command.arg("--task").arg(&path).arg("--annotations").arg(world.path(base));
    let output: Output = command.arg("--out").arg(&out).output().unwrap();
    assert!(output.status.success(), "{}", error(&output));
    std::fs::read_to_string(out.join("report.html")).unwrap()
}

#[test]
fn captions_stand_beside_published_scores_with_their_n_grams_and_shots() {
    let world = World::new();
    let html = report(&world, "coco", "caption", "a red square number 3");
    for (model, at_4) in [
        ("Flamingo-3B", "85.0"),
        ("Flamingo-9B", "93.1"),
        ("Flamingo-80B", "103.2"),
        ("OpenFlamingo-9B", "89.0"),
        ("IDEFICS-80B", "110.3"),
    ] {
        let row = html.split("<tr>").find(|row| row.contains(&format!(">{model}<"))).unwrap();
        assert!(row.contains(&format!(">{at_4}<")), "{row}");
    }
    let ours = html.split("<tr>").find(|row| row.contains(">this evaluation<")).unwrap();
    // At 4 shots alone.
    let cells: Vec<&str> = ours.split("<td").filter_map(|cell| cell.split('>').nth(1)).collect();
    let filled = cells.iter().filter(|cell| cell.trim_end_matches("</td").parse::<f64>().is_ok());
    assert_eq!(filled.count(), 1, "{ours}");
    assert!(html.contains(">4 of 5<") && html.contains(">a, number, red, square<"));
    assert!(html.contains("shot 4: support-") && html.contains("data:image/bmp;base64,"));
    assert!(!html.contains("<link") && !html.contains("src=\"http"), "nothing is fetched");
}

#[test]
fn what_a_model_writes_never_becomes_markup() {
    let world = World::new();
    let says = "</td><script>alert('x')</script>\u{2028}\u{202e}\0<img src=x onerror=alert(1)>";
    let html = report(&world, "hostile", "caption", says);
    assert!(!html.contains("<script") && !html.contains("<img src=x"), "markup of a model");
    assert!(!html.contains(['\u{2028}', '\u{202e}', '\0']));
    assert!(
        html.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;\\u{2028}\\u{202e}\\u{0}")
    );
}

#[test]
fn parts_of_a_benchmark_have_scores_of_their_own() {
    let world = World::new();
    let html = report(&world, "parts", "label", "red");
    for part in ["colour", "shape"] {
        let row = html.split("<tr>").find(|row| row.contains(&format!(">{part}<"))).unwrap();
        assert!(row.contains(">10<"), "{row}");
    }
    let shape = html.split("<tr>").find(|row| row.contains(">shape<")).unwrap();
    assert!(shape.contains(">0.000<"), "no shape is red: {shape}");
}

#[test]
fn shots_without_images_are_told_where_there_are_some() {
    let world = World::new();
    let check = |name: &str, base: &str, more: &[&str], expected: bool| {
        let html = report_with(&world, name, base, "red", more);
        let told = format!("At 0 shots, prompts have examples without their images: {name}.");
        assert_eq!(html.contains(&told), expected, "{name}");
        assert_eq!(html.contains("without their images"), expected, "{name}");
    };
    check("captions", "caption", &["--shots", "0,4"], true);
    check("captions-4", "caption", &["--shots", "4"], false);
    check("captions-tuned", "caption", &["--fine-tuned"], false);
    check("labels", "label", &["--shots", "0"], false);
}
