//! `preprocessor_config.json` beside a model that is no run: how images become pixels for it, as transformers
//! writes and reads it; `open_clip`'s file is read as well. A run says so in its config.

use std::path::{Path, PathBuf};

use flamingo_dataset::{Fit, ImageConfig};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config_file::ConfigFile;
use crate::error::TrainError;

/// Its name.
pub const FILE: &str = "preprocessor_config.json";

/// How far means and deviations may be apart and be called the same: a quarter of one of the 256 levels of a
/// colour. Some write them with four digits.
const SAME_WITHIN: f32 = 1e-3;

/// Pillow's number of the bicubic filter.
const BICUBIC: u32 = 3;

/// The file of `open_clip`, which says so, too.
const OPEN_CLIP: &str = "open_clip_config.json";

/// Mean and standard deviation of red, green and blue that `OpenAI`'s CLIP was trained with: `open_clip`'s, where
/// its file does not say.
const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// What is read of the file.
#[derive(Default, Deserialize)]
struct Preprocessor {
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
    /// Ours alone: what transformers says may be less than what a model was trained with.
    fit: Option<Fit>,
}

/// What is read of `open_clip`'s.
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

/// The text of the file. Transformers' CLIP neither pads images nor knows `fit`: it is told to squash those
/// that are padded here.
pub fn text(image: &ImageConfig) -> String {
    let square = json!({ "height": image.size, "width": image.size });
    let shortest_edge = match image.fit {
        Fit::CenterCrop => Some(image.size),
        Fit::CropFrom(side) => Some(side),
        Fit::MeanPad | Fit::Squash => None,
    };
    let size = shortest_edge.map_or_else(|| square.clone(), |it| json!({ "shortest_edge": it }));
    let all: Value = json!({
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": true,
        "do_resize": true,
        "size": size,
        "resample": BICUBIC,
        "do_center_crop": shortest_edge.is_some(),
        "crop_size": square,
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": image.mean,
        "image_std": image.std,
        "fit": image.fit,
    });
    format!("{all:#}\n")
}

/// The bytes of the file beside a model that takes images of `size` pixels, or what it would be where
/// `open_clip`'s file stands there.
///
/// # Errors
/// When a file cannot be read, or images become squares as none here do.
pub fn beside(folder: &Path, size: usize) -> Result<Option<Vec<u8>>, TrainError> {
    let path = folder.join(FILE);
    if path.is_file() {
        return std::fs::read(&path).map(Some).map_err(TrainError::file("read", &path));
    }
    let path = folder.join(OPEN_CLIP);
    let Some(images) = of_open_clip(&path)? else { return Ok(None) };
    let fit = match images.resize_mode.as_deref() {
        None | Some("shortest") => Fit::CenterCrop,
        Some("squash") => Fit::Squash,
        Some(other) => {
            return Err(TrainError::ConfigValue {
                path,
                key: "preprocess_cfg.resize_mode".to_owned(),
                value: format!("{other:?}"),
                expected: "\"shortest\" or \"squash\"".to_owned(),
            });
        }
    };
    let mean = images.mean.unwrap_or(CLIP_MEAN);
    let std = images.std.unwrap_or(CLIP_STD);
    Ok(Some(text(&ImageConfig { size, fit, mean, std }).into_bytes()))
}

/// Whether a file's text says that images are padded, of which it tells transformers something else.
pub fn is_padded(text: &[u8]) -> bool {
    let read: Result<Preprocessor, _> = serde_json::from_slice(text);
    read.is_ok_and(|read| read.fit == Some(Fit::MeanPad))
}

/// Fails where the model in `folder` knows images of other colours than the config makes, or was told by this
/// project that they become squares in another way. Where no file, or nothing of it, says so, nothing is known.
///
/// # Errors
/// When `image.mean`, `image.std` or `image.fit` differs, or a file cannot be read.
pub fn require_as_known<M: DeserializeOwned + Serialize>(
    file: &ConfigFile<M>,
    image: &ImageConfig,
    folder: &Path,
) -> Result<(), TrainError> {
    let (path, known) = known(folder)?;
    let as_in = |was: &str| format!("{was}, as in {}", path.display());
    for (key, was, now) in
        [("image.mean", known.image_mean, image.mean), ("image.std", known.image_std, image.std)]
    {
        let Some(was) = was else { continue };
        let is_same = was.iter().zip(now).all(|(was, now)| (was - now).abs() <= SAME_WITHIN);
        file.require(is_same, key, &format!("{now:?}"), &as_in(&format!("{was:?}")))?;
    }
    let Some(was) = known.fit else { return Ok(()) };
    let [was_named, now] = [was, image.fit].map(|fit| json!(fit).to_string());
    file.require(was == image.fit, "image.fit", &now, &as_in(&was_named))
}

/// What the files beside a model say, and which of them.
fn known(folder: &Path) -> Result<(PathBuf, Preprocessor), TrainError> {
    let path = folder.join(FILE);
    if path.is_file() {
        let read = read(&path)?;
        return Ok((path, read));
    }
    let path = folder.join(OPEN_CLIP);
    let known = of_open_clip(&path)?.map_or_else(Preprocessor::default, |images| Preprocessor {
        image_mean: images.mean,
        image_std: images.std,
        fit: None,
    });
    Ok((path, known))
}

/// What `open_clip`'s file says of images, if it is there and does.
fn of_open_clip(path: &Path) -> Result<Option<OpenClipImages>, TrainError> {
    if path.is_file() { Ok(read::<OpenClip>(path)?.preprocess_cfg) } else { Ok(None) }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, TrainError> {
    let text = std::fs::read(path).map_err(TrainError::file("read", path))?;
    serde_json::from_slice(&text).map_err(|source| TrainError::Broken {
        path: path.to_path_buf(),
        expected: "how images become pixels",
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_open_clips_file_says_of_images_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let said = |images: &str| {
            let text = format!("{{\"preprocess_cfg\": {images}}}");
            std::fs::write(folder.path().join(OPEN_CLIP), text).unwrap();
            beside(folder.path(), 16)
        };
        let bytes = said(r#"{"mean": [0.5, 0.25, 0.75], "resize_mode": "squash"}"#).unwrap();
        let found: serde_json::Value = serde_json::from_slice(&bytes.unwrap()).unwrap();
        assert_eq!(found["image_mean"], json!([0.5, 0.25, 0.75]));
        // CLIP's: what open_clip takes where its file says nothing.
        let std = found["image_std"][0].as_f64().unwrap();
        assert!((std - 0.268_629_54).abs() < 1e-6, "{found}");
        assert_eq!((&found["fit"], &found["size"]["height"]), (&"squash".into(), &16.into()));
        let (path, known) = known(folder.path()).unwrap();
        assert!(path.ends_with(OPEN_CLIP));
        assert_eq!(known.image_mean, Some([0.5, 0.25, 0.75]));
        let error = said(r#"{"resize_mode": "longest"}"#).unwrap_err().to_string();
        assert!(error.contains("preprocess_cfg.resize_mode"), "{error}");
        std::fs::remove_file(folder.path().join(OPEN_CLIP)).unwrap();
        assert!(beside(folder.path(), 16).unwrap().is_none());
    }
}
