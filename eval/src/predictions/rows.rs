//! Files of predictions, row by row, in every form that official tools and servers take, and samples of ours.
//!
//! | form | a row |
//! |---|---|
//! | COCO, VQA, `VizWiz`, lists of other benchmarks | an id (`question_id`, `image_id`, `image`, `video_id`, `id` or `key`) with `caption`, `answer` or `prediction` |
//! | MSVD, MSRVTT | the same; `answers`, the best one first, in place of `answer` |
//! | `HatefulMemes` | `id` with `proba` or `score`, and maybe `label`; a table or a list |
//! | `VisDial` | `image_id` and `round_id` with `ranks` of the candidates, from 1, or `scores` |
//! | STAR | lists of rows under the names of the four types |
//! | NExT-QA | objects of videos of questions; with choices, objects with `prediction` by question |
//! | `RareAct` | `.npy` of clips by classes, in the order of the annotations |
//! | a map | ids with their texts |
//! | `samples_*.jsonl` | one sample a line, with the likelihoods of the candidates |
//!
//! Lists are read one row at a time; texts stay where they are in the file's bytes.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::error::EvalError;
use crate::ids::{Id, round_id};
use crate::metric::Form;
use crate::metric::evidence::Prediction;
use crate::npy::table;
use crate::subject::Ending;

/// What a file says of one item.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry<'a> {
    /// Id of what it is of.
    pub(crate) id: String,
    /// What is predicted.
    pub(crate) said: Prediction<'a>,
    /// The candidate that was chosen, where the file says so beside scores: its text, or its number.
    pub(crate) chosen: Option<Cow<'a, str>>,
    /// How the answer ended, if not by itself and the file says so.
    pub(crate) ending: Option<Ending>,
}

impl<'a> Entry<'a> {
    fn new(id: String, said: Prediction<'a>) -> Self {
        Self { id, said, chosen: None, ending: None }
    }

    /// What is predicted, where the texts of candidates are not known: choices are numbers, and a score is that of
    /// yes.
    pub(crate) fn without_candidates(self, form: Form) -> Result<(String, Prediction<'a>), String> {
        let Self { id, said, .. } = self;
        let said = match (form, said) {
            (Form::NextChoice | Form::Star, Prediction::Choice(choice)) => {
                Prediction::Choice(choice)
            }
            (Form::NextChoice | Form::Star, other) => {
                return Err(wrong_answer(&id, &other.shown(), "the number of a choice"));
            }
            (Form::Label, Prediction::Scores(scores)) => match scores[..] {
                [yes] => Prediction::Scores(vec![yes]),
                // Of `no` and `yes`.
                [no, yes] => Prediction::Scores(vec![yes - no]),
                _ => return Err(format!("{id}: it has {} scores, expected 1 or 2", scores.len())),
            },
            (Form::Label, _) => {
                return Err(format!("{id}: it has no number `score` or `proba`"));
            }
            (_, said) => said,
        };
        Ok((id, said))
    }
}

fn wrong_answer(id: &str, found: &str, expected: &str) -> String {
    format!("{id}: the answer is {found}, expected {expected}")
}

/// Reads the predictions in `bytes`, the content of the file `path`, of items of a form; `ids` are theirs, in their
/// order.
///
/// # Errors
/// When the file is of no form that the items have; the first row that is not is named.
pub(crate) fn entries<'a>(
    path: &Path,
    bytes: &'a [u8],
    form: Form,
    ids: &[&str],
) -> Result<Vec<Entry<'a>>, EvalError> {
    let refuse = |problem| EvalError::Annotations { path: path.to_path_buf(), problem };
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    match extension.as_str() {
        "npy" => return from_array(path, bytes, form, ids),
        "csv" => from_table(bytes, form),
        "jsonl" => from_lines(bytes, form),
        _ if is_lines(bytes) => from_lines(bytes, form),
        _ => from_json(bytes, form),
    }
    .map_err(refuse)
}

/// Whether the first line is an object, and something follows.
fn is_lines(bytes: &[u8]) -> bool {
    let bytes = bytes.trim_ascii();
    let end = bytes.iter().position(|&byte| byte == b'\n');
    let first = end.map(|end| &bytes[..end]).filter(|line| line.starts_with(b"{"));
    first.is_some_and(|line| serde_json::from_slice::<IgnoredAny>(line).is_ok())
}

#[derive(Deserialize)]
struct Row<'a> {
    question_id: Option<Id>,
    image_id: Option<Id>,
    #[serde(borrow)]
    image: Option<Cow<'a, str>>,
    id: Option<Id>,
    key: Option<Id>,
    video_id: Option<Id>,
    round_id: Option<Id>,
    #[serde(borrow)]
    caption: Option<Cow<'a, str>>,
    answer: Option<Value>,
    answers: Option<Value>,
    prediction: Option<Value>,
    ranks: Option<Vec<u64>>,
    scores: Option<Vec<f64>>,
    log_likelihoods: Option<Vec<f64>>,
    score: Option<f64>,
    proba: Option<f64>,
    label: Option<Value>,
    /// Of samples of ours; in others it may be anything.
    ending: Option<Value>,
}

impl<'a> Row<'a> {
    fn entry(mut self, form: Form) -> Result<Entry<'a>, String> {
        let ending = self.ending.take().and_then(|ending| serde_json::from_value(ending).ok());
        Ok(Entry { ending, ..self.answered(form)? })
    }

    fn answered(mut self, form: Form) -> Result<Entry<'a>, String> {
        let missing = |what: &str| format!("it has no {what}");
        let id = self.id(form);
        match form {
            Form::Captions => {
                let id =
                    id.ok_or_else(|| missing("id (`image_id`, `image`, `video_id` or `id`)"))?;
                if let Some(caption) = self.caption {
                    return Ok(Entry::new(id, Prediction::Text(caption)));
                }
                let value = self.answer.or(self.prediction);
                let value = value.ok_or_else(|| missing("text (`caption`)"))?;
                let said = said(&id, value, form)?;
                Ok(Entry::new(id, said))
            }
            Form::Relevance | Form::Candidates => {
                let id = id.ok_or_else(|| missing("`image_id` or no `round_id`"))?;
                let scores = match (self.ranks, self.scores.or(self.log_likelihoods)) {
                    (Some(ranks), None) => scores_of_ranks(&ranks)?,
                    (None, Some(scores)) => scores,
                    _ => return Err(missing("`ranks` or `scores`")),
                };
                Ok(Entry::new(id, Prediction::Scores(scores)))
            }
            _ => {
                let id = id.ok_or_else(|| {
                    missing("id (`question_id`, `id`, `key`, `image_id`, `image` or `video_id`)")
                })?;
                let scores = self.scores(form);
                let answers = self.answers.take();
                let label = self.label.filter(|_| form == Form::Label);
                let value = label.or(self.answer).or(self.prediction);
                match (scores, answers) {
                    (Some(scores), _) => {
                        let chosen = value.map(|value| said(&id, value, form)).transpose()?;
                        let chosen = chosen.and_then(Prediction::into_text);
                        Ok(Entry { chosen, ..Entry::new(id, Prediction::Scores(scores)) })
                    }
                    (None, Some(answers)) if form == Form::OneAnswer || value.is_none() => {
                        let said = ranking(&id, answers, form)?;
                        Ok(Entry::new(id, said))
                    }
                    (None, _) => {
                        let value = value.ok_or_else(|| missing("text (`answer`)"))?;
                        let said = said(&id, value, form)?;
                        Ok(Entry::new(id, said))
                    }
                }
            }
        }
    }

    /// The id: files of captions and dialogs name images, others questions, which come first there.
    fn id(&mut self, form: Form) -> Option<String> {
        let image = self.image_id.take().or(self.image.take().map(|image| Id(image.into_owned())));
        let (own, video) = (self.id.take().or(self.key.take()), self.video_id.take());
        let id = match form {
            Form::Captions => image.or(video).or(own),
            Form::Relevance | Form::Candidates => match (image, self.round_id.take()) {
                (Some(Id(image)), Some(round)) => Some(Id(round_id(&image, round))),
                (None, None) => own,
                _ => None,
            },
            _ => self.question_id.take().or(own).or(image).or(video),
        };
        id.map(|Id(id)| id)
    }

    /// Scores of candidates, or of yes alone, where the form has candidates.
    fn scores(&mut self, form: Form) -> Option<Vec<f64>> {
        let of_all = self.scores.take().or(self.log_likelihoods.take());
        let of_yes = self.score.take().or(self.proba.take());
        match form {
            Form::Label => of_yes.map(|score| vec![score]).or(of_all),
            Form::Star | Form::NextChoice | Form::Classes | Form::Clips => of_all,
            _ => None,
        }
    }
}

/// The lower the rank, the better.
fn scores_of_ranks(ranks: &[u64]) -> Result<Vec<f64>, String> {
    let mut sorted = ranks.to_vec();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(1..=ranks.len() as u64) {
        return Err(format!("`ranks` are not the numbers 1 to {}, each once", ranks.len()));
    }
    Ok(ranks.iter().map(|rank| -(*rank as f64)).collect())
}

/// A text, or the number of a candidate where there are candidates.
fn said(id: &str, value: Value, form: Form) -> Result<Prediction<'static>, String> {
    let has_candidates = form.has_candidates();
    match value {
        Value::String(text) => Ok(Prediction::Text(text.into())),
        Value::Number(number) if has_candidates && number.is_i64() => {
            Ok(Prediction::Choice(number.as_i64().unwrap_or_default()))
        }
        other => {
            let expected = if has_candidates { "the number of a choice" } else { "a text" };
            Err(wrong_answer(id, &other.to_string(), expected))
        }
    }
}

/// Texts, the best one first, where one answer is right.
fn ranking(id: &str, answers: Value, form: Form) -> Result<Prediction<'static>, String> {
    if form != Form::OneAnswer {
        let expected = if form.has_candidates() { "the number of a choice" } else { "one text" };
        return Err(wrong_answer(id, "a list `answers`", expected));
    }
    serde_json::from_value(answers)
        .map(Prediction::Ranking)
        .map_err(|error| format!("{id}: `answers` is no list of texts: {error}"))
}

/// Reads a list of rows, or an object of lists, texts and objects, by name.
struct Reader<'p, 'a> {
    form: Form,
    entries: &'p mut Vec<Entry<'a>>,
    /// The name in the object that it stands under; nothing at the top.
    name: Option<String>,
}

impl<'de: 'a, 'a> DeserializeSeed<'de> for Reader<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Reader<'_, '_> {
    /// An answer under its id.
    fn answer<E: de::Error>(self, value: Value) -> Result<(), E> {
        let Some(id) = self.name else {
            return Err(E::custom("it is no list or object of predictions"));
        };
        if matches!(self.form, Form::Relevance | Form::Candidates | Form::Clips | Form::Label) {
            return Err(E::custom(format!("{id}: it has no scores of candidates")));
        }
        let said = said(&id, value, self.form).map_err(E::custom)?;
        self.entries.push(Entry::new(id, said));
        Ok(())
    }
}

impl<'de: 'a, 'a> Visitor<'de> for Reader<'_, 'a> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list or an object of predictions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<(), A::Error> {
        while let Some(row) = rows.next_element::<Row<'a>>()? {
            self.entries.push(row.entry(self.form).map_err(de::Error::custom)?);
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        match (self.name, self.form) {
            // A question of NExT-QA with its choices, or a row by its id.
            (Some(id), form) if form != Form::NextOpen => {
                let row = Row::deserialize(MapAccessDeserializer::new(map))?;
                let value = if form == Form::NextChoice {
                    // What stands in `answer` beside it is the right one.
                    row.prediction
                } else {
                    row.answer.or(row.prediction)
                };
                let value = value
                    .ok_or_else(|| de::Error::custom(format!("{id}: it has no `prediction`")))?;
                Reader { form, entries: self.entries, name: Some(id) }.answer(value)
            }
            (video, form) => {
                while let Some(name) = map.next_key::<String>()? {
                    let name = video.as_ref().map_or(name.clone(), |it| format!("{it}_{name}"));
                    let entries = &mut *self.entries;
                    map.next_value_seed(Reader { form, entries, name: Some(name) })?;
                }
                Ok(())
            }
        }
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        self.answer(text.into())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<(), E> {
        self.answer(number.into())
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<(), E> {
        self.answer(number.into())
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<(), E> {
        self.answer(number.into())
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        self.answer(value.into())
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.answer(Value::Null)
    }
}

fn from_json(bytes: &[u8], form: Form) -> Result<Vec<Entry<'_>>, String> {
    let mut entries = Vec::new();
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let reader = Reader { form, entries: &mut entries, name: None };
    let read = reader.deserialize(&mut json).and_then(|()| json.end());
    read.map_err(|error| match error.classify() {
        serde_json::error::Category::Data => format!("prediction {}: {error}", entries.len()),
        _ => format!("it is not JSON: {error}"),
    })?;
    Ok(entries)
}

fn from_lines(bytes: &[u8], form: Form) -> Result<Vec<Entry<'_>>, String> {
    let mut entries = Vec::new();
    for (i, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let row: Row<'_> =
            serde_json::from_slice(line).map_err(|error| format!("line {}: {error}", i + 1))?;
        entries.push(row.entry(form).map_err(|problem| format!("line {}: {problem}", i + 1))?);
    }
    Ok(entries)
}

/// The table of scores that goes to the makers of `HatefulMemes`.
fn from_table(bytes: &[u8], form: Form) -> Result<Vec<Entry<'static>>, String> {
    if form != Form::Label {
        return Err(format!("it is a table, but the annotations are {}", form.holds()));
    }
    let mut table = csv::Reader::from_reader(bytes);
    let names = table.headers().map_err(|error| error.to_string())?.clone();
    let find = |name: &str| names.iter().position(|n| n == name);
    let place = |name: &str| find(name).ok_or_else(|| format!("it has no column `{name}`"));
    let (id, proba, label) = (place("id")?, place("proba")?, find("label"));
    let mut entries = Vec::new();
    for (i, record) in table.records().enumerate() {
        let record = record.map_err(|error| error.to_string())?;
        let cell = |at: usize| record.get(at).unwrap_or_default();
        let score = cell(proba).trim().parse::<f64>().map_err(|_| {
            format!("row {}: `proba` is `{}`, expected a number", i + 1, cell(proba))
        })?;
        entries.push(Entry {
            chosen: label.map(|at| cell(at).trim().to_owned().into()),
            ..Entry::new(cell(id).to_owned(), Prediction::Scores(vec![score]))
        });
    }
    Ok(entries)
}

/// Scores `[clips, classes]`, in the order of the annotations.
fn from_array(
    path: &Path,
    bytes: &[u8],
    form: Form,
    ids: &[&str],
) -> Result<Vec<Entry<'static>>, EvalError> {
    let refuse = |problem| EvalError::Annotations { path: path.to_path_buf(), problem };
    if form != Form::Clips {
        let holds = form.holds();
        return Err(refuse(format!("it is an array, but the annotations are {holds}")));
    }
    let table = table(path, bytes)?;
    if table.rows != ids.len() {
        let (found, expected) = (table.rows, ids.len());
        return Err(refuse(format!("it has {found} rows, the annotations have {expected}")));
    }
    let rows = table.values.chunks(table.columns.max(1));
    let row = |(id, scores): (&&str, &[f64])| {
        Entry::new((*id).to_owned(), Prediction::Scores(scores.to_vec()))
    };
    Ok(ids.iter().zip(rows).map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(form: Form, text: &str) -> Result<Vec<Entry<'_>>, String> {
        let read = entries(Path::new("mine"), text.as_bytes(), form, &[]);
        read.map_err(|error| error.to_string())
    }

    fn shown(entry: &Entry<'_>) -> (String, String) {
        (entry.id.clone(), entry.said.shown())
    }

    #[test]
    fn forms_of_all_benchmarks_are_read() {
        let check = |form: Form, text: &str, expected: &[(&str, &str)]| {
            let found: Vec<(String, String)> =
                read(form, text).unwrap().iter().map(shown).collect();
            let expected: Vec<(String, String)> =
                expected.iter().map(|(id, said)| ((*id).to_owned(), (*said).to_owned())).collect();
            assert_eq!(found, expected, "{text}");
        };
        let a = "\"a\"";
        check(Form::Captions, r#"[{"image_id": 7, "id": 1, "caption": "a"}]"#, &[("7", a)]);
        check(Form::Captions, r#"{"x": "a", "y": "a"}"#, &[("x", a), ("y", a)]);
        check(Form::People, r#"[{"question_id": 7, "image_id": 1, "answer": "a"}]"#, &[("7", a)]);
        check(Form::People, r#"[{"image": "V_1.jpg", "answer": "a"}]"#, &[("V_1.jpg", a)]);
        check(Form::People, r#"{"results": [{"question_id": 7, "answer": "a"}]}"#, &[("7", a)]);
        check(Form::OneAnswer, r#"[{"id": 2, "video_id": 7, "answer": "a"}]"#, &[("2", a)]);
        check(Form::OneAnswer, r#"[{"id": 2, "answers": ["a", "b"]}]"#, &[("2", r#"["a","b"]"#)]);
        check(Form::Ivqa, r#"[{"video_id": "v", "answer": "a"}]"#, &[("v", a)]);
        check(Form::NextOpen, r#"{"5": {"1": "a"}, "5": {"1": "a"}}"#, &[("5_1", a), ("5_1", a)]);
        check(Form::NextOpen, r#"{"v1_0": "a"}"#, &[("v1_0", a)]);
        check(Form::NextChoice, r#"{"5_1": {"prediction": 3, "answer": 1}}"#, &[("5_1", "3")]);
        check(
            Form::Star,
            r#"{"Sequence": [{"question_id": "S_T1_0", "answer": 2}]}"#,
            &[("S_T1_0", "2")],
        );
        check(Form::Label, r#"[{"id": 1, "score": 0.5}]"#, &[("1", "[0.5]")]);
        check(
            Form::Relevance,
            r#"[{"image_id": 3, "round_id": 10, "ranks": [2, 1, 3]}]"#,
            &[("3-10", "[-2.0,-1.0,-3.0]")],
        );
        check(
            Form::Candidates,
            r#"[{"image_id": 3, "round_id": 1, "scores": [0.5, 0.25]}]"#,
            &[("3-1", "[0.5,0.25]")],
        );
        let samples = concat!(
            r#"{"doc_id": 0, "key": "k", "cluster": "c", "shots": [], "target": [], "prediction": "a"}"#,
            "\n",
            r#"{"doc_id": 1, "key": "l", "prediction": "b"}"#,
            "\n"
        );
        check(Form::Captions, samples, &[("k", a), ("l", "\"b\"")]);
        check(Form::People, samples, &[("k", a), ("l", "\"b\"")]);
    }

    #[test]
    fn what_was_chosen_stands_beside_scores() {
        let sample = r#"[{"key": "k", "prediction": "red", "log_likelihoods": [-1.5, -0.5]}]"#;
        for form in [Form::Classes, Form::Star, Form::Label] {
            let found = &read(form, sample).unwrap()[0];
            assert_eq!(shown(found), ("k".to_owned(), "[-1.5,-0.5]".to_owned()));
            assert_eq!(found.chosen.as_deref(), Some("red"));
        }
        let row = r#"[{"id": 1, "proba": 0.5, "label": 1}]"#;
        assert_eq!(read(Form::Label, row).unwrap()[0].chosen.as_deref(), Some("1"));
        // Of what is written there are no candidates.
        assert_eq!(shown(&read(Form::People, sample).unwrap()[0]).1, "\"red\"");
    }

    #[test]
    fn samples_say_how_answers_ended() {
        let check = |more: &str, expected: Option<Ending>| {
            let row = format!(r#"[{{"key": "k", "prediction": "a"{more}}}]"#);
            assert_eq!(read(Form::Captions, &row).unwrap()[0].ending, expected, "{more}");
        };
        check("", None);
        check(r#", "ending": "length""#, Some(Ending::Length));
        check(r#", "ending": "content_filter""#, Some(Ending::ContentFilter));
        for other in ["null", "\"happy\"", "7"] {
            check(&format!(", \"ending\": {other}"), None);
        }
    }

    #[test]
    fn what_is_no_prediction_is_named() {
        let check = |form: Form, text: &str, part: &str| {
            let error = read(form, text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        };
        let captions = Form::Captions;
        check(
            captions,
            r#"[{"image_id": 1, "caption": "a"}, {"caption": "b"}]"#,
            "1: it has no id",
        );
        check(captions, r#"[{"image_id": 1, "caption": null}]"#, "prediction 0: it has no text");
        check(captions, r#"[{"image_id": 1.5, "caption": ""}]"#, "floating point `1.5`");
        check(captions, "[1", "prediction 0");
        check(captions, "[", "not JSON");
        check(captions, "7", "no list or object");
        check(captions, r#"{"a": 3}"#, "a: the answer is 3, expected a text");
        check(captions, r#"{"a": null}"#, "a: the answer is null, expected a text");
        check(captions, r#"{"a": {"b": "c"}}"#, "a: it has no `prediction`");
        let people = r#"[{"question_id": 1, "answers": ["a", "b"]}]"#;
        check(Form::People, people, "1: the answer is a list `answers`, expected one text");
        let choices = "1: the answer is a list `answers`, expected the number of a choice";
        check(Form::Star, people, choices);
        check(Form::NextChoice, people, choices);
        check(
            Form::OneAnswer,
            r#"[{"id": 1, "answers": "a"}]"#,
            "1: `answers` is no list of texts",
        );
        let ranks =
            |ranks: &str| format!(r#"[{{"image_id": 1, "round_id": 2, "ranks": {ranks}}}]"#);
        for wrong in ["[1, 1]", "[0, 1]", "[1, 3]", "[2, 3]"] {
            check(Form::Relevance, &ranks(wrong), "1 to 2, each once");
        }
        check(Form::Relevance, &ranks("[1.5, 1]"), "floating point `1.5`");
        check(Form::Relevance, r#"[{"image_id": 1, "ranks": [1]}]"#, "no `round_id`");
        check(Form::Relevance, r#"{"1-2": "a"}"#, "1-2: it has no scores of candidates");
    }

    #[test]
    fn without_candidates_choices_are_numbers_and_a_score_is_that_of_yes() {
        let check = |form: Form, text: &str, expected: Result<&str, &str>| {
            let entry = read(form, text).unwrap().remove(0);
            let found = entry.without_candidates(form).map(|(_, said)| said.shown());
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(found), Err(part)) => assert!(found.contains(part), "{found}"),
                other => panic!("{text}: {other:?}"),
            }
        };
        check(Form::Star, r#"[{"id": 1, "answer": 2}]"#, Ok("2"));
        check(Form::Star, r#"[{"id": 1, "answer": "a"}]"#, Err("1: the answer is \"a\", expected"));
        check(Form::Label, r#"[{"id": 1, "log_likelihoods": [-1.5, -0.5]}]"#, Ok("[1.0]"));
        check(Form::Label, r#"[{"id": 1, "scores": [1, 2, 3]}]"#, Err("1: it has 3 scores"));
        check(Form::Label, r#"[{"id": 1, "answer": "yes"}]"#, Err("1: it has no number `score`"));
    }
}
