//! One image: checked, decoded, shrunk, hashed.
//!
//! Bytes, format, pixels and sides are checked from the header before anything is decoded, so that
//! a small file that claims to be a huge picture costs nothing.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use flamingo_dataset::{EncodedImage, sha256_hex};
use image::codecs::jpeg::JpegEncoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use crate::plan::ImagePlan;
use crate::reject::DropReason;

/// Bytes that a decoder may take for each pixel it may decode: four channels of two bytes, twice.
const DECODER_BYTES_PER_PIXEL: u64 = 16;
/// Longest side that a JPEG can have.
pub(crate) const SIDE_MAX: u32 = 65_535;
/// Columns and rows of the perceptual hash: each bit compares two cells that lie side by side.
const HASH_COLUMNS: usize = 9;
const HASH_ROWS: usize = 8;
/// Bytes at the start of a file in which a page is recognised.
const PAGE_WINDOW: usize = 512;

/// An image ready to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// The file that is stored: the one that was found, or a smaller JPEG.
    pub image: EncodedImage,
    /// Media type of the stored file.
    pub mime: &'static str,
    /// Width and height of the stored image.
    pub size: (u32, u32),
    /// Width and height as found, upright.
    pub original_size: (u32, u32),
    /// Hex SHA-256 of the stored file.
    pub sha256: String,
    /// Difference hash, see [`difference_hash`].
    pub phash: u64,
}

/// Checks an image against the rules and makes it ready to be stored.
///
/// The file is kept as it is where it is an upright JPEG, PNG or WebP that is small enough.
/// Everything else becomes a JPEG, transparent parts on white.
///
/// # Errors
/// With the first rule it breaks, or what the decoder says.
pub fn prepare(bytes: Bytes, rules: &ImagePlan) -> Result<Picture, DropReason> {
    let format = check_format(&bytes, rules)?;
    // A decoder that panics on a hostile file costs one image, not the run.
    let decoded = catch_unwind(AssertUnwindSafe(|| decode(&bytes, format, rules)));
    let (rgb, orientation) =
        decoded.unwrap_or_else(|_| Err(DropReason::detail("bad_image", "the decoder panicked")))?;
    if is_single_colour(&rgb, rules.single_colour_tolerance) {
        return Err(DropReason::because("single_colour"));
    }
    let original_size = rgb.dimensions();
    let phash = difference_hash(&rgb);
    let is_small =
        rules.stored_side_max == 0 || original_size.0.max(original_size.1) <= rules.stored_side_max;
    let is_web = matches!(format, ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP);
    let (bytes, mime, size) = if is_small && is_web && orientation == Orientation::NoTransforms {
        (bytes, format.to_mime_type(), original_size)
    } else {
        let rgb = shrink(rgb, rules.stored_side_max);
        (Bytes::from(encode_jpeg(&rgb, rules.jpeg_quality)?), "image/jpeg", rgb.dimensions())
    };
    let sha256 = sha256_hex(&bytes);
    let image = EncodedImage { bytes, path: None };
    Ok(Picture { image, mime, size, original_size, sha256, phash })
}

/// The format, told by the first bytes whatever the name or header says.
fn check_format(bytes: &[u8], rules: &ImagePlan) -> Result<ImageFormat, DropReason> {
    if bytes.len() as u64 > rules.bytes_max {
        return Err(DropReason::limit(
            "too_many_bytes",
            bytes.len() as f64,
            rules.bytes_max as f64,
        ));
    }
    let Ok(format) = image::guess_format(bytes) else {
        return Err(DropReason::because(name_of_other(bytes)));
    };
    let name = format.extensions_str()[0].replace("jpg", "jpeg");
    if !rules.formats.contains(&name) {
        return Err(DropReason::detail("unsupported_format", name));
    }
    Ok(format)
}

/// What a file that is no image looks like.
fn name_of_other(bytes: &[u8]) -> &'static str {
    match () {
        () if bytes.is_empty() => "empty_file",
        () if is_html(bytes) => "html_page",
        () if has_tag(bytes, &["<svg"]) => "unsupported_format",
        () => "not_an_image",
    }
}

/// Whether a file begins like a web page.
pub(crate) fn is_html(bytes: &[u8]) -> bool {
    has_tag(bytes, &["<!doctype html", "<html", "<head", "<body"])
}

fn has_tag(bytes: &[u8], tags: &[&str]) -> bool {
    let window = String::from_utf8_lossy(&bytes[..bytes.len().min(PAGE_WINDOW)]).to_lowercase();
    tags.iter().any(|tag| window.contains(tag))
}

fn decode(
    bytes: &[u8],
    format: ImageFormat,
    rules: &ImagePlan,
) -> Result<(RgbImage, Orientation), DropReason> {
    let bad = |error: image::ImageError| DropReason::detail("bad_image", error.to_string());
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(rules.pixels_max.saturating_mul(DECODER_BYTES_PER_PIXEL));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(bad)?;
    check_size(decoder.dimensions(), rules)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(bad)?;
    image.apply_orientation(orientation);
    Ok((on_white(image), orientation))
}

fn check_size((width, height): (u32, u32), rules: &ImagePlan) -> Result<(), DropReason> {
    let pixels = u64::from(width) * u64::from(height);
    let (short, long) = (width.min(height), width.max(height));
    if pixels > rules.pixels_max {
        return Err(DropReason::limit("too_many_pixels", pixels as f64, rules.pixels_max as f64));
    }
    if short < rules.side_min || short == 0 {
        return Err(DropReason::limit("too_small", f64::from(short), f64::from(rules.side_min)));
    }
    if long > SIDE_MAX {
        return Err(DropReason::limit("too_large", f64::from(long), f64::from(SIDE_MAX)));
    }
    let aspect = f64::from(long) / f64::from(short);
    if aspect > rules.aspect_max {
        return Err(DropReason::limit("aspect", aspect, rules.aspect_max));
    }
    Ok(())
}

/// Eight-bit RGB, transparent parts on white.
fn on_white(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let rgba = image.into_rgba8();
    let (width, height) = rgba.dimensions();
    let blend = |pixel: &image::Rgba<u8>| {
        let [r, g, b, a] = pixel.0;
        let over_white = |c: u8| {
            let sum = u32::from(c) * u32::from(a) + 255 * (255 - u32::from(a));
            ((sum + 127) / 255) as u8
        };
        [r, g, b].map(over_white)
    };
    let raw = rgba.pixels().flat_map(blend).collect();
    RgbImage::from_raw(width, height, raw).expect("three bytes were made for each pixel")
}

/// Whether each channel spans at most `tolerance` of 255.
fn is_single_colour(rgb: &RgbImage, tolerance: u8) -> bool {
    let (mut low, mut high) = ([u8::MAX; 3], [u8::MIN; 3]);
    for row in rgb.as_raw().chunks(3 * rgb.width() as usize) {
        for pixel in row.chunks_exact(3) {
            for (channel, &value) in pixel.iter().enumerate() {
                low[channel] = low[channel].min(value);
                high[channel] = high[channel].max(value);
            }
        }
        if (0..3).any(|channel| high[channel] - low[channel] > tolerance) {
            return false;
        }
    }
    true
}

/// The image with its longest side at most `side_max`, by averages over areas; 0 keeps it.
///
/// # Panics
/// Never: source and result have the same kind of pixels.
pub fn shrink(rgb: RgbImage, side_max: u32) -> RgbImage {
    let (width, height) = rgb.dimensions();
    let (to_width, to_height) = fit((width, height), side_max);
    if (to_width, to_height) == (width, height) {
        return rgb;
    }
    let source = ImageRef::new(width, height, rgb.as_raw(), PixelType::U8x3)
        .expect("an RGB image has three bytes per pixel");
    let mut shrunk = Image::new(to_width, to_height, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Box));
    Resizer::new()
        .resize(&source, &mut shrunk, &options)
        .expect("source and result have the same kind of pixels");
    RgbImage::from_raw(to_width, to_height, shrunk.into_vec())
        .expect("an RGB image has three bytes per pixel")
}

/// Width and height with the longest side at most `side_max`, never zero; 0 keeps them.
pub fn fit((width, height): (u32, u32), side_max: u32) -> (u32, u32) {
    let long = width.max(height);
    if side_max == 0 || long <= side_max {
        return (width, height);
    }
    let scaled = |side: u32| {
        let rounded =
            (u64::from(side) * u64::from(side_max) + u64::from(long) / 2) / u64::from(long);
        (rounded as u32).max(1)
    };
    (scaled(width), scaled(height))
}

/// The image as a JPEG file.
///
/// # Errors
/// When a side is longer than a JPEG allows.
pub fn encode_jpeg(rgb: &RgbImage, quality: u8) -> Result<Vec<u8>, DropReason> {
    let long = rgb.width().max(rgb.height());
    if long > SIDE_MAX {
        return Err(DropReason::limit("too_large", f64::from(long), f64::from(SIDE_MAX)));
    }
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality)
        .encode_image(rgb)
        .map_err(|error| DropReason::detail("not_encoded", error.to_string()))?;
    Ok(bytes)
}

/// The 64-bit difference hash (dHash): mean brightness of 9 x 8 cells, one bit for each pair of
/// neighbours in a row, set where the left one is darker. Row by row, the first bit is the highest.
/// Integers only, so that every machine gives the same hash.
pub fn difference_hash(rgb: &RgbImage) -> u64 {
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    let mut hash = 0;
    for row in 0..HASH_ROWS {
        let rows = cell(row, HASH_ROWS, height);
        let means: [u64; HASH_COLUMNS] = std::array::from_fn(|column| {
            let columns = cell(column, HASH_COLUMNS, width);
            let n = (rows.len() * columns.len()) as u64;
            let bytes = 3 * columns.start..3 * columns.end;
            let lines = rows.clone().map(|y| &rgb.as_raw()[3 * width * y..][bytes.clone()]);
            lines.map(brightness).sum::<u64>() / n
        });
        for pair in means.windows(2) {
            hash = hash << 1 | u64::from(pair[0] < pair[1]);
        }
    }
    hash
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

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, 128])
        })
    }

    fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Bytes {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner().into()
    }

    fn reason(bytes: impl Into<Bytes>) -> &'static str {
        prepare(bytes.into(), &ImagePlan::default()).unwrap_err().reason
    }

    #[test]
    fn a_small_web_image_is_kept_byte_for_byte() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
            let bytes = encode(gradient(100, 80), format);
            let picture = prepare(bytes.clone(), &ImagePlan::default()).unwrap();
            assert_eq!((&picture.image.bytes, picture.size), (&bytes, (100, 80)));
            assert_eq!(
                (picture.mime, &picture.sha256),
                (format.to_mime_type(), &sha256_hex(&bytes))
            );
        }
    }

    #[test]
    fn large_images_and_other_formats_become_jpeg() {
        let check = |width, height, format, size| {
            let picture =
                prepare(encode(gradient(width, height), format), &ImagePlan::default()).unwrap();
            assert_eq!((picture.mime, picture.size), ("image/jpeg", size));
            assert_eq!(picture.original_size, (width, height));
            let stored = image::load_from_memory(&picture.image.bytes).unwrap();
            assert_eq!((stored.width(), stored.height()), size);
        };
        check(1024, 512, ImageFormat::Png, (512, 256));
        check(80, 70, ImageFormat::Bmp, (80, 70));
        check(80, 70, ImageFormat::Gif, (80, 70));
        check(80, 70, ImageFormat::Tiff, (80, 70));
    }

    #[test]
    fn each_rule_has_its_reason() {
        assert_eq!(reason(encode(gradient(63, 100), ImageFormat::Png)), "too_small");
        assert_eq!(reason(encode(gradient(301, 100), ImageFormat::Png)), "aspect");
        let grey = RgbImage::from_pixel(80, 80, image::Rgb([90, 90, 91]));
        assert_eq!(reason(encode(grey, ImageFormat::Png)), "single_colour");
        assert_eq!(reason(&b""[..]), "empty_file");
        assert_eq!(reason(&b" <!DOCTYPE html><p>404"[..]), "html_page");
        assert_eq!(reason(&b"<svg xmlns='x'/>"[..]), "unsupported_format");
        assert_eq!(reason(&b"hello"[..]), "not_an_image");
        let whole = encode(gradient(100, 100), ImageFormat::Png);
        assert_eq!(reason(whole.slice(..whole.len() / 2)), "bad_image");
        let rules = ImagePlan { bytes_max: 10, ..ImagePlan::default() };
        assert_eq!(prepare(whole.clone(), &rules).unwrap_err().reason, "too_many_bytes");
        let rules = ImagePlan { pixels_max: 9_999, ..ImagePlan::default() };
        assert_eq!(prepare(whole, &rules).unwrap_err().reason, "too_many_pixels");
    }

    #[test]
    fn transparent_parts_are_white() {
        let rgba = image::RgbaImage::from_fn(80, 80, |x, _| {
            image::Rgba([0, 0, 0, if x < 40 { 0 } else { 255 }])
        });
        let rgb = on_white(rgba.into());
        assert_eq!((rgb.get_pixel(0, 0).0, rgb.get_pixel(79, 0).0), ([255; 3], [0; 3]));
    }

    #[test]
    fn the_hash_survives_shrinking_and_tells_images_apart() {
        let wave = |k: f32| {
            RgbImage::from_fn(640, 480, |x, y| {
                let value = ((x as f32 / 90.0 * k).sin()
                    + (y as f32 / 70.0 + x as f32 / 210.0).cos()
                    + 2.0)
                    * 63.0;
                image::Rgb([value as u8; 3])
            })
        };
        let hash = difference_hash(&wave(1.0));
        let distance = |other: &RgbImage| (hash ^ difference_hash(other)).count_ones();
        assert!(distance(&shrink(wave(1.0), 200)) <= 4);
        assert!(distance(&wave(1.7)) >= 16);
        assert_eq!(difference_hash(&gradient(900, 800)), u64::MAX);
        assert_eq!(difference_hash(&gradient(1, 1)), 0);
    }

    #[test]
    fn a_side_that_no_jpeg_can_have_is_refused() {
        assert!(encode_jpeg(&RgbImage::new(SIDE_MAX, 1), 90).is_ok());
        assert_eq!(
            encode_jpeg(&RgbImage::new(SIDE_MAX + 1, 1), 90).unwrap_err().reason,
            "too_large"
        );
    }

    #[test]
    fn sides_fit_and_never_vanish() {
        assert_eq!(fit((1000, 10), 100), (100, 1));
        assert_eq!(fit((1000, 1), 100), (100, 1));
        assert_eq!(fit((50, 50), 100), (50, 50));
        assert_eq!(fit((5000, 50), 0), (5000, 50));
    }
}
