//! Decoded images to the numbers that a vision encoder reads.

use std::cell::RefCell;

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x4;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbaImage;
use serde::{Deserialize, Serialize};

use crate::CorpusError;
use crate::augment::{Augment, FrameAugment, Normalise, Rectangle, add_planes, mirror};
use crate::decode::{Decoded, decode, failed};

/// How an image of any shape becomes a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// The whole image, its aspect kept, centred and padded with the mean (paper appendix B.1.2).
    MeanPad,
    /// The shorter side becomes `size` and the middle of the longer one is kept, as CLIP sees images
    /// (`Resize` and `CenterCrop` of torchvision).
    CenterCrop,
    /// The shorter side becomes so many pixels, at least `size`, and a square of `size` in the middle is kept: what encoders
    /// want that were measured at a closer look, such as 224 of 256.
    CropFrom(usize),
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

impl ImageConfig {
    /// What the shorter side of an image becomes before anything is cut off, if it is not padded.
    fn shorter_side(&self) -> usize {
        match self.fit {
            Fit::CropFrom(side) => side.max(self.size),
            Fit::MeanPad | Fit::CenterCrop | Fit::Squash => self.size,
        }
    }
}

/// How pixels leave the loader. Numbers are the same to the last bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PixelType {
    /// Augmented and normalised.
    F32,
    /// Values of 256, which are augmented and normalised where the model runs: a quarter of the memory and of
    /// what is copied.
    #[default]
    U8,
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
    let mut pixels = Vec::new();
    add_pixels(&mut pixels, bytes, config, augment)?;
    Ok(pixels)
}

/// What of it is left to a device: `[3, size, size]` values of 256, neither augmented nor normalised, and where the
/// image is among them; zeros are around it.
///
/// # Errors
/// As [`image_pixels`].
pub fn image_bytes(
    bytes: &[u8],
    config: &ImageConfig,
) -> Result<(Vec<u8>, Rectangle), CorpusError> {
    let mut values = Vec::new();
    let rectangle = add_bytes(&mut values, bytes, config)?;
    Ok((values, rectangle))
}

/// Adds the numbers of [`image_pixels`] to others.
pub(crate) fn add_pixels(
    pixels: &mut Vec<f32>,
    bytes: &[u8],
    config: &ImageConfig,
    augment: Option<Augment>,
) -> Result<(), CorpusError> {
    let augment = augment.unwrap_or(Augment::NONE);
    let (image, mut placed) = resized_image(bytes, config)?;
    let (values, _) = placed.pixels.as_chunks_mut();
    if augment.flip {
        mirror(values, placed.rectangle.width);
    }
    let frame = FrameAugment { rectangle: placed.rectangle, augment };
    frame.add_numbers_of(pixels, values, config.size, &Normalise::new(config.mean, config.std));
    reuse(image, placed);
    Ok(())
}

/// Adds the values of [`image_bytes`] to others.
pub(crate) fn add_bytes(
    pixels: &mut Vec<u8>,
    bytes: &[u8],
    config: &ImageConfig,
) -> Result<Rectangle, CorpusError> {
    let (image, placed) = resized_image(bytes, config)?;
    let (values, _) = placed.pixels.as_chunks();
    let rectangle = placed.rectangle;
    add_planes(pixels, values, rectangle, config.size, |pixel: &[u8; 4], colour| pixel[colour]);
    reuse(image, placed);
    Ok(rectangle)
}

fn resized_image(bytes: &[u8], config: &ImageConfig) -> Result<(RgbaImage, Placed), CorpusError> {
    let room = TOOLS.with_borrow_mut(|tools| std::mem::take(&mut tools.pixels));
    let Decoded { image, width, height } = decode(bytes, config.shorter_side(), room)?;
    let placed = fit(&image, [width, height], config)?;
    Ok((image, placed))
}

/// An image resized, and where it stands in the square.
struct Placed {
    /// Red, green, blue and nothing of each pixel, row by row.
    pixels: Vec<u8>,
    rectangle: Rectangle,
}

/// What a thread uses for image after image.
#[derive(Default)]
struct Tools {
    resizer: Resizer,
    /// Room for the pixels of a decoded image.
    pixels: Vec<u8>,
    /// Room for those of a resized one.
    resized: Vec<u8>,
}

/// Most bytes of pixels that lie ready in a thread: those of a photograph of five megapixels.
const SPARE_BYTES_MAX: usize = 20 << 20;

thread_local! {
    static TOOLS: RefCell<Tools> = RefCell::default();
}

/// Keeps the room that an image took for the next one, unless it is large.
fn reuse(image: RgbaImage, placed: Placed) {
    let kept = |room: Vec<u8>| if room.capacity() <= SPARE_BYTES_MAX { room } else { Vec::new() };
    TOOLS.with_borrow_mut(|tools| {
        tools.pixels = kept(image.into_raw());
        tools.resized = kept(placed.pixels);
    });
}

/// Resizes an image whose file has these sides: they decide, and not those that were decoded.
fn fit(
    image: &RgbaImage,
    [width, height]: [usize; 2],
    config: &ImageConfig,
) -> Result<Placed, CorpusError> {
    let size = config.size;
    let (decoded_width, decoded_height) = (f64::from(image.width()), f64::from(image.height()));
    let whole = [0.0, 0.0, decoded_width, decoded_height];
    match config.fit {
        Fit::Squash => resized(image, whole, [size, size], [0, 0]),
        Fit::CenterCrop | Fit::CropFrom(_) => {
            // A part resized is that part of the whole resized: the filter looks beyond its edges.
            resized(image, crop(image, [width, height], config), [size, size], [0, 0])
        }
        Fit::MeanPad => {
            let longest = width.max(height);
            let scaled = |side: usize| ((side * size + longest / 2) / longest).max(1);
            let [w, h] = [scaled(width), scaled(height)];
            resized(image, whole, [w, h], [(size - w) / 2, (size - h) / 2])
        }
    }
}

/// Left, top, width and height of what CLIP keeps of a decoded image whose file has the sides `whole`.
fn crop(image: &RgbaImage, whole: [usize; 2], config: &ImageConfig) -> [f64; 4] {
    let [width, height] = whole;
    let (size, shorter_side) = (config.size, config.shorter_side());
    let part = |side: usize, decoded: u32| {
        let decoded = f64::from(decoded);
        let scaled = shorter_side * side / width.min(height);
        if scaled == size {
            return (0.0, decoded);
        }
        let scale = decoded / scaled as f64;
        let start = middle(scaled - size) as f64 * scale;
        // The product may be a last bit too large.
        let mut length = (size as f64 * scale).min(decoded - start);
        while start + length > decoded {
            length = length.next_down();
        }
        (start, length)
    };
    let (left, width) = part(width, image.width());
    let (top, height) = part(height, image.height());
    [left, top, width, height]
}

/// Half of what is cut off, to the nearest even number as Python rounds.
fn middle(cut: usize) -> usize {
    let half = cut / 2;
    if cut % 2 == 1 && half % 2 == 1 { half + 1 } else { half }
}

/// Resizes the part `[left, top, width, height]` of an image; antialiased Catmull-Rom, which is the
/// bicubic filter of Pillow.
fn resized(
    image: &RgbaImage,
    [from_left, from_top, from_width, from_height]: [f64; 4],
    [width, height]: [usize; 2],
    [left, top]: [usize; 2],
) -> Result<Placed, CorpusError> {
    // Typed, so that the resizer is compiled for these pixels alone.
    let source = TypedImageRef::<U8x4>::from_buffer(image.width(), image.height(), image.as_raw())
        .map_err(|e| failed(e.to_string()))?;
    let mut pixels = TOOLS.with_borrow_mut(|tools| std::mem::take(&mut tools.resized));
    pixels.resize(4 * width * height, 0);
    let mut target = TypedImage::<U8x4>::from_buffer(width as u32, height as u32, &mut pixels)
        .map_err(|e| failed(e.to_string()))?;
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom))
        .use_alpha(false)
        .crop(from_left, from_top, from_width, from_height);
    TOOLS
        .with_borrow_mut(|tools| tools.resizer.resize_typed(&source, &mut target, &options))
        .map_err(|e| failed(e.to_string()))?;
    Ok(Placed { pixels, rectangle: Rectangle { left, top, width, height } })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{DynamicImage, ImageFormat, Rgb, RgbImage, Rgba};

    use crate::decode::decode_any;
    use crate::decode::tests::jpeg;

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
    fn a_crop_is_that_part_of_the_whole_resized() {
        check_crops(Fit::CenterCrop, 32);
        check_crops(Fit::CropFrom(32), 32);
        check_crops(Fit::CropFrom(37), 37);
        check_crops(Fit::CropFrom(64), 64);
        assert_eq!([0, 1, 2, 3, 5, 7].map(middle), [0, 0, 1, 2, 2, 4]);
    }

    /// That squares of 32 are cut out of images whose shorter side becomes so many pixels.
    fn check_crops(fit_to: Fit, shorter_side: u32) {
        let noise = |x: u32, y: u32| (x * 7919 + y * 104_729 + x * y * 31) as u8;
        for (width, height) in [(101, 67), (40, 150), (33, 32), (97, 32), (640, 41)] {
            let image = RgbaImage::from_fn(width, height, |x, y| {
                Rgba([noise(x, y), noise(y, x), noise(x + 9, y), 255])
            });
            let config = ImageConfig { size: 32, fit: fit_to, mean: [0.; 3], std: [1.; 3] };
            let sides = [width as usize, height as usize];
            let crop = fit(&image, sides, &config).unwrap();
            let shorter = width.min(height);
            let [w, h] = [width, height].map(|side| (shorter_side * side / shorter) as usize);
            let box_ = [0.0, 0.0, f64::from(width), f64::from(height)];
            let whole = resized(&image, box_, [w, h], [0, 0]).unwrap();
            let (left, top) = (middle(w - 32), middle(h - 32));
            for y in 0..32 {
                let from = 4 * ((top + y) * w + left);
                let expected = &whole.pixels[from..from + 128];
                let found = &crop.pixels[128 * y..128 * (y + 1)];
                let most = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max();
                assert!(most <= Some(1), "{width} x {height}, row {y}: {most:?}");
            }
        }
    }

    #[test]
    fn a_square_is_cut_out_as_pillow_does() {
        let image = RgbImage::from_fn(40, 30, |x, y| {
            let value = |a: u32, b: u32| ((x * a + y * b + x * y) % 256) as u8;
            Rgb([value(7, 3), value(2, 11), value(5, 5)])
        });
        let config = ImageConfig { size: 12, ..config(Fit::CropFrom(16)) };
        let (found, _) = image_bytes(&png(image), &config).unwrap();
        // Rows of Pillow 13.0.0: resize((21, 16), BICUBIC).crop((4, 2, 16, 14)).
        let rows: [(usize, [[u8; 3]; 12]); 3] = [
            (
                0,
                [
                    [103, 95, 95],
                    [124, 108, 113],
                    [146, 119, 130],
                    [167, 131, 147],
                    [189, 143, 165],
                    [219, 154, 183],
                    [233, 171, 208],
                    [172, 187, 228],
                    [70, 198, 206],
                    [31, 207, 167],
                    [48, 222, 78],
                    [77, 162, 68],
                ],
            ),
            (
                5,
                [
                    [215, 38, 230],
                    [181, 36, 128],
                    [18, 78, 21],
                    [68, 108, 67],
                    [108, 137, 103],
                    [147, 169, 138],
                    [189, 207, 177],
                    [225, 209, 213],
                    [96, 132, 179],
                    [41, 52, 42],
                    [83, 59, 49],
                    [125, 77, 91],
                ],
            ),
            (
                11,
                [
                    [69, 197, 109],
                    [135, 37, 170],
                    [209, 75, 201],
                    [134, 131, 47],
                    [51, 190, 77],
                    [123, 210, 137],
                    [189, 71, 203],
                    [146, 68, 154],
                    [44, 132, 47],
                    [106, 194, 104],
                    [181, 166, 177],
                    [173, 82, 164],
                ],
            ),
        ];
        for (y, row) in rows {
            for (x, rgb) in row.iter().enumerate() {
                for (colour, expected) in rgb.iter().enumerate() {
                    let found = found[(colour * 12 + y) * 12 + x];
                    assert!(found.abs_diff(*expected) <= 1, "{x}, {y}: {found}, not {expected}");
                }
            }
        }
    }

    #[test]
    fn every_shape_is_cropped() {
        let from = |size: usize| (size, Fit::CropFrom(size * 8 / 7));
        let whole = |size: usize| (size, Fit::CenterCrop);
        for (size, fit) in [whole(224), whole(240), whole(336), whole(518), from(224), from(240)] {
            let config = ImageConfig { size, fit, mean: [0.; 3], std: [1.; 3] };
            for side in (1..1100).chain([1999, 2047, 3001]) {
                for (width, height) in [(side, 3), (3, side), (side, side)] {
                    let image = RgbaImage::new(width, height);
                    // A JPEG may have been decoded at half of its sides.
                    for whole in [1, 2].map(|n| [width as usize * n - n / 2, height as usize * n]) {
                        if let Err(error) = crop_only(&image, whole, &config) {
                            panic!("{whole:?} of {width} x {height} to {size}: {error}");
                        }
                    }
                }
            }
        }
    }

    /// What [`fit`] would resize, in place of doing so.
    fn crop_only(image: &RgbaImage, whole: [usize; 2], config: &ImageConfig) -> Result<(), String> {
        let [left, top, width, height] = crop(image, whole, config);
        let fits = left >= 0.0 && left + width <= f64::from(image.width());
        let fits = fits && top >= 0.0 && top + height <= f64::from(image.height());
        (fits && width > 0.0 && height > 0.0)
            .then_some(())
            .ok_or_else(|| format!("{left} {top} {width} {height}"))
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
    fn a_bad_jpeg_changes_nothing_of_the_next() {
        let good = jpeg(&RgbImage::from_fn(80, 60, |x, y| Rgb([x as u8 * 3, y as u8 * 4, 9])));
        // A frame without tables of its own, as films have them.
        let table = good.windows(2).position(|two| two == [0xff, 0xc4]).unwrap();
        let length = usize::from(u16::from_be_bytes([good[table + 2], good[table + 3]]));
        let bare = [&good[..table], &good[table + 2 + length..]].concat();
        let numbers = |bytes: &[u8]| image_pixels(bytes, &config(Fit::Squash), None).ok();
        let (expected, alone) = (
            numbers(&good),
            std::thread::spawn({
                let bare = bare.clone();
                move || image_pixels(&bare, &config(Fit::Squash), None).ok()
            }),
        );
        assert!(expected.is_some());
        assert_eq!(numbers(&bare), alone.join().unwrap(), "tables of another image were used");
        for bad in
            [&[0xff, 0xd8, 0xff, 0xf0, 0, 2][..], &[0xff, 0xd8, 0xff, 0xc0, 0, 9], &good[..90]]
        {
            assert!(numbers(bad).is_none());
            let decoded = decode(&good, 8, Vec::new()).unwrap();
            // The other decoder knows no fractions.
            assert_eq!((decoded.image.width(), decoded.width), (40, 80), "at a half");
            assert_eq!(numbers(&good), expected);
        }
    }

    #[test]
    fn a_large_jpeg_decoded_small_gives_nearly_the_same() {
        let soft = |x: u32, y: u32, f: f32| {
            ((x as f32 / f).sin() * (y as f32 / f).cos() * 127.0 + 128.0) as u8
        };
        let large = RgbImage::from_fn(640, 480, |x, y| {
            Rgb([soft(x, y, 23.0), soft(x, y, 11.0), soft(y, x, 37.0)])
        });
        let bytes = jpeg(&large);
        for fit_to in [Fit::Squash, Fit::CenterCrop, Fit::MeanPad] {
            let config = ImageConfig { size: 60, fit: fit_to, mean: [0.0; 3], std: [1.0; 3] };
            let small = image_pixels(&bytes, &config, None).unwrap();
            let whole = fit(&decode_any(&bytes).unwrap(), [640, 480], &config).unwrap();
            let mut numbers = Vec::new();
            let (values, _) = whole.pixels.as_chunks();
            let normalise = Normalise::new([0.0; 3], [1.0; 3]);
            let frame = FrameAugment { rectangle: whole.rectangle, augment: Augment::NONE };
            frame.add_numbers_of(&mut numbers, values, 60, &normalise);
            let error: f32 = small.iter().zip(&numbers).map(|(a, b)| (a - b) * (a - b)).sum();
            let psnr = -10.0 * (error / small.len() as f32).log10();
            assert!(psnr > 40.0, "{fit_to:?}: {psnr} dB");
        }
    }

    #[test]
    fn colours_that_stay_are_the_same_numbers() {
        let config = config(Fit::MeanPad);
        let photo = png(RgbImage::from_fn(9, 5, |x, y| Rgb([x as u8 * 28, y as u8 * 50, 77])));
        // A change too small to be one, so that the other way is taken.
        let same = Augment { contrast: 1.0 + f32::EPSILON, ..Augment::NONE };
        assert!(!same.keeps_colours());
        let numbers = |augment| image_pixels(&photo, &config, augment).unwrap();
        assert_eq!(numbers(None), numbers(Some(same)));
    }

    #[test]
    fn values_of_256_are_the_same_numbers_once_they_are_changed_and_normalised() {
        let photo = |width: u32, height: u32| {
            let colour = |x: u32, y: u32| Rgb([(x * 28) as u8, (y * 50) as u8, (x * y * 7) as u8]);
            png(RgbImage::from_fn(width, height, colour))
        };
        let jitter = Augment { flip: false, brightness: 0.7, contrast: 1.2, saturation: 0.4 };
        let changes = [Augment::NONE, jitter].map(|a| [a, Augment { flip: true, ..a }]).concat();
        for (width, height) in [(9, 5), (5, 9), (9, 9), (40, 3), (31, 30)] {
            let photo = photo(width, height);
            for fit in [Fit::MeanPad, Fit::CenterCrop, Fit::Squash] {
                let config = ImageConfig { mean: [0.2, 0.4, 0.6], ..config(fit) };
                let (values, rectangle) = image_bytes(&photo, &config).unwrap();
                for augment in &changes {
                    let numbers = image_pixels(&photo, &config, Some(*augment)).unwrap();
                    let mut found = Vec::new();
                    let frame = FrameAugment { rectangle, augment: *augment };
                    let normalise = Normalise::new(config.mean, config.std);
                    frame.add_numbers(&mut found, &values, &normalise);
                    let bits = |all: &[f32]| all.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&found), bits(&numbers), "{width} x {height}: {frame:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_an_image_is_an_error() {
        let whole = jpeg(&RgbImage::from_fn(64, 64, |x, y| Rgb([(x * y) as u8, x as u8, y as u8])));
        for end in [3, 20, whole.len() / 2, whole.len() - 40] {
            assert!(image_pixels(&whole[..end], &config(Fit::Squash), None).is_err(), "{end}");
        }
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
