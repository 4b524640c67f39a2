//! Official files are read as they are: their known numbers of entries, and one entry of each.

use std::path::Path;

use flamingo_eval::benchmark::{Benchmark, SplitChoice};
use flamingo_eval::item::Truth;
use flamingo_eval::task_file::TaskFile;

/// The folder of official data, if it is there.
fn official() -> Option<&'static str> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/parity");
    let found = Path::new(folder).is_dir().then_some(folder);
    if found.is_none() {
        eprintln!("left out: there is no {folder}");
    }
    found
}

/// A split of official files, read as a built-in task reads them.
fn open(task: &str, reader: &str, split: &str) -> Option<Benchmark> {
    let folder = official()?;
    let mut task = TaskFile::find(task).unwrap();
    task.reader = serde_json::from_value(reader.into()).unwrap();
    task.splits = [("all".to_owned(), toml::from_str(split).unwrap())].into();
    (task.query, task.support) = ("all".to_owned(), None);
    Some(Benchmark::open(task, folder, &SplitChoice::default(), 0).unwrap())
}

#[test]
fn captions_of_coco() {
    let check = |file: &str, images: usize, captions: usize| {
        let split = format!("annotations = \"coco-caption/{file}\"");
        let Some(benchmark) = open("coco", "coco-captions", &split) else { return };
        assert_eq!(benchmark.query.len(), images);
        let n = benchmark.query.iter().map(|item| item.targets().len()).sum::<usize>();
        assert_eq!(n, captions);
        if images == 1000 {
            assert_eq!(benchmark.query[0].id, "404464");
        }
    };
    check("captions_val2014_fakecap1000_gt.json", 1000, 5005);
    check("human5k_gt.json", 5000, 20010);
}

#[test]
fn questions_in_the_layout_of_vqa() {
    let read = |name: &str, image: &str| {
        let split = format!(
            "questions = \"vqa/{name}_val_questions_vqa_format.json\"\n\
             annotations = \"vqa/{name}_val_annotations_vqa_format.json\"\nimage = \"{image}\""
        );
        open("vqav2", "vqa-pair", &split)
    };
    let Some(textvqa) = read("textvqa", "{image_id}.jpg") else { return };
    assert_eq!(textvqa.query.len(), 5000);
    let first = &textvqa.query[0];
    assert_eq!((first.id.as_str(), first.medium_id.as_str()), ("34602", "003a8ae2ef43b901"));
    assert_eq!(first.fields["question"], "what is the brand of this camera?");
    let Truth::Answers(answers) = &first.truth else { panic!("{:?}", first.truth) };
    assert_eq!((answers.len(), &*answers[3].answer), (10, "dakota digital"));
    assert_eq!(answers[3].answer_id, Some(4));
    assert!(first.medium.as_ref().unwrap().name().ends_with("parity/003a8ae2ef43b901.jpg"));

    let vizwiz = read("vizwiz", "{image_id}").unwrap();
    assert_eq!(vizwiz.query.len(), 4319);
    let of = |kind: &str| {
        vizwiz.query.iter().filter(|item| item.category.as_deref() == Some(kind)).count()
    };
    assert!(of("unanswerable") > 1000, "{}", of("unanswerable"));
}

#[test]
fn open_ended_questions_of_next_qa() {
    let read = |name: &str| {
        open("coco", "next-oe", &format!("annotations = \"next-oe/{name}.csv\"")).map(|it| it.query)
    };
    let (Some(val), Some(test)) = (read("val"), read("test")) else { return };
    assert_eq!((val.len(), test.len()), (5343, 9178));
    assert_eq!((val[0].id.as_str(), val[0].category.as_deref()), ("3233088823_3", Some("CH")));
    assert_eq!(val[0].targets(), ["from the drivers cabin"]);
    assert_eq!(val.iter().filter(|item| item.category.as_deref() == Some("TP")).count(), 54);
}

#[test]
fn judged_clips_of_rareact() {
    let split = "annotations = \"rareact/rareact.csv\"\nframes = \"frames/{video_id}\"";
    let Some(benchmark) = open("coco", "rareact", split) else { return };
    let all = &benchmark.query;
    assert_eq!((all.len(), all[0].candidates.len()), (7607, 149));
    assert_eq!(all[0].candidates[..2], ["a person shakes a tomato", "a person closes a blender"]);
    let shown = |item: &&flamingo_eval::item::Item| {
        matches!(item.truth, Truth::Action { annotation: 1, .. })
    };
    assert_eq!(all.iter().filter(shown).count(), 1975);
    let videos: std::collections::BTreeSet<&str> =
        all.iter().map(|item| item.medium_id.as_str()).collect();
    assert_eq!(videos.len(), 905);
}
