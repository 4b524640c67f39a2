//! Files of annotations as they are downloaded, told apart by what they hold.
//!
//! Lists are read one row at a time, so that what no metric needs is never kept.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use rustc_hash::FxHashSet;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};

use crate::error::EvalError;
use crate::ids::{Id, round_id};
use crate::metric::Form;
use crate::metric::evidence::{Evidence, Truth};
use crate::metrics::mwap::{Clip, Seen};
use crate::metrics::vqa::{AnswerTable, Person};
use crate::readers::ivqa::{ivqa_answers, ivqa_id};
use crate::readers::next_oe::SecondAnswers;
use crate::readers::people::PersonRow;

/// All that a file annotates.
#[derive(Debug)]
pub(super) struct Truths {
    pub(super) form: Form,
    pub(super) items: Vec<Evidence<'static>>,
    /// Texts of the people's answers.
    pub(super) answers: AnswerTable,
}

/// Reads the annotations in `bytes`, the content of the file `path`, and second references in `more`.
pub(super) fn truths(path: &Path, bytes: &[u8], more: Option<&Path>) -> Result<Truths, EvalError> {
    let refuse = |problem| EvalError::Annotations { path: path.to_path_buf(), problem };
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let mut truths = match extension.as_str() {
        "csv" => from_table(bytes),
        "jsonl" => from_lines(bytes),
        _ => from_json(bytes),
    }
    .map_err(refuse)?;
    if truths.items.is_empty() {
        return Err(refuse("it has no annotations".to_owned()));
    }
    let mut seen = FxHashSet::default();
    for (i, item) in truths.items.iter().enumerate() {
        if !seen.insert(item.id.as_str()) {
            return Err(refuse(format!("annotation {i}: `{}` is annotated twice", item.id)));
        }
    }
    if let Some(more) = more {
        if truths.form != Form::NextOpen {
            let holds = truths.form.holds();
            return Err(refuse(format!("it has {holds}, which have no second references")));
        }
        add_references(&mut truths.items, more)?;
    }
    Ok(truths)
}

/// A person's answer: VQA's object, or the text alone.
struct PersonAnswer<'a>(PersonRow<'a>);

impl<'de: 'a, 'a> Deserialize<'de> for PersonAnswer<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PersonVisitor;
        impl<'de> Visitor<'de> for PersonVisitor {
            type Value = PersonRow<'de>;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a text or an object with `answer`")
            }
            fn visit_str<E>(self, text: &str) -> Result<PersonRow<'de>, E> {
                let answer = Cow::Owned(text.to_owned());
                Ok(PersonRow { answer, answer_confidence: None, answer_id: None })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<PersonRow<'de>, A::Error> {
                PersonRow::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(PersonVisitor).map(PersonAnswer)
    }
}

/// A row of any of the lists.
#[derive(Deserialize)]
struct Row<'a> {
    question_id: Option<Id>,
    image_id: Option<Id>,
    #[serde(borrow)]
    image: Option<Cow<'a, str>>,
    id: Option<Id>,
    video_id: Option<Id>,
    #[serde(borrow)]
    caption: Option<Cow<'a, str>>,
    #[serde(borrow)]
    answers: Option<Vec<PersonAnswer<'a>>>,
    #[serde(borrow)]
    answer: Option<Cow<'a, str>>,
    #[serde(borrow)]
    choices: Option<Vec<ChoiceRow<'a>>>,
    round_id: Option<Id>,
    gt_relevance: Option<Vec<f64>>,
    relevance: Option<Vec<f64>>,
    label: Option<u8>,
    /// VQA's `yes/no`, `number` or `other`.
    answer_type: Option<String>,
}

#[derive(Deserialize)]
struct ChoiceRow<'a> {
    choice_id: i64,
    #[serde(borrow)]
    choice: Cow<'a, str>,
}

/// Puts rows together as they come.
#[derive(Default)]
struct Gathered {
    form: Option<Form>,
    items: Vec<Evidence<'static>>,
    answers: AnswerTable,
    /// Place of each image of which there are captions.
    images: HashMap<String, usize>,
}

impl Gathered {
    fn add(&mut self, row: Row<'_>) -> Result<(), String> {
        let Some((form, item)) = self.item(row)? else { return Ok(()) };
        match self.form.replace(form) {
            Some(other) if other != form => {
                return Err(format!("it has {}, others have {}", form.holds(), other.holds()));
            }
            _ => self.items.push(item),
        }
        Ok(())
    }

    /// The item of a row, unless it joined another one.
    fn item(&mut self, row: Row<'_>) -> Result<Option<(Form, Evidence<'static>)>, String> {
        let image = row.image_id.or(row.image.map(|image| Id(image.into_owned())));
        let question = row.question_id.or(row.id);
        let missing = |what: &str| format!("it has no {what}");
        if let Some(caption) = row.caption {
            let Id(id) = image.ok_or_else(|| missing("`image_id`"))?;
            if let Some(at) = self.images.get(&id) {
                let Truth::Captions(captions) = &mut self.items[*at].truth else {
                    return Err(missing("`answers`"));
                };
                captions.push(Cow::Owned(caption.into_owned()));
                return Ok(None);
            }
            self.images.insert(id.clone(), self.items.len());
            return Ok(Some((
                Form::Captions,
                item(id, None, Truth::Captions(vec![Cow::Owned(caption.into_owned())])),
            )));
        }
        if let Some(relevance) = row.gt_relevance.or(row.relevance) {
            let Id(image) = image.ok_or_else(|| missing("`image_id`"))?;
            let Id(round) = row.round_id.ok_or_else(|| missing("`round_id`"))?;
            let truth = Truth::Relevance(relevance);
            let id = round_id(&image, round);
            return Ok(Some((Form::Relevance, item(id, Some(image), truth))));
        }
        if let Some(people) = row.answers {
            let cluster = image.clone();
            let Id(id) = question.or(image).ok_or_else(|| missing("`question_id` or `image`"))?;
            if people.is_empty() {
                return Err("it has no answer in `answers`".to_owned());
            }
            // Collecting would keep the room of the rows, four times as much.
            let mut persons = Vec::with_capacity(people.len());
            persons.extend(people.into_iter().map(|person| self.person(person)));
            let cluster = cluster.map(|Id(image)| image);
            let kind = row.answer_type.unwrap_or_default();
            let truth = Truth::People(persons);
            return Ok(Some((Form::People, Evidence { kind, ..item(id, cluster, truth) })));
        }
        if let Some(answer) = row.answer {
            let Id(id) = question.ok_or_else(|| missing("`question_id` or `id`"))?;
            let cluster = row.video_id.or(image).map(|Id(video)| video);
            let Some(choices) = row.choices else {
                let truth = Truth::Texts(vec![answer.into_owned()]);
                return Ok(Some((Form::OneAnswer, item(id, cluster, truth))));
            };
            let right = choices.iter().find(|choice| choice.choice == answer);
            let right = right.ok_or_else(|| format!("`{answer}` is none of its choices"))?;
            let kind = id.split('_').next().unwrap_or_default().to_owned();
            let truth = Truth::Choice(right.choice_id);
            return Ok(Some((Form::Star, Evidence { kind, ..item(id, cluster, truth) })));
        }
        if let Some(label) = row.label {
            let Id(id) = question.ok_or_else(|| missing("`id`"))?;
            return match label {
                0 | 1 => Ok(Some((Form::Label, item(id, None, Truth::Label(label == 1))))),
                _ => Err(format!("`label` is {label}, expected 0 or 1")),
            };
        }
        Err(missing("`caption`, `answers`, `answer`, `gt_relevance` or `label`"))
    }

    fn person(&mut self, PersonAnswer(row): PersonAnswer<'_>) -> Person {
        let confidence = row.answer_confidence.unwrap_or_default();
        self.answers.person(&row.answer, &confidence, row.answer_id)
    }

    fn truths(self) -> Result<Truths, String> {
        let form = self.form.ok_or("it has no list `annotations` that is not empty")?;
        Ok(Truths { form, items: self.items, answers: self.answers })
    }
}

fn item(id: String, cluster: Option<String>, truth: Truth<'static>) -> Evidence<'static> {
    Evidence { id, cluster, kind: String::new(), truth }
}

/// Reads a list, or an object with one, row by row; keeps the number of the row at hand.
struct Reader<'g> {
    gathered: &'g mut Gathered,
    row: &'g Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of annotations, or an object with one")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<(), A::Error> {
        while let Some(row) = rows.next_element::<Row<'de>>()? {
            self.gathered.add(row).map_err(de::Error::custom)?;
            self.row.set(self.row.get() + 1);
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(key) = entries.next_key::<String>()? {
            match key.as_str() {
                "annotations" | "data" => entries
                    .next_value_seed(Reader { gathered: &mut *self.gathered, row: self.row })?,
                // Of `VisDial`.
                "dialogs" => {
                    for dialog in entries.next_value::<Vec<Dialog>>()? {
                        add_dialog(self.gathered, dialog).map_err(de::Error::custom)?;
                        self.row.set(self.row.get() + 1);
                    }
                }
                _ => {
                    entries.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Dialog {
    image_id: Id,
    dialog: Vec<Round>,
}

#[derive(Deserialize)]
struct Round {
    answer_options: Vec<IgnoredAny>,
    gt_index: usize,
}

fn add_dialog(gathered: &mut Gathered, dialog: Dialog) -> Result<(), String> {
    let Id(image) = dialog.image_id;
    for (i, round) in dialog.dialog.into_iter().enumerate() {
        let (right, n) = (round.gt_index, round.answer_options.len());
        if right >= n {
            return Err(format!("`gt_index` of round {} is {right} of {n}", i + 1));
        }
        let id = round_id(&image, i + 1);
        gathered.items.push(item(id, Some(image.clone()), Truth::Candidate(right)));
    }
    gathered.form = Some(Form::Candidates);
    Ok(())
}

fn from_json(bytes: &[u8]) -> Result<Truths, String> {
    let mut gathered = Gathered::default();
    let row = Cell::new(0);
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let read = Reader { gathered: &mut gathered, row: &row }.deserialize(&mut json);
    read.and_then(|()| json.end()).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => format!("annotation {}: {error}", row.get()),
        _ => format!("it is not JSON: {error}"),
    })?;
    gathered.truths()
}

fn from_lines(bytes: &[u8]) -> Result<Truths, String> {
    let mut gathered = Gathered::default();
    for (i, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let row: Row<'_> =
            serde_json::from_slice(line).map_err(|error| format!("line {}: {error}", i + 1))?;
        gathered.add(row).map_err(|problem| format!("line {}: {problem}", i + 1))?;
    }
    gathered.truths()
}

/// A table with names over its columns.
fn from_table(bytes: &[u8]) -> Result<Truths, String> {
    let mut table = csv::Reader::from_reader(bytes);
    let names = table.headers().map_err(|error| error.to_string())?.clone();
    let has = |wanted: &[&str]| wanted.iter().all(|name| names.iter().any(|n| n == *name));
    let form = if has(&["class_id", "verb", "noun", "annotation"]) {
        Form::Clips
    } else if has(&["answer1", "answer5", "video_id"]) {
        Form::Ivqa
    } else if has(&["qid", "type", "a0", "a4"]) {
        Form::NextChoice
    } else if has(&["video", "qid", "type", "answer"]) {
        Form::NextOpen
    } else {
        let names = names.iter().collect::<Vec<_>>().join(", ");
        return Err(format!("its columns {names} are those of no known annotations"));
    };
    let mut items = Vec::new();
    for (i, record) in table.records().enumerate() {
        let record = record.map_err(|error| error.to_string())?;
        let cell = |name: &str| {
            let at = names.iter().position(|n| n == name);
            let value = at.and_then(|at| record.get(at));
            value.ok_or_else(|| format!("row {}: no `{name}`", i + 1))
        };
        let number = |name: &str| {
            let text = cell(name)?;
            let number = text.trim().parse::<i64>();
            number.map_err(|_| format!("row {}: `{name}` is `{text}`, expected a number", i + 1))
        };
        items.push(match form {
            Form::Ivqa => {
                let answers = ["answer1", "answer2", "answer3", "answer4", "answer5"].map(cell);
                let answers: Result<Vec<&str>, String> = answers.into_iter().collect();
                let answers = ivqa_answers(answers?.into_iter().map(str::to_owned));
                if answers.is_empty() {
                    return Err(format!("row {}: no answer", i + 1));
                }
                let video = cell("video_id")?;
                item(ivqa_id(video, i), Some(video.to_owned()), Truth::Texts(answers))
            }
            Form::Clips => {
                let seen =
                    u32::try_from(number("annotation")?).ok().and_then(Seen::from_annotation);
                let expected = || format!("row {}: `annotation` is not 0 to 4", i + 1);
                let class = usize::try_from(number("class_id")?);
                let clip = Clip {
                    video: cell("video_id")?.to_owned(),
                    class: class.map_err(|_| format!("row {}: `class_id` is negative", i + 1))?,
                    verb: cell("verb")?.to_owned(),
                    noun: cell("noun")?.to_owned(),
                    seen: seen.ok_or_else(expected)?,
                };
                item(cell("id")?.to_owned(), Some(clip.video.clone()), Truth::Clip(Box::new(clip)))
            }
            _ => {
                let truth = if form == Form::NextChoice {
                    Truth::Choice(number("answer")?)
                } else {
                    Truth::Texts(vec![cell("answer")?.to_owned()])
                };
                let (video, kind) = (cell("video")?.to_owned(), cell("type")?.to_owned());
                let id = format!("{video}_{}", cell("qid")?);
                Evidence { kind, ..item(id, Some(video), truth) }
            }
        });
    }
    Ok(Truths { form, items, answers: AnswerTable::default() })
}

/// Adds the second right answers of NExT-OE's test split.
fn add_references(items: &mut [Evidence<'_>], path: &Path) -> Result<(), EvalError> {
    let mut second = SecondAnswers::read(&path.display().to_string())?;
    for item in items {
        let (Some(video), Truth::Texts(texts)) = (&item.cluster, &mut item.truth) else { continue };
        let question = item.id.strip_prefix(video.as_str()).unwrap_or_default();
        texts.extend(second.take(video, question.trim_start_matches('_')));
    }
    second.check()
}
