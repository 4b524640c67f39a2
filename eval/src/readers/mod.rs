//! Official annotation files as they are downloaded, read into items. One file per layout.
//!
//! To add a layout: a file here with `read`, a name in [`Reader`], and a made-up example in its official form
//! for the tests.

mod coco_captions;
mod corpus;
pub(crate) mod entries;
mod hateful_memes;
mod image_folders;
pub(crate) mod ivqa;
mod karpathy;
pub mod kept;
mod kinetics;
pub(crate) mod next_oe;
pub(crate) mod people;
mod places;
mod rareact;
mod star;
mod textvqa;
mod vatex;
mod video_qa;
mod visdial;
mod vizwiz;
mod vqa_pair;
mod youcook2;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::EvalError;
use crate::item::Item;
use crate::readers::kept::Draw;
use crate::task_file::TaskFile;

/// A layout of annotation files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reader {
    /// One of our corpora (role `corpus`); rows with one image are one item with several captions.
    CorpusCaptions,
    /// One of our corpora (role `corpus`); the caption is the answer, and the category is `source`.
    CorpusLabels,
    /// COCO's `images` and `annotations` with captions.
    CocoCaptions,
    /// Karpathy's splits of COCO and Flickr30k.
    Karpathy,
    /// VQA's pair of `questions` and `annotations`.
    VqaPair,
    /// `VizWiz`'s list of images with their questions.
    Vizwiz,
    /// `TextVQA`'s `data`.
    Textvqa,
    /// `VisDial`'s dialogs, with dense annotations.
    Visdial,
    /// Lines of memes.
    HatefulMemes,
    /// Questions on films of MSVD and MSR-VTT.
    VideoQa,
    /// VATEX's clips with captions.
    Vatex,
    /// iVQA's table.
    Ivqa,
    /// `NExT-OE`'s table, with second answers.
    NextOe,
    /// `YouCook2`'s films with their segments.
    Youcook2,
    /// STAR's questions with four choices.
    Star,
    /// `RareAct`'s table of judged clips.
    Rareact,
    /// `ImageNet`'s folders, or its list of pictures.
    ImageFolders,
    /// Kinetics's table.
    Kinetics,
}

/// What a split may or must name, by reader.
struct Roles {
    /// Files without which there is nothing to read.
    files: &'static [&'static str],
    /// Files that some splits have.
    more: &'static [&'static str],
    /// What is no file: where media lie, and which part of a file is meant.
    others: &'static [&'static str],
}

impl Reader {
    fn roles(self) -> Roles {
        let roles = |files, more, others| Roles { files, more, others };
        match self {
            Self::CorpusCaptions | Self::CorpusLabels => roles(&["corpus"], &[], &[]),
            Self::CocoCaptions | Self::Vizwiz | Self::Textvqa | Self::HatefulMemes => {
                roles(&["annotations"], &[], &["image"])
            }
            Self::Karpathy => roles(&["annotations"], &[], &["image", "subset"]),
            Self::VqaPair => roles(&["questions"], &["annotations"], &["image"]),
            Self::Visdial => roles(&["annotations"], &["dense"], &["image"]),
            Self::VideoQa => roles(&["annotations"], &["mapping"], &["frames"]),
            Self::NextOe => roles(&["annotations"], &["references"], &["frames"]),
            Self::Youcook2 => roles(&["annotations"], &[], &["frames", "subset"]),
            Self::Vatex | Self::Ivqa | Self::Star | Self::Rareact | Self::Kinetics => {
                roles(&["annotations"], &[], &["frames"])
            }
            Self::ImageFolders => roles(&["classes"], &["labels", "folder"], &["image"]),
        }
    }

    /// Whether a role of a split is a file or folder, rather than a place of media or a part of a file.
    pub fn is_file(self, role: &str) -> bool {
        let roles = self.roles();
        roles.files.contains(&role) || roles.more.contains(&role)
    }

    /// What is wrong with the roles of a split: one that is missing, or unknown.
    pub fn fault(self, split: &BTreeMap<String, String>) -> Option<String> {
        let roles = self.roles();
        let missing = roles.files.iter().find(|role| !split.contains_key(**role));
        let is_known = |role: &str| self.is_file(role) || roles.others.contains(&role);
        let unknown = split.keys().find(|role| !is_known(role));
        missing
            .map(|role| format!("without `{role}`"))
            .or_else(|| unknown.map(|role| format!("with the unknown role `{role}`")))
    }

    /// Whether a `task.toml` in the folder may change settings of the task.
    pub fn has_settings(self) -> bool {
        matches!(self, Self::CorpusCaptions | Self::CorpusLabels)
    }
}

/// The files of a split.
pub struct SplitFiles<'a> {
    /// The folder that is given as annotations, or the prefix of an object store, without a slash at its end.
    pub location: &'a str,
    /// Their paths in it, by role.
    pub files: &'a BTreeMap<String, String>,
    /// The benchmark.
    pub task: &'a TaskFile,
    /// Which entries are kept, of splits that examples are drawn from; all of them if none.
    pub draw: Option<Draw>,
}

impl SplitFiles<'_> {
    /// The path of the file with a role.
    ///
    /// # Errors
    /// When the task names none.
    pub fn path(&self, role: &'static str) -> Result<String, EvalError> {
        self.optional(role).ok_or_else(|| EvalError::NoFile { task: self.task.name.clone(), role })
    }

    /// The part of a file that is meant.
    ///
    /// # Errors
    /// When the task names none.
    pub fn selector(&self, role: &'static str) -> Result<&str, EvalError> {
        let named = self.files.get(role).map(String::as_str);
        named.ok_or_else(|| EvalError::NoFile { task: self.task.name.clone(), role })
    }

    /// The path of the file with a role, where the task names one.
    pub fn optional(&self, role: &str) -> Option<String> {
        self.files.get(role).map(|file| format!("{}/{file}", self.location))
    }
}

/// The items of a split, in the order of its files.
///
/// # Errors
/// When a file is missing, or is not of the layout; messages name the file and the entry.
pub fn read_split(split: &SplitFiles<'_>) -> Result<Vec<Item>, EvalError> {
    match split.task.reader {
        Reader::CorpusCaptions => corpus::captions(split),
        Reader::CorpusLabels => corpus::labels(split),
        Reader::CocoCaptions => coco_captions::read(split),
        Reader::Karpathy => karpathy::read(split),
        Reader::VqaPair => vqa_pair::read(split),
        Reader::Vizwiz => vizwiz::read(split),
        Reader::Textvqa => textvqa::read(split),
        Reader::Visdial => visdial::read(split),
        Reader::HatefulMemes => hateful_memes::read(split),
        Reader::VideoQa => video_qa::read(split),
        Reader::Vatex => vatex::read(split),
        Reader::Ivqa => ivqa::read(split),
        Reader::NextOe => next_oe::read(split),
        Reader::Youcook2 => youcook2::read(split),
        Reader::Star => star::read(split),
        Reader::Rareact => rareact::read(split),
        Reader::ImageFolders => image_folders::read(split),
        Reader::Kinetics => kinetics::read(split),
    }
}
