//! The `WordNet` 3.0 database, as far as the Wu-Palmer similarity of two words needs it, with the rules of
//! NLTK's reader: the forms of a word that are looked up, the order of its senses, and the ways to the root.
//!
//! Files are those of the Debian package `wordnet-base` (`index.noun`, `data.noun`, `noun.exc` and so on).
//! Lines of senses and words are found in them as they are asked for. Adjectives and adverbs have no more
//! general senses, so that their `data` files are not read.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};

use crate::error::EvalError;

/// Where the Debian package puts the files.
const PACKAGE_FOLDER: &str = "/usr/share/wordnet";

/// Names the folder of the files where it is another one.
const FOLDER_VARIABLE: &str = "FLAMINGO_WORDNET";

/// Parts of speech in the order in which senses are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Speech {
    Noun,
    Verb,
    Adjective,
    Adverb,
}

/// Endings and what takes their place, for each part of speech.
type Endings = &'static [(&'static str, &'static str)];

impl Speech {
    const ALL: [Self; 4] = [Self::Noun, Self::Verb, Self::Adjective, Self::Adverb];

    /// Endings of the files of the part of speech.
    fn name(self) -> &'static str {
        match self {
            Self::Noun => "noun",
            Self::Verb => "verb",
            Self::Adjective => "adj",
            Self::Adverb => "adv",
        }
    }

    fn has_general_senses(self) -> bool {
        matches!(self, Self::Noun | Self::Verb)
    }

    fn endings(self) -> Endings {
        match self {
            Self::Noun => &[
                ("s", ""),
                ("ses", "s"),
                ("ves", "f"),
                ("xes", "x"),
                ("zes", "z"),
                ("ches", "ch"),
                ("shes", "sh"),
                ("men", "man"),
                ("ies", "y"),
            ],
            Self::Verb => &[
                ("s", ""),
                ("ies", "y"),
                ("es", "e"),
                ("es", ""),
                ("ed", "e"),
                ("ed", ""),
                ("ing", "e"),
                ("ing", ""),
            ],
            Self::Adjective => &[("er", ""), ("est", ""), ("er", "e"), ("est", "e")],
            Self::Adverb => &[],
        }
    }
}

/// A sense, which words of one meaning share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Synset {
    speech: Speech,
    /// Place of its line in the file of its part of speech.
    offset: usize,
}

/// A sense, or the root that is made up above all verbs.
type Place = Option<Synset>;

/// The files of one part of speech.
struct Files {
    index: Bytes,
    /// Empty where senses have no more general ones.
    data: Bytes,
    /// Forms of words that no ending tells.
    exceptions: HashMap<String, Vec<String>>,
}

/// A file with its name, for messages.
struct Bytes {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Bytes {
    fn read(folder: &Path, name: &str) -> Result<Self, EvalError> {
        let path = folder.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Self { path, bytes }),
            Err(source) => Err(EvalError::NoWordNet { path: folder.to_path_buf(), source }),
        }
    }

    fn wrong(&self, problem: String) -> EvalError {
        EvalError::WordNet { path: self.path.clone(), problem }
    }

    /// The text from a place to the end of its line.
    fn line_at(&self, at: usize) -> Result<&str, EvalError> {
        let rest = self.bytes.get(at..).unwrap_or_default();
        let line = rest.split(|&byte| byte == b'\n').next().unwrap_or_default();
        std::str::from_utf8(line).map_err(|_| self.wrong(format!("no UTF-8 at byte {at}")))
    }

    /// The line of a file sorted by words that starts with `word` and a space.
    fn line_of(&self, word: &str) -> Result<Option<&str>, EvalError> {
        let (mut low, mut high) = (0, self.bytes.len());
        while low < high {
            let middle = low.midpoint(high);
            let before = &self.bytes[low..middle];
            let start = before.iter().rposition(|&byte| byte == b'\n').map_or(low, |i| low + i + 1);
            let line = self.line_at(start)?;
            // The lines of the licence start with a space, and sort before all words.
            let first = line.split(' ').next().unwrap_or_default();
            match first.as_bytes().cmp(word.as_bytes()) {
                std::cmp::Ordering::Equal => return Ok(Some(line)),
                std::cmp::Ordering::Less => low = start + line.len() + 1,
                std::cmp::Ordering::Greater => high = start,
            }
        }
        Ok(None)
    }
}

/// The opened database.
pub struct WordNet {
    files: [Files; 4],
}

impl WordNet {
    /// Opens the files in `folder`; without one, in that named by `FLAMINGO_WORDNET`, or in that of the Debian
    /// package.
    ///
    /// # Errors
    /// When a file is absent or is not of this format.
    pub fn open(folder: Option<&Path>) -> Result<Self, EvalError> {
        let named = std::env::var_os(FOLDER_VARIABLE).map(PathBuf::from);
        let folder = folder.map(Path::to_path_buf).or(named);
        let folder = folder.unwrap_or_else(|| PathBuf::from(PACKAGE_FOLDER));
        let [noun, verb, adjective, adverb] = Speech::ALL.map(|speech| open_files(&folder, speech));
        let opened = Self { files: [noun?, verb?, adjective?, adverb?] };
        opened.check()?;
        Ok(opened)
    }

    /// Other versions have other senses, and so other scores.
    fn check(&self) -> Result<(), EvalError> {
        let entity = Synset { speech: Speech::Noun, offset: 1740 };
        let file = &self.files(Speech::Noun).data;
        let found = self.first_synset("entity")?;
        let is_entity = file.line_at(entity.offset)?.starts_with("00001740 03 n 01 entity ");
        if found == Some(entity) && is_entity {
            return Ok(());
        }
        Err(file.wrong("`entity` is not the sense at byte 1740".to_owned()))
    }

    fn files(&self, speech: Speech) -> &Files {
        &self.files[speech as usize]
    }

    /// The first sense of a word: of its forms as a noun, else as a verb, adjective or adverb. None where the
    /// word is unknown.
    ///
    /// # Errors
    /// When a file is not of this format.
    pub fn first_synset(&self, word: &str) -> Result<Option<Synset>, EvalError> {
        let word = word.to_lowercase();
        for speech in Speech::ALL {
            for form in self.forms(&word, speech) {
                if let Some(offset) = self.senses(speech, &form)?.first() {
                    return Ok(Some(Synset { speech, offset: *offset }));
                }
            }
        }
        Ok(None)
    }

    /// The word itself, then what it may be a form of.
    fn forms(&self, word: &str, speech: Speech) -> Vec<String> {
        let mut forms = vec![word.to_owned()];
        match self.files(speech).exceptions.get(word) {
            Some(exceptions) => forms.extend(exceptions.iter().cloned()),
            None => forms.extend(speech.endings().iter().filter_map(|(ending, other)| {
                word.strip_suffix(ending).map(|stem| format!("{stem}{other}"))
            })),
        }
        forms
    }

    /// Places of the senses of a word that stands in the index, most frequent first.
    fn senses(&self, speech: Speech, word: &str) -> Result<Vec<usize>, EvalError> {
        let index = &self.files(speech).index;
        if word.is_empty() || word.contains(char::is_whitespace) {
            return Ok(Vec::new());
        }
        let Some(line) = index.line_of(word)? else { return Ok(Vec::new()) };
        let offsets = || -> Option<Vec<usize>> {
            // word, part of speech, senses, pointers, that many symbols, senses, tagged senses, offsets
            let fields: Vec<&str> = line.split_whitespace().collect();
            let n_senses: usize = fields.get(2)?.parse().ok()?;
            let n_pointers: usize = fields.get(3)?.parse().ok()?;
            let offsets = fields.get(6 + n_pointers..)?;
            let offsets: Option<Vec<usize>> = offsets.iter().map(|o| o.parse().ok()).collect();
            offsets.filter(|offsets| offsets.len() == n_senses && n_senses > 0)
        };
        offsets().ok_or_else(|| index.wrong(format!("the line of `{word}` is not of its format")))
    }

    /// What is one step more general.
    fn hypernyms(&self, synset: Synset) -> Result<Vec<Synset>, EvalError> {
        let speech = synset.speech;
        if !speech.has_general_senses() {
            return Ok(Vec::new());
        }
        let data = &self.files(speech).data;
        let line = data.line_at(synset.offset)?;
        let pointers = || -> Option<Vec<Synset>> {
            let fields: Vec<&str> = line.split(" | ").next()?.split_whitespace().collect();
            let (pointers, _) = pointers_and_words(&fields)?;
            // symbol, offset, part of speech, source and target
            let is_hypernym = |pointer: &&[&str]| ["@", "@i"].contains(&pointer[0]);
            let hypernym = |pointer: &[&str]| {
                let speech = match pointer[2] {
                    "n" => Speech::Noun,
                    "v" => Speech::Verb,
                    _ => return None,
                };
                Some(Synset { speech, offset: pointer[1].parse().ok()? })
            };
            pointers.chunks_exact(4).filter(is_hypernym).map(hypernym).collect()
        };
        pointers().ok_or_else(|| {
            data.wrong(format!("the line at byte {} is not of its format", synset.offset))
        })
    }

    /// NLTK's name of a sense: its first word, its part of speech, and which of the word's senses it is.
    fn name(&self, place: Place) -> Result<String, EvalError> {
        let Some(synset) = place else { return Ok("*ROOT*".to_owned()) };
        let data = &self.files(synset.speech).data;
        let fields: Vec<&str> = data.line_at(synset.offset)?.split_whitespace().collect();
        let word = pointers_and_words(&fields).and_then(|(_, words)| words.first().copied());
        let word = word.unwrap_or_default().to_lowercase();
        let senses = self.senses(synset.speech, &word)?;
        let number = senses.iter().position(|offset| *offset == synset.offset);
        let letter = if synset.speech == Speech::Noun { 'n' } else { 'v' };
        let number = number.map(|number| format!("{word}.{letter}.{:02}", number + 1));
        number.ok_or_else(|| {
            data.wrong(format!("the line at byte {} has words without it", synset.offset))
        })
    }

    /// The sense and all that are more general, with the least number of steps to each; with `root`, also
    /// the made-up root, one step behind the farthest.
    fn above(&self, place: Place, root: Root) -> Result<HashMap<Place, usize>, EvalError> {
        let mut steps = HashMap::new();
        let mut queue = VecDeque::from([(place, 0)]);
        while let Some((place, step)) = queue.pop_front() {
            if steps.contains_key(&place) {
                continue;
            }
            steps.insert(place, step);
            if let Some(synset) = place {
                queue
                    .extend(self.hypernyms(synset)?.into_iter().map(|next| (Some(next), step + 1)));
            }
        }
        if root == Root::MadeUp && place.is_some() {
            let farthest = steps.values().max().copied().unwrap_or_default();
            steps.insert(None, farthest + 1);
        }
        Ok(steps)
    }

    /// Steps to a root, by the way that `choose` takes.
    fn depth(
        &self,
        place: Place,
        choose: fn(usize, usize) -> usize,
        seen: &mut HashSet<Place>,
    ) -> Result<usize, EvalError> {
        let Some(synset) = place else { return Ok(0) };
        let mut depth = None;
        for hypernym in self.hypernyms(synset)? {
            let hypernym = Some(hypernym);
            // A database of one's own may have a circle.
            if seen.insert(hypernym) {
                let theirs = 1 + self.depth(hypernym, choose, seen)?;
                depth = Some(depth.map_or(theirs, |depth| choose(depth, theirs)));
                seen.remove(&hypernym);
            }
        }
        Ok(depth.unwrap_or_default())
    }

    fn depth_of(
        &self,
        place: Place,
        choose: fn(usize, usize) -> usize,
    ) -> Result<usize, EvalError> {
        self.depth(place, choose, &mut HashSet::from([place]))
    }

    /// Wu and Palmer's similarity of two senses, 0 to 1, as NLTK's `wup_similarity` gives it: the depth of
    /// the deepest sense above both, over the mean of their own depths by way of it. None where nothing is
    /// above both.
    ///
    /// "Deepest" is by the shortest way to a root, but its depth is that of the longest; of equally deep
    /// ones `a` itself is taken, or the first by name. Unless both are nouns, a root is made up.
    ///
    /// # Errors
    /// When a file is not of this format.
    pub fn wup_similarity(&self, a: Synset, b: Synset) -> Result<Option<f64>, EvalError> {
        let are_nouns = a.speech == Speech::Noun && b.speech == Speech::Noun;
        let root = if are_nouns { Root::OfDatabase } else { Root::MadeUp };
        let (above_a, above_b) = (self.above(Some(a), root)?, self.above(Some(b), root)?);
        let common = above_a.keys().filter(|place| above_b.contains_key(place));
        let mut deepest: Option<(usize, Vec<Place>)> = None;
        for place in common {
            let depth = self.depth_of(*place, usize::min)?;
            match &mut deepest {
                Some((most, places)) if *most == depth => places.push(*place),
                Some((most, _)) if *most > depth => {}
                _ => deepest = Some((depth, vec![*place])),
            }
        }
        let Some((_, places)) = deepest else { return Ok(None) };
        let subsumer = if places.contains(&Some(a)) { Some(a) } else { self.first_named(&places)? };
        let depth = self.depth_of(subsumer, usize::max)? + 1;
        let above_subsumer = self.above(subsumer, root)?;
        let way = |above: &HashMap<Place, usize>| {
            let both = above.iter().filter_map(|(place, to)| Some(to + above_subsumer.get(place)?));
            both.min()
        };
        let Some((way_a, way_b)) = way(&above_a).zip(way(&above_b)) else { return Ok(None) };
        Ok(Some(2.0 * depth as f64 / (way_a + depth + way_b + depth) as f64))
    }

    fn first_named(&self, places: &[Place]) -> Result<Place, EvalError> {
        let mut first: Option<(String, Place)> = None;
        for place in places {
            let name = self.name(*place)?;
            if first.as_ref().is_none_or(|(least, _)| name < *least) {
                first = Some((name, *place));
            }
        }
        Ok(first.and_then(|(_, place)| place))
    }
}

/// Which root there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Root {
    /// That of all nouns.
    OfDatabase,
    /// One above all others.
    MadeUp,
}

/// The pointers of a line of senses, four fields each, and its words.
fn pointers_and_words<'a, 'b>(fields: &'b [&'a str]) -> Option<(&'b [&'a str], Vec<&'a str>)> {
    // offset, file, part of speech, words (hexadecimal), each word with its number, pointers, ...
    let n_words = usize::from_str_radix(fields.get(3)?, 16).ok()?;
    let words = fields.get(4..4 + 2 * n_words)?.iter().step_by(2).copied().collect();
    let after = fields.get(4 + 2 * n_words..)?;
    let n_pointers: usize = after.first()?.parse().ok()?;
    Some((after.get(1..1 + 4 * n_pointers)?, words))
}

fn open_files(folder: &Path, speech: Speech) -> Result<Files, EvalError> {
    let name = speech.name();
    let index = Bytes::read(folder, &format!("index.{name}"))?;
    let data = if speech.has_general_senses() {
        Bytes::read(folder, &format!("data.{name}"))?
    } else {
        Bytes { path: folder.join(format!("data.{name}")), bytes: Vec::new() }
    };
    let exceptions = Bytes::read(folder, &format!("{name}.exc"))?;
    let text = std::str::from_utf8(&exceptions.bytes)
        .map_err(|_| exceptions.wrong("it is not UTF-8".to_owned()))?;
    let exceptions = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace().map(str::to_owned);
        Some((words.next()?, words.collect()))
    });
    let exceptions = exceptions.collect();
    Ok(Files { index, data, exceptions })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A made-up database in `folder`: lines of senses by part of speech, each with the words of its index.
    fn made_up(folder: &Path, nouns: &[&str], verbs: &[&str]) {
        for (name, senses) in [("noun", nouns), ("verb", verbs), ("adj", &[]), ("adv", &[])] {
            // As in the real files, a licence stands before the first sense.
            let mut data = format!("  {}\n", "-".repeat(1737));
            let mut index = vec!["  licence\n".to_owned()];
            for sense in senses {
                let (word, pointers) = sense.split_once(' ').unwrap_or((sense, "000"));
                let (letter, at) = (&name[..1], data.len());
                let line = format!("{at:08} 03 {letter} 01 {word} 0 {pointers} | what it is\n");
                data.push_str(&line);
                index.push(format!("{word} {letter} 1 0 1 0 {at:08}\n"));
            }
            index.sort();
            std::fs::write(folder.join(format!("data.{name}")), data).unwrap();
            std::fs::write(folder.join(format!("index.{name}")), index.concat()).unwrap();
            std::fs::write(folder.join(format!("{name}.exc")), "geese goose\n").unwrap();
        }
    }

    #[test]
    fn similarity_is_depth_of_what_is_above_both_over_their_own() {
        let folder = tempfile::tempdir().unwrap();
        // Each line has as many bytes as places take in eight digits: 1740, 1787, 1854, ...
        let nouns = ["entity", "goose 001 @ 00001740 n 0000", "duck 001 @ 00001740 n 0000"];
        made_up(folder.path(), &nouns, &["run", "duck"]);
        let wordnet = WordNet::open(Some(folder.path())).unwrap();
        let sense = |word: &str| wordnet.first_synset(word).unwrap();
        let similarity = |a: &str, b: &str| {
            wordnet.wup_similarity(sense(a).unwrap(), sense(b).unwrap()).unwrap().unwrap()
        };
        assert_eq!(sense("Geese"), sense("goose"));
        assert_eq!(sense("ducks"), sense("duck"));
        assert_eq!(sense("swan"), None);
        assert_eq!(sense("two words"), None);
        // Depth 1 above both, 2 of each; entity itself is above goose.
        assert!((similarity("goose", "duck") - 2.0 / 4.0).abs() < 1e-12);
        assert!((similarity("goose", "entity") - 2.0 / 3.0).abs() < 1e-12);
        // The made-up root is one step above the noun's root, and one above the verb.
        assert!((similarity("goose", "run") - 2.0 / 5.0).abs() < 1e-12);
    }

    #[test]
    fn a_database_that_is_absent_or_another_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = WordNet::open(Some(folder.path())).err().unwrap().to_string();
        assert!(error.contains("install the Debian package wordnet-base"), "{error}");
        made_up(folder.path(), &["goose"], &[]);
        let error = WordNet::open(Some(folder.path())).err().unwrap().to_string();
        assert!(error.contains("data.noun is no file of WordNet 3.0: `entity`"), "{error}");
        std::fs::write(folder.path().join("index.noun"), "entity n 2 0 2 0 00001740\n").unwrap();
        let error = WordNet::open(Some(folder.path())).err().unwrap().to_string();
        assert!(error.contains("the line of `entity` is not of its format"), "{error}");
    }
}
