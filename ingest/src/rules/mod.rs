//! The rules that decide which texts, languages, addresses and scores are kept.
//!
//! A rule is data: a figure, a bound and a key of the plan ([`rules`] lists all that a plan has, those
//! of images too). Every figure is taken and stored whether its rule is in force or not, so that a
//! threshold can be moved on paper. Definitions are those of datatrove and OBELICS' code, and are
//! compared with them in `ingest/tests/rules_oracle.py`.

mod block;
mod counts;
mod files;
mod gopher;
pub mod language;
mod lexicon;
mod lines;
mod measure;
pub mod plan;
pub mod preset;
mod scores;
mod tokens;
mod words;

pub(crate) use files::seal;
pub use lexicon::Lexicon;
pub use measure::{Values, document, passage};
pub use scores::Keys;

use crate::error::IngestError;
use crate::figures::Level;
use crate::html::{BlockKind, Node};
use crate::plan::BuildPlan;
use crate::reject::{DropReason, Stage};
use crate::word::{Word, word};
use block::Addresses;
use language::Language;
use plan::{GopherPlan, RepetitionPlan, ScoreLevel, WordPlan};
use scores::ScoreTable;

/// Which side of a limit is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The limit and more.
    Min,
    /// The limit and less.
    Max,
}

impl Bound {
    /// Whether a figure is on the wrong side of a limit. Both are compared as they are stored.
    pub fn is_broken(self, value: f32, limit: f64) -> bool {
        match self {
            Self::Min => value < limit as f32,
            Self::Max => value > limit as f32,
        }
    }
}

/// A limit on a figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Where in the run it is applied.
    pub stage: Stage,
    /// What it is applied to.
    pub level: Level,
    /// Name in the rejects.
    pub reason: &'static str,
    /// Dotted key of the limit in the plan.
    pub key: &'static str,
    /// Name of the figure in the figures.
    pub figure: &'static str,
    /// Which side is kept.
    pub bound: Bound,
    /// The limit.
    pub limit: f64,
}

impl Rule {
    /// Whether a figure of this value is dropped.
    pub fn is_broken_by(&self, value: f32) -> bool {
        self.bound.is_broken(value, self.limit)
    }

    /// Whether it can drop anything.
    pub fn is_on(&self) -> bool {
        match self.bound {
            // Figures are never below 0; scores of others may be.
            Bound::Min if self.figure.starts_with(crate::figures::SCORE) => {
                self.limit > f64::NEG_INFINITY
            }
            Bound::Min => self.limit > 0.0,
            Bound::Max => self.limit < f64::INFINITY,
        }
    }

    fn drop(&self, value: f32) -> DropReason {
        DropReason::limit(self.reason, f64::from(value), self.limit)
    }
}

/// Shorthand: reason, key, figure and limit of rules of one stage and level.
struct Family(Stage, Level);

impl Family {
    fn rule(&self, bound: Bound, [reason, key, figure]: [&'static str; 3], limit: f64) -> Rule {
        Rule { stage: self.0, level: self.1, reason, key, figure, bound, limit }
    }

    fn min(&self, names: [&'static str; 3], limit: f64) -> Rule {
        self.rule(Bound::Min, names, limit)
    }

    fn max(&self, names: [&'static str; 3], limit: f64) -> Rule {
        self.rule(Bound::Max, names, limit)
    }
}

/// Every rule with a number that a plan has, in the order in which they are applied; also those that
/// are not in force.
pub fn rules(plan: &BuildPlan) -> Vec<Rule> {
    let mut rules = Vec::new();
    for level in [Level::Paragraph, Level::Document, Level::Caption, Level::Image] {
        rules.extend(rules_of(plan, level));
    }
    rules
}

/// The rules for one kind of thing.
fn rules_of(plan: &BuildPlan, level: Level) -> Vec<Rule> {
    let text = &plan.text;
    match level {
        Level::Paragraph => {
            word_rules(&Family(Stage::Paragraph, level), "text.paragraph", &text.paragraph)
        }
        Level::Caption => {
            let family = Family(Stage::Caption, level);
            let caption = &plan.caption;
            let mut rules = vec![
                family
                    .min(["short_caption", "caption.chars_min", "chars"], caption.chars_min as f64),
                family.min(
                    ["few_words", "caption.words_min", "spaced_words"],
                    caption.words_min as f64,
                ),
                family.max(
                    ["long_caption", "caption.words_max", "spaced_words"],
                    caption.words_max as f64,
                ),
            ];
            rules.extend(word_rules(&family, "text.caption", &text.caption));
            rules.extend(shared_rules(&family, plan));
            rules.extend(score_rules(
                plan,
                ScoreLevel::Image,
                &Family(Stage::Image, Level::Caption),
            ));
            rules
        }
        Level::Document => {
            let family = Family(Stage::Text, level);
            let mut rules = gopher_rules(&family, &text.gopher);
            rules.extend(repetition_rules(&family, &text.repetition));
            rules.extend(line_rules(&family, plan));
            rules.extend(word_rules(&family, "text.document", &text.document));
            rules.extend(shared_rules(&family, plan));
            rules.extend(score_rules(plan, ScoreLevel::Document, &family));
            rules.extend(count_rules(&Family(Stage::Document, level), plan));
            rules
        }
        Level::Image => {
            let family = Family(Stage::Image, level);
            let image = &plan.image;
            let mut rules = vec![
                family.max(["too_many_bytes", "image.bytes_max", "bytes"], image.bytes_max as f64),
                family.max(
                    ["too_many_pixels", "image.pixels_max", "pixels"],
                    image.pixels_max as f64,
                ),
                family.min(["too_small", "image.side_min", "side"], f64::from(image.side_min)),
                family.max(["aspect", "image.aspect_max", "aspect"], image.aspect_max),
            ];
            rules.extend(score_rules(plan, ScoreLevel::Image, &family));
            rules
        }
    }
}

fn gopher_rules(family: &Family, plan: &GopherPlan) -> Vec<Rule> {
    vec![
        family.min(["gopher_few_words", "text.gopher.words_min", "gopher_words"], plan.words_min),
        family.max(["gopher_many_words", "text.gopher.words_max", "gopher_words"], plan.words_max),
        family.min(
            ["short_words", "text.gopher.word_length_min", "word_length"],
            plan.word_length_min,
        ),
        family.max(
            ["long_words", "text.gopher.word_length_max", "word_length"],
            plan.word_length_max,
        ),
        family.max(["hashes", "text.gopher.hashes_max", "hashes"], plan.hashes_max),
        family.max(["ellipses", "text.gopher.ellipses_max", "ellipses"], plan.ellipses_max),
        family.max(
            ["bullet_lines", "text.gopher.bullet_lines_max", "bullet_lines"],
            plan.bullet_lines_max,
        ),
        family.max(
            ["ellipsis_lines", "text.gopher.ellipsis_lines_max", "ellipsis_lines"],
            plan.ellipsis_lines_max,
        ),
        family.min(
            ["alphabetic_words", "text.gopher.alphabetic_words_min", "alphabetic_words"],
            plan.alphabetic_words_min,
        ),
        family.min(
            ["gopher_stop_words", "text.gopher.stop_words_min", "gopher_stop_words"],
            plan.stop_words_min,
        ),
    ]
}

fn repetition_rules(family: &Family, plan: &RepetitionPlan) -> Vec<Rule> {
    macro_rules! rule {
        ($figure:literal, $field:ident) => {
            family.max(
                [$figure, concat!("text.repetition.", stringify!($field)), $figure],
                plan.$field,
            )
        };
    }
    vec![
        rule!("duplicate_paragraphs", paragraphs_max),
        rule!("duplicate_paragraph_chars", paragraph_chars_max),
        rule!("duplicate_lines", lines_max),
        rule!("duplicate_line_chars", line_chars_max),
        rule!("top_2_gram", top_2_gram_max),
        rule!("top_3_gram", top_3_gram_max),
        rule!("top_4_gram", top_4_gram_max),
        rule!("duplicate_5_gram", duplicate_5_gram_max),
        rule!("duplicate_6_gram", duplicate_6_gram_max),
        rule!("duplicate_7_gram", duplicate_7_gram_max),
        rule!("duplicate_8_gram", duplicate_8_gram_max),
        rule!("duplicate_9_gram", duplicate_9_gram_max),
        rule!("duplicate_10_gram", duplicate_10_gram_max),
    ]
}

fn line_rules(family: &Family, plan: &BuildPlan) -> Vec<Rule> {
    let (c4, fineweb) = (&plan.text.c4, &plan.text.fineweb);
    vec![
        family.min(["c4_sentences", "text.c4.sentences_min", "c4_sentences"], c4.sentences_min),
        family.min(["c4_lines", "text.c4.lines_min", "c4_lines"], c4.lines_min),
        family.max(["lorem_ipsum", "text.c4.lorem_ipsum_max", "lorem_ipsum"], c4.lorem_ipsum_max),
        family.max(
            ["curly_brackets", "text.c4.curly_brackets_max", "curly_brackets"],
            c4.curly_brackets_max,
        ),
        family.max(
            ["javascript_lines", "text.c4.javascript_lines_max", "javascript_lines"],
            c4.javascript_lines_max,
        ),
        family
            .max(["policy_lines", "text.c4.policy_lines_max", "policy_lines"], c4.policy_lines_max),
        family.min(
            ["line_punctuation", "text.fineweb.line_punctuation_min", "line_punctuation"],
            fineweb.line_punctuation_min,
        ),
        family.max(
            ["short_lines", "text.fineweb.short_lines_max", "short_lines"],
            fineweb.short_lines_max,
        ),
        family.max(
            ["duplicate_chars", "text.fineweb.duplicate_chars_max", "duplicate_chars"],
            fineweb.duplicate_chars_max,
        ),
        family.max(["newlines", "text.fineweb.newlines_max", "newlines"], fineweb.newlines_max),
    ]
}

/// OBELICS' rules, under the key of the level.
fn word_rules(family: &Family, section: &str, plan: &WordPlan) -> Vec<Rule> {
    let key = |name: &str| intern(&format!("{section}.{name}"));
    vec![
        family.min(["few_words", key("words_min"), "words"], plan.words_min),
        family.max(["many_words", key("words_max"), "words"], plan.words_max),
        family.min(["few_sentences", key("sentences_min"), "sentences"], plan.sentences_min),
        family.max(["many_sentences", key("sentences_max"), "sentences"], plan.sentences_max),
        family.max(
            ["char_repetition", key("char_repetition_max"), "char_repetition"],
            plan.char_repetition_max,
        ),
        family.max(
            ["word_repetition", key("word_repetition_max"), "word_repetition"],
            plan.word_repetition_max,
        ),
        family.max(
            ["special_chars", key("special_chars_max"), "special_chars"],
            plan.special_chars_max,
        ),
        family.min(["stop_words", key("stop_words_min"), "stop_words"], plan.stop_words_min),
        family.max(
            ["flagged_words", key("flagged_words_max"), "flagged_words"],
            plan.flagged_words_max,
        ),
        family.min(["punctuation", key("punctuation_min"), "punctuation"], plan.punctuation_min),
        family
            .min(["common_words", key("common_words_min"), "common_words"], plan.common_words_min),
        family.max(["spam_words", key("spam_words_max"), "spam_words"], plan.spam_words_max),
    ]
}

/// Rules for documents and captions alike.
fn shared_rules(family: &Family, plan: &BuildPlan) -> Vec<Rule> {
    vec![
        family.max(["explicit", "explicit.words_max", "flagged_words"], plan.explicit.words_max),
        family.min(["language_score", "language.score_min", "lang_score"], plan.language.score_min),
    ]
}

/// Rules for a document with its images.
fn count_rules(family: &Family, plan: &BuildPlan) -> Vec<Rule> {
    let document = &plan.document;
    vec![
        family.min(["too_few_images", "document.images_min", "images"], document.images_min as f64),
        family
            .max(["too_many_images", "document.images_max", "images"], document.images_max as f64),
        family.min(
            ["too_few_words", "document.words_min", "spaced_words"],
            document.words_min as f64,
        ),
        family.max(
            ["too_many_words", "document.words_max", "spaced_words"],
            document.words_max as f64,
        ),
        family.max(
            ["too_many_image_bytes", "document.image_bytes_max", "image_bytes"],
            document.image_bytes_max as f64,
        ),
    ]
}

fn score_rules(plan: &BuildPlan, level: ScoreLevel, family: &Family) -> Vec<Rule> {
    let rules = plan.scores.iter().flat_map(|table| &table.rules);
    let rules = rules.filter(|rule| rule.level == level).flat_map(|rule| {
        let (reason, figure) = (scores::reason(&rule.name), scores::figure(&rule.name));
        let key = |bound: &str| intern(&format!("scores.{}.{bound}", rule.name));
        [
            family.min([reason, key("min"), figure], rule.min),
            family.max([reason, key("max"), figure], rule.max),
        ]
    });
    rules.collect()
}

/// A name that is made from the plan. There are few, so there is always room for them.
fn intern(name: &str) -> Word {
    word(name).unwrap_or("other")
}

/// A plan's rules, with the lists and tables that they look into.
#[derive(Debug)]
pub struct Rules {
    /// Rules that are in force, by level.
    document: Vec<Rule>,
    paragraph: Vec<Rule>,
    caption: Vec<Rule>,
    lexicon: Lexicon,
    languages: Vec<String>,
    punctuation_words: [u64; 3],
    blocked: Addresses,
    opted_out: Addresses,
    tables: Vec<ScoreTable>,
}

/// What was found out about a text.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Measured {
    /// Its figures.
    pub values: Values,
    /// Its language, where it was told.
    pub language: Option<Language>,
    /// Why it is dropped, if it is.
    pub drop: Option<DropReason>,
}

/// A dropped or kept paragraph.
#[derive(Debug, Clone, PartialEq)]
pub struct Paragraph {
    /// Its figures.
    pub values: Values,
    /// Why it is dropped, if it is.
    pub drop: Option<DropReason>,
}

impl Rules {
    /// Reads what a plan names.
    ///
    /// # Errors
    /// When a file cannot be read, or holds what it should not.
    pub fn new(plan: &BuildPlan) -> Result<Self, IngestError> {
        let on = |level| {
            // Counts of a finished document are checked where it is finished, scores where they are
            // looked up.
            let is_text = |rule: &Rule| {
                rule.is_on()
                    && rule.stage != Stage::Document
                    && !rule.figure.starts_with(crate::figures::SCORE)
            };
            rules_of(plan, level).into_iter().filter(is_text).collect::<Vec<_>>()
        };
        let text = &plan.text;
        Ok(Self {
            document: on(Level::Document),
            paragraph: on(Level::Paragraph),
            caption: on(Level::Caption),
            lexicon: Lexicon::new(plan)?,
            languages: plan.language.keep.clone(),
            punctuation_words: [&text.document, &text.paragraph, &text.caption]
                .map(|plan| plan.punctuation_words),
            blocked: Addresses::read(&plan.block.domains_file, &plan.block.urls_file)?,
            opted_out: Addresses::read(&plan.opt_out.domains_file, &plan.opt_out.urls_file)?,
            tables: plan.scores.iter().map(ScoreTable::read).collect::<Result<_, _>>()?,
        })
    }

    /// Why nothing from this address is used, if so. `stage` is that of the thing at the address.
    pub fn refuse(&self, url: &str, stage: Stage) -> Option<(Stage, DropReason)> {
        if let Some(entry) = self.opted_out.find(url) {
            return Some((Stage::OptOut, DropReason::detail("registry", entry)));
        }
        let entry = self.blocked.find(url)?;
        Some((stage, DropReason::detail("blocked", entry)))
    }

    /// Measures the text of a whole document.
    pub fn document(&self, text: &str) -> Measured {
        let mut values = document(text, &self.lexicon, self.punctuation_words[0]);
        let language = language::tell(text);
        values.push("lang_score", language.map_or(0.0, |language| f64::from(language.score)));
        self.judge(values, language, &self.document)
    }

    /// Measures a caption, which must be free of white space at its ends. Its language is told only
    /// where a rule asks.
    pub fn caption(&self, text: &str) -> Measured {
        let mut values = passage(text, &self.lexicon, self.punctuation_words[2]);
        values.push("chars", text.chars().count() as f64);
        values.push("spaced_words", text.split_whitespace().count() as f64);
        let asks = !self.languages.is_empty()
            || self.caption.iter().any(|rule| rule.figure == "lang_score");
        let language = asks.then(|| language::tell(text)).flatten();
        if asks {
            values.push("lang_score", language.map_or(0.0, |language| f64::from(language.score)));
        }
        self.judge(values, language, &self.caption)
    }

    fn judge(&self, values: Values, language: Option<Language>, rules: &[Rule]) -> Measured {
        let code = language.map_or("", |language| language.code);
        let is_foreign =
            !self.languages.is_empty() && !self.languages.iter().any(|keep| keep == code);
        let drop = if is_foreign {
            Some(DropReason::detail("language", if code.is_empty() { "none" } else { code }))
        } else {
            first_broken(rules, &values)
        };
        Measured { values, language, drop }
    }

    /// Takes out the paragraphs of a page that break a rule. Items of one list are one paragraph.
    /// Returns what was measured, which is nothing where there is no rule for paragraphs.
    pub fn drop_paragraphs(&self, nodes: &mut Vec<Node>) -> Vec<Paragraph> {
        let mut paragraphs = Vec::new();
        if self.paragraph.is_empty() {
            return paragraphs;
        }
        let mut kept = Vec::with_capacity(nodes.len());
        let mut rest = std::mem::take(nodes).into_iter().peekable();
        while let Some(node) = rest.next() {
            let Node::Text { kind, text } = &node else {
                kept.push(node);
                continue;
            };
            let (is_list, mut text) = (*kind == BlockKind::ListItem, text.clone());
            let mut group = vec![node];
            while let Some(next) = rest.next_if(|next| is_list && is_list_item(next)) {
                if let Node::Text { text: item, .. } = &next {
                    text.push('\n');
                    text.push_str(item);
                }
                group.push(next);
            }
            let values = passage(&text, &self.lexicon, self.punctuation_words[1]);
            let drop = first_broken(&self.paragraph, &values);
            if drop.is_none() {
                kept.append(&mut group);
            }
            paragraphs.push(Paragraph { values, drop });
        }
        *nodes = kept;
        paragraphs
    }

    /// The scores of a thing, and the rule that drops it, if one does.
    pub fn scores(
        &self,
        level: ScoreLevel,
        keys: Keys<'_>,
    ) -> (Vec<(&'static str, f32)>, Option<DropReason>) {
        let mut found = Vec::new();
        let drops: Vec<_> =
            self.tables.iter().filter_map(|table| table.look_up(level, keys, &mut found)).collect();
        (found, drops.into_iter().next())
    }
}

fn is_list_item(node: &Node) -> bool {
    matches!(node, Node::Text { kind: BlockKind::ListItem, .. })
}

/// The first rule that a figure breaks. A figure that was not taken breaks none.
fn first_broken(rules: &[Rule], values: &Values) -> Option<DropReason> {
    rules.iter().find_map(|rule| {
        let value = values.get(rule.figure).filter(|value| rule.is_broken_by(*value))?;
        Some(rule.drop(value))
    })
}

/// The text of a page as its rules see it: paragraphs with an empty line between them, items of a list
/// on lines of their own, no images.
pub fn page_text(nodes: &[Node]) -> String {
    let mut text = String::new();
    let mut last_kind = None;
    for node in nodes {
        let Node::Text { kind, text: block } = node else {
            continue;
        };
        if !text.is_empty() {
            let is_list = *kind == BlockKind::ListItem && last_kind == Some(*kind);
            text.push_str(if is_list { "\n" } else { "\n\n" });
        }
        text.push_str(block);
        last_kind = Some(*kind);
    }
    text
}
