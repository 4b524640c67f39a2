//! `BuildPlan`: every rule of an ingest run, read from TOML.
//!
//! A plan may leave keys out; the effective plan, with every default spelled out, is written beside
//! the corpus as `plan.toml`, holding only the sections that the kind of run reads. Paths and
//! numbers of workers are not part of it: they never change a byte of the corpus.

use std::path::Path;

use flamingo_dataset::{CorpusKind, sha256_hex};
use serde::{Deserialize, Serialize};

use crate::error::IngestError;
use crate::fetch::plan::FetchPlan;
use crate::rules;
use crate::rules::plan::{BlockPlan, ExplicitPlan, LanguagePlan, ScoresPlan, TextPlan, WordsPlan};
use crate::rules::preset::Preset;

/// All rules of a run. Sections that a kind of run does not read are ignored by it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BuildPlan {
    /// Where keys that are left out have their values from.
    pub preset: Preset,
    /// Web archives and their pages.
    pub archive: ArchivePlan,
    /// What sites say about training use.
    pub opt_out: OptOutPlan,
    /// What is asked for over the network.
    pub fetch: FetchPlan,
    /// Addresses that are left out.
    pub block: BlockPlan,
    /// Single images, in pages and in pairs.
    pub image: ImagePlan,
    /// Interleaved documents.
    pub document: DocumentPlan,
    /// Texts of documents, paragraphs and captions.
    pub text: TextPlan,
    /// Lists of words.
    pub words: WordsPlan,
    /// Explicit content.
    pub explicit: ExplicitPlan,
    /// Languages.
    pub language: LanguagePlan,
    /// Tables of scores of outside classifiers.
    pub scores: Vec<ScoresPlan>,
    /// Column names of lists of images or clips.
    pub list: ListPlan,
    /// Captions of images and clips.
    pub caption: CaptionPlan,
    /// Clips.
    pub video: VideoPlan,
    /// Training and held-out rows.
    pub split: SplitPlan,
    /// Sizes of the output files.
    pub shard: ShardPlan,
}

/// Limits on archive records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ArchivePlan {
    /// Largest page, in bytes after all content encodings are removed.
    pub page_bytes_max: u64,
    /// Most redirects followed inside the archives for one image.
    pub redirects_max: u32,
    /// What to do with an archive that ends inside a record, or that is none.
    pub cut_off: CutOff,
    /// What to do with pages of which the crawler kept only the beginning (`WARC-Truncated`).
    pub truncated: TruncatedRecords,
    /// Most bytes of records that are kept in a file during the run because they cannot be read where
    /// they lie: of archives that were compressed as one stream.
    pub spool_bytes_max: u64,
}

/// What to do with pages of which the crawler kept only the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TruncatedRecords {
    /// Use what is there.
    Keep,
    /// The page becomes a reject.
    Drop,
}

/// What to do with an archive that ends inside a record: most often a download that broke off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CutOff {
    /// Stop before anything is written.
    Fail,
    /// Use the whole records; the last one becomes a reject, and so does a file without any.
    Skip,
}

impl Default for ArchivePlan {
    fn default() -> Self {
        Self {
            page_bytes_max: 8 << 20,
            redirects_max: 5,
            cut_off: CutOff::Skip,
            truncated: TruncatedRecords::Keep,
            spool_bytes_max: 64 << 30,
        }
    }
}

/// Which statements of a site keep its pages and images out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptOutPlan {
    /// Directives of `X-Robots-Tag` and `<meta name="robots">` that mean no, in lower case, whichever
    /// crawler they name. img2dataset also takes `noindex` and `noimageindex` for a no.
    pub directives: Vec<String>,
    /// Whether `tdm-reservation: 1` (header or meta) means no.
    pub tdm_reservation: bool,
    /// A registry of domains that opted out, one a line, for documents and images alike.
    pub domains_file: String,
    /// SHA-256 of that file.
    pub domains_sha256: String,
    /// A registry of addresses that opted out, one a line.
    pub urls_file: String,
    /// SHA-256 of that file.
    pub urls_sha256: String,
}

impl Default for OptOutPlan {
    fn default() -> Self {
        Self {
            directives: vec!["noai".into(), "noimageai".into()],
            tdm_reservation: true,
            domains_file: String::new(),
            domains_sha256: String::new(),
            urls_file: String::new(),
            urls_sha256: String::new(),
        }
    }
}

/// Rules for one image. Numbers of the M3W filter (paper, appendix A.3.1) where it gives them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImagePlan {
    /// Largest encoded size in bytes.
    pub bytes_max: u64,
    /// Most pixels, read from the header before anything is decoded.
    pub pixels_max: u64,
    /// Shortest side in pixels. Paper: 64.
    pub side_min: u32,
    /// Largest ratio of long to short side. Paper: 3.
    pub aspect_max: f64,
    /// An image whose channels each span at most this much (of 255) is a single colour: dropped.
    pub single_colour_tolerance: u8,
    /// How the stored size follows from the found one.
    pub resize: Resize,
    /// The side that `resize` brings images to. Paper: 320.
    pub size: u32,
    /// Whether images that are small enough keep their size: no growing, no border, no crop.
    pub only_if_bigger: bool,
    /// A JPEG may be decoded at a half, quarter or eighth of its sides where that leaves at least this
    /// many pixels along a side for one of the stored image: faster, and with 2 some 40 to 50 dB from
    /// the mean over all pixels. 0 decodes every pixel.
    pub oversampling_min: u32,
    /// Format of images that are encoded anew.
    pub encode: Encode,
    /// Quality of JPEG and WebP, 1 to 100. PNG loses nothing.
    pub quality: u8,
    /// Which files are stored as they were found, where nothing of them must change.
    pub originals: Originals,
    /// What to do with a file that ends too early or whose pixels are damaged.
    pub truncated: Truncated,
    /// What to do with colour profiles other than sRGB.
    pub colour_profile: ColourProfile,
    /// Formats that are kept, among jpeg, png, webp, gif, bmp and tiff.
    pub formats: Vec<String>,
    /// Words that, as a whole word of an image's path, mark furniture of a page (OBELICS' list).
    pub url_words_banned: Vec<String>,
}

/// How the stored size follows from the found one: the modes of img2dataset, and the paper's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// Not at all.
    No,
    /// Longest side to `size`, white border to a square.
    Border,
    /// Shortest side to `size`.
    KeepRatio,
    /// Longest side to `size`.
    KeepRatioLargest,
    /// Shortest side to `size`, then the square in the middle.
    CenterCrop,
    /// Longest side to `size`, border of the image's mean colour to a square (paper, section 3.2.1).
    MeanPad,
}

/// Format of images that are encoded anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encode {
    /// JPEG, with colour at half the sides.
    Jpeg,
    /// PNG, without loss.
    Png,
    /// WebP, with loss.
    Webp,
}

/// Which files are stored as they were found, where nothing of them must change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Originals {
    /// JPEG, PNG and WebP, which every reader knows.
    Web,
    /// Those of the format of `encode`.
    SameFormat,
    /// None: every image is encoded anew, and hides nothing but its pixels.
    Never,
}

/// What to do with a file that ends too early or whose pixels are damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Truncated {
    /// Drop it.
    Drop,
    /// Keep what the decoder makes of it, as browsers do: most often a picture with a grey part.
    Keep,
}

/// What to do with colour profiles other than sRGB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColourProfile {
    /// Convert the pixels to sRGB, which readers of a corpus take them for.
    Convert,
    /// Take the numbers as they are, as img2dataset does.
    Ignore,
}

impl Default for ImagePlan {
    fn default() -> Self {
        let words = |list: &[&str]| list.iter().map(|&word| word.to_owned()).collect();
        Self {
            bytes_max: 20 << 20,
            pixels_max: 50_000_000,
            side_min: 64,
            aspect_max: 3.0,
            single_colour_tolerance: 2,
            resize: Resize::KeepRatioLargest,
            size: 512,
            only_if_bigger: true,
            oversampling_min: 2,
            encode: Encode::Jpeg,
            quality: 95,
            originals: Originals::Web,
            truncated: Truncated::Drop,
            colour_profile: ColourProfile::Convert,
            formats: words(&["jpeg", "png", "webp", "gif", "bmp", "tiff"]),
            url_words_banned: words(&["logo", "button", "icon", "plugin", "widget"]),
        }
    }
}

/// Rules for a whole interleaved document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DocumentPlan {
    /// Fewest words of text.
    pub words_min: u64,
    /// Most words of text.
    pub words_max: u64,
    /// Fewest images. Paper: documents left without images are dropped.
    pub images_min: u64,
    /// Most images (OBELICS: 30).
    pub images_max: u64,
    /// Most bytes of all stored images together, so that a row fits a row group.
    pub image_bytes_max: u64,
}

impl Default for DocumentPlan {
    fn default() -> Self {
        Self {
            words_min: 1,
            words_max: 100_000,
            images_min: 1,
            images_max: 30,
            image_bytes_max: 64 << 20,
        }
    }
}

/// Column names of lists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListPlan {
    /// Column with the address of the image or clip.
    pub url_column: String,
    /// Column with the caption.
    pub caption_column: String,
    /// Column with the name of a file, relative to the image root.
    pub file_column: String,
    /// Column that names where a pair came from; lists may lack it.
    pub source_column: String,
    /// Column with the encoded image itself (Parquet only): bytes, or a struct with `bytes`.
    pub image_column: String,
    /// Column with the time at which a part of a clip starts: seconds or `hours:minutes:seconds`.
    pub start_column: String,
    /// Column with the time at which it ends.
    pub end_column: String,
}

impl Default for ListPlan {
    fn default() -> Self {
        Self {
            url_column: "url".into(),
            caption_column: "caption".into(),
            file_column: "file".into(),
            source_column: "source".into(),
            image_column: "image".into(),
            start_column: "start".into(),
            end_column: "end".into(),
        }
    }
}

/// Rules for captions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptionPlan {
    /// Fewest characters; 0 also takes images without a caption.
    pub chars_min: u64,
    /// Fewest words.
    pub words_min: u64,
    /// Most words.
    pub words_max: u64,
}

impl Default for CaptionPlan {
    fn default() -> Self {
        Self { chars_min: 1, words_min: 0, words_max: 1000 }
    }
}

/// Rules for clips and the frames taken from them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VideoPlan {
    /// At which times frames are taken. A time's frame is the last one that starts at or before it.
    pub sampling: Sampling,
    /// Frames taken per second of film, from the start of the clip. Paper: 1.
    pub frames_per_second: f64,
    /// Most frames per clip; with `sampling = "uniform"` their number. Paper: 8.
    pub frames_max: u32,
    /// Fewest frames per clip.
    pub frames_min: u32,
    /// What to do with a clip of several shots.
    pub scene_cuts: SceneCuts,
    /// Difference of the luma histograms of frames a fifth of a second apart, 0 to 1, from which on
    /// there is a cut between them.
    pub scene_cut: f64,
    /// What the cues of a .vtt or .srt file beside a clip become.
    pub cues: Cues,
    /// With `cues = "clips"`: cues are joined until they last this many milliseconds.
    pub cue_ms_min: u32,
    /// With `cues = "clips"`: cues further apart than this many milliseconds are not joined.
    pub cue_gap_ms_max: u32,
    /// Largest file in bytes.
    pub bytes_max: u64,
    /// Most pixels of a frame, read from the stream's header before anything is decoded.
    pub pixels_max: u64,
    /// Shortest side of a frame in pixels.
    pub side_min: u32,
    /// Most frames decoded while looking for the wanted ones.
    pub decoded_frames_max: u64,
    /// Most memory of a process that decodes, in bytes.
    pub decoder_bytes_max: u64,
    /// Most seconds on the processor for one clip.
    pub decoder_cpu_seconds_max: u32,
    /// Most seconds for one clip by the clock, which ends a decoder that hangs.
    pub decoder_seconds_max: u32,
    /// Threads that decode one clip; 1 is best where many clips are decoded at a time. How a damaged
    /// clip looks may depend on it.
    pub decoder_threads: u32,
    /// Longest side of a stored frame; larger ones are shrunk. 0 keeps all.
    pub stored_side_max: u32,
    /// JPEG quality of the frames.
    pub jpeg_quality: u8,
}

impl Default for VideoPlan {
    fn default() -> Self {
        Self {
            sampling: Sampling::Rate,
            frames_per_second: 1.0,
            frames_max: 8,
            frames_min: 1,
            scene_cuts: SceneCuts::Ignore,
            scene_cut: 0.5,
            cues: Cues::Join,
            cue_ms_min: 0,
            cue_gap_ms_max: 1000,
            bytes_max: 1 << 30,
            pixels_max: 40_000_000,
            side_min: 64,
            decoded_frames_max: 20_000,
            decoder_bytes_max: 1 << 30,
            decoder_cpu_seconds_max: 60,
            decoder_seconds_max: 300,
            decoder_threads: 1,
            stored_side_max: 512,
            jpeg_quality: 90,
        }
    }
}

/// At which times of a clip frames are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sampling {
    /// At its start and then `frames_per_second` times a second, `frames_max` at most.
    Rate,
    /// In the middle of each of `frames_max` equal parts.
    Uniform,
}

/// What to do with a clip of several shots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SceneCuts {
    /// Nobody looks for cuts.
    Ignore,
    /// The clip is dropped.
    Drop,
    /// The clip is cut down to its longest shot.
    LongestShot,
}

/// What the cues of a subtitle file become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cues {
    /// One caption of the whole clip.
    Join,
    /// A clip each, from the cue's start to its end.
    Clips,
}

/// Which rows are kept, by a hash of the row's key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SplitPlan {
    /// Everything, or one side of the split.
    pub keep: Keep,
    /// How many of 1000 rows are held out.
    pub held_out_permille: u32,
    /// Changes which rows are held out.
    pub seed: u64,
}

impl Default for SplitPlan {
    fn default() -> Self {
        Self { keep: Keep::All, held_out_permille: 0, seed: 0 }
    }
}

/// A side of the split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// Every row.
    All,
    /// Rows that are not held out.
    Train,
    /// Held-out rows only.
    HeldOut,
}

/// Sizes of the output files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShardPlan {
    /// Most rows of a shard.
    pub rows_max: u64,
    /// A shard is closed once its rows hold this many bytes.
    pub bytes_max: u64,
    /// A part is closed once it holds this many rejects, which bounds the memory they take.
    pub rejects_max: u64,
    /// A part is closed once it holds this many rows of figures.
    pub figures_max: u64,
}

impl Default for ShardPlan {
    fn default() -> Self {
        Self { rows_max: 10_000, bytes_max: 256 << 20, rejects_max: 100_000, figures_max: 200_000 }
    }
}

impl BuildPlan {
    /// Reads and checks a plan file; without one, the defaults.
    ///
    /// # Errors
    /// When the file cannot be read, is not TOML, has an unknown key or a value out of range.
    pub fn load(path: Option<&Path>) -> Result<Self, IngestError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(path)
            .map_err(|source| IngestError::PlanRead { path: path.to_owned(), source })?;
        Self::from_toml(&text, &path.display().to_string())
    }

    /// Reads and checks the text of a plan; `origin` is its place, for messages.
    ///
    /// # Errors
    /// When it is not TOML, has an unknown key or a value out of range.
    pub fn from_toml(text: &str, origin: &str) -> Result<Self, IngestError> {
        let mut plan = Self::parse(text, origin)?;
        plan.validate()?;
        rules::seal(&mut plan)?;
        Ok(plan)
    }

    pub(crate) fn parse(text: &str, origin: &str) -> Result<Self, IngestError> {
        let wrong = |error: toml::de::Error| {
            let line = error.span().map(|span| text[..span.start].matches('\n').count() + 1);
            let place = line.map(|line| format!(" (line {line})")).unwrap_or_default();
            let message = format!("{}{place}", error.message().replace('\n', " "));
            IngestError::PlanParse { origin: origin.to_owned(), message }
        };
        let plan: Self = toml::from_str(text).map_err(wrong)?;
        if plan.preset == Preset::None {
            return Ok(plan);
        }
        // The plan alone is right, so every mistake of its own has been found with its line.
        plan.preset.under(text.parse().map_err(wrong)?).try_into().map_err(wrong)
    }

    /// The first value that is out of range, as an error that names its key.
    ///
    /// # Errors
    /// When a value is out of range.
    pub fn validate(&self) -> Result<(), IngestError> {
        self.fetch.validate()?;
        let known = |format: &String| FORMATS.contains(&format.as_str());
        let quality = |value: u8| (1..=100).contains(&value);
        let (image, video, split, shard) = (&self.image, &self.video, &self.split, &self.shard);
        let unknown = image.formats.iter().find(|format| !known(format));
        let rules: [Rule; 18] = [
            (image.aspect_max >= 1.0, "image.aspect_max", text(&image.aspect_max), "at least 1"),
            (image.bytes_max > 0, "image.bytes_max", text(&image.bytes_max), "at least 1"),
            (image.pixels_max > 0, "image.pixels_max", text(&image.pixels_max), "at least 1"),
            (quality(image.quality), "image.quality", text(&image.quality), "1 to 100"),
            (
                (1..=IMAGE_SIZE_MAX).contains(&image.size),
                "image.size",
                text(&image.size),
                "1 to 8192",
            ),
            (
                unknown.is_none(),
                "image.formats",
                text(&unknown.map_or("", String::as_str)),
                "names among jpeg, png, webp, gif, bmp and tiff",
            ),
            (
                quality(video.jpeg_quality),
                "video.jpeg_quality",
                text(&video.jpeg_quality),
                "1 to 100",
            ),
            (
                video.frames_per_second > 0.0 && video.frames_per_second <= 1000.0,
                "video.frames_per_second",
                text(&video.frames_per_second),
                "above 0 and at most 1000",
            ),
            (
                (1..=FRAMES_MAX).contains(&video.frames_max),
                "video.frames_max",
                text(&video.frames_max),
                "1 to 1024",
            ),
            (
                video.frames_min <= video.frames_max,
                "video.frames_min",
                text(&video.frames_min),
                "at most `video.frames_max`",
            ),
            (
                video.scene_cut > 0.0 && video.scene_cut <= 1.0,
                "video.scene_cut",
                text(&video.scene_cut),
                "above 0 and at most 1",
            ),
            (
                video.decoder_cpu_seconds_max > 0,
                "video.decoder_cpu_seconds_max",
                text(&video.decoder_cpu_seconds_max),
                "at least 1",
            ),
            (
                video.decoder_seconds_max > 0,
                "video.decoder_seconds_max",
                text(&video.decoder_seconds_max),
                "at least 1",
            ),
            (
                (1..=64).contains(&video.decoder_threads),
                "video.decoder_threads",
                text(&video.decoder_threads),
                "1 to 64",
            ),
            (
                split.held_out_permille <= 1000,
                "split.held_out_permille",
                text(&split.held_out_permille),
                "at most 1000",
            ),
            (shard.rows_max > 0, "shard.rows_max", text(&shard.rows_max), "at least 1"),
            (shard.bytes_max > 0, "shard.bytes_max", text(&shard.bytes_max), "at least 1"),
            (shard.rejects_max > 0, "shard.rejects_max", text(&shard.rejects_max), "at least 1"),
        ];
        match rules.into_iter().find(|(holds, ..)| !holds) {
            None => self.validate_rules(),
            Some((_, key, value, expected)) => Err(IngestError::PlanValue { key, value, expected }),
        }
    }

    /// The first limit, language or score that makes no sense, as an error.
    fn validate_rules(&self) -> Result<(), IngestError> {
        let value = |key, value, expected| Err(IngestError::PlanValue { key, value, expected });
        for rule in rules::rules(self) {
            let is_score = rule.figure.starts_with(crate::figures::SCORE);
            if rule.limit.is_nan() || (rule.limit < 0.0 && !is_score) {
                return value(rule.key, text(&rule.limit), "a number, at least 0");
            }
        }
        if let Some(code) = self.language.keep.iter().find(|code| !rules::language::is_known(code))
        {
            return value(
                "language.keep",
                code.clone(),
                "ISO 639-1 codes of languages that are told",
            );
        }
        for table in &self.scores {
            let is_read = |name: &String| table.columns.contains(name);
            if let Some(rule) = table.rules.iter().find(|rule| !is_read(&rule.name)) {
                return value("scores.rule.name", rule.name.clone(), "one of the table's columns");
            }
            if table.columns.is_empty() {
                return value("scores.columns", "[]".to_owned(), "at least one column");
            }
        }
        Ok(())
    }

    /// The effective plan of one kind of run as TOML: every default, only the sections it reads.
    ///
    /// # Panics
    /// Never: every field has a TOML form.
    pub fn to_toml(&self, kind: CorpusKind) -> String {
        let mut table =
            toml::Table::try_from(self).expect("a plan holds only numbers, strings and lists");
        let unread: &[&str] = match kind {
            CorpusKind::Interleaved => &["list", "caption", "video"],
            CorpusKind::ImageText => &["document", "video"],
            CorpusKind::VideoText => &[
                "archive", "block", "document", "explicit", "fetch", "image", "language",
                "opt_out", "scores", "text", "words",
            ],
        };
        table.retain(|section, _| !unread.contains(&section));
        if let Some(text) = table.get_mut("text").and_then(toml::Value::as_table_mut) {
            let is_page = kind == CorpusKind::Interleaved;
            text.retain(|section, _| is_page != (section == "caption"));
        }
        toml::to_string(&table).expect("a table of tables is TOML")
    }

    /// Hex SHA-256 of [`BuildPlan::to_toml`]: equal plans make equal corpora.
    pub fn sha256(&self, kind: CorpusKind) -> String {
        sha256_hex(self.to_toml(kind).as_bytes())
    }
}

/// Whether a rule holds, its key, the value given, what is accepted.
type Rule = (bool, &'static str, String, &'static str);

/// Names of the image formats that can be decoded.
const FORMATS: [&str; 6] = ["jpeg", "png", "webp", "gif", "bmp", "tiff"];

/// Largest size that images are brought to: a square of it is 200 MB of pixels.
const IMAGE_SIZE_MAX: u32 = 8192;

/// Most frames of one clip; a row must fit a row group.
const FRAMES_MAX: u32 = 1024;

fn text(value: &impl ToString) -> String {
    value.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_plan_is_the_default_and_survives_a_round_trip() {
        let plan = BuildPlan::parse("", "plan.toml").unwrap();
        assert_eq!(plan, BuildPlan::default());
        plan.validate().unwrap();
        for kind in [CorpusKind::Interleaved, CorpusKind::ImageText, CorpusKind::VideoText] {
            let text = plan.to_toml(kind);
            assert!(text.contains("held_out_permille = 0"), "{text}");
            assert_eq!(BuildPlan::parse(&text, "effective").unwrap(), plan);
        }
    }

    #[test]
    fn a_preset_is_below_the_keys_of_the_plan() {
        let text = "preset = \"obelics\"\n[image]\nside_min = 7\n[text.paragraph]\nwords_min = 0\n";
        let plan = BuildPlan::parse(text, "p").unwrap();
        assert_eq!((plan.image.side_min, plan.image.formats.len()), (7, 3));
        let words = &plan.text.paragraph;
        assert_eq!((words.words_min, words.words_max), (0.0, 1000.0));
        let effective = plan.to_toml(CorpusKind::Interleaved);
        assert!(
            effective.contains("preset = \"obelics\"") && effective.contains("aspect_max = 2.0")
        );
        assert_eq!(BuildPlan::parse(&effective, "effective").unwrap(), plan);
        let error = BuildPlan::parse("\npreset = \"c4\"\n", "p").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("mmc4"), "{error}");
    }

    #[test]
    fn every_preset_is_a_plan_with_rules_of_its_own() {
        for preset in Preset::ALL {
            let plan = BuildPlan::parse(preset.toml(), preset.name()).unwrap();
            plan.validate().unwrap();
            assert_eq!(plan.preset, preset);
            assert_ne!(
                rules::rules(&plan),
                rules::rules(&BuildPlan::default()),
                "{}",
                preset.name()
            );
        }
    }

    #[test]
    fn sections_of_other_kinds_do_not_change_the_hash() {
        let mut other = BuildPlan::default();
        other.video.frames_max = 4;
        let plan = BuildPlan::default();
        assert_eq!(plan.sha256(CorpusKind::Interleaved), other.sha256(CorpusKind::Interleaved));
        assert_ne!(plan.sha256(CorpusKind::VideoText), other.sha256(CorpusKind::VideoText));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = BuildPlan::parse("[image]\nside_mni = 3\n", "p.toml").unwrap_err();
        let message = error.to_string();
        assert!(message.contains("side_mni") && message.contains("line 2"), "{message}");
        assert!(!message.contains('\n'), "{message}");
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn a_value_out_of_range_is_named() {
        let check = |toml: &str, key: &str| {
            let error = BuildPlan::parse(toml, "p").unwrap().validate().unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        };
        check("[image]\naspect_max = 0.5", "image.aspect_max");
        check("[image]\nformats = [\"svg\"]", "image.formats");
        check("[image]\nsize = 0", "image.size");
        check("[image]\nquality = 101", "image.quality");
        check("[video]\nframes_per_second = 0.0", "video.frames_per_second");
        check("[split]\nheld_out_permille = 1001", "split.held_out_permille");
        check("[shard]\nrows_max = 0", "shard.rows_max");
        check("[text.gopher]\nwords_min = -1", "text.gopher.words_min");
        check("[text.paragraph]\nwords_max = nan", "text.paragraph.words_max");
        check("[language]\nkeep = [\"eng\"]", "language.keep");
        let scores = "[[scores]]\nfile = \"s\"\nkey = \"url\"\ncolumns = [\"a\"]\n";
        check(&format!("{scores}[[scores.rule]]\nname = \"b\"\nlevel = \"image\""), "scores.rule");
    }
}
