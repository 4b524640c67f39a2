//! Captions as the words and n-grams that BLEU, ROUGE-L and CIDEr-D count. They are made once for all three.

use rustc_hash::FxHashMap;

use crate::metrics::ptb_tokenize::PtbTokenizer;
use crate::metrics::vqa::python_words;

/// A prediction and the references of its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptionPair<'a> {
    /// What the model said.
    pub prediction: &'a str,
    /// What people said, at least one.
    pub references: Vec<&'a str>,
}

/// How a caption becomes words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Words {
    /// The Penn Treebank's tokens, lower-cased, without punctuation: the official rule.
    #[default]
    Ptb,
    /// As they stand, cut at white space: `VLMEvalKit`'s rule, whose scores compare with no one's.
    WhiteSpace,
}

/// Longest n-gram that is counted.
pub(crate) const N_MAX: usize = 4;

/// An n-gram, by its number in the set, and how often a caption has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gram {
    pub(crate) number: u32,
    pub(crate) count: u32,
}

/// A caption, its words as numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caption {
    /// Words between single spaces, which ROUGE-L counts: one may hold a no-break space, and the empty
    /// caption is one empty word.
    pub(crate) words: Box<[u32]>,
    /// How many words there are when no-break spaces cut, too, as they do for BLEU and CIDEr-D.
    pub(crate) n_words: usize,
    /// All n-grams, longer ones after shorter ones, of one length by number.
    grams: Box<[Gram]>,
    /// Where those of each length end.
    ends: [u32; N_MAX],
}

impl Caption {
    /// The n-grams of `order + 1` words.
    pub(crate) fn grams(&self, order: usize) -> &[Gram] {
        let start = order.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.grams[start as usize..self.ends[order] as usize]
    }

    /// How often the caption has an n-gram of `order + 1` words.
    pub(crate) fn count(&self, order: usize, number: u32) -> u32 {
        let grams = self.grams(order);
        let at = grams.binary_search_by_key(&number, |gram| gram.number);
        at.map_or(0, |at| grams[at].count)
    }
}

/// The captions of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageCaptions {
    pub(crate) prediction: Caption,
    pub(crate) references: Vec<Caption>,
}

/// The captions of a set of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptionSet {
    pub(crate) images: Vec<ImageCaptions>,
    /// Distinct n-grams of any length; their numbers are less.
    pub(crate) n_grams: usize,
}

impl CaptionSet {
    /// The words of some images' captions.
    pub fn of(pairs: &[CaptionPair<'_>], words: Words) -> Self {
        let mut counter = Counter { rule: words, ..Counter::default() };
        let mut image = |pair: &CaptionPair<'_>| ImageCaptions {
            prediction: counter.caption(pair.prediction),
            references: pair.references.iter().map(|text| counter.caption(text)).collect(),
        };
        let images = pairs.iter().map(&mut image).collect();
        Self { images, n_grams: counter.grams.len() }
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }
}

/// Gives words and n-grams their numbers.
#[derive(Default)]
struct Counter {
    rule: Words,
    tokenizer: PtbTokenizer,
    words: FxHashMap<String, u32>,
    /// By the number, plus one, of all words but the last, and the last word.
    grams: FxHashMap<(u32, u32), u32>,
    /// Words of the caption at hand, and those of them that are cut further.
    spaced: Vec<u32>,
    cut: Vec<u32>,
}

impl Counter {
    fn caption(&mut self, text: &str) -> Caption {
        self.spaced.clear();
        self.cut.clear();
        let Self { words, spaced, cut, tokenizer, .. } = self;
        match self.rule {
            Words::Ptb => tokenizer.each_token(text, |token| add_word(words, token, spaced, cut)),
            Words::WhiteSpace => {
                text.split(' ').for_each(|word| add_word(words, word, spaced, cut));
            }
        }
        if self.spaced.is_empty() {
            self.spaced.push(number(&mut self.words, ""));
        }
        let (grams, ends) = self.count_grams();
        let words = self.spaced.as_slice().into();
        Caption { words, n_words: self.cut.len(), grams, ends }
    }

    fn count_grams(&mut self) -> (Box<[Gram]>, [u32; N_MAX]) {
        let mut numbers: [Vec<u32>; N_MAX] = Default::default();
        for start in 0..self.cut.len() {
            let mut before = 0;
            for (order, word) in self.cut[start..].iter().take(N_MAX).enumerate() {
                let next = self.grams.len() as u32;
                let gram = *self.grams.entry((before, *word)).or_insert(next);
                numbers[order].push(gram);
                before = gram + 1;
            }
        }
        let mut grams = Vec::with_capacity(numbers.iter().map(Vec::len).sum());
        let ends = numbers.each_mut().map(|numbers| {
            numbers.sort_unstable();
            let counted = |equal: &[u32]| Gram { number: equal[0], count: equal.len() as u32 };
            grams.extend(numbers.chunk_by(|a, b| a == b).map(counted));
            grams.len() as u32
        });
        (grams.into(), ends)
    }
}

fn add_word(
    words: &mut FxHashMap<String, u32>,
    word: &str,
    spaced: &mut Vec<u32>,
    cut: &mut Vec<u32>,
) {
    let whole = number(words, word);
    spaced.push(whole);
    if !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_graphic()) {
        cut.push(whole);
    } else {
        cut.extend(python_words(word).map(|part| number(words, part)));
    }
}

fn number(words: &mut FxHashMap<String, u32>, word: &str) -> u32 {
    if let Some(number) = words.get(word) {
        return *number;
    }
    let next = words.len() as u32;
    words.insert(word.to_owned(), next);
    next
}
