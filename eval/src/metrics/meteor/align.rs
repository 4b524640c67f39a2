//! The alignment of a text to a reference, by the beam search of METEOR 1.5's aligner.
//!
//! The paper asks for the alignment that covers most words, of these for the one in fewest chunks, of these for the one
//! with the shortest distances. What the program of the authors computes departs from that in ways that scores depend
//! on, and so does this:
//! - a match counts by its module: an exact one a point for each of its words, any other half a point, less the
//!   fraction, for its words on either side. A stem or a synonym counts nothing: it is taken where it costs no chunk;
//! - a match whose words are in no other match is taken before the search, whatever it costs;
//! - a chunk is counted when it ends, so that an open one seems to cost nothing;
//! - the distance of a match is added to the paths that leave it out.

use std::cmp::Reverse;

/// Paths that are followed.
const BEAM: usize = 40;

/// Some words in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) len: u32,
}

impl Span {
    fn end(self) -> u32 {
        self.start + self.len
    }

    fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// The words of it.
    pub(crate) fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end() as usize
    }
}

/// How words match, in the order in which the aligner asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Module {
    Exact,
    Stem,
    Synonym,
    Paraphrase,
}

/// Words of a text that match words of a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Match {
    pub(crate) reference: Span,
    pub(crate) text: Span,
    pub(crate) module: Module,
}

impl Match {
    fn points(&self) -> u32 {
        match self.module {
            Module::Exact => self.reference.len + self.text.len,
            _ => self.reference.len / 2 + self.text.len / 2,
        }
    }

    fn distance(&self) -> u64 {
        u64::from(self.reference.start.abs_diff(self.text.start))
    }
}

/// The matches that are taken, and in how many chunks they lie.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Alignment {
    pub(crate) matches: Vec<Match>,
    pub(crate) n_chunks: u32,
}

/// A way through the first words of the reference.
#[derive(Debug, Clone, Copy, Default)]
struct Path {
    /// The last match that was taken, in [`Search::steps`].
    step: Option<u32>,
    /// First word of the reference behind it.
    next: u32,
    /// Where the open chunk ends in the text, if one is open.
    chunk_end: Option<u32>,
    points: u32,
    n_chunks: u32,
    distance: u64,
}

impl Path {
    fn rank(&self) -> (Reverse<u32>, u32, u64) {
        (Reverse(self.points), self.n_chunks, self.distance)
    }

    fn end_chunk(&mut self) {
        self.n_chunks += u32::from(self.chunk_end.take().is_some());
    }
}

/// Aligns texts; memory is kept from one to the next.
#[derive(Debug, Default)]
pub(crate) struct Search {
    /// Matches that paths took: the one before, and which.
    steps: Vec<(Option<u32>, Match)>,
    paths: Vec<Path>,
    next_paths: Vec<Path>,
}

impl Search {
    /// Aligns a text of `n_words` to a reference. `matches` holds, for each word of the reference, the matches that
    /// start there: of equals the first is taken.
    pub(crate) fn alignment(&mut self, matches: &[Vec<Match>], n_words: usize) -> Alignment {
        self.steps.clear();
        self.paths.clear();
        self.paths.push(Path::default());
        let sole = sole_matches(matches, n_words);
        for (word, (matches, sole)) in matches.iter().zip(&sole).enumerate() {
            self.advance(word as u32, matches, *sole);
        }
        self.paths.iter_mut().for_each(Path::end_chunk);
        let best = self.paths.iter().min_by_key(|path| path.rank()).copied().unwrap_or_default();
        let mut taken: Vec<Match> = self.taken(best.step).collect();
        taken.reverse();
        Alignment { matches: taken, n_chunks: best.n_chunks }
    }

    /// Follows each path over a word of the reference.
    fn advance(&mut self, word: u32, matches: &[Match], sole: Option<Match>) {
        self.next_paths.clear();
        for at in 0..self.paths.len() {
            let mut path = self.paths[at];
            if word < path.next {
                self.keep(path);
            } else if let Some(sole) = sole {
                path.distance += sole.distance();
                self.take(path, sole);
            } else {
                for one in matches {
                    if self.taken(path.step).any(|other| other.text.overlaps(one.text)) {
                        continue;
                    }
                    self.take(path, *one);
                    path.distance += one.distance();
                }
                path.end_chunk();
                self.keep(path);
            }
        }
        std::mem::swap(&mut self.paths, &mut self.next_paths);
    }

    /// Keeps what a path becomes by a match.
    fn take(&mut self, mut path: Path, one: Match) {
        if path.chunk_end.is_some_and(|end| end != one.text.start) {
            path.n_chunks += 1;
        }
        path.points += one.points();
        path.chunk_end = Some(one.text.end());
        path.next = one.reference.end();
        let before = path.step.replace(self.steps.len() as u32);
        if self.keep(path) {
            self.steps.push((before, one));
        }
    }

    /// Keeps a path if it is among the best, behind its equals.
    fn keep(&mut self, path: Path) -> bool {
        let at = self.next_paths.partition_point(|other| other.rank() <= path.rank());
        if at == BEAM {
            return false;
        }
        self.next_paths.truncate(BEAM - 1);
        self.next_paths.insert(at, path);
        true
    }

    /// The matches of a path, the last one first.
    fn taken(&self, step: Option<u32>) -> impl Iterator<Item = Match> {
        let mut step = step;
        std::iter::from_fn(move || {
            let (before, one) = self.steps[step? as usize];
            step = before;
            Some(one)
        })
    }
}

/// For each word of the reference the match that starts there, if its words are in no other.
fn sole_matches(matches: &[Vec<Match>], n_words: usize) -> Vec<Option<Match>> {
    let (mut in_reference, mut in_text) = (vec![0_u32; matches.len()], vec![0_u32; n_words]);
    for one in matches.iter().flatten() {
        in_reference[one.reference.range()].iter_mut().for_each(|n| *n += 1);
        in_text[one.text.range()].iter_mut().for_each(|n| *n += 1);
    }
    let is_sole = |one: &Match| {
        let counts = in_reference[one.reference.range()].iter();
        counts.chain(&in_text[one.text.range()]).all(|n| *n == 1)
    };
    matches.iter().map(|here| here.first().copied().filter(is_sole)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aligns texts whose words match where they are the same, exactly if they are in lower case, and by stem
    /// otherwise; and where two phrases are named. Expected are the places in the reference and in the text, which
    /// METEOR 1.5 gives for such texts.
    fn check(text: &str, reference: &str, phrases: &[[u32; 4]], expected: &[(u32, u32)]) {
        let words: Vec<&str> = text.split(' ').collect();
        let span = |start, len| Span { start, len };
        let mut matches: Vec<Vec<Match>> = Vec::new();
        for (at, word) in (0..).zip(reference.split(' ')) {
            let same = (0..).zip(&words).filter(|(_, other)| **other == word);
            let is_exact = word.chars().all(char::is_lowercase);
            let module = if is_exact { Module::Exact } else { Module::Stem };
            let of_words = same.map(|(to, _)| (at, 1, to, 1, module));
            let of_phrases = phrases.iter().filter(|phrase| phrase[0] == at);
            let of_phrases =
                of_phrases.map(|[at, n, to, m]| (*at, *n, *to, *m, Module::Paraphrase));
            let all = of_words.chain(of_phrases).map(|(at, n, to, m, module)| Match {
                reference: span(at, n),
                text: span(to, m),
                module,
            });
            matches.push(all.collect());
        }
        let found = Search::default().alignment(&matches, words.len());
        let places = found.matches.iter().map(|it| (it.reference.start, it.text.start));
        assert_eq!(places.collect::<Vec<_>>(), expected, "{text:?} to {reference:?}");
    }

    #[test]
    fn most_words_then_fewest_chunks() {
        check("a b a c", "a c", &[], &[(0, 2), (1, 3)]);
        check("a x b a b", "a b", &[], &[(0, 3), (1, 4)]);
        check("x", "y z", &[], &[]);
        check("a", "a", &[], &[(0, 0)]);
    }

    #[test]
    fn of_equals_the_first_is_taken_but_not_at_the_same_place() {
        check("x y z w a", "q a r a", &[], &[(1, 4)]);
        check("x a z w", "q a r a", &[], &[(3, 1)]);
        check("a a", "q a", &[], &[(1, 0)]);
        check("a b a", "b a b b", &[], &[(1, 0), (2, 1)]);
    }

    #[test]
    fn a_stem_counts_nothing_unless_it_is_the_only_match_or_in_a_chunk() {
        check("C", "x C", &[], &[(1, 0)]);
        check("C", "C C", &[], &[]);
        check("C C", "C", &[], &[]);
        check("C b", "C C b", &[], &[(1, 0), (2, 1)]);
    }

    #[test]
    fn phrases_count_half_their_words_on_either_side() {
        // Two words of the reference for one of the text are worth 1, less than an exact match, which is worth 2.
        check("a q", "a y", &[[0, 2, 0, 1]], &[(0, 0)]);
        check("p q", "x y", &[[0, 1, 0, 2], [0, 2, 0, 2]], &[(0, 0)]);
        check("p q r", "x", &[[0, 1, 0, 2], [0, 1, 0, 3]], &[(0, 0)]);
        // With eight words it is worth more than three exact ones.
        check("a b c q r s t u", "a b c v w x y z", &[[0, 8, 0, 8]], &[(0, 0)]);
        check(
            "a b c d e s t u",
            "a b c d e x y z",
            &[[0, 8, 0, 8]],
            &[(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)],
        );
    }

    #[test]
    fn chunks_are_counted_as_they_end() {
        let matches = |places: &[(u32, u32)]| -> Vec<Vec<Match>> {
            let one = |&(at, to): &(u32, u32)| Match {
                reference: Span { start: at, len: 1 },
                text: Span { start: to, len: 1 },
                module: Module::Exact,
            };
            let of_word = |word| places.iter().filter(|(at, _)| *at == word).map(one).collect();
            (0..6).map(of_word).collect()
        };
        let check = |places, expected| {
            assert_eq!(Search::default().alignment(&matches(places), 6).n_chunks, expected);
        };
        check(&[], 0);
        check(&[(0, 0), (1, 1), (2, 2)], 1);
        check(&[(0, 0), (2, 1)], 2);
        check(&[(0, 3), (1, 0), (5, 5)], 3);
    }
}
