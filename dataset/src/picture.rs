//! What is asked of a single picture outside the loader: its perceptual hash, and the same picture as PNG.

use std::io::Cursor;

use image::{DynamicImage, ImageFormat, RgbImage};

use crate::CorpusError;
use crate::decode::{decode_any, failed};

/// Columns and rows of the perceptual hash: each bit compares two cells that lie side by side.
const HASH_COLUMNS: usize = 9;
const HASH_ROWS: usize = 8;

/// The 64-bit difference hash (dHash) of `[height, width, 3]` values of red, green and blue: mean brightness
/// of 9 x 8 cells, one bit for each pair of neighbours in a row, set where the left one is darker. Row by row, the first
/// bit is the highest. Integers only, so that every machine gives the same hash.
///
/// # Panics
/// When there are fewer values than pixels, or none.
pub fn difference_hash(rgb: &[u8], width: usize, height: usize) -> u64 {
    let mut hash = 0;
    for row in 0..HASH_ROWS {
        let rows = cell(row, HASH_ROWS, height);
        let means: [u64; HASH_COLUMNS] = std::array::from_fn(|column| {
            let columns = cell(column, HASH_COLUMNS, width);
            let n = (rows.len() * columns.len()) as u64;
            let bytes = 3 * columns.start..3 * columns.end;
            let lines = rows.clone().map(|y| &rgb[3 * width * y..][bytes.clone()]);
            lines.map(brightness).sum::<u64>() / n
        });
        for pair in means.windows(2) {
            hash = hash << 1 | u64::from(pair[0] < pair[1]);
        }
    }
    hash
}

/// The difference hash of the upright pixels of a file, on white where they are transparent.
///
/// # Errors
/// When the bytes are no image, are cut off, or the image is larger than the limits.
pub fn image_hash(bytes: &[u8]) -> Result<u64, CorpusError> {
    let rgb = rgb(bytes)?;
    Ok(difference_hash(&rgb, rgb.width() as usize, rgb.height() as usize))
}

/// The upright pixels of a file as PNG, on white where they are transparent.
///
/// # Errors
/// As [`image_hash`].
pub fn image_png(bytes: &[u8]) -> Result<Vec<u8>, CorpusError> {
    let mut png = Cursor::new(Vec::new());
    rgb(bytes)?.write_to(&mut png, ImageFormat::Png).map_err(|e| failed(e.to_string()))?;
    Ok(png.into_inner())
}

fn rgb(bytes: &[u8]) -> Result<RgbImage, CorpusError> {
    Ok(DynamicImage::from(decode_any(bytes)?).into_rgb8())
}

/// Pixels of one of `n` cells along a side; a side shorter than `n` shares its pixels.
fn cell(i: usize, n: usize, side: usize) -> std::ops::Range<usize> {
    let start = i * side / n;
    start..((i + 1) * side / n).max(start + 1)
}

/// Sum of the brightness of RGB pixels, ITU-R BT.601, in thousandths.
fn brightness(pixels: &[u8]) -> u64 {
    let one = |pixel: &[u8]| {
        299 * u32::from(pixel[0]) + 587 * u32::from(pixel[1]) + 114 * u32::from(pixel[2])
    };
    pixels.chunks_exact(3).map(|pixel| u64::from(one(pixel))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(k: f32, zoom: f32) -> RgbImage {
        RgbImage::from_fn((640.0 / zoom) as u32, (480.0 / zoom) as u32, |x, y| {
            let (x, y) = (x as f32 * zoom, y as f32 * zoom);
            let value = ((x / 90.0 * k).sin() + (y / 70.0 + x / 210.0).cos() + 2.0) * 63.0;
            image::Rgb([value as u8; 3])
        })
    }

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, 128])
        })
    }

    fn hash(image: &RgbImage) -> u64 {
        difference_hash(image, image.width() as usize, image.height() as usize)
    }

    #[test]
    fn the_hash_survives_shrinking_and_tells_images_apart() {
        let distance = |other: &RgbImage| (hash(&wave(1.0, 1.0)) ^ hash(other)).count_ones();
        assert!(distance(&wave(1.0, 3.2)) <= 4);
        assert!(distance(&wave(1.7, 1.0)) >= 16);
        assert_eq!(hash(&gradient(900, 800)), u64::MAX);
        assert_eq!(hash(&gradient(1, 1)), 0);
    }

    #[test]
    fn files_of_the_same_pixels_have_the_same_hash_and_png() {
        let image = wave(1.3, 4.0);
        let file = |format| {
            let mut bytes = Cursor::new(Vec::new());
            image.write_to(&mut bytes, format).unwrap();
            bytes.into_inner()
        };
        let [bmp, png] = [ImageFormat::Bmp, ImageFormat::Png].map(file);
        assert_eq!(image_hash(&bmp).unwrap(), hash(&image));
        assert_eq!(image_png(&bmp).unwrap(), image_png(&png).unwrap());
        assert_eq!(image::load_from_memory(&image_png(&bmp).unwrap()).unwrap().into_rgb8(), image);
        assert!(image_hash(b"no image").is_err());
    }
}
