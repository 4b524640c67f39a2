//! Each made-up benchmark is read as its layout says: how many items, and all of one of them.

use std::collections::BTreeMap;

use flamingo_eval::benchmark::{Benchmark, SplitChoice};
use flamingo_eval::draw::mix;
use flamingo_eval::item::{Item, ShownAnswer, Truth};
use flamingo_eval::metric::Metric;
use flamingo_eval::metrics::vqa::HumanAnswer;
use flamingo_eval::prompt::{ImagePlace, Piece};
use flamingo_eval::readers::kept::{Draw, Kept};
use flamingo_eval::task_file::TaskFile;
use serde_json::Value;

/// Some made-up benchmarks in a folder, each in one of its name.
pub(crate) fn made_up(names: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in names {
        flamingo_fixtures::benchmarks::write_one(&dir.path().join(name), name, 0).unwrap();
    }
    dir
}

struct Read {
    dir: tempfile::TempDir,
    benchmark: Benchmark,
}

impl Read {
    fn new(task: &str) -> Self {
        Self::split(task, None)
    }

    fn split(task: &str, query: Option<&str>) -> Self {
        let dir = made_up(&[task]);
        let folder = dir.path().join(task);
        let splits = SplitChoice { query: query.map(str::to_owned), ..SplitChoice::default() };
        let task = TaskFile::find(task).unwrap();
        let benchmark = Benchmark::open(task, folder.to_str().unwrap(), &splits, 0).unwrap();
        Self { dir, benchmark }
    }

    /// A file of the benchmark, as it lies there.
    fn json(&self, file: &str) -> Value {
        let path = self.dir.path().join(&self.benchmark.task.name).join(file);
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn item(&self, at: usize) -> &Item {
        &self.benchmark.query[at]
    }

    /// Numbers of queries and of examples.
    fn check_counts(&self, query: usize, support: usize) {
        assert_eq!((self.benchmark.query.len(), self.benchmark.support.len()), (query, support));
    }

    /// The end of the place of an item's picture or film, where something is.
    fn check_place(&self, at: usize, ending: &str) {
        let medium = self.item(at).medium.as_ref().unwrap();
        assert!(medium.name().ends_with(ending), "{}", medium.name());
        assert!(medium.exists(), "{}", medium.name());
    }
}

fn fields(item: &Item) -> BTreeMap<&str, &str> {
    item.fields.iter().map(|(name, text)| (*name, text.as_str())).collect()
}

#[test]
fn captions_of_karpathys_splits() {
    let coco = Read::new("coco");
    coco.check_counts(3, 14);
    let file = coco.json("dataset_coco.json");
    let raw = |i: usize| file["images"][1]["sentences"][i]["raw"].as_str().unwrap().to_owned();
    assert_eq!(coco.item(1).truth, Truth::Captions(vec![raw(0), raw(1)]));
    assert_eq!((coco.item(1).id.as_str(), coco.item(1).medium_id.as_str()), ("1", "1"));
    coco.check_place(1, "coco/val2014/COCO_val2014_000000000001.jpg");
    // Examples are of train and restval, the query split never.
    let places = coco.benchmark.support.iter().map(|item| item.medium.as_ref().unwrap().name());
    let (of_val, of_train): (Vec<String>, Vec<String>) =
        places.partition(|it| it.contains("/val2014/"));
    assert_eq!((of_val.len(), of_train.len()), (5, 9));

    let flickr = Read::new("flickr30k");
    flickr.check_counts(3, 14);
    assert_eq!(flickr.item(0).id, "36979");
    flickr.check_place(0, "flickr30k-images/36979.jpg");
}

#[test]
fn questions_of_vqa() {
    let vqa = Read::new("vqav2");
    vqa.check_counts(4, 14);
    let file = vqa.json("v2_mscoco_val2014_annotations.json");
    let person = |it: &Value| HumanAnswer {
        answer: it["answer"].as_str().unwrap().into(),
        answer_confidence: it["answer_confidence"].as_str().map(Into::into),
        answer_id: it["answer_id"].as_i64(),
    };
    let answers = file["annotations"][2]["answers"].as_array().unwrap();
    let answers = answers.iter().map(person).collect();
    let item = vqa.item(2);
    assert_eq!(item.truth, Truth::Answers(answers));
    assert_eq!((item.id.as_str(), item.medium_id.as_str()), ("2000", "2"));
    assert_eq!(item.category.as_deref(), Some("other"));
    let question = vqa.json("v2_OpenEnded_mscoco_val2014_questions.json");
    assert_eq!(
        fields(item),
        [("question", question["questions"][2]["question"].as_str().unwrap())].into()
    );
    vqa.check_place(2, "val2014/COCO_val2014_000000000002.jpg");
    // Most people say the colour, the first a darker one.
    let colour = item.shown_answer(ShownAnswer::MostCommon).unwrap();
    assert_eq!(item.shown_answer(ShownAnswer::First).unwrap(), format!("dark {colour}"));

    for (split, n) in [("test", 3), ("test-dev", 2)] {
        let test = Read::split("vqav2", Some(split));
        test.check_counts(n, 14);
        assert_eq!((test.item(0).id.as_str(), &test.item(0).truth), ("200000", &Truth::Hidden));
    }
    assert_eq!(vqa.item(1).category.as_deref(), Some("number"));
    let okvqa = Read::new("okvqa");
    okvqa.check_counts(4, 14);
    assert_eq!(okvqa.item(1).category.as_deref(), Some("two"));
}

#[test]
fn lists_of_vizwiz_and_textvqa() {
    let vizwiz = Read::new("vizwiz");
    vizwiz.check_counts(4, 14);
    assert_eq!(vizwiz.item(3).id, "VizWiz_val_00000003.jpg");
    vizwiz.check_place(3, "val/VizWiz_val_00000003.jpg");
    let Truth::Answers(answers) = &vizwiz.item(3).truth else { panic!("answers") };
    assert_eq!((answers.len(), answers[0].answer_confidence.as_deref()), (10, Some("maybe")));
    assert_eq!(Read::split("vizwiz", Some("test")).item(0).truth, Truth::Hidden);

    let textvqa = Read::new("textvqa");
    textvqa.check_counts(4, 14);
    assert_eq!(textvqa.item(1).id, "34603");
    textvqa.check_place(1, "train_images/0000000000000001.jpg");
    let Truth::Answers(answers) = &textvqa.item(1).truth else { panic!("answers") };
    assert_eq!(answers.iter().map(|it| it.answer_id.unwrap()).sum::<i64>(), 55);
    assert_eq!(Read::split("textvqa", Some("test")).item(0).truth, Truth::Hidden);
}

#[test]
fn rounds_of_dialogs() {
    let visdial = Read::new("visdial");
    // One round per dialog with dense annotations; of examples all rounds.
    visdial.check_counts(4, 140);
    let item = visdial.item(2);
    assert_eq!((item.id.as_str(), item.medium_id.as_str()), ("2-3", "2"));
    let caption = visdial.json("visdial_1.0_val.json")["data"]["dialogs"][2]["caption"].clone();
    let expected = [
        ("caption", caption.as_str().unwrap()),
        (
            "history",
            "Question: is it number 0 Answer: it is 14 Question: is it number 1 Answer: it is 28 ",
        ),
        ("question", "is it number 2"),
    ];
    assert_eq!(fields(item), expected.into());
    assert_eq!(item.candidates.len(), 100);
    assert_eq!((&*item.candidates[0], &*item.candidates[99]), ("it is 2", "it is 101"));
    let Truth::Candidate { right: 40, relevance: Some(relevance) } = &item.truth else {
        panic!("{:?}", item.truth)
    };
    assert_eq!(relevance[38..43], [0.0, 0.5, 1.0, 0.5, 0.0]);
    let template = &visdial.benchmark.task.templates["flamingo"];
    let pieces = template.query(item, Some(ImagePlace::Query(2)));
    let Piece::Text(text) = &pieces[1] else { panic!("{pieces:?}") };
    let caption = caption.as_str().unwrap();
    let history = expected[1].1;
    assert_eq!(*text, format!("{caption} {history}Question: is it number 2 Answer:"));

    let test = Read::split("visdial", Some("test"));
    test.check_counts(2, 140);
    assert_eq!((test.item(1).id.as_str(), &test.item(1).truth), ("301-2", &Truth::Hidden));
}

#[test]
fn memes_and_classes() {
    let memes = Read::new("hateful_memes");
    memes.check_counts(4, 14);
    let item = memes.item(1);
    assert_eq!(
        (item.id.as_str(), &*item.candidates),
        ("00001", &["no".to_owned(), "yes".to_owned()][..])
    );
    assert_eq!(item.truth, Truth::Candidate { right: 1, relevance: None });
    assert!(item.fields["text"].starts_with("look at "));
    memes.check_place(1, "img/00001.png");

    let imagenet = Read::new("imagenet");
    imagenet.check_counts(4, 14);
    let item = &imagenet.item(0);
    assert_eq!(*item.candidates, ["circle", "square", "triangle", "star"].map(str::to_owned));
    let Truth::Candidate { right, .. } = item.truth else { panic!("{:?}", item.truth) };
    let class = ["n01440764", "n01443537", "n01484850", "n01491361"][right];
    imagenet.check_place(0, &format!("val/{class}/{}.JPEG", item.id));
    // The list of flat pictures says the same.
    let mut task = TaskFile::find("imagenet").unwrap();
    let val = task.splits.get_mut("val").unwrap();
    val.remove("folder");
    val.insert("labels".into(), "LOC_val_solution.csv".into());
    val.insert("image".into(), "ILSVRC/Data/CLS-LOC/val/{image_id}.JPEG".into());
    let folder = imagenet.dir.path().join("imagenet");
    let listed =
        Benchmark::open(task, folder.to_str().unwrap(), &SplitChoice::default(), 0).unwrap();
    let truths = |items: &[Item]| {
        let mut truths: Vec<(String, String)> =
            items.iter().map(|item| (item.id.clone(), format!("{:?}", item.truth))).collect();
        truths.sort();
        truths
    };
    assert_eq!(truths(&listed.query), truths(&imagenet.benchmark.query));
}

#[test]
fn questions_on_films() {
    let msvd = Read::new("msvdqa");
    msvd.check_counts(4, 14);
    let item = msvd.item(1);
    assert_eq!((item.id.as_str(), item.medium_id.as_str()), ("158582", "2"));
    assert_eq!((fields(item)["question"], item.category.as_deref()), ("what moves?", Some("what")));
    let answer = msvd.json("test_qa.json")[1]["answer"].as_str().unwrap().to_owned();
    assert_eq!(item.targets(), [answer]);
    msvd.check_place(1, "frames/film_1_0_10");
    Read::new("msrvttqa").check_place(0, "frames/video1");

    let ivqa = Read::new("ivqa");
    ivqa.check_counts(4, 14);
    assert_eq!((ivqa.item(2).id.as_str(), ivqa.item(2).targets().len()), ("how-to_2-2", 5));
    assert_eq!(format!("{:?}", ivqa.item(2).truth).matches("answer_confidence: None").count(), 5);

    let next = Read::new("nextqa");
    next.check_counts(4, 14);
    let item = next.item(1);
    assert_eq!((item.id.as_str(), item.category.as_deref()), ("4924794334_3", Some("CH")));
    let answers = item.targets();
    assert_eq!(answers[1], format!("the {}", answers[0]));
    assert_eq!(next.benchmark.support[0].targets().len(), 1);
}

#[test]
fn clips_with_captions() {
    let vatex = Read::new("vatex");
    vatex.check_counts(4, 14);
    assert_eq!(vatex.item(3).id, "yt_003_000010_000020");
    assert_eq!((vatex.item(3).medium_id.as_str(), vatex.item(3).targets().len()), ("yt_003", 2));
    vatex.check_place(3, "frames/yt_003_000010_000020");

    let cook = Read::new("youcook2");
    cook.check_counts(8, 28);
    let item = cook.item(3);
    assert_eq!((item.id.as_str(), item.medium_id.as_str()), ("cook-1_1", "cook-1"));
    assert!(item.targets()[0].starts_with("put "), "{:?}", item.targets());
    let sampling = cook.benchmark.task.frames;
    // A second of film has three frames; the first part has two of them, the second the other two.
    for (at, n) in [(2, 2), (3, 2)] {
        let frames = cook.item(at).medium.as_ref().unwrap().frames(sampling).unwrap();
        assert_eq!(frames.len(), n);
    }
}

#[test]
fn actions_and_choices() {
    let star = Read::new("star");
    star.check_counts(4, 14);
    let item = star.item(2);
    assert_eq!(
        (item.id.as_str(), item.category.as_deref()),
        ("Prediction_T1_2", Some("Prediction"))
    );
    assert_eq!(item.targets(), ["The triangle."]);
    assert_eq!(item.candidates.len(), 4);
    assert_eq!(Read::split("star", Some("test")).item(0).truth, Truth::Hidden);

    let rare = Read::new("rareact");
    rare.check_counts(12, 0);
    let item = rare.item(3);
    assert_eq!(
        item.candidates[..4],
        ["blends a phone", "blends an egg", "washes a phone", "fries bacon"]
            .map(|it| format!("a person {it}"))
    );
    assert_eq!(item.truth, Truth::Action { class: 3, annotation: 1 });
    assert_eq!(fields(item), [("verb", "fry"), ("noun", "bacon")].into());

    let kinetics = Read::new("kinetics");
    kinetics.check_counts(4, 14);
    kinetics.check_place(0, "frames/kin_0_000003_000013");
    let right = kinetics.item(0).targets();
    assert!(right[0].starts_with("moving ") && kinetics.item(0).candidates.contains(&right[0]));
    assert!(kinetics.item(0).candidates.is_sorted());
}

/// Examples are drawn while a split is read, and are those that a whole reading would give.
#[test]
fn fewer_examples_are_the_same_whether_drawn_while_or_after_reading() {
    let names = ["vqav2", "visdial", "kinetics", "imagenet", "coco"];
    let dir = made_up(&names);
    for name in names {
        let ids = |most: usize| {
            let mut task = TaskFile::find(name).unwrap();
            task.support_max = most;
            let folder = dir.path().join(name);
            let benchmark =
                Benchmark::open(task, folder.to_str().unwrap(), &SplitChoice::default(), 7)
                    .unwrap();
            benchmark.support.into_iter().map(|item| item.id).collect::<Vec<_>>()
        };
        let (all, some) = (ids(0), ids(6));
        let draw = Draw { most: 6, key: mix(7, 3) };
        let mut kept = Kept::new(Some(draw));
        (0..).zip(&all).for_each(|(place, id)| kept.push(id, place, id.clone()));
        assert_eq!(some, kept.into_entries(), "{name}");
        assert_eq!(some.len(), 6, "{name}");
        let places: Vec<usize> =
            some.iter().map(|id| all.iter().position(|other| other == id).unwrap()).collect();
        assert!(places.is_sorted(), "{name}: {places:?}");
        assert_eq!(some, ids(6));
    }
}

#[test]
fn a_metric_of_each_task_fits_its_items_and_templates_have_their_fields() {
    for name in flamingo_fixtures::benchmarks::names() {
        let read = Read::new(name);
        let task = &read.benchmark.task;
        let fits =
            |metric: &Metric| read.benchmark.query.iter().all(|item| metric.fits(&item.truth));
        assert!(task.metrics.iter().all(fits), "{name}");
        assert_eq!(task.name, name);
        assert!(task.support.is_none() == (name == "rareact"), "{name}");
        assert!(!task.sources.is_empty(), "{name}");
    }
}

/// An example of the benchmark as a template shows it, `<image>` and `<EOC>` written out; then how the question ends.
fn shown(task: &str, template: &str) -> String {
    let read = Read::new(task);
    let template = &read.benchmark.task.templates[template];
    let rule = template.shown_answer.unwrap_or(read.benchmark.task.shown_answer);
    let item = read.item(0);
    let shot = template.shot(item, Some(ImagePlace::Query(0)), rule);
    // What is kept back, or not shown by the clip, is no example; the question is the same.
    let pieces = shot.unwrap_or_else(|| template.query(item, Some(ImagePlace::Query(0))));
    let text = |piece: &Piece| match piece {
        Piece::Image(_) => "<image>".to_owned(),
        Piece::Text(text) => text.clone(),
        Piece::EndOfChunk => "<EOC>".to_owned(),
    };
    pieces.iter().map(text).collect()
}

#[test]
fn prompts_are_those_of_the_paper_and_of_open_flamingo() {
    let (colour, shape, caption) = {
        let vqa = Read::new("vqav2");
        let colour = vqa.item(0).shown_answer(ShownAnswer::MostCommon).unwrap().to_owned();
        let question = &vqa.item(0).fields["question"];
        let shape =
            question.strip_prefix("What colour is the ").unwrap().trim_end_matches('?').to_owned();
        (colour, shape, Read::new("coco").item(0).targets()[0].clone())
    };
    let check = |task, template, expected: String| {
        assert_eq!(shown(task, template), expected, "{task} {template}");
    };
    for task in ["coco", "flickr30k", "vatex"] {
        check(task, "flamingo", format!("<image>Output: {caption}<EOC>"));
    }
    for task in ["coco", "flickr30k"] {
        check(task, "open-flamingo", format!("<image>Output:{caption}<EOC>\n"));
    }
    let question = format!("What colour is the {shape}?");
    for task in ["vqav2", "okvqa", "vizwiz", "textvqa"] {
        let paper = format!("<image>Question: {question} Answer: {colour}<EOC>");
        check(task, "flamingo", paper);
        // It shows the first answer, not that of most people.
        let open = format!("<image>Question:{question} Short answer:dark {colour}<EOC>\n");
        check(task, "open-flamingo", open);
    }
    let text = format!("look at {caption}");
    let paper = format!(
        "<image>is an image with written: \"{text}\" on it. Is it hateful? Answer: no<EOC>"
    );
    check("hateful_memes", "flamingo", paper);
    let open =
        format!("<image>is an image with: '{text}' written on it. Is it hateful? Answer:no<EOC>");
    check("hateful_memes", "open-flamingo", open);
    check("rareact", "flamingo", "<image>Caption: a person blends a phone<EOC>".into());
    let star = "Question: Which object was moved by the person? Answer: The circle.";
    check("star", "flamingo", format!("<image>{star}<EOC>"));
    check(
        "imagenet",
        "open-flamingo",
        format!("<image>Output:{}<EOC>", Read::new("imagenet").item(0).targets()[0]),
    );
}

#[test]
fn classes_of_one_name_are_one_candidate() {
    let dir = made_up(&["imagenet"]);
    let folder = dir.path().join("imagenet");
    let classes = folder.join("LOC_synset_mapping.txt");
    let text = std::fs::read_to_string(&classes).unwrap();
    std::fs::write(&classes, format!("{text}n03126707 square, box\nn09999999 ring\n")).unwrap();
    for class in ["n03126707", "n09999999"] {
        std::fs::create_dir(folder.join("val").join(class)).unwrap();
        std::fs::write(folder.join("val").join(class).join(format!("{class}.JPEG")), "").unwrap();
    }
    let task = TaskFile::find("imagenet").unwrap();
    let benchmark =
        Benchmark::open(task, folder.to_str().unwrap(), &SplitChoice::default(), 0).unwrap();
    let of = |id: &str| benchmark.query.iter().find(|item| item.id == id).unwrap();
    assert_eq!(
        *of("n03126707").candidates,
        ["circle", "square", "triangle", "star", "ring"].map(str::to_owned)
    );
    assert_eq!(of("n03126707").targets(), ["square"]);
    assert_eq!(of("n09999999").truth, Truth::Candidate { right: 4, relevance: None });
}

/// Splits whose files the made-up benchmarks have are read; others say what is missing.
#[test]
fn every_split_of_every_task_is_read() {
    for name in flamingo_fixtures::benchmarks::names() {
        let dir = made_up(&[name]);
        let folder = dir.path().join(name);
        for split in TaskFile::find(name).unwrap().splits.keys() {
            let choice = SplitChoice { query: Some(split.clone()), ..SplitChoice::default() };
            let task = TaskFile::find(name).unwrap();
            let opened = Benchmark::open(task, folder.to_str().unwrap(), &choice, 0);
            let is_there = match &opened {
                Ok(benchmark) => !benchmark.query.is_empty(),
                Err(error) => error.to_string().starts_with("cannot read "),
            };
            assert!(is_there, "{name} {split}: {:?}", opened.err());
        }
    }
}
