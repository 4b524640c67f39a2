//! How images become pixels for a model that is no run: `preprocessor_config.json` as transformers and
//! `flamingo-train export` write it, or `open_clip_config.json`; without either, what CLIP was trained with.

use std::path::{Path, PathBuf};

use flamingo_dataset::{Fit, ImageConfig};
use flamingo_model::VisionConfig;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::EvalError;

/// File of transformers and of `export`.
const PREPROCESSOR: &str = "preprocessor_config.json";
/// File of `open_clip`.
const OPEN_CLIP: &str = "open_clip_config.json";

/// Pillow's number of the filter that images are resized with here.
const BICUBIC: u32 = 3;

/// Mean and standard deviation of red, green and blue that `OpenAI`'s CLIP was trained with, and most of those
/// that came after it.
const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// What is read of transformers' file.
#[derive(Deserialize)]
struct Preprocessor {
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
    size: Option<Side>,
    crop_size: Option<Side>,
    do_center_crop: Option<bool>,
    do_resize: Option<bool>,
    resample: Option<u32>,
    /// Ours, for what transformers cannot say.
    fit: Option<Fit>,
}

/// A side as it has been written over the years.
#[derive(Deserialize)]
#[serde(untagged)]
enum Side {
    Both(usize),
    Named { shortest_edge: usize },
    Square { height: usize, width: usize },
}

impl Side {
    /// The side of a square; none of what is none.
    fn square(&self) -> Option<usize> {
        match self {
            Self::Both(side) | Self::Named { shortest_edge: side } => Some(*side),
            Self::Square { height, width } => (height == width).then_some(*height),
        }
    }
}

impl Preprocessor {
    /// How images become squares, and of which side where the file says so; else what is wrong.
    fn square(&self, encoder_size: usize) -> Result<(Fit, Option<usize>), String> {
        let side = |side: &Option<Side>| {
            let side = side.as_ref().map(|it| it.square().ok_or("images that are not square"));
            side.transpose().map_err(str::to_owned)
        };
        let (size, crop) = (side(&self.size)?, side(&self.crop_size)?);
        if let Some(fit) = self.fit {
            let is_cut = matches!(fit, Fit::CenterCrop | Fit::CropFrom(_));
            return Ok((fit, if is_cut { crop.or(size) } else { size }));
        }
        if self.do_resize == Some(false) {
            return Err("images that are not resized".to_owned());
        }
        let is_squashed = matches!(self.size, Some(Side::Square { .. }));
        if !self.do_center_crop.unwrap_or(!is_squashed) {
            return match self.size {
                Some(Side::Named { .. }) => Err("images that are not square".to_owned()),
                // Older processors that cut nothing wrote both sides as one number.
                _ => Ok((Fit::Squash, size)),
            };
        }
        let cut = crop.unwrap_or(encoder_size);
        match size.unwrap_or(cut) {
            size if is_squashed && size == cut => Ok((Fit::Squash, Some(cut))),
            size if is_squashed => Err(format!("{cut} pixels of images squashed to {size}")),
            size if size == cut => Ok((Fit::CenterCrop, Some(cut))),
            size if size > cut => Ok((Fit::CropFrom(size), Some(cut))),
            size => Err(format!("{cut} pixels of images of {size}")),
        }
    }
}

/// What is read of `open_clip`'s file.
#[derive(Deserialize)]
struct OpenClip {
    preprocess_cfg: Option<OpenClipImages>,
}

#[derive(Deserialize)]
struct OpenClipImages {
    mean: Option<[f32; 3]>,
    std: Option<[f32; 3]>,
    resize_mode: Option<String>,
}

/// What the files beside a vision encoder say, the first of `folders` that has one; the rest is CLIP's: the shorter side becomes the
/// encoder's, the middle is kept. As in transformers, images are squashed to a `size` of height and width, and cut out of the middle
/// of those with a `shortest_edge`.
///
/// # Errors
/// When a file cannot be read, or asks for images that the encoder does not take; or there is none, and the encoder is no CLIP.
pub fn image_settings(
    folders: &[PathBuf],
    vision: &VisionConfig,
) -> Result<ImageConfig, EvalError> {
    let size = vision.image_size();
    let clip = ImageConfig { size, fit: Fit::CenterCrop, mean: CLIP_MEAN, std: CLIP_STD };
    for folder in folders {
        let path = folder.join(PREPROCESSOR);
        if path.is_file() {
            return of_transformers(&path, &clip);
        }
        let path = folder.join(OPEN_CLIP);
        if path.is_file() {
            return of_open_clip(&path, clip);
        }
    }
    if matches!(vision, VisionConfig::Nfnet(_)) {
        let path = folders.first().cloned().unwrap_or_default().join(PREPROCESSOR);
        let problem = "not there, and how images become pixels for an NFNet is nowhere else".into();
        return Err(EvalError::Annotations { path, problem });
    }
    eprintln!("images: {size} pixels, their middle, colours as CLIP has them: no {PREPROCESSOR}");
    Ok(clip)
}

fn of_transformers(path: &Path, clip: &ImageConfig) -> Result<ImageConfig, EvalError> {
    let found: Preprocessor = read(path)?;
    let square = found.square(clip.size);
    let (fit, size) = square.map_err(|problem| wrong(path, &problem))?;
    let size = size.unwrap_or(clip.size);
    if size != clip.size {
        let problem = format!("images of {size} pixels, but the encoder takes {}", clip.size);
        return Err(wrong(path, &problem));
    }
    if let Some(other) = found.resample.filter(|filter| *filter != BICUBIC) {
        let file = path.display();
        eprintln!(
            "warning: {file}: resample {other}, but images are resized by the bicubic filter, {BICUBIC}"
        );
    }
    Ok(ImageConfig {
        size,
        fit,
        mean: found.image_mean.unwrap_or(clip.mean),
        std: checked_std(path, found.image_std.unwrap_or(clip.std))?,
    })
}

fn of_open_clip(path: &Path, clip: ImageConfig) -> Result<ImageConfig, EvalError> {
    let Some(found) = read::<OpenClip>(path)?.preprocess_cfg else { return Ok(clip) };
    let fit = match found.resize_mode.as_deref() {
        None | Some("shortest") => Fit::CenterCrop,
        Some("squash") => Fit::Squash,
        Some(other) => return Err(wrong(path, &format!("resize_mode `{other}`"))),
    };
    let std = checked_std(path, found.std.unwrap_or(clip.std))?;
    Ok(ImageConfig { fit, mean: found.mean.unwrap_or(clip.mean), std, ..clip })
}

/// Colours are divided by it.
fn checked_std(path: &Path, std: [f32; 3]) -> Result<[f32; 3], EvalError> {
    if std.iter().all(|value| value.is_finite() && *value > 0.0) {
        return Ok(std);
    }
    Err(wrong(path, &format!("standard deviations {std:?}, expected numbers above 0")))
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, EvalError> {
    let bytes = std::fs::read(path).map_err(EvalError::file("read", path))?;
    serde_json::from_slice(&bytes).map_err(|error| wrong(path, &error.to_string()))
}

fn wrong(path: &Path, problem: &str) -> EvalError {
    EvalError::Annotations { path: path.to_path_buf(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use flamingo_model::{Activation, PatchStates, VitConfig};

    use super::*;

    fn vit(image_size: usize) -> VisionConfig {
        VisionConfig::Vit(VitConfig {
            image_size,
            patch_size: 4,
            width: 16,
            layers: 1,
            heads: 2,
            activation: Activation::QuickGelu,
            feed_forward_width: None,
            patch_states: PatchStates::BeforeNorm,
        })
    }

    #[test]
    fn files_of_all_kinds_are_read_and_the_rest_is_clips() {
        let check = |name: &str, text: &str, expected: Result<(Fit, f32, f32), &str>| {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(name), text).unwrap();
            let found = image_settings(&[dir.path().to_path_buf()], &vit(224));
            match (found, expected) {
                (Ok(image), Ok((fit, mean, std))) => {
                    assert_eq!((image.size, image.fit), (224, fit), "{text}");
                    assert_eq!((image.mean[0], image.std[0]), (mean, std), "{text}");
                }
                (Err(error), Err(part)) => {
                    assert!(error.to_string().contains(part), "{error}");
                    assert!(error.to_string().contains(name), "{error}");
                }
                (found, _) => panic!("{text}: {found:?}"),
            }
        };
        let clip = (Fit::CenterCrop, CLIP_MEAN[0], CLIP_STD[0]);
        check("unrelated", "", Ok(clip));
        check(PREPROCESSOR, "{}", Ok(clip));
        check(PREPROCESSOR, r#"{"size": 224, "crop_size": 224, "do_center_crop": true}"#, Ok(clip));
        let half = r#""image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]"#;
        let text = format!(
            r#"{{"size": {{"height": 224, "width": 224}}, "do_center_crop": false, {half}}}"#
        );
        check(PREPROCESSOR, &text, Ok((Fit::Squash, 0.5, 0.25)));
        let text = r#"{"size": {"height": 224, "width": 224}, "fit": "mean_pad"}"#;
        check(PREPROCESSOR, text, Ok((Fit::MeanPad, clip.1, clip.2)));
        let squash = Ok((Fit::Squash, clip.1, clip.2));
        let closer = |side: usize| Ok((Fit::CropFrom(side), clip.1, clip.2));
        let edge = r#""size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}"#;
        let both = r#""size": {"height": 224, "width": 224}"#;
        let check_sizes = |sizes: &str, more: &str, expected: Result<(Fit, f32, f32), &str>| {
            check(PREPROCESSOR, &format!("{{{sizes}{more}}}"), expected);
        };
        check_sizes(edge, "", closer(256));
        check_sizes(r#""size": {"shortest_edge": 256}"#, "", closer(256));
        check_sizes(r#""size": 256, "crop_size": 224"#, "", closer(256));
        check_sizes(r#""size": {"shortest_edge": 224}"#, "", Ok(clip));
        check_sizes(both, "", squash);
        check_sizes(both, r#", "crop_size": 224"#, squash);
        check_sizes(both, r#", "crop_size": 224, "do_center_crop": true"#, squash);
        check_sizes(r#""size": 224"#, r#", "do_center_crop": false"#, squash);
        check_sizes(edge, r#", "do_center_crop": false"#, Err("not square"));
        let cut = r#", "crop_size": 200, "do_center_crop": true"#;
        check_sizes(both, cut, Err("200 pixels of images squashed to 224"));
        check_sizes(r#""size": 200, "crop_size": 224"#, "", Err("224 pixels of images of 200"));
        check_sizes(edge, r#", "do_resize": false"#, Err("not resized"));
        check_sizes(edge, r#", "fit": {"crop_from": 240}"#, closer(240));
        check(PREPROCESSOR, r#"{"crop_size": 336}"#, Err("336 pixels, but the encoder takes 224"));
        check(PREPROCESSOR, r#"{"crop_size": {"height": 1, "width": 2}}"#, Err("not square"));
        check(PREPROCESSOR, r#"{"image_std": [0.5, 0.0, 0.5]}"#, Err("above 0"));
        check(PREPROCESSOR, "{", Err("EOF"));
        check(OPEN_CLIP, r#"{"model_cfg": {}}"#, Ok(clip));
        let text = r#"{"preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "resize_mode": "squash"}}"#;
        check(OPEN_CLIP, text, Ok((Fit::Squash, 0.5, clip.2)));
        let text = r#"{"preprocess_cfg": {"resize_mode": "longest"}}"#;
        check(OPEN_CLIP, text, Err("`longest`"));
    }
}
