//! VQA accuracy (Antol et al. 2015): an answer counts as right if three people gave it, a third of right for
//! each. Three rules are in use, whose scores on one file differ by several points; they have names here.
//!
//! Normalising is the official tool's, with what it does by mistake: its pattern for full stops looks for
//! a literal text behind them, a flag went into the place of a count, so that 32 full stops go at most, and
//! a table of contractions has entries that make words worse.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::vocabulary::Vocabulary;

/// What one of the people answered. The same texts come again and again, so that a reader may let answers share them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HumanAnswer {
    /// The answer.
    pub answer: Arc<str>,
    /// How sure they were.
    pub answer_confidence: Option<Arc<str>>,
    /// Number among the answers of the question; `VizWiz` has none.
    pub answer_id: Option<i64>,
}

impl HumanAnswer {
    /// An answer of which nothing else is known.
    pub fn plain(answer: impl Into<Arc<str>>) -> Self {
        Self { answer: answer.into(), answer_confidence: None, answer_id: None }
    }
}

/// How a prediction is compared with the answers of people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VqaRule {
    /// The official tool's of VQA: both sides are normalised, unless all people agree word by word. Each
    /// answer is compared with those that differ from it in answer, confidence or number.
    Official,
    /// `OpenFlamingo`'s: as the official one, but both sides are always normalised. On `VizWiz`, where answers
    /// have no numbers, equal ones are all left out at once, which no one means.
    OpenFlamingo,
    /// `VizWiz`'s: only the prediction is normalised, and each answer is compared with all others.
    ByIndex,
}

/// People that must have given an answer for it to be right.
const RIGHT_FROM: f64 = 3.0;

/// Accuracy of a prediction, 0 to 1; 0 where no one answered.
pub fn vqa_accuracy(rule: VqaRule, prediction: &str, answers: &[HumanAnswer]) -> f64 {
    let mut table = AnswerTable::default();
    let mut person = |it: &HumanAnswer| {
        table.person(&it.answer, it.answer_confidence.as_deref().unwrap_or_default(), it.answer_id)
    };
    let people: Vec<Person> = answers.iter().map(&mut person).collect();
    table.accuracy(rule, prediction, &people)
}

/// What one of the people answered, with the texts' numbers in an [`AnswerTable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Person {
    answer: u32,
    confidence: u32,
    /// Number among the answers; without one, the least there is.
    number: i64,
}

/// Texts of many questions, each kept and normalised once.
#[derive(Debug, Default)]
pub struct AnswerTable {
    texts: Vocabulary,
    /// Number of each text's normal form, once it is known.
    normalised: Vec<Option<u32>>,
}

impl AnswerTable {
    /// Enters the answer of a person.
    pub fn person(&mut self, answer: &str, confidence: &str, number: Option<i64>) -> Person {
        let answer = self.number(&on_one_line(answer));
        Person { answer, confidence: self.number(confidence), number: number.unwrap_or(i64::MIN) }
    }

    /// Accuracy of a prediction, 0 to 1; 0 where no one answered.
    pub fn accuracy(&mut self, rule: VqaRule, prediction: &str, people: &[Person]) -> f64 {
        let prediction = self.number(&on_one_line(prediction));
        let differ = people.iter().any(|other| other.answer != people[0].answer);
        match rule {
            VqaRule::Official if !differ => agree(rule, prediction, people),
            VqaRule::Official | VqaRule::OpenFlamingo => {
                let normal = |it: &Person| Person { answer: self.normalised(it.answer), ..*it };
                let people: Vec<Person> = people.iter().map(normal).collect();
                agree(rule, self.normalised(prediction), &people)
            }
            VqaRule::ByIndex => agree(rule, self.normalised(prediction), people),
        }
    }

    fn number(&mut self, text: &str) -> u32 {
        self.texts.number(text)
    }

    fn normalised(&mut self, number: u32) -> u32 {
        if let Some(Some(known)) = self.normalised.get(number as usize) {
            return *known;
        }
        let text = normalised(self.texts.text(number));
        let found = self.texts.number(&text);
        self.normalised.resize(self.texts.len(), None);
        self.normalised[number as usize] = Some(found);
        found
    }
}

/// Each answer of people is left out in turn, and the others that equal the prediction are counted.
fn agree(rule: VqaRule, answer: u32, people: &[Person]) -> f64 {
    let accuracy = |(i, left_out): (usize, &Person)| {
        let is_other = |(j, other): &(usize, &Person)| match rule {
            VqaRule::ByIndex => *j != i,
            VqaRule::Official | VqaRule::OpenFlamingo => *other != left_out,
        };
        let others = people.iter().enumerate().filter(is_other);
        let n_equal = others.filter(|(_, other)| other.answer == answer).count();
        (n_equal as f64 / RIGHT_FROM).min(1.0)
    };
    let sum: f64 = people.iter().enumerate().map(accuracy).sum();
    sum / people.len().max(1) as f64
}

fn on_one_line(answer: &str) -> String {
    answer.replace(['\n', '\t'], " ").trim().to_owned()
}

/// An answer without punctuation and articles, in lower case, numbers up to ten as digits, and
/// contractions with their apostrophes.
pub fn normalised(answer: &str) -> String {
    let text = without_punctuation(answer).to_lowercase();
    let words = python_words(&text).map(|word| digits(word).unwrap_or(word));
    let words = words.filter(|word| !ARTICLES.contains(word)).map(with_apostrophes);
    words.collect::<Vec<_>>().join(" ")
}

/// Words as Python's `split` cuts them, which takes four more control characters for white space.
pub(crate) fn python_words(text: &str) -> impl Iterator<Item = &str> {
    let is_space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    text.split(is_space).filter(|word| !word.is_empty())
}

const ARTICLES: [&str; 3] = ["a", "an", "the"];

fn digits(word: &str) -> Option<&'static str> {
    const NUMBERS: [(&str, &str); 12] = [
        ("none", "0"),
        ("zero", "0"),
        ("one", "1"),
        ("two", "2"),
        ("three", "3"),
        ("four", "4"),
        ("five", "5"),
        ("six", "6"),
        ("seven", "7"),
        ("eight", "8"),
        ("nine", "9"),
        ("ten", "10"),
    ];
    NUMBERS.iter().find(|(name, _)| *name == word).map(|(_, digits)| *digits)
}

fn with_apostrophes(word: &str) -> &str {
    let found = CONTRACTIONS.binary_search_by(|(without, _)| (*without).cmp(word));
    found.map_or(word, |at| CONTRACTIONS[at].1)
}

/// Marks that go, or become a space.
const PUNCTUATION: [char; 21] = [
    ';', '/', '[', ']', '"', '{', '}', '(', ')', '=', '+', '\\', '_', '-', '>', '<', '@', '`', ',',
    '?', '!',
];

/// Full stops that go at most: the value of Python's `re.UNICODE`.
const FULL_STOPS_MAX: usize = 32;

/// Each mark goes where it stands beside a space anywhere in the answer, or a comma between digits does, and
/// becomes a space otherwise; full stops go unless a digit follows.
fn without_punctuation(answer: &str) -> String {
    let number = has_comma_in_number(answer);
    let mut text = answer.to_owned();
    for mark in PUNCTUATION {
        if text.contains(mark) {
            let beside_space =
                answer.contains(&format!("{mark} ")) || answer.contains(&format!(" {mark}"));
            text = text.replace(mark, if beside_space || number { "" } else { " " });
        }
    }
    let mut left = FULL_STOPS_MAX;
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '.' && left > 0 && !chars.peek().is_some_and(|next| is_digit(*next)) {
            left -= 1;
        } else {
            out.push(c);
        }
    }
    out
}

fn has_comma_in_number(text: &str) -> bool {
    let chars: Vec<char> = text.chars().collect();
    chars.windows(3).any(|three| three[1] == ',' && is_digit(three[0]) && is_digit(three[2]))
}

/// A decimal digit, of the scripts with most readers: Python's pattern takes those of all.
fn is_digit(c: char) -> bool {
    const ZEROS: [char; 12] = [
        '\u{660}', '\u{6f0}', '\u{966}', '\u{9e6}', '\u{a66}', '\u{ae6}', '\u{b66}', '\u{be6}',
        '\u{c66}', '\u{ce6}', '\u{e50}', '\u{ff10}',
    ];
    c.is_ascii_digit() || ZEROS.iter().any(|zero| (*zero..).take(10).any(|digit| digit == c))
}

/// Sorted by the form without apostrophes.
const CONTRACTIONS: [(&str, &str); 114] = [
    ("'ow'sat", "'ow's'at"),
    ("'ows'at", "'ow's'at"),
    ("aint", "ain't"),
    ("arent", "aren't"),
    ("cant", "can't"),
    ("couldn'tve", "couldn't've"),
    ("couldnt", "couldn't"),
    ("couldnt've", "couldn't've"),
    ("couldve", "could've"),
    ("didnt", "didn't"),
    ("doesnt", "doesn't"),
    ("dont", "don't"),
    ("hadn'tve", "hadn't've"),
    ("hadnt", "hadn't"),
    ("hadnt've", "hadn't've"),
    ("hasnt", "hasn't"),
    ("havent", "haven't"),
    ("he'dve", "he'd've"),
    ("hed", "he'd"),
    ("hed've", "he'd've"),
    ("hes", "he's"),
    ("howd", "how'd"),
    ("howll", "how'll"),
    ("hows", "how's"),
    ("isnt", "isn't"),
    ("it'dve", "it'd've"),
    ("itd", "it'd"),
    ("itd've", "it'd've"),
    ("itll", "it'll"),
    ("maam", "ma'am"),
    ("mightn'tve", "mightn't've"),
    ("mightnt", "mightn't"),
    ("mightnt've", "mightn't've"),
    ("mightve", "might've"),
    ("mustnt", "mustn't"),
    ("mustve", "must've"),
    ("neednt", "needn't"),
    ("notve", "not've"),
    ("oclock", "o'clock"),
    ("oughtnt", "oughtn't"),
    ("ow's'at", "'ow's'at"),
    ("shant", "shan't"),
    ("she'dve", "she'd've"),
    ("shed've", "she'd've"),
    ("shouldn'tve", "shouldn't've"),
    ("shouldnt", "shouldn't"),
    ("shouldnt've", "shouldn't've"),
    ("shouldve", "should've"),
    ("somebody'd", "somebodyd"),
    ("somebody'dve", "somebody'd've"),
    ("somebodyd've", "somebody'd've"),
    ("somebodyll", "somebody'll"),
    ("somebodys", "somebody's"),
    ("someone'dve", "someone'd've"),
    ("someoned", "someone'd"),
    ("someoned've", "someone'd've"),
    ("someonell", "someone'll"),
    ("someones", "someone's"),
    ("something'dve", "something'd've"),
    ("somethingd", "something'd"),
    ("somethingd've", "something'd've"),
    ("somethingll", "something'll"),
    ("thats", "that's"),
    ("there'dve", "there'd've"),
    ("thered", "there'd"),
    ("thered've", "there'd've"),
    ("therere", "there're"),
    ("theres", "there's"),
    ("they'dve", "they'd've"),
    ("theyd", "they'd"),
    ("theyd've", "they'd've"),
    ("theyll", "they'll"),
    ("theyre", "they're"),
    ("theyve", "they've"),
    ("twas", "'twas"),
    ("wasnt", "wasn't"),
    ("we'dve", "we'd've"),
    ("wed've", "we'd've"),
    ("werent", "weren't"),
    ("weve", "we've"),
    ("whatll", "what'll"),
    ("whatre", "what're"),
    ("whats", "what's"),
    ("whatve", "what've"),
    ("whens", "when's"),
    ("whered", "where'd"),
    ("wheres", "where's"),
    ("whereve", "where've"),
    ("who'dve", "who'd've"),
    ("whod", "who'd"),
    ("whod've", "who'd've"),
    ("wholl", "who'll"),
    ("whos", "who's"),
    ("whove", "who've"),
    ("whyll", "why'll"),
    ("whyre", "why're"),
    ("whys", "why's"),
    ("wont", "won't"),
    ("wouldn'tve", "wouldn't've"),
    ("wouldnt", "wouldn't"),
    ("wouldnt've", "wouldn't've"),
    ("wouldve", "would've"),
    ("y'all'dve", "y'all'd've"),
    ("y'alld've", "y'all'd've"),
    ("y'allll", "y'all'll"),
    ("yall", "y'all"),
    ("yall'd've", "y'all'd've"),
    ("yall'll", "y'all'll"),
    ("you'dve", "you'd've"),
    ("youd", "you'd"),
    ("youd've", "you'd've"),
    ("youll", "you'll"),
    ("youre", "you're"),
    ("youve", "you've"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn people(answers: &[&str]) -> Vec<HumanAnswer> {
        let answer = |(i, answer): (usize, &&str)| HumanAnswer {
            answer: (*answer).into(),
            answer_confidence: None,
            answer_id: Some(i as i64),
        };
        answers.iter().enumerate().map(answer).collect()
    }

    #[test]
    fn contractions_are_in_order() {
        assert!(CONTRACTIONS.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn an_answer_of_three_people_is_right_but_for_the_one_that_is_left_out() {
        let answers = people(&["red", "red", "red", "blue", "green", "x", "y", "z", "v", "w"]);
        for rule in [VqaRule::Official, VqaRule::OpenFlamingo, VqaRule::ByIndex] {
            let found = vqa_accuracy(rule, "The red.", &answers);
            assert!((found - (3.0 * 2.0 / 3.0 + 7.0) / 10.0).abs() < 1e-12, "{rule:?} {found}");
            assert!(vqa_accuracy(rule, "pink", &answers).abs() < 1e-12);
            assert!(vqa_accuracy(rule, "pink", &[]).abs() < 1e-12);
        }
    }

    #[test]
    fn rules_differ_where_people_agree_and_where_answers_have_no_numbers() {
        let agreed = people(&["Two"; 10]);
        let accuracy = |rule, answers: &[HumanAnswer]| vqa_accuracy(rule, "two", answers);
        assert!(accuracy(VqaRule::Official, &agreed).abs() < 1e-12);
        assert!((accuracy(VqaRule::OpenFlamingo, &agreed) - 1.0).abs() < 1e-12);
        let mut unnumbered = people(&["2"; 10]);
        for answer in &mut unnumbered {
            answer.answer_id = None;
        }
        assert!(accuracy(VqaRule::OpenFlamingo, &unnumbered).abs() < 1e-12);
        assert!((accuracy(VqaRule::ByIndex, &unnumbered) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn answers_lose_marks_articles_and_words_for_numbers() {
        for (answer, expected) in [
            ("The Two cats.", "2 cats"),
            ("1,000 a-b", "1000 ab"),
            ("a-b/c", "b c"),
            ("3.5 oz.", "3.5 oz"),
            ("dont", "don't"),
            ("well , yes", "well yes"),
            ("\u{1f}x\u{a0}y", "x y"),
        ] {
            assert_eq!(normalised(answer), expected, "{answer:?}");
        }
    }
}
