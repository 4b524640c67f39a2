//! Photographs decode to the pixels that Pillow makes of them, and broken or hostile files give an
//! error and never a crash.

#![expect(clippy::unwrap_used, reason = "a failure here fails the test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flamingo_dataset::{Fit, ImageConfig, image_pixels};

const REAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/real");

const CONFIG: ImageConfig =
    ImageConfig { size: 64, fit: Fit::MeanPad, mean: [0.48, 0.46, 0.41], std: [0.27, 0.26, 0.28] };

/// What Pillow makes of some images.
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/golden/preprocess");

/// Height, width and values `[H, W, 3]` of each array of a safetensors file of bytes.
fn arrays(file: &[u8]) -> BTreeMap<String, (usize, usize, Vec<u8>)> {
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let (header, values) = file[8..].split_at(length);
    let header: serde_json::Value = serde_json::from_slice(header).unwrap();
    let array = |(name, entry): (&String, &serde_json::Value)| {
        let number = |key: &str, i: usize| entry[key][i].as_u64().unwrap() as usize;
        let values = &values[number("data_offsets", 0)..number("data_offsets", 1)];
        (name.clone(), (number("shape", 0), number("shape", 1), values.to_vec()))
    };
    header
        .as_object()
        .unwrap()
        .iter()
        .filter(|(name, _)| *name != "__metadata__")
        .map(array)
        .collect()
}

/// The largest difference of 256 values and the PSNR in dB.
fn difference(found: &[f32], (height, width, expected): &(usize, usize, Vec<u8>)) -> (f32, f32) {
    let (mut most, mut sum) = (0.0_f32, 0.0);
    for (i, expected) in expected.iter().enumerate() {
        let (pixel, colour) = (i / 3, i % 3);
        let side = (found.len() / 3).isqrt();
        let (top, left) = ((side - height) / 2, (side - width) / 2);
        let at = colour * side * side + (top + pixel / width) * side + left + pixel % width;
        let apart = 255.0 * found[at] - f32::from(*expected);
        most = most.max(apart.abs());
        sum += apart * apart;
    }
    let psnr = 10.0 * (255.0 * 255.0 * expected.len() as f32 / sum.max(1e-9)).log10();
    (most, psnr)
}

#[test]
fn resized_pixels_are_those_of_pillow() {
    let Ok(golden) = std::fs::read(Path::new(GOLDEN).join("outputs.safetensors")) else {
        eprintln!("skipped: no golden data at {GOLDEN}");
        return;
    };
    let golden = arrays(&golden);
    // Transparent pixels are white here, and lose their transparency in the golden file.
    let mut n_compared = 0;
    for name in ["cmyk.jpg", "grey.png", "odd.png", "palette.png", "rotated.jpg", "tall.jpg"] {
        let bytes = std::fs::read(Path::new(GOLDEN).join(name)).unwrap();
        for (fit, size, what) in [(Fit::CenterCrop, 32, "clip32"), (Fit::MeanPad, 64, "fit64")] {
            let (height, width, _) = &golden[&format!("{name}.rgb")];
            let (longer, shorter) = (height.max(width), height.min(width));
            if what == "clip32" && 2 * (size * longer % shorter) >= *shorter {
                // The longer side is rounded up there, and down by CLIP's torchvision and here.
                continue;
            }
            let config = ImageConfig { size, fit, mean: [0.0; 3], std: [1.0; 3] };
            let pixels = image_pixels(&bytes, &config, None).unwrap();
            n_compared += 1;
            let (most, psnr) = difference(&pixels, &golden[&format!("{name}.{what}")]);
            eprintln!("{name} {what}: at most {most} of 255 apart, {psnr:.1} dB");
            assert!(most < 1.001, "{name} {what}: {most} of 255 apart, {psnr} dB");
        }
    }
    assert!(n_compared >= 9, "{n_compared} of 12");
}

/// All files under a folder of real data; none where the data is not at hand.
fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(REAL).join(folder);
    if !folder.is_dir() {
        eprintln!("no real data at {}", folder.display());
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found
}

#[test]
fn photographs_become_varied_pixels() {
    let photos = files("photos").into_iter().filter(|p| p.extension().is_some_and(|e| e == "jpg"));
    for path in photos {
        let bytes = std::fs::read(&path).unwrap();
        let pixels = image_pixels(&bytes, &CONFIG, None)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(pixels.len(), 3 * 64 * 64);
        assert!(pixels.iter().all(|v| v.is_finite() && v.abs() < 4.0), "{}", path.display());
        assert!(pixels.iter().any(|v| *v > 0.0) && pixels.iter().any(|v| *v < 0.0));
    }
}

#[test]
fn broken_and_hostile_files_never_crash() {
    let (mut decoded, mut refused) = (0, 0);
    for path in files("bad/pillow") {
        match image_pixels(&std::fs::read(&path).unwrap(), &CONFIG, None) {
            Ok(pixels) => {
                decoded += 1;
                assert!(pixels.iter().all(|v| v.is_finite()), "{}", path.display());
            }
            Err(error) => {
                refused += 1;
                assert!(error.is_about_one_row(), "{}: {error}", path.display());
            }
        }
    }
    assert!(refused >= decoded, "{refused} refused, {decoded} decoded");
}
