//! `masks`: shows which image each token of a row sees and which tokens are learned, and looks through
//! a corpus for rows whose masks are wrong.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use flamingo_dataset::media_mask::SEES_NONE;
use flamingo_dataset::report::{Page, Token};
use flamingo_dataset::{
    Corpus, CorpusError, DiskCacheConfig, Example, Fit, ImageConfig, Layout, LossMask, PixelType,
    Row, SampleConfig, SampleKey, Tokenizer, Verify, example, example_problems,
};

use crate::command::located;
use crate::config_file::ConfigFile;
use crate::error::TrainError;
use crate::files;

/// What to show or check.
#[derive(Debug, Clone)]
pub struct MasksJob {
    /// Path or URL of the corpus.
    pub corpus: String,
    /// Who wrote it.
    pub layout: Layout,
    /// Where pieces of it are kept.
    pub disk_cache: Option<DiskCacheConfig>,
    /// A `tokenizer.json`, such as a run folder has.
    pub tokenizer: PathBuf,
    /// How rows become examples.
    pub sample: SampleConfig,
    /// Seed of the run.
    pub seed: u64,
    /// How often the corpus was gone through before.
    pub epoch: u64,
}

/// A row as the trainer sees it.
pub struct MaskedRow {
    row: Row,
    number: u64,
    example: Example,
    tokenizer: Tokenizer,
}

/// What came of looking through a corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lint {
    /// Rows that were looked at.
    pub n_rows: u64,
    /// What is wrong with them.
    pub n_problems: u64,
}

impl MasksJob {
    /// The rows of a corpus with the paper's numbers for pages and clips.
    pub fn new(corpus: String) -> Self {
        Self {
            corpus,
            layout: Layout::Corpus,
            disk_cache: None,
            tokenizer: PathBuf::new(),
            sample: SampleConfig {
                tokens: 256,
                images: 5,
                frames: 8,
                next_image_probability: 0.5,
                space_prefix_probability: 0.5,
                flip_probability: 0.0,
                colour_jitter: 0.0,
                image: unseen(),
                pixels: PixelType::F32,
                loss: LossMask::Paper,
                pack: 1,
                learn_after: None,
                verify: Verify::Nothing,
            },
            seed: 0,
            epoch: 0,
        }
    }

    /// The rows of a dataset of a run's config; paths start from `root`.
    ///
    /// # Errors
    /// When the config is not one, or has no such dataset.
    pub fn of_config(config: &Path, data: &str, root: Option<&Path>) -> Result<Self, TrainError> {
        let file = ConfigFile::<toml::Table>::read(config, &[])?;
        let locate = |path: &str| located(root, path);
        let entries = file.config.mixture_entries(&unseen(), locate);
        let names = entries.iter().map(|entry| entry.name.clone()).collect::<Vec<_>>().join(", ");
        let entry = entries.into_iter().find(|entry| entry.name == data);
        let entry = entry.ok_or_else(|| TrainError::ConfigValue {
            path: config.to_path_buf(),
            key: "data".to_owned(),
            value: data.to_owned(),
            expected: format!("the name of one of {names}"),
        })?;
        // Rows are shown one by one.
        let sample = SampleConfig { pack: 1, ..entry.sample };
        let (layout, disk_cache, seed) = (entry.layout, entry.disk_cache, file.config.seed);
        Ok(Self { layout, disk_cache, sample, seed, ..Self::new(entry.corpus) })
    }

    /// A row as the loader reads it.
    fn read(&self, corpus: &Corpus, number: u64) -> Result<Row, CorpusError> {
        match self.sample.images {
            0 => corpus.read_texts(number),
            _ => corpus.read(number),
        }
    }

    fn open(&self) -> Result<Corpus, TrainError> {
        Corpus::open_as(&self.corpus, &self.layout, self.disk_cache.as_ref())
            .map_err(TrainError::loader)
    }

    /// Makes the example of one row.
    ///
    /// # Errors
    /// When the corpus or tokenizer cannot be read, there is no such row, or an image of it cannot be
    /// decoded.
    pub fn row(&self, number: u64) -> Result<MaskedRow, TrainError> {
        let tokenizer = self.tokenizer()?;
        let corpus = self.open()?;
        let row = self.read(&corpus, number).map_err(TrainError::loader)?;
        let example = self.example(&row, number, &tokenizer)?;
        Ok(MaskedRow { row, number, example, tokenizer })
    }

    /// Makes the examples of the first `rows_max` rows and checks each. Each problem is told with the number
    /// and key of its row.
    ///
    /// # Errors
    /// When the corpus or tokenizer cannot be read.
    pub fn lint(&self, rows_max: u64, mut tell: impl FnMut(&str)) -> Result<Lint, TrainError> {
        let tokenizer = self.tokenizer()?;
        let corpus = self.open()?;
        let mut lint = Lint { n_rows: corpus.n_rows().min(rows_max), n_problems: 0 };
        for number in 0..lint.n_rows {
            let (key, problems) = match self.read(&corpus, number) {
                Ok(row) => (format!(" ({})", row.key()), self.problems(&row, number, &tokenizer)),
                Err(error) if error.is_about_one_row() => (String::new(), vec![error.to_string()]),
                Err(error) => return Err(TrainError::loader(error)),
            };
            lint.n_problems += problems.len() as u64;
            for problem in problems {
                tell(&printable(&format!("row {number}{key}: {problem}")));
            }
        }
        Ok(lint)
    }

    fn problems(&self, row: &Row, number: u64, tokenizer: &Tokenizer) -> Vec<String> {
        match self.example(row, number, tokenizer) {
            Ok(example) => {
                example_problems(&example, tokenizer).iter().map(ToString::to_string).collect()
            }
            Err(error) => vec![error.to_string()],
        }
    }

    fn tokenizer(&self) -> Result<Tokenizer, TrainError> {
        Tokenizer::load(&self.tokenizer).map_err(TrainError::tokenizer("read"))
    }

    fn example(
        &self,
        row: &Row,
        number: u64,
        tokenizer: &Tokenizer,
    ) -> Result<Example, TrainError> {
        let key = SampleKey { seed: self.seed, epoch: self.epoch, row: number };
        example(row, &self.sample, tokenizer, key).map_err(TrainError::loader)
    }
}

/// Pixels are not looked at; they must only be there.
pub(crate) fn unseen() -> ImageConfig {
    ImageConfig { size: 8, fit: Fit::Squash, mean: [0.0; 3], std: [1.0; 3] }
}

/// Escape codes of the colours of images on a terminal, which come again after the last.
const COLOURS: [&str; 6] = ["31", "32", "33", "34", "35", "36"];

/// The tokens of a sequence `[L]`, with what each sees and whether it is learned.
pub(crate) struct MaskedTokens<'a> {
    pub(crate) tokens: &'a [u32],
    pub(crate) phi: &'a [i32],
    pub(crate) loss_mask: &'a [f32],
    pub(crate) tokenizer: &'a Tokenizer,
}

impl MaskedTokens<'_> {
    /// The tokens without the padding after them. Tokens that are parts of one character are one.
    pub(crate) fn shown(&self) -> Vec<Token> {
        let Self { tokens, phi, loss_mask, .. } = self;
        let end = tokens.iter().rposition(|id| *id != self.tokenizer.pad_id()).map_or(0, |l| l + 1);
        let (mut shown, mut start) = (Vec::new(), 0);
        for l in 0..end {
            let text = self.tokenizer.tokens_text(&tokens[start..=l]);
            let place = |l: usize| (phi[l], l > 0 && loss_mask[l - 1] > 0.0);
            let is_part = text.ends_with(char::REPLACEMENT_CHARACTER)
                && l + 1 < end
                && l - start < CHARACTER_TOKENS_MAX
                && place(l) == place(l + 1);
            if is_part {
                continue;
            }
            let (image, is_learned) = place(start);
            let image = (image != SEES_NONE).then_some(image as usize);
            shown.push(Token { text: printable(&text), image, is_learned });
            start = l + 1;
        }
        shown
    }
}

impl MaskedRow {
    fn tokens(&self) -> Vec<Token> {
        let Example { tokens, phi, loss_mask, .. } = &self.example;
        MaskedTokens { tokens, phi, loss_mask, tokenizer: &self.tokenizer }.shown()
    }

    fn summary(&self) -> String {
        let tokens = self.tokens();
        let n_learned = tokens.iter().filter(|token| token.is_learned).count();
        let (n, images) = (tokens.len(), self.example.n_images);
        format!(
            "row {} ({}): {n} tokens, {n_learned} learned, {images} images",
            self.number,
            printable(self.row.key())
        )
    }

    /// Lines for a terminal: runs of tokens that see the same image, each with its number; what is not
    /// learned is grey on a terminal that shows colours, and in brackets elsewhere.
    pub fn text(&self, has_colours: bool) -> String {
        format!("{}\n{}", self.summary(), lines(&self.tokens(), has_colours))
    }

    /// The same as a page, with the images beside the tokens.
    pub fn page(&self) -> String {
        let mut page = Page::new(&format!("Masks of row {}", self.number));
        page.paragraph(&self.summary());
        page.paragraph(
            "A token has the colour of the image that it sees; what is not learned is grey.",
        );
        page.tokens(&self.tokens());
        page.heading("Images");
        for (i, image) in self.row.images().iter().enumerate() {
            let mime = image_mime(&image.bytes);
            let first = self.example.first_image;
            // All frames of a clip are one image.
            let seen = match self.row {
                Row::VideoText(_) => Some(0),
                _ => i.checked_sub(first).filter(|at| *at < self.example.n_images),
            };
            let seen = seen.map_or("outside the window".to_owned(), |at| format!("image {at}"));
            page.thumbnail(&image.bytes, mime, &seen);
        }
        page.finish()
    }

    /// Writes the page, all or nothing.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_page(&self, path: &std::path::Path) -> Result<(), TrainError> {
        files::replace(path, self.page().as_bytes())
    }
}

/// A line for each run of tokens that see the same image.
pub(crate) fn lines(tokens: &[Token], has_colours: bool) -> String {
    let mut text = String::new();
    for run in tokens.chunk_by(|one, other| one.image == other.image) {
        let name = run[0].image.map_or("-".to_owned(), |image| image.to_string());
        let colour = run[0].image.map_or("39", |image| COLOURS[image % COLOURS.len()]);
        let mut line = String::new();
        for part in run.chunk_by(|one, other| one.is_learned == other.is_learned) {
            let shown: String = part.iter().map(|token| token.text.as_str()).collect();
            let written = match (has_colours, part[0].is_learned) {
                (true, true) => write!(line, "\x1b[{colour}m{shown}\x1b[0m"),
                (true, false) => write!(line, "\x1b[90m{shown}\x1b[0m"),
                (false, true) => write!(line, "{shown}"),
                (false, false) => write!(line, "[{shown}]"),
            };
            written.expect("writing to a string does not fail");
        }
        writeln!(text, "{name:>4}  {line}").expect("writing to a string does not fail");
    }
    text
}

/// Most tokens of one character: its bytes.
const CHARACTER_TOKENS_MAX: usize = 4;

/// A text without what would steer a terminal; an arrow for the end of a line.
fn printable(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' => '\u{21b5}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.chars().map(shown).collect()
}

/// The media type by the first bytes.
fn image_mime(bytes: &[u8]) -> &'static str {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => "image/png",
        [b'R', b'I', b'F', b'F', ..] => "image/webp",
        [b'G', b'I', b'F', ..] => "image/gif",
        _ => "image/jpeg",
    }
}
