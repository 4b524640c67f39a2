//! `score --task` reads every form of predictions that `score` of two files reads, with the same scores, and `lint` finds
//! nothing wrong with them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use flamingo_fixtures::benchmarks::write_one;
use serde_json::{Value, json};

/// A made-up benchmark in its official layout, with a file of predictions.
struct World {
    dir: tempfile::TempDir,
    task: &'static str,
}

impl World {
    fn new(task: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_one(&dir.path().join("data"), task, 0).unwrap();
        Self { dir, task }
    }

    fn data(&self, file: &str) -> PathBuf {
        self.dir.path().join("data").join(file)
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.data(file)).unwrap()
    }

    /// Cells of a column of a table without quoted cells.
    fn column(&self, file: &str, name: &str) -> Vec<String> {
        let text = self.read(file);
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
        let at = rows[0].iter().position(|cell| *cell == name).unwrap();
        rows[1..].iter().map(|row| row[at].to_owned()).collect()
    }

    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn by_task(&self, action: &str, mine: &Path, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
        command.args([action, "--task", self.task, "--annotations"]).arg(self.data(""));
        command.arg("--predictions").arg(mine).args(more).output().unwrap()
    }

    fn scores(&self, mine: &Path, more: &[&str]) -> Value {
        let output = self.by_task("score", mine, &[&["--json"], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn refused(&self, mine: &Path) -> String {
        let output = self.by_task("score", mine, &[]);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    }

    /// The value of a metric is as expected, by the task and by the file alone.
    fn check(&self, file: &str, mine: &Path, (metric, expected): (&str, f64)) {
        let by_task = self.scores(mine, &["--metric", metric]);
        let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-eval"));
        command.args(["score", "--json", "--metric", metric, "--annotations"]).arg(self.data(file));
        let output = command.arg("--predictions").arg(mine).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let by_file: Value = serde_json::from_slice(&output.stdout).unwrap();
        for found in [&by_task, &by_file] {
            let value = found["scores"][metric]["value"].as_f64().unwrap();
            assert!((value - expected).abs() < 1e-12, "{metric}: {found}");
        }
        let output = self.by_task("lint", mine, &[]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && !text.contains("error"), "{text}");
    }
}

#[test]
fn tables_of_hateful_memes_have_a_probability_and_a_label() {
    let world = World::new("hateful_memes");
    let lines = world.read("test_seen.jsonl");
    let memes: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(memes.len(), 4);
    // The labels are 0, 1, 0, 1: three of four pairs are in order.
    let row = |(meme, cells): (&Value, &str)| format!("{},{cells}", meme["id"].as_str().unwrap());
    let rows: Vec<String> =
        memes.iter().zip(["0.1,0", "0.3,1", "0.6,1", "0.9,0"]).map(row).collect();
    let rows = rows.join("\n");
    let table = world.put("mine.csv", format!("id,proba,label\n{rows}").as_bytes());
    world.check("test_seen.jsonl", &table, ("roc_auc", 0.75));
    let accuracy = |mine: &Path| world.scores(mine, &[])["scores"]["accuracy"]["value"].clone();
    assert_eq!(accuracy(&table), json!(0.5));
    // Without labels, half and above is yes.
    let bare: Vec<&str> = rows.lines().map(|row| &row[..row.len() - 2]).collect();
    let bare = bare.join("\n");
    let bare = world.put("bare.csv", format!("id,proba\n{bare}").as_bytes());
    assert_eq!(accuracy(&bare), json!(0.5));
    let list: Vec<Value> = memes
        .iter()
        .zip([0.1, 0.3, 0.6, 0.9])
        .map(|(m, s)| json!({ "id": m["id"], "score": s }))
        .collect();
    let list = world.put("mine.json", json!(list).to_string().as_bytes());
    world.check("test_seen.jsonl", &list, ("roc_auc", 0.75));
    // Answers alone are no ranking.
    let texts: Vec<Value> =
        memes.iter().map(|m| json!({ "id": m["id"], "answer": "yes" })).collect();
    let texts = world.put("texts.json", json!(texts).to_string().as_bytes());
    let message = world.refused(&texts);
    assert!(message.contains("has no scores of candidates, which roc_auc needs"), "{message}");
    let only = world.scores(&texts, &["--metric", "accuracy"]);
    assert_eq!(only["scores"]["accuracy"]["value"], json!(0.5));
    // Of labels that are all alike there is no ranking, but what else is asked for.
    let alike = lines.replace("\"label\":1", "\"label\":0").replace("\"label\": 1", "\"label\": 0");
    std::fs::write(world.data("test_seen.jsonl"), alike).unwrap();
    let found = world.scores(&table, &[]);
    assert_eq!(found["warnings"], json!(["no roc_auc: all labels are alike"]), "{found}");
    assert_eq!(found["scores"].as_object().unwrap().len(), 1, "{found}");
    assert_eq!(found["scores"]["accuracy"]["value"], json!(0.5));
}

#[test]
fn arrays_of_rareact_are_in_the_order_of_its_table() {
    let world = World::new("rareact");
    let annotations = world.column("rareact.csv", "annotation");
    let classes = world.column("rareact.csv", "class_id");
    let (n, n_classes) = (annotations.len(), 6);
    let array = |rows: usize, score: &dyn Fn(usize, usize) -> f32| {
        let header = format!(
            "{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {n_classes}), }}\n"
        );
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        for (clip, class) in
            (0..rows).flat_map(|clip| (0..n_classes).map(move |class| (clip, class)))
        {
            bytes.extend(score(clip, class).to_le_bytes());
        }
        bytes
    };
    let shows =
        |clip: usize, class: usize| annotations[clip] == "1" && classes[clip] == class.to_string();
    let right = array(n, &|clip, class| if shows(clip, class) { 0.9 } else { 0.1 });
    world.check("rareact.csv", &world.put("mine.npy", &right), ("mwap", 1.0));
    let less = array(n - 1, &|_, _| 0.5);
    let message = world.refused(&world.put("less.npy", &less));
    assert!(message.contains("it has 11 rows, the annotations have 12"), "{message}");
}

#[test]
fn answers_of_next_qa_stand_under_their_films() {
    let world = World::new("nextqa");
    let films = world.column("test.csv", "video");
    let answers = world.column("test.csv", "answer");
    let mine: serde_json::Map<String, Value> = films
        .iter()
        .zip(&answers)
        .enumerate()
        .map(|(i, (film, answer))| {
            (film.clone(), json!({ "3": if i == 0 { "nothing" } else { answer } }))
        })
        .collect();
    let mine = world.put("mine.json", json!(mine).to_string().as_bytes());
    world.check("test.csv", &mine, ("exact", 1.0 - 1.0 / films.len() as f64));
}

#[test]
fn films_name_the_questions_of_ivqa() {
    let world = World::new("ivqa");
    let films = world.column("test.csv", "video_id");
    let (four, one) = (world.column("test.csv", "answer3"), world.column("test.csv", "answer1"));
    // One person of five said something else.
    let odd = (0..films.len()).find(|i| one[*i] != four[*i]).unwrap();
    let row = |i: usize| json!({ "video_id": films[i], "answer": if i == odd { &one[odd] } else { &four[i] } });
    let mine: Vec<Value> = (0..films.len()).rev().map(row).collect();
    let mine = world.put("mine.json", json!(mine).to_string().as_bytes());
    world.check("test.csv", &mine, ("ivqa", 1.0 - 0.5 / films.len() as f64));
}

#[test]
fn all_rounds_of_visdial_may_be_ranked_or_scored() {
    let world = World::new("visdial");
    let dense = "visdial_1.0_val_dense_annotations.json";
    let judged: Vec<Value> = serde_json::from_str(&world.read(dense)).unwrap();
    let relevance =
        |judged: &Value, option: usize| judged["gt_relevance"][option].as_f64().unwrap();
    let entries = |key: &str| -> Vec<Value> {
        let of_dialog = |judged: &Value| {
            let mut best: Vec<usize> = (0..100).collect();
            best.sort_by(|a, b| relevance(judged, *b).total_cmp(&relevance(judged, *a)));
            let place = |option: usize| best.iter().position(|it| *it == option).unwrap();
            let values: Vec<Value> = (0..100)
                .map(|option| match key {
                    "ranks" => json!(place(option) + 1),
                    _ => json!(relevance(judged, option)),
                })
                .collect();
            let entry = |round: usize| json!({ "image_id": judged["image_id"], "round_id": round, key: values });
            (1..=10).map(entry).collect::<Vec<_>>()
        };
        judged.iter().flat_map(of_dialog).collect()
    };
    for key in ["ranks", "scores"] {
        let mine = world.put("mine.json", json!(entries(key)).to_string().as_bytes());
        world.check(dense, &mine, ("ndcg", 1.0));
        let n = judged.len() * 9;
        let warnings = &world.scores(&mine, &[])["warnings"];
        let expected = format!("{n} rounds are not asked: ");
        assert!(warnings[0].as_str().unwrap().starts_with(&expected), "{warnings}");
    }
    let mut other = entries("ranks");
    other[0]["image_id"] = json!(77);
    let message = world.refused(&world.put("other.json", json!(other).to_string().as_bytes()));
    assert!(message.contains("predictions of what is not asked: 77-1"), "{message}");
    // All rounds are asked of a split without people's relevance.
    let mine = world.put("mine.json", json!(entries("ranks")).to_string().as_bytes());
    let all = ["--query-split", "val-all-rounds", "--metric", "recall"];
    assert_eq!(world.scores(&mine, &all)["predictions"], json!(judged.len() * 10));
    let few: Vec<Value> = entries("scores")
        .into_iter()
        .map(|mut it| {
            it["scores"].as_array_mut().unwrap().truncate(99);
            it
        })
        .collect();
    let few = world.put("few.json", json!(few).to_string().as_bytes());
    assert!(world.refused(&few).contains("99 scores for the 100 candidates of "));
    let output = world.by_task("lint", &few, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("predictions with more or fewer scores than candidates: "), "{text}");
}

#[test]
fn choices_of_star_are_numbers_or_texts() {
    let world = World::new("star");
    let questions: Vec<Value> = serde_json::from_str(&world.read("STAR_val.json")).unwrap();
    let right = |question: &Value| {
        let choices = question["choices"].as_array().unwrap();
        choices.iter().position(|it| it["choice"] == question["answer"]).unwrap()
    };
    let mine = |answer: &dyn Fn(&Value) -> Value| {
        let mut types = serde_json::Map::new();
        for question in &questions {
            let id = question["question_id"].as_str().unwrap();
            let row = json!({ "question_id": id, "answer": answer(question) });
            let kind = id.split('_').next().unwrap().to_owned();
            types.entry(kind).or_insert_with(|| json!([])).as_array_mut().unwrap().push(row);
        }
        world.put("mine.json", json!(types).to_string().as_bytes())
    };
    // Examples are not looked for.
    std::fs::remove_file(world.data("STAR_train.json")).unwrap();
    let first = &questions[0]["question_id"];
    let n_types = 4.0;
    let wrong_first = |question: &Value| {
        json!((right(question) + usize::from(question["question_id"] == *first)) % 4)
    };
    world.check("STAR_val.json", &mine(&wrong_first), ("star:mc", 1.0 - 1.0 / n_types));
    let texts = mine(&|question| question["answer"].clone());
    let scores = world.scores(&texts, &[]);
    // A metric that is named twice, even apart, is one.
    let names = ["star:mc", "accuracy", "star:mc"];
    let samples = world.dir.path().join("samples.jsonl");
    let metrics = names.iter().flat_map(|name| ["--metric", name]);
    let more: Vec<&str> = metrics.chain(["--samples", samples.to_str().unwrap()]).collect();
    let output = world.by_task("score", &texts, &more);
    let table = String::from_utf8(output.stdout).unwrap();
    let n_rows =
        |name: &str| table.lines().filter(|line| line.starts_with(&format!("{name} "))).count();
    assert_eq!((n_rows("star:mc"), n_rows("accuracy")), (1, 1), "{table}");
    assert_eq!(scores["scores"]["star:mc"]["value"], json!(1.0));
    assert_eq!(scores["scores"]["accuracy"]["value"], json!(1.0));
    let listed: Vec<Value> = questions
        .iter()
        .map(|question| json!({ "question_id": question["question_id"], "answers": [1, 2] }))
        .collect();
    let listed = world.put("listed.json", json!(listed).to_string().as_bytes());
    let message = world.refused(&listed);
    assert!(message.contains("the answer is a list `answers`, expected the number"), "{message}");
}
