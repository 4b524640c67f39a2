//! Every file of the collections of real images, against Pillow where it reads them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::prepare;
use crate::plan::{ColourProfile, Encode, ImagePlan, Originals, Resize};

/// Written by `tests/formats/pillow.py`.
const PILLOW: &str = include_str!("../../tests/formats/pillow.csv");
/// Longest time that any file may take.
const TIME_MAX: Duration = Duration::from_secs(10);

/// A folder of `shared/data/real` beside the checkout, if it is there.
fn collection(name: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/real").join(name);
    if !folder.is_dir() {
        eprintln!("skipped: no {}", folder.display());
        return None;
    }
    Some(folder)
}

/// The pixels as they are: nothing is dropped for its size, nothing resized or lost.
fn as_found() -> ImagePlan {
    ImagePlan {
        side_min: 1,
        aspect_max: f64::MAX,
        resize: Resize::No,
        encode: Encode::Png,
        originals: Originals::Never,
        colour_profile: ColourProfile::Ignore,
        ..ImagePlan::default()
    }
}

#[test]
fn every_format_is_read_as_pillow_reads_it() {
    let Some(folder) = collection("formats") else { return };
    let (mut n_equal, mut n_plain) = (0, 0);
    let mut wrong = Vec::new();
    for line in PILLOW.lines() {
        let cells: Vec<&str> = line.split(',').collect();
        let &[path, format, ref numbers @ ..] = &cells[..] else { panic!("{line}") };
        let bytes = Bytes::from(std::fs::read(folder.join(path)).unwrap());
        let judged = prepare(&bytes, &as_found());
        let expected: Vec<f64> = numbers.iter().map(|number| number.parse().unwrap()).collect();
        let got = judged.picture.map_err(|drop| (drop.reason, drop.detail)).map(|picture| {
            let stored = image::load_from_memory(&picture.image.bytes).unwrap().into_rgb8();
            let n = f64::from(stored.width() * stored.height());
            let mean = |channel: usize| {
                let values = stored.as_raw().iter().skip(channel).step_by(3);
                values.map(|&value| f64::from(value)).sum::<f64>() / n
            };
            [stored.width().into(), stored.height().into(), mean(0), mean(1), mean(2)]
        });
        match (&got, &expected[..]) {
            (Ok(got), expected) if is_near(got, expected) => n_equal += 1,
            (Err(("single_colour", _)), _) => n_plain += 1,
            (Err(("unsupported_format", _)), _) if ["AVIF", "HEIF"].contains(&format) => {}
            (Err(("unsupported_format" | "bad_image" | "truncated", _)), []) => {}
            // Pillow forgets which grey of 16 bits is transparent, and makes up a missing palette.
            (Ok(got), _) if path == "pillow/i_trns.png" && (got[2] - 35.1).abs() < 0.5 => {}
            (Err(("bad_image", _)), _) if path == "pillow/no_palette.gif" => {}
            _ => wrong.push(format!("{line}\n    here {got:?}")),
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(n_equal >= 200 && n_plain <= 100, "{n_equal} {n_plain}");
}

/// The same size, and means that differ by no more than roundings of conversions do.
fn is_near(got: &[f64], expected: &[f64]) -> bool {
    got.len() == expected.len()
        && got
            .iter()
            .zip(expected)
            .enumerate()
            .all(|(i, (got, expected))| (got - expected).abs() <= if i < 2 { 0.0 } else { 1.5 })
}

#[test]
fn no_broken_file_takes_long_or_lacks_a_reason() {
    let Some(folder) = collection("bad") else { return };
    let mut folders = vec![folder];
    let mut n_dropped = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let bytes = Bytes::from(std::fs::read(&path).unwrap());
            let start = Instant::now();
            let judged = prepare(&bytes, &ImagePlan::default());
            assert!(start.elapsed() < TIME_MAX, "{}", path.display());
            match judged.picture {
                Err(drop) => {
                    assert_ne!(drop.detail.as_deref(), Some("the decoder panicked"));
                    n_dropped += 1;
                }
                Ok(picture) => {
                    image::load_from_memory(&picture.image.bytes)
                        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                }
            }
        }
    }
    assert!(n_dropped >= 100, "{n_dropped}");
}
