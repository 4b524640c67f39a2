//! An encoded image to the numbers that a vision encoder reads.
//!
//! Sizes are checked in the header before anything is decoded. Transparent images are laid on
//! white, the colour of the page they most likely came from.

use std::io::Cursor;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage};
use serde::{Deserialize, Serialize};

use crate::CorpusError;

/// Longest side of an image that is decoded, in pixels.
const SIDE_MAX: u32 = 16_384;

/// Most pixels of an image that is decoded.
const PIXELS_MAX: u64 = 64_000_000;

/// Most memory that a decoder may take: `PIXELS_MAX` at 8 bytes.
const DECODER_BYTES_MAX: u64 = 512 << 20;

/// How an image of any shape becomes a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// The whole image, its aspect kept, centred and padded with the mean (paper appendix B.1.2).
    MeanPad,
    /// The largest centred square.
    CenterCrop,
    /// The whole image, its aspect given up.
    Squash,
}

/// What a vision encoder wants to see.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// Height and width of the result in pixels.
    pub size: usize,
    /// How the image becomes a square.
    pub fit: Fit,
    /// Mean of red, green and blue, 0 to 1, that is taken off.
    pub mean: [f32; 3],
    /// Standard deviation of red, green and blue that is divided by.
    pub std: [f32; 3],
}

/// A change of one image that leaves what it shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Augment {
    /// Left and right are swapped.
    pub flip: bool,
    /// Factor on all values; 1 changes nothing.
    pub brightness: f32,
    /// Factor on the distance from the mean grey; 1 changes nothing.
    pub contrast: f32,
    /// Factor on the distance from the pixel's own grey; 1 changes nothing.
    pub saturation: f32,
}

impl Augment {
    /// The change that changes nothing.
    pub const NONE: Self = Self { flip: false, brightness: 1.0, contrast: 1.0, saturation: 1.0 };
}

/// Decodes, fits, augments and normalises one image: `[3, size, size]`, red plane first.
///
/// # Errors
/// When the bytes are no image, are cut off, or the image is larger than the limits.
pub fn image_pixels(
    bytes: &[u8],
    config: &ImageConfig,
    augment: Option<Augment>,
) -> Result<Vec<f32>, CorpusError> {
    let image = decode(bytes)?;
    let placed = fit(&image, config)?;
    let augment = augment.unwrap_or(Augment::NONE);
    Ok(normalised(&jittered(&placed.pixels, &augment), &placed, &augment, config))
}

/// An image resized, and where it stands in the square.
struct Placed {
    /// Red, green, blue of each pixel, row by row.
    pixels: Vec<u8>,
    width: usize,
    height: usize,
    left: usize,
    top: usize,
}

fn decode(bytes: &[u8]) -> Result<RgbImage, CorpusError> {
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| failed(e.to_string()))?;
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(SIDE_MAX);
    limits.max_image_height = Some(SIDE_MAX);
    limits.max_alloc = Some(DECODER_BYTES_MAX);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|e| failed(e.to_string()))?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > PIXELS_MAX {
        return Err(failed(format!("{width} x {height} pixels, at most {PIXELS_MAX} are decoded")));
    }
    // Broken EXIF beside sound pixels is common on the web, and no reason to lose the image.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(|e| failed(e.to_string()))?;
    image.apply_orientation(orientation);
    if image.width() == 0 || image.height() == 0 {
        return Err(failed("it has no pixels".to_owned()));
    }
    Ok(on_white(image))
}

fn on_white(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let image = image.into_rgba8();
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let [red, green, blue, alpha] = image.get_pixel(x, y).0.map(u32::from);
        let over = |c: u32| ((c * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        image::Rgb([over(red), over(green), over(blue)])
    })
}

fn fit(image: &RgbImage, config: &ImageConfig) -> Result<Placed, CorpusError> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let size = config.size;
    let whole = [0, 0, width, height];
    match config.fit {
        Fit::Squash => resized(image, whole, [size, size], [0, 0]),
        Fit::CenterCrop => {
            let side = width.min(height);
            let square = [(width - side) / 2, (height - side) / 2, side, side];
            resized(image, square, [size, size], [0, 0])
        }
        Fit::MeanPad => {
            let longest = width.max(height);
            let scaled = |side: usize| ((side * size + longest / 2) / longest).max(1);
            let [w, h] = [scaled(width), scaled(height)];
            resized(image, whole, [w, h], [(size - w) / 2, (size - h) / 2])
        }
    }
}

/// Resizes the part `[left, top, width, height]` of an image; antialiased Catmull-Rom, which is the
/// bicubic filter of Pillow.
fn resized(
    image: &RgbImage,
    [from_left, from_top, from_width, from_height]: [usize; 4],
    [width, height]: [usize; 2],
    [left, top]: [usize; 2],
) -> Result<Placed, CorpusError> {
    let source = ImageRef::new(image.width(), image.height(), image.as_raw(), PixelType::U8x3)
        .map_err(|e| failed(e.to_string()))?;
    let mut target = Image::new(width as u32, height as u32, PixelType::U8x3);
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom))
        .crop(from_left as f64, from_top as f64, from_width as f64, from_height as f64);
    Resizer::new().resize(&source, &mut target, &options).map_err(|e| failed(e.to_string()))?;
    Ok(Placed { pixels: target.into_vec(), width, height, left, top })
}

/// Values 0 to 1 after brightness, contrast and saturation, in this order.
fn jittered(pixels: &[u8], augment: &Augment) -> Vec<f32> {
    let bright = |value: &u8| (f32::from(*value) / 255.0 * augment.brightness).clamp(0.0, 1.0);
    let mut values: Vec<f32> = pixels.iter().map(bright).collect();
    if (augment.contrast - 1.0).abs() > f32::EPSILON {
        let grey: f32 = values.chunks_exact(3).map(luma).sum::<f32>() / (values.len() / 3) as f32;
        for value in &mut values {
            *value = (grey + (*value - grey) * augment.contrast).clamp(0.0, 1.0);
        }
    }
    if (augment.saturation - 1.0).abs() > f32::EPSILON {
        for pixel in values.chunks_exact_mut(3) {
            let grey = luma(pixel);
            for value in pixel {
                *value = (grey + (*value - grey) * augment.saturation).clamp(0.0, 1.0);
            }
        }
    }
    values
}

/// Grey of a pixel by the weights of ITU-R BT.601.
fn luma(pixel: &[f32]) -> f32 {
    0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]
}

fn normalised(values: &[f32], at: &Placed, augment: &Augment, config: &ImageConfig) -> Vec<f32> {
    let size = config.size;
    let mut planes = vec![0.0; 3 * size * size]; // the mean is 0 once normalised
    for (colour, plane) in planes.chunks_exact_mut(size * size).enumerate() {
        let (mean, std) = (config.mean[colour], config.std[colour]);
        for y in 0..at.height {
            for x in 0..at.width {
                let from_x = if augment.flip { at.width - 1 - x } else { x };
                let value = values[3 * (y * at.width + from_x) + colour];
                plane[(at.top + y) * size + at.left + x] = (value - mean) / std;
            }
        }
    }
    planes
}

fn failed(problem: String) -> CorpusError {
    CorpusError::Image { name: None, problem }
}

#[cfg(test)]
mod tests {
    use image::{ImageFormat, Rgb, Rgba, RgbaImage};

    use super::*;

    fn config(fit: Fit) -> ImageConfig {
        ImageConfig { size: 8, fit, mean: [0.5; 3], std: [0.5; 3] }
    }

    fn png(image: impl Into<DynamicImage>) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    /// Left half red, right half blue.
    fn halves(width: u32, height: u32) -> Vec<u8> {
        png(RgbImage::from_fn(width, height, |x, _| {
            if x < width / 2 { Rgb([255, 0, 0]) } else { Rgb([0, 0, 255]) }
        }))
    }

    #[test]
    fn padding_is_zero_and_the_image_is_centred() {
        let pixels = image_pixels(&halves(32, 16), &config(Fit::MeanPad), None).unwrap();
        assert_eq!(pixels.len(), 3 * 8 * 8);
        let red = &pixels[..64];
        assert!(red[..16].iter().chain(&red[48..]).all(|&v| v == 0.0), "{red:?}");
        assert_eq!((red[16], red[23]), (1.0, -1.0));
    }

    #[test]
    fn a_crop_takes_the_middle_and_a_squash_everything() {
        let crop = image_pixels(&halves(32, 16), &config(Fit::CenterCrop), None).unwrap();
        let squash = image_pixels(&halves(32, 16), &config(Fit::Squash), None).unwrap();
        for pixels in [crop, squash] {
            assert_eq!((pixels[0], pixels[7]), (1.0, -1.0));
            assert!(pixels.iter().all(|&v| v != 0.0));
        }
    }

    #[test]
    fn a_flip_swaps_left_and_right() {
        let flip = Augment { flip: true, ..Augment::NONE };
        let plain = image_pixels(&halves(16, 16), &config(Fit::Squash), None).unwrap();
        let flipped = image_pixels(&halves(16, 16), &config(Fit::Squash), Some(flip)).unwrap();
        let mirrored: Vec<f32> =
            plain.chunks(8).flat_map(|row| row.iter().rev().copied()).collect();
        assert_eq!(flipped, mirrored);
        assert_ne!(flipped, plain);
    }

    #[test]
    fn jitter_changes_values_in_the_named_direction() {
        let grey = png(RgbImage::from_pixel(8, 8, Rgb([100, 100, 120])));
        let mean = |augment| {
            let pixels = image_pixels(&grey, &config(Fit::Squash), Some(augment)).unwrap();
            pixels.iter().sum::<f32>()
        };
        let bright = Augment { brightness: 1.2, ..Augment::NONE };
        assert!(mean(bright) > mean(Augment::NONE));
        let pale = Augment { saturation: 0.0, ..Augment::NONE };
        let pixels = image_pixels(&grey, &config(Fit::Squash), Some(pale)).unwrap();
        assert!((pixels[0] - pixels[130]).abs() < 1e-6, "red equals blue without saturation");
    }

    #[test]
    fn transparent_pixels_are_white() {
        let clear = png(RgbaImage::from_pixel(8, 8, Rgba([0, 0, 0, 0])));
        let pixels = image_pixels(&clear, &config(Fit::Squash), None).unwrap();
        assert!(pixels.iter().all(|&v| v > 0.999));
    }

    #[test]
    fn what_is_not_an_image_is_an_error() {
        let good = halves(32, 16);
        for bad in [&b""[..], b"GIF89a", b"<html>not an image</html>", &good[..good.len() / 2]] {
            assert!(image_pixels(bad, &config(Fit::Squash), None).is_err(), "{}", bad.len());
        }
    }

    #[test]
    fn a_size_over_the_limit_is_refused_before_decoding() {
        let mut bomb = halves(8, 8);
        bomb[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
        assert!(image_pixels(&bomb, &config(Fit::Squash), None).is_err());
    }
}
