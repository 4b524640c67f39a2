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

    /// The n-grams of any length.
    pub(crate) fn all_grams(&self) -> &[Gram] {
        &self.grams
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
        Self { images, n_grams: counter.n_grams as usize }
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
    /// Of each word as an n-gram of its own, once it is one.
    single: Vec<Option<u32>>,
    /// Of longer ones, by the number of all words but the last, and the last word.
    longer: FxHashMap<(u32, u32), u32>,
    n_grams: u32,
    /// Words of the caption at hand, and those when all white space cuts.
    spaced: Vec<u32>,
    cut: Vec<u32>,
}

impl Counter {
    fn caption(&mut self, text: &str) -> Caption {
        self.spaced.clear();
        self.cut.clear();
        match self.rule {
            Words::Ptb => self.tokenizer.add_numbers(text, &mut self.spaced),
            Words::WhiteSpace => {
                let vocabulary = self.tokenizer.vocabulary();
                self.spaced.extend(text.split(' ').map(|word| vocabulary.number(word)));
            }
        }
        let vocabulary = self.tokenizer.vocabulary();
        for word in &self.spaced {
            let text = vocabulary.text(*word);
            if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) {
                self.cut.push(*word);
            } else {
                let parts: Vec<String> = python_words(text).map(str::to_owned).collect();
                self.cut.extend(parts.iter().map(|part| vocabulary.number(part)));
            }
        }
        if self.spaced.is_empty() {
            self.spaced.push(vocabulary.number(""));
        }
        let (grams, ends) = self.count_grams();
        let words = self.spaced.as_slice().into();
        Caption { words, n_words: self.cut.len(), grams, ends }
    }

    fn count_grams(&mut self) -> (Box<[Gram]>, [u32; N_MAX]) {
        let mut numbers: [Vec<u32>; N_MAX] =
            std::array::from_fn(|_| Vec::with_capacity(self.cut.len()));
        self.single.resize(self.tokenizer.vocabulary().len(), None);
        for word in &self.cut {
            let gram = *self.single[*word as usize].get_or_insert(self.n_grams);
            self.n_grams += u32::from(gram == self.n_grams);
            numbers[0].push(gram);
        }
        // One length after the other: look-ups of one length do not wait for each other.
        for order in 1..N_MAX {
            for start in 0..self.cut.len().saturating_sub(order) {
                let key = (numbers[order - 1][start], self.cut[start + order]);
                let gram = *self.longer.entry(key).or_insert(self.n_grams);
                self.n_grams += u32::from(gram == self.n_grams);
                numbers[order].push(gram);
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
