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
    #[serde(default = "yes")]
    do_center_crop: bool,
    /// Ours, for what transformers cannot say.
    fit: Option<Fit>,
}

fn yes() -> bool {
    true
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
/// encoder's, the middle is kept.
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
    let fit = found.fit.unwrap_or(if found.do_center_crop { Fit::CenterCrop } else { Fit::Squash });
    // What is cut out decides where something is.
    let side = if fit == Fit::CenterCrop { found.crop_size.or(found.size) } else { found.size };
    let size = match side {
        None => clip.size,
        Some(side) => side.square().ok_or_else(|| wrong(path, "images that are not square"))?,
    };
    if size != clip.size {
        let problem = format!("images of {size} pixels, but the encoder takes {}", clip.size);
        return Err(wrong(path, &problem));
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
        let text =
            r#"{"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}"#;
        check(PREPROCESSOR, text, Ok(clip));
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
