//! Files of predictions as the official tools take them.

use std::borrow::Cow;
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::truth::Id;
use crate::error::EvalError;
use crate::metric::Form;
use crate::metric::evidence::Prediction;
use crate::npy::table;

/// Reads the predictions in `bytes`, the content of the file `path`, for annotations of a form with these
/// ids; each with the id of what it is of.
pub(super) fn predictions<'a>(
    path: &Path,
    bytes: &'a [u8],
    form: Form,
    ids: &[&str],
) -> Result<Vec<(String, Prediction<'a>)>, EvalError> {
    let refuse = |problem| EvalError::Annotations { path: path.to_path_buf(), problem };
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    match extension.as_str() {
        "npy" => return from_array(path, bytes, form, ids),
        "csv" => from_table(bytes, form),
        "jsonl" => from_lines(bytes, form),
        _ if bytes.trim_ascii_start().starts_with(b"{") => from_object(bytes, form),
        _ => from_list(bytes, form),
    }
    .map_err(refuse)
}

#[derive(Deserialize)]
struct Row<'a> {
    question_id: Option<Id>,
    image_id: Option<Id>,
    #[serde(borrow)]
    image: Option<Cow<'a, str>>,
    id: Option<Id>,
    video_id: Option<Id>,
    round_id: Option<Id>,
    #[serde(borrow)]
    caption: Option<Cow<'a, str>>,
    answer: Option<Value>,
    answers: Option<Vec<String>>,
    ranks: Option<Vec<f64>>,
    scores: Option<Vec<f64>>,
    score: Option<f64>,
    proba: Option<f64>,
}

impl<'a> Row<'a> {
    fn checked(self, form: Form) -> Result<(String, Prediction<'a>), String> {
        let image = self.image_id.or(self.image.map(|image| Id(image.into_owned())));
        let question = self.question_id.or(self.id);
        let missing = |what: &str| format!("it has no {what}");
        match form {
            Form::Captions => {
                let Id(id) = image.ok_or_else(|| missing("id (`image_id`)"))?;
                let caption = self.caption.ok_or_else(|| missing("text (`caption`)"))?;
                Ok((id, Prediction::Text(caption)))
            }
            Form::Relevance | Form::Candidates => {
                let (Id(image), Id(round)) = image
                    .zip(self.round_id)
                    .ok_or_else(|| missing("`image_id` or no `round_id`"))?;
                let scores = match (self.ranks, self.scores) {
                    (Some(ranks), None) => ranks.into_iter().map(|rank| -rank).collect(),
                    (None, Some(scores)) => scores,
                    _ => return Err(missing("`ranks` or `scores`")),
                };
                Ok((format!("{image} round {round}"), Prediction::Scores(scores)))
            }
            Form::Label => {
                let Id(id) = question.ok_or_else(|| missing("`id`"))?;
                let score = self.score.or(self.proba);
                let score = score.ok_or_else(|| missing("number `score` or `proba`"))?;
                Ok((id, Prediction::Scores(vec![score])))
            }
            _ => {
                let id = question.or(image).or(self.video_id);
                let Id(id) =
                    id.ok_or_else(|| missing("id (`question_id`, `id`, `image` or `video_id`)"))?;
                if let Some(answers) = self.answers {
                    return Ok((id, Prediction::Ranking(answers)));
                }
                let answer = self.answer.ok_or_else(|| missing("text (`answer`)"))?;
                Ok((id, said(answer, form)?))
            }
        }
    }
}

/// A text, or the number of a choice where there are choices.
fn said(value: Value, form: Form) -> Result<Prediction<'static>, String> {
    let has_choices = matches!(form, Form::NextChoice | Form::Star);
    match value {
        Value::String(text) if !has_choices => Ok(Prediction::Text(text.into())),
        Value::Number(number) if has_choices && number.is_i64() => {
            Ok(Prediction::Choice(number.as_i64().unwrap_or_default()))
        }
        other => {
            let expected = if has_choices { "the number of a choice" } else { "a text" };
            Err(format!("the answer is {other}, expected {expected}"))
        }
    }
}

/// Reads a list row by row.
struct List<'p, 'a> {
    form: Form,
    predictions: &'p mut Vec<(String, Prediction<'a>)>,
}

impl<'de: 'a, 'a> Visitor<'de> for List<'_, 'a> {
    type Value = ();

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a list of predictions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<(), A::Error> {
        while let Some(row) = rows.next_element::<Row<'a>>()? {
            self.predictions.push(row.checked(self.form).map_err(de::Error::custom)?);
        }
        Ok(())
    }
}

fn from_list(bytes: &[u8], form: Form) -> Result<Vec<(String, Prediction<'_>)>, String> {
    let mut predictions = Vec::new();
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let list = List { form, predictions: &mut predictions };
    let read = json.deserialize_seq(list).and_then(|()| json.end());
    read.map_err(|error| match error.classify() {
        serde_json::error::Category::Data => format!("prediction {}: {error}", predictions.len()),
        _ => format!("it is not JSON: {error}"),
    })?;
    Ok(predictions)
}

fn from_lines(bytes: &[u8], form: Form) -> Result<Vec<(String, Prediction<'_>)>, String> {
    let mut predictions = Vec::new();
    for (i, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let row: Row<'_> =
            serde_json::from_slice(line).map_err(|error| format!("line {}: {error}", i + 1))?;
        let checked = row.checked(form).map_err(|problem| format!("line {}: {problem}", i + 1))?;
        predictions.push(checked);
    }
    Ok(predictions)
}

/// The table of scores that goes to the makers of `HatefulMemes`.
fn from_table(bytes: &[u8], form: Form) -> Result<Vec<(String, Prediction<'static>)>, String> {
    if form != Form::Label {
        return Err(format!("it is a table, but the annotations are {}", form.holds()));
    }
    let mut table = csv::Reader::from_reader(bytes);
    let names = table.headers().map_err(|error| error.to_string())?.clone();
    let place = |name: &str| {
        let place = names.iter().position(|n| n == name);
        place.ok_or_else(|| format!("it has no column `{name}`"))
    };
    let (id, proba) = (place("id")?, place("proba")?);
    let mut predictions = Vec::new();
    for (i, record) in table.records().enumerate() {
        let record = record.map_err(|error| error.to_string())?;
        let cell = |at: usize| record.get(at).unwrap_or_default();
        let score = cell(proba).trim().parse::<f64>().map_err(|_| {
            format!("row {}: `proba` is `{}`, expected a number", i + 1, cell(proba))
        })?;
        predictions.push((cell(id).to_owned(), Prediction::Scores(vec![score])));
    }
    Ok(predictions)
}

/// Entries of an object in their order, names that come twice among them.
struct Entries<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for EntriesVisitor<T> {
            type Value = Entries<T>;
            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor(std::marker::PhantomData))
    }
}

#[derive(Deserialize)]
struct NextChoiceRow {
    prediction: i64,
}

#[derive(Deserialize)]
struct StarRow {
    question_id: String,
    answer: i64,
}

fn from_object(bytes: &[u8], form: Form) -> Result<Vec<(String, Prediction<'static>)>, String> {
    let wrong = |error: serde_json::Error| format!("it is not of the official form: {error}");
    match form {
        Form::NextOpen => {
            let Entries(videos): Entries<Entries<Value>> =
                serde_json::from_slice(bytes).map_err(wrong)?;
            let mut predictions = Vec::new();
            for (video, Entries(questions)) in videos {
                for (question, answer) in questions {
                    let id = format!("{video}_{question}");
                    let answer =
                        said(answer, form).map_err(|problem| format!("{id}: {problem}"))?;
                    predictions.push((id, answer));
                }
            }
            Ok(predictions)
        }
        Form::NextChoice => {
            let Entries(questions): Entries<NextChoiceRow> =
                serde_json::from_slice(bytes).map_err(wrong)?;
            let choice =
                |(id, row): (String, NextChoiceRow)| (id, Prediction::Choice(row.prediction));
            Ok(questions.into_iter().map(choice).collect())
        }
        Form::Star => {
            let Entries(types): Entries<Vec<StarRow>> =
                serde_json::from_slice(bytes).map_err(wrong)?;
            let rows = types.into_iter().flat_map(|(_, rows)| rows);
            Ok(rows.map(|row| (row.question_id, Prediction::Choice(row.answer))).collect())
        }
        _ => Err("it is not a list of predictions".to_owned()),
    }
}

/// Scores `[clips, classes]`, in the order of the annotations.
fn from_array(
    path: &Path,
    bytes: &[u8],
    form: Form,
    ids: &[&str],
) -> Result<Vec<(String, Prediction<'static>)>, EvalError> {
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
    let row =
        |(id, scores): (&&str, &[f64])| ((*id).to_owned(), Prediction::Scores(scores.to_vec()));
    Ok(ids.iter().zip(rows).map(row).collect())
}
