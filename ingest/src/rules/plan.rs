//! The sections of a plan that say which texts, languages, addresses and scores are kept.
//!
//! Every limit has a value that never drops anything: 0 for the least, `inf` for the most. Those are
//! the defaults; a preset sets the numbers that a corpus of the literature was made with.

use serde::{Deserialize, Serialize};

/// Rules for texts, by who made them up. Definitions are those of datatrove and of OBELICS' code.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextPlan {
    /// Whole documents: the quality rules of Gopher, which made `MassiveText`.
    pub gopher: GopherPlan,
    /// Whole documents: the repetition rules of Gopher.
    pub repetition: RepetitionPlan,
    /// Whole documents: the rules of C4.
    pub c4: C4Plan,
    /// Whole documents: the rules of `FineWeb`.
    pub fineweb: FineWebPlan,
    /// Whole documents: the rules of OBELICS.
    pub document: WordPlan,
    /// Single paragraphs of a document, and lists as one: they are dropped, not the document.
    pub paragraph: WordPlan,
    /// Captions of images.
    pub caption: WordPlan,
}

/// Quality rules of Gopher (arXiv 2112.11446, appendix A.1). Words are tokens: a run of letters and
/// digits is one, and so is each run of one punctuation mark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GopherPlan {
    /// Fewest words, punctuation not counted. Paper: 50.
    pub words_min: f64,
    /// Most words, punctuation not counted. Paper: 100,000.
    pub words_max: f64,
    /// Shortest mean length of a word in characters. Paper: 3.
    pub word_length_min: f64,
    /// Longest mean length of a word in characters. Paper: 10.
    pub word_length_max: f64,
    /// Most `#` for each word. Paper: 0.1.
    pub hashes_max: f64,
    /// Most ellipses for each word. Paper: 0.1.
    pub ellipses_max: f64,
    /// Largest share of lines that begin with a bullet. Paper: 0.9.
    pub bullet_lines_max: f64,
    /// Largest share of lines that end with an ellipsis. Paper: 0.3.
    pub ellipsis_lines_max: f64,
    /// Smallest share of words with a letter. Paper: 0.8.
    pub alphabetic_words_min: f64,
    /// Fewest different words among the, be, to, of, and, that, have, with. Paper: 2.
    pub stop_words_min: f64,
}

impl Default for GopherPlan {
    fn default() -> Self {
        Self {
            words_min: 0.0,
            words_max: f64::INFINITY,
            word_length_min: 0.0,
            word_length_max: f64::INFINITY,
            hashes_max: f64::INFINITY,
            ellipses_max: f64::INFINITY,
            bullet_lines_max: f64::INFINITY,
            ellipsis_lines_max: f64::INFINITY,
            alphabetic_words_min: 0.0,
            stop_words_min: 0.0,
        }
    }
}

/// Repetition rules of Gopher (arXiv 2112.11446, table A1): largest shares of lines, paragraphs or
/// characters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RepetitionPlan {
    /// Lines that were there before. Paper: 0.30.
    pub lines_max: f64,
    /// Paragraphs that were there before. Paper: 0.30.
    pub paragraphs_max: f64,
    /// Characters in lines that were there before. Paper: 0.20.
    pub line_chars_max: f64,
    /// Characters in paragraphs that were there before. Paper: 0.20.
    pub paragraph_chars_max: f64,
    /// Characters in the most frequent 2-gram of words. Paper: 0.20.
    pub top_2_gram_max: f64,
    /// Characters in the most frequent 3-gram. Paper: 0.18.
    pub top_3_gram_max: f64,
    /// Characters in the most frequent 4-gram. Paper: 0.16.
    pub top_4_gram_max: f64,
    /// Characters in 5-grams that were there before. Paper: 0.15.
    pub duplicate_5_gram_max: f64,
    /// The same for 6-grams. Paper: 0.14.
    pub duplicate_6_gram_max: f64,
    /// The same for 7-grams. Paper: 0.13.
    pub duplicate_7_gram_max: f64,
    /// The same for 8-grams. Paper: 0.12.
    pub duplicate_8_gram_max: f64,
    /// The same for 9-grams. Paper: 0.11.
    pub duplicate_9_gram_max: f64,
    /// The same for 10-grams. Paper: 0.10.
    pub duplicate_10_gram_max: f64,
}

impl Default for RepetitionPlan {
    fn default() -> Self {
        Self {
            lines_max: f64::INFINITY,
            paragraphs_max: f64::INFINITY,
            line_chars_max: f64::INFINITY,
            paragraph_chars_max: f64::INFINITY,
            top_2_gram_max: f64::INFINITY,
            top_3_gram_max: f64::INFINITY,
            top_4_gram_max: f64::INFINITY,
            duplicate_5_gram_max: f64::INFINITY,
            duplicate_6_gram_max: f64::INFINITY,
            duplicate_7_gram_max: f64::INFINITY,
            duplicate_8_gram_max: f64::INFINITY,
            duplicate_9_gram_max: f64::INFINITY,
            duplicate_10_gram_max: f64::INFINITY,
        }
    }
}

/// Rules of C4 (JMLR 21-140, section 2.2). C4 takes lines out; here they are counted, since headings
/// and captions have no full stop either.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct C4Plan {
    /// Fewest sentences in the lines that C4 would keep. Paper: 5.
    pub sentences_min: f64,
    /// Smallest share of lines that C4 would keep: with a full stop, three words, no word of more
    /// than 1000 characters, no JavaScript notice, no terms of use.
    pub lines_min: f64,
    /// Most lines with "lorem ipsum". Paper: 0.
    pub lorem_ipsum_max: f64,
    /// Most lines with a curly bracket. Paper: 0.
    pub curly_brackets_max: f64,
    /// Most lines that mention JavaScript. C4 takes out the lines, not the page.
    pub javascript_lines_max: f64,
    /// Most lines about cookies, privacy or terms of use. C4 takes out the lines, not the page.
    pub policy_lines_max: f64,
}

impl Default for C4Plan {
    fn default() -> Self {
        Self {
            sentences_min: 0.0,
            lines_min: 0.0,
            lorem_ipsum_max: f64::INFINITY,
            curly_brackets_max: f64::INFINITY,
            javascript_lines_max: f64::INFINITY,
            policy_lines_max: f64::INFINITY,
        }
    }
}

/// Rules of `FineWeb` (arXiv 2406.17557, section 3.6).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FineWebPlan {
    /// Smallest share of lines that end with a terminal mark. Paper: 0.12.
    pub line_punctuation_min: f64,
    /// Largest share of lines of at most 30 characters. Paper: 0.67.
    pub short_lines_max: f64,
    /// Largest share of characters in lines that were there before. Paper: 0.1, its code: 0.01.
    pub duplicate_chars_max: f64,
    /// Most line ends for each word. Code: 0.3.
    pub newlines_max: f64,
}

impl Default for FineWebPlan {
    fn default() -> Self {
        Self {
            line_punctuation_min: 0.0,
            short_lines_max: f64::INFINITY,
            duplicate_chars_max: f64::INFINITY,
            newlines_max: f64::INFINITY,
        }
    }
}

/// Rules of OBELICS (arXiv 2306.16527, appendix A.2) for a document, a paragraph or a caption. Words
/// are what stands between white space, without digits and marks at its ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WordPlan {
    /// Fewest words.
    pub words_min: f64,
    /// Most words.
    pub words_max: f64,
    /// Fewest sentences.
    pub sentences_min: f64,
    /// Most sentences.
    pub sentences_max: f64,
    /// Largest share of the most frequent 10-grams of characters.
    pub char_repetition_max: f64,
    /// Largest share of 5-grams of words that come more than once.
    pub word_repetition_max: f64,
    /// Largest share of characters that are no letters, white space among them.
    pub special_chars_max: f64,
    /// Smallest share of stop words.
    pub stop_words_min: f64,
    /// Largest share of words of the list of explicit words.
    pub flagged_words_max: f64,
    /// Fewest punctuation marks for each word or mark.
    pub punctuation_min: f64,
    /// The punctuation rule is left out for texts with fewer words and marks than this.
    pub punctuation_words: u64,
    /// Smallest share of words of `words.common_file`, without which it is not taken.
    pub common_words_min: f64,
    /// Largest share of words of advertising.
    pub spam_words_max: f64,
}

impl Default for WordPlan {
    fn default() -> Self {
        Self {
            words_min: 0.0,
            words_max: f64::INFINITY,
            sentences_min: 0.0,
            sentences_max: f64::INFINITY,
            char_repetition_max: f64::INFINITY,
            word_repetition_max: f64::INFINITY,
            special_chars_max: f64::INFINITY,
            stop_words_min: 0.0,
            flagged_words_max: f64::INFINITY,
            punctuation_min: 0.0,
            punctuation_words: 0,
            common_words_min: 0.0,
            spam_words_max: f64::INFINITY,
        }
    }
}

/// Lists of words, one a line. Without a file the list that the program brings is used.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WordsPlan {
    /// Function words of the language; without a file, English ones.
    pub stop_file: String,
    /// SHA-256 of that file, as of all files that a plan names: filled in when the plan is read;
    /// where it is given, the file must have it.
    pub stop_sha256: String,
    /// Words of advertising; without a file, a short English list.
    pub spam_file: String,
    /// SHA-256 of that file.
    pub spam_sha256: String,
    /// Common words of the language; the program brings none, and the figure is not taken without.
    pub common_file: String,
    /// SHA-256 of that file.
    pub common_sha256: String,
}

/// Explicit content, told by words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExplicitPlan {
    /// The words, one a line; without a file, a short English list.
    pub words_file: String,
    /// SHA-256 of that file.
    pub words_sha256: String,
    /// Largest share of such words in a document or caption.
    pub words_max: f64,
}

impl Default for ExplicitPlan {
    fn default() -> Self {
        Self { words_file: String::new(), words_sha256: String::new(), words_max: f64::INFINITY }
    }
}

/// Which languages are kept. The language of every document is told and stored; of captions it is
/// told only where a rule asks, since short texts are often mistaken.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LanguagePlan {
    /// ISO 639 codes, e.g. `en`; empty keeps all.
    pub keep: Vec<String>,
    /// Least confidence, 0 to 1.
    pub score_min: f64,
}

/// Addresses that are left out, of documents and of images alike.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BlockPlan {
    /// Domains, one a line; all their subdomains are meant too.
    pub domains_file: String,
    /// SHA-256 of that file.
    pub domains_sha256: String,
    /// Whole addresses, one a line.
    pub urls_file: String,
    /// SHA-256 of that file.
    pub urls_sha256: String,
}

/// Scores of an outside classifier (NSFW, CLIP similarity, perplexity), in a CSV or Parquet table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoresPlan {
    /// The table: `.csv`, `.tsv`, each also `.gz`, or `.parquet`.
    pub file: String,
    /// SHA-256 of that file.
    #[serde(default)]
    pub sha256: String,
    /// What its key is.
    pub key: ScoreKey,
    /// Column of the key, where it is not named as the key is.
    #[serde(default)]
    pub key_column: String,
    /// Columns of numbers that are read.
    pub columns: Vec<String>,
    /// What is kept.
    #[serde(default, rename = "rule")]
    pub rules: Vec<ScoreRule>,
}

/// What a table of scores is looked up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScoreKey {
    /// Address of the document or image.
    Url,
    /// Hex SHA-256 of the stored image.
    Sha256,
    /// `doc_id` of the document, `key` of the pair.
    Key,
}

/// A limit on a score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoreRule {
    /// The column.
    pub name: String,
    /// Whether it is about documents or single images; a pair counts as its image.
    pub level: ScoreLevel,
    /// Least score.
    #[serde(default = "never_min")]
    pub min: f64,
    /// Largest score.
    #[serde(default = "never_max")]
    pub max: f64,
    /// What becomes of things without a score.
    #[serde(default)]
    pub missing: Missing,
}

fn never_min() -> f64 {
    f64::NEG_INFINITY
}

fn never_max() -> f64 {
    f64::INFINITY
}

/// What a score is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScoreLevel {
    /// One image.
    Image,
    /// A whole document.
    Document,
}

/// What becomes of something without a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Missing {
    /// It stays.
    #[default]
    Keep,
    /// It goes.
    Drop,
}
