//! Photographs decode, and broken or hostile files give an error and never a crash.

#![expect(clippy::unwrap_used, reason = "a failure here fails the test")]

use std::path::{Path, PathBuf};

use flamingo_dataset::{Fit, ImageConfig, image_pixels};

const REAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/real");

const CONFIG: ImageConfig =
    ImageConfig { size: 64, fit: Fit::MeanPad, mean: [0.48, 0.46, 0.41], std: [0.27, 0.26, 0.28] };

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
