//! `preprocessor_config.json` beside a model that is no run: how images become pixels for it, as transformers
//! writes and reads it. A run says so in its config.

use std::path::Path;

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

/// What is read of the file.
#[derive(Deserialize)]
struct Preprocessor {
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
}

/// The text of the file. Transformers' CLIP neither pads images nor knows `fit`: it is told to squash those
/// that are padded here.
pub fn text(image: &ImageConfig) -> String {
    let (side, is_cut) = (image.size, image.fit == Fit::CenterCrop);
    let square = json!({ "height": side, "width": side });
    let size = if is_cut { json!({ "shortest_edge": side }) } else { square.clone() };
    let all: Value = json!({
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": true,
        "do_resize": true,
        "size": size,
        "resample": BICUBIC,
        "do_center_crop": is_cut,
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

/// Fails where the model in `folder` knows images of other colours than the config makes. Where the file, or
/// what it would say of them, is not there, nothing is known.
///
/// # Errors
/// When `image.mean` or `image.std` differs, or the file cannot be read.
pub fn require_same_colours<M: DeserializeOwned + Serialize>(
    file: &ConfigFile<M>,
    image: &ImageConfig,
    folder: &Path,
) -> Result<(), TrainError> {
    let path = folder.join(FILE);
    if !path.is_file() {
        return Ok(());
    }
    let text = std::fs::read_to_string(&path).map_err(TrainError::file("read", &path))?;
    let found: Preprocessor = serde_json::from_str(&text).map_err(|source| TrainError::Broken {
        path: path.clone(),
        expected: "how images become pixels",
        source,
    })?;
    for (key, was, now) in
        [("image.mean", found.image_mean, image.mean), ("image.std", found.image_std, image.std)]
    {
        let Some(was) = was else { continue };
        let is_same = was.iter().zip(now).all(|(was, now)| (was - now).abs() <= SAME_WITHIN);
        let expected = format!("{was:?}, as in {}", path.display());
        file.require(is_same, key, &format!("{now:?}"), &expected)?;
    }
    Ok(())
}
