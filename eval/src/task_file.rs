//! A benchmark as one TOML file: who reads its official files, what is asked, how answers come about and
//! how they are scored. Those of `flamingo-eval tasks` are in `eval/src/tasks/`; a user's own is given by its
//! path.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::EvalError;
use crate::item::ShownAnswer;
use crate::medium::FrameSampling;
use crate::metric::Metric;
use crate::prompt::{ANSWER_MARK, Template};
use crate::readers::Reader;
use crate::submission::ServerRule;
use crate::tasks::built_in;

/// Name of the settings file in a folder of corpora.
pub const SETTINGS_FILE: &str = "task.toml";

/// A benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskFile {
    /// Its name in results, file names and messages: letters, digits, `-` and `_`.
    pub name: String,
    /// One line on what is asked and how it is scored.
    pub about: String,
    /// Goes up when its scores change for the same answers.
    #[serde(default = "one")]
    pub version: u32,
    /// How its official files are read.
    pub reader: Reader,
    /// How answers come about.
    pub decoding: Decoding,
    /// Metrics; the first is the one that counts.
    pub metrics: Vec<Metric>,
    /// Layouts of prompts by name, `flamingo` among them.
    pub templates: BTreeMap<String, Template>,
    /// Which human answer an example is shown with.
    #[serde(default)]
    pub shown_answer: ShownAnswer,
    /// What is shown at 0 shots.
    #[serde(default)]
    pub zero_shot: ZeroShot,
    /// Examples are drawn from those of the query's own category.
    #[serde(default)]
    pub shots_of_category: bool,
    /// Tokens after which an answer without `<EOC>` is cut; of open tasks.
    #[serde(default = "tokens_max")]
    pub max_new_tokens: usize,
    /// The answers to choose from, where neither the items nor the reader have their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<String>,
    /// Words of the captions that only the image tells; the controls count how many are right.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub content_words: Vec<String>,
    /// How frames of films are chosen.
    #[serde(default)]
    pub frames: FrameSampling,
    /// Files of each split by role, as paths in the folder that is given as annotations.
    #[serde(default)]
    pub splits: BTreeMap<String, BTreeMap<String, String>>,
    /// The split that is asked about.
    pub query: String,
    /// The split that examples are drawn from; none for a benchmark without examples.
    #[serde(default)]
    pub support: Option<String>,
    /// The split that is asked about after finetuning on the task, if not `query`. Paper: table 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fine_tuned_query: Option<String>,
    /// Most examples to draw from, chosen by the seed. Paper: 2048 (appendix A.2). 0: all.
    #[serde(default = "support_max")]
    pub support_max: usize,
    /// Where the files come from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
    /// What the benchmark's server takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submission: Option<ServerRule>,
}

/// Where a file is to be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// File or folder in the annotations folder.
    pub file: String,
    /// Its address, or how to make it.
    pub from: String,
}

/// How answers come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decoding {
    /// Written by the model.
    Open,
    /// The candidate whose log-likelihood, the sum over its tokens, is highest (paper, appendix B.1.4).
    ClosedSum,
    /// The same by the mean over its tokens, as `open_flamingo` has it.
    ClosedMean,
}

impl Decoding {
    /// Whether candidates are ranked.
    pub fn is_closed(self) -> bool {
        self != Self::Open
    }
}

/// What a query is shown when no shots are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ZeroShot {
    /// Two shots without their images, which tell the format of the answer and nothing of the image (paper,
    /// appendix A.2).
    #[default]
    TextShots,
    /// Nothing: the answers to choose from tell the format.
    Bare,
}

fn one() -> u32 {
    1
}

/// The paper gives no limit; `open_flamingo` takes 20 of a larger vocabulary.
fn tokens_max() -> usize {
    32
}

fn support_max() -> usize {
    2048
}

/// What `task.toml` in a folder of corpora may change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct CorpusSettings {
    prompt: Option<String>,
    content_words: Option<Vec<String>>,
    candidates: Option<Vec<String>>,
    max_new_tokens: Option<usize>,
}

impl TaskFile {
    /// A task by its name, or by the path of its file.
    ///
    /// # Errors
    /// When there is no such task, or the file cannot be read or is not one.
    pub fn find(name_or_path: &str) -> Result<Self, EvalError> {
        let text = Self::text(name_or_path)?;
        let file = match built_in(name_or_path) {
            Some(_) => format!("{name_or_path}.toml"),
            None => name_or_path.to_owned(),
        };
        Self::parse(&file, &text)
    }

    /// The text of a task's file, by its name or path.
    ///
    /// # Errors
    /// When there is no such task, or the file cannot be read.
    pub fn text(name_or_path: &str) -> Result<Cow<'static, str>, EvalError> {
        if let Some(text) = built_in(name_or_path) {
            return Ok(text.into());
        }
        let path = Path::new(name_or_path);
        if path.extension().is_none_or(|ending| ending != "toml") {
            return Err(EvalError::NoTask { name: name_or_path.to_owned() });
        }
        let text = std::fs::read_to_string(path).map_err(EvalError::file("read", path))?;
        Ok(text.into())
    }

    /// A task from the text of its file; `file` is how messages name it.
    ///
    /// # Errors
    /// When the text is not a task, or a value is out of range.
    pub fn parse(file: &str, text: &str) -> Result<Self, EvalError> {
        let mut task: Self =
            toml::from_str(text).map_err(|error| EvalError::toml(file, text, &error))?;
        task.metrics = Metric::each_once(&task.metrics);
        task.check(file)?;
        Ok(task)
    }

    /// The same with what `task.toml` of a folder of corpora sets.
    ///
    /// # Errors
    /// When the text is not such settings, or a value is out of range.
    pub fn with_settings(mut self, file: &str, text: &str) -> Result<Self, EvalError> {
        let settings: CorpusSettings =
            toml::from_str(text).map_err(|error| EvalError::toml(file, text, &error))?;
        if let Some(prompt) = settings.prompt {
            for template in self.templates.values_mut() {
                *template = template.with_prompt(&prompt);
            }
        }
        self.content_words = settings.content_words.unwrap_or(self.content_words);
        self.candidates = settings.candidates.unwrap_or(self.candidates);
        self.max_new_tokens = settings.max_new_tokens.unwrap_or(self.max_new_tokens);
        self.check(file)?;
        Ok(self)
    }

    /// The task for a model that was finetuned on it (paper, table 2 and appendix B.2), which is asked without
    /// examples, not even text-only ones. Its results have another name.
    #[must_use]
    pub fn fine_tuned(self) -> Self {
        Self {
            name: format!("{}_fine-tuned", self.name),
            query: self.fine_tuned_query.clone().unwrap_or(self.query),
            zero_shot: ZeroShot::Bare,
            templates: self.templates.into_iter().map(|(name, it)| (name, it.bare())).collect(),
            ..self
        }
    }

    /// The files of a split.
    ///
    /// # Errors
    /// When the task has no such split.
    pub fn split(&self, name: &str) -> Result<&BTreeMap<String, String>, EvalError> {
        self.splits.get(name).ok_or_else(|| EvalError::NoSplit {
            task: self.name.clone(),
            split: name.to_owned(),
            splits: self.splits.keys().cloned().collect(),
        })
    }

    /// The metric that counts.
    pub fn metric(&self) -> Metric {
        self.metrics[0]
    }

    fn check(&self, file: &str) -> Result<(), EvalError> {
        let setting = |key, found: String, expected| {
            Err(EvalError::Setting { file: file.to_owned(), key, found, expected })
        };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.name.is_empty() || !self.name.chars().all(is_plain) {
            return setting("name", format!("{:?}", self.name), "letters, digits, - and _");
        }
        if self.metrics.is_empty() {
            return setting("metrics", "empty".into(), "at least one metric");
        }
        if self.max_new_tokens == 0 {
            return setting("max_new_tokens", "0".into(), "at least 1");
        }
        if self.frames.frames_max == 0 {
            return setting("frames.frames_max", "0".into(), "at least 1");
        }
        if !(self.frames.frames_per_second > 0.0 && self.frames.frames_per_second.is_finite()) {
            let found = self.frames.frames_per_second.to_string();
            return setting("frames.frames_per_second", found, "above 0");
        }
        if !self.templates.contains_key("flamingo") {
            return setting("templates", "without `flamingo`".into(), "a template `flamingo`");
        }
        for template in self.templates.values() {
            if template.n_images() != 1 {
                let found = format!("{:?}", template.prompt);
                return setting("templates.*.prompt", found, "one `<image>`");
            }
            if template.answer.matches(ANSWER_MARK).count() != 1 {
                let found = format!("{:?}", template.answer);
                return setting("templates.*.answer", found, "one `{answer}`");
            }
        }
        if self.candidates.len() == 1 {
            return setting("candidates", format!("{:?}", self.candidates), "none or at least two");
        }
        for template in self.templates.values() {
            let decoding = template.decoding.unwrap_or(self.decoding);
            if decoding.is_closed() != self.decoding.is_closed() {
                return setting(
                    "templates.*.decoding",
                    format!("{decoding:?}"),
                    "open as the task, or closed as it",
                );
            }
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = self.candidates.iter().find(|candidate| !seen.insert(*candidate)) {
            return setting("candidates", format!("`{twice}` twice"), "different answers");
        }
        for (split, files) in &self.splits {
            if let Some(fault) = self.reader.fault(files) {
                return setting("splits", format!("{split} {fault}"), "the roles of the reader");
            }
        }
        if let Some(ServerRule { form, splits, whole }) = &self.submission {
            splits.iter().chain(whole).try_for_each(|split| self.split(split).map(|_| ()))?;
            if whole.is_some() && !form.is_text() {
                return setting("submission.whole", "there".into(), "none: no rank is empty");
            }
        }
        self.split(&self.query)?;
        self.fine_tuned_query.as_deref().map_or(Ok(()), |query| self.split(query).map(|_| ()))?;
        self.support.as_deref().map_or(Ok(()), |support| self.split(support).map(|_| ()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_may_say_how_candidates_are_compared_but_not_that_answers_are_written() {
        let with = |decoding: &str| {
            let text = built_in("hateful_memes").unwrap();
            let own =
                text.replace("decoding = \"closed-mean\"", &format!("decoding = \"{decoding}\""));
            TaskFile::parse("mine", &own).map_err(|error| error.to_string())
        };
        let task = with("closed-mean").unwrap();
        assert_eq!(task.templates["open-flamingo"].decoding, Some(Decoding::ClosedMean));
        let error = with("open").unwrap_err();
        assert!(error.contains("templates.*.decoding"), "{error}");
        let tuned = task.clone().fine_tuned();
        assert_eq!(task.templates["open-flamingo"].zero_shot, Some(ZeroShot::TextShots));
        assert_eq!(tuned.templates["open-flamingo"].zero_shot, None);
        assert_eq!((tuned.zero_shot, tuned.query.as_str()), (ZeroShot::Bare, "test-seen"));
    }
}
