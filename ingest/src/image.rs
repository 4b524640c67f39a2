//! One image: checked, decoded, resized, hashed.
//!
//! Bytes, format, pixels and sides are checked from the header before anything is decoded, so that
//! a small file that claims to be a huge picture costs nothing.

mod colour;
mod jpeg;
mod outline;
#[cfg(test)]
mod real_files;
mod resize;

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use flamingo_dataset::{EncodedImage, difference_hash, sha256_hex};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

pub use self::jpeg::encode_jpeg;
use self::outline::{Outline, SCANS_MAX, outline};
pub use self::resize::fit;
use crate::figures::{Figures, Level};
use crate::plan::{ColourProfile, Encode, ImagePlan, Originals, Truncated};
use crate::reject::{DropReason, Stage};

/// Bytes that a decoder may take for each pixel it may decode: four channels of two bytes, twice.
const DECODER_BYTES_PER_PIXEL: u64 = 16;
/// Bytes that a decoder may take beside the pixels: tables, profiles, comments.
const DECODER_BYTES: u64 = 16 << 20;
/// Longest side that a JPEG can have, by the limit of libjpeg.
pub(crate) const SIDE_MAX: u32 = 65_500;
/// Longest side that a WebP can have.
const WEBP_SIDE_MAX: u32 = 16_383;
/// Bytes at the start of a file in which a page is recognised.
const PAGE_WINDOW: usize = 512;

/// An image ready to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// The file that is stored: the one that was found, or one made from it.
    pub image: EncodedImage,
    /// Media type of the stored file.
    pub mime: &'static str,
    /// Width and height of the stored image.
    pub size: (u32, u32),
    /// Width and height as found, upright.
    pub original_size: (u32, u32),
    /// Hex SHA-256 of the stored file.
    pub sha256: String,
    /// Perceptual hash, see [`difference_hash`].
    pub phash: u64,
}

/// What became of an image, and what was measured until then.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// The picture, or the first rule it breaks, or what the decoder says.
    pub picture: Result<Picture, DropReason>,
    /// Figures by their name: `bytes` always; `width`, `height` and `aspect` where a header was read;
    /// `colour_span` where pixels were.
    pub figures: Vec<(&'static str, f32)>,
}

impl Judged {
    /// The figures as a row of their table; `key` is that of the row the image belongs to.
    pub fn row(&self, key: &str, url: Option<&str>) -> Figures {
        let rule = |drop: &DropReason| format!("{}/{}", Stage::Image.name(), drop.reason);
        Figures {
            level: Level::Image,
            key: key.to_owned(),
            url: url.map(str::to_owned),
            dropped_by: self.picture.as_ref().err().map(rule),
            values: self.figures.clone(),
        }
    }
}

/// Checks an image against the rules and makes it ready to be stored.
///
/// The file is kept as it is where the rules allow it and nothing of it must change: neither size nor
/// orientation, colours nor frames. Everything else is encoded anew, transparent parts on white.
pub fn prepare(bytes: &Bytes, rules: &ImagePlan) -> Judged {
    let mut figures = vec![("bytes", bytes.len() as f32)];
    // A decoder that panics on a hostile file costs one image, not the run.
    let judged = catch_unwind(AssertUnwindSafe(|| judge(bytes, rules, &mut figures)));
    let picture =
        judged.unwrap_or_else(|_| Err(DropReason::detail("bad_image", "the decoder panicked")));
    Judged { picture, figures }
}

fn judge(
    bytes: &Bytes,
    rules: &ImagePlan,
    figures: &mut Vec<(&'static str, f32)>,
) -> Result<Picture, DropReason> {
    let format = check_format(bytes, rules)?;
    let outline = outline(format, bytes);
    if let Some(size) = outline.size {
        check_size(size, rules, figures)?;
    }
    if let (Some(missing), Truncated::Drop) = (outline.missing, rules.truncated) {
        return Err(DropReason::detail("truncated", format!("the {missing} is missing")));
    }
    let Decoded { rgb, found, orientation, profile, must_change } =
        decode(bytes, format, &outline, rules, figures)?;

    let resized_size = resize::resized_size(found, rules);
    let mut rgb = upright(resize::resize(rgb, resized_size), orientation);
    let is_converted = rules.colour_profile == ColourProfile::Convert
        && profile.is_some_and(|profile| colour::to_srgb(&mut rgb, &profile));
    let span = colour::span(&rgb);
    figures.push(("colour_span", span.into()));
    if span <= rules.single_colour_tolerance {
        let limit = rules.single_colour_tolerance.into();
        return Err(DropReason::limit("single_colour", span.into(), limit));
    }
    // Of the picture at its stored size, before a border is added or the middle cut out.
    let phash = difference_hash(&rgb, rgb.width() as usize, rgb.height() as usize);

    let resized = rgb.dimensions();
    let is_turned = orientation != Orientation::NoTransforms;
    let rgb = resize::frame(rgb, found, rules);
    let is_same = !must_change
        && !is_turned
        && !is_converted
        && resized_size == found
        && rgb.dimensions() == resized;
    let size = rgb.dimensions();
    let (bytes, mime) = if is_same && keeps_original(format, rules) {
        (bytes.clone(), format.to_mime_type())
    } else {
        (encode(&rgb, rules)?.into(), format_of(rules.encode).to_mime_type())
    };
    let sha256 = sha256_hex(&bytes);
    let original_size = if turns_sides(orientation) { (found.1, found.0) } else { found };
    let image = EncodedImage { bytes, path: None };
    Ok(Picture { image, mime, size, original_size, sha256, phash })
}

/// Whether the rules let a file of this format be stored as it was found.
fn keeps_original(format: ImageFormat, rules: &ImagePlan) -> bool {
    match rules.originals {
        Originals::Web => {
            matches!(format, ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP)
        }
        Originals::SameFormat => format == format_of(rules.encode),
        Originals::Never => false,
    }
}

fn format_of(encode: Encode) -> ImageFormat {
    match encode {
        Encode::Jpeg => ImageFormat::Jpeg,
        Encode::Png => ImageFormat::Png,
        Encode::Webp => ImageFormat::WebP,
    }
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
    let format = image::guess_format(bytes).map_err(|_| name_of_other(bytes))?;
    let name = format.extensions_str()[0].replace("jpg", "jpeg");
    if !rules.formats.contains(&name) {
        return Err(DropReason::detail("unsupported_format", name));
    }
    Ok(format)
}

/// What a file that is no image looks like, or is an image of a kind that no decoder here reads.
fn name_of_other(bytes: &[u8]) -> DropReason {
    let unsupported = |name: &str| DropReason::detail("unsupported_format", name);
    let brand = bytes.get(8..12).map(String::from_utf8_lossy);
    match (bytes, brand) {
        ([], _) => DropReason::because("empty_file"),
        (_, Some(brand)) if &bytes[4..8] == b"ftyp" => match &*brand {
            "avif" | "avis" => unsupported("avif"),
            "heic" | "heix" | "heim" | "heis" | "hevc" | "hevx" | "mif1" | "msf1" => {
                unsupported("heif")
            }
            brand => unsupported(&format!("a film or picture of the brand {brand}")),
        },
        ([0xFF, 0x0A, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..], _) => unsupported("jxl"),
        ([0xFF, 0x4F, 0xFF, 0x51, ..] | [0, 0, 0, 12, b'j', b'P', ..], _) => unsupported("jp2"),
        _ if is_html(bytes) => DropReason::because("html_page"),
        _ if has_tag(bytes, &["<svg"]) => unsupported("svg"),
        _ => DropReason::because("not_an_image"),
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

/// Checks the sides of an image as its header gives them, and keeps them as figures.
fn check_size(
    (width, height): (u32, u32),
    rules: &ImagePlan,
    figures: &mut Vec<(&'static str, f32)>,
) -> Result<(), DropReason> {
    let pixels = u64::from(width) * u64::from(height);
    let (short, long) = (width.min(height), width.max(height));
    let aspect = f64::from(long) / f64::from(short.max(1));
    figures.extend([("width", width as f32), ("height", height as f32), ("aspect", aspect as f32)]);
    if pixels > rules.pixels_max {
        return Err(DropReason::limit("too_many_pixels", pixels as f64, rules.pixels_max as f64));
    }
    if short < rules.side_min || short == 0 {
        return Err(DropReason::limit("too_small", f64::from(short), f64::from(rules.side_min)));
    }
    if long > SIDE_MAX {
        return Err(DropReason::limit("too_large", f64::from(long), f64::from(SIDE_MAX)));
    }
    if aspect > rules.aspect_max {
        return Err(DropReason::limit("aspect", aspect, rules.aspect_max));
    }
    Ok(())
}

/// Pixels with all that is to be known of them.
struct Decoded {
    /// As stored in the file; perhaps at a fraction of the size, when less is wanted.
    rgb: RgbImage,
    /// Width and height as stored in the file.
    found: (u32, u32),
    orientation: Orientation,
    profile: Option<Vec<u8>>,
    /// Whether the file cannot be stored as it is, whatever its size: it is damaged, has more than
    /// one frame, or is of inks.
    must_change: bool,
}

fn decode(
    bytes: &[u8],
    format: ImageFormat,
    outline: &Outline,
    rules: &ImagePlan,
    figures: &mut Vec<(&'static str, f32)>,
) -> Result<Decoded, DropReason> {
    match (format, outline.size) {
        (ImageFormat::Jpeg, Some(found)) => decode_jpeg(bytes, found, outline, rules),
        _ => decode_other(bytes, format, outline, rules, figures),
    }
}

fn decode_jpeg(
    bytes: &[u8],
    found: (u32, u32),
    outline: &Outline,
    rules: &ImagePlan,
) -> Result<Decoded, DropReason> {
    let jpeg = &outline.jpeg;
    if jpeg.scans > SCANS_MAX {
        return Err(DropReason::limit("too_many_scans", jpeg.scans.into(), SCANS_MAX.into()));
    }
    let wanted = resize::resized_size(found, rules);
    let decoded = jpeg::decode(bytes, found, wanted, rules.oversampling_min, jpeg)
        .map_err(|error| DropReason::detail("bad_image", error))?;
    if let (Some(damage), Truncated::Drop) = (&decoded.damage, rules.truncated) {
        return Err(DropReason::detail("bad_image", damage));
    }
    let exif = jpeg.exif.as_deref();
    Ok(Decoded {
        rgb: decoded.rgb,
        found,
        orientation: exif
            .and_then(Orientation::from_exif_chunk)
            .unwrap_or(Orientation::NoTransforms),
        profile: jpeg.profile.clone(),
        must_change: jpeg.components == 4 || outline.missing.is_some() || decoded.damage.is_some(),
    })
}

fn decode_other(
    bytes: &[u8],
    format: ImageFormat,
    outline: &Outline,
    rules: &ImagePlan,
    figures: &mut Vec<(&'static str, f32)>,
) -> Result<Decoded, DropReason> {
    let bad = |error: image::ImageError| DropReason::detail("bad_image", error.to_string());
    let pixels = outline.size.map_or(rules.pixels_max, |(w, h)| u64::from(w) * u64::from(h));
    let mut limits = Limits::default();
    let for_pixels = pixels.saturating_mul(DECODER_BYTES_PER_PIXEL);
    limits.max_alloc = Some(for_pixels.saturating_add(DECODER_BYTES));
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(bad)?;
    let found = decoder.dimensions();
    // The walk over the file and the decoder may differ about a broken one.
    if outline.size != Some(found) {
        figures.retain(|(name, _)| *name == "bytes");
        check_size(found, rules, figures)?;
    }
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let profile = match rules.colour_profile {
        ColourProfile::Convert => decoder.icc_profile().ok().flatten(),
        ColourProfile::Ignore => None,
    };
    let image = DynamicImage::from_decoder(decoder).map_err(bad)?;
    let must_change = outline.is_animated || outline.missing.is_some();
    Ok(Decoded { rgb: colour::on_white(image), found, orientation, profile, must_change })
}

fn upright(rgb: RgbImage, orientation: Orientation) -> RgbImage {
    if orientation == Orientation::NoTransforms {
        return rgb;
    }
    let mut image = DynamicImage::from(rgb);
    image.apply_orientation(orientation);
    image.into_rgb8()
}

/// Whether an orientation makes the width the height.
fn turns_sides(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
}

fn encode(rgb: &RgbImage, rules: &ImagePlan) -> Result<Vec<u8>, DropReason> {
    match rules.encode {
        Encode::Jpeg => encode_jpeg(rgb, rules.quality),
        Encode::Png => encode_png(rgb),
        Encode::Webp => encode_webp(rgb, rules.quality),
    }
}

fn encode_png(rgb: &RgbImage) -> Result<Vec<u8>, DropReason> {
    let mut bytes = Vec::new();
    let encoder =
        PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Adaptive);
    rgb.write_with_encoder(encoder)
        .map_err(|error| DropReason::detail("not_encoded", error.to_string()))?;
    Ok(bytes)
}

fn encode_webp(rgb: &RgbImage, quality: u8) -> Result<Vec<u8>, DropReason> {
    let (width, height) = rgb.dimensions();
    let long = width.max(height);
    if long > WEBP_SIDE_MAX {
        return Err(DropReason::limit("too_large", long.into(), WEBP_SIDE_MAX.into()));
    }
    let encoded = webp::Encoder::from_rgb(rgb.as_raw(), width, height)
        .encode_simple(false, quality.into())
        .map_err(|error| DropReason::detail("not_encoded", format!("{error:?}")))?;
    Ok(encoded.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Resize;

    pub(super) fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, 128])
        })
    }

    pub(super) fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Bytes {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner().into()
    }

    fn picture(bytes: &Bytes, rules: &ImagePlan) -> Picture {
        prepare(bytes, rules).picture.unwrap()
    }

    fn reason(bytes: impl Into<Bytes>) -> &'static str {
        prepare(&bytes.into(), &ImagePlan::default()).picture.unwrap_err().reason
    }

    #[test]
    fn a_small_web_image_is_kept_byte_for_byte() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
            let bytes = encode(gradient(100, 80), format);
            let picture = picture(&bytes, &ImagePlan::default());
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
            let picture = picture(&encode(gradient(width, height), format), &ImagePlan::default());
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
    fn the_plan_chooses_format_and_whether_originals_stay() {
        let check = |found: ImageFormat, encode_as, originals, expected: &str, is_kept: bool| {
            let bytes = encode(gradient(100, 80), found);
            let rules = ImagePlan { encode: encode_as, originals, ..ImagePlan::default() };
            let picture = picture(&bytes, &rules);
            assert_eq!((picture.mime, picture.image.bytes == bytes), (expected, is_kept));
            let guessed = image::guess_format(&picture.image.bytes).unwrap();
            assert_eq!(guessed.to_mime_type(), expected);
            let stored = image::load_from_memory(&picture.image.bytes).unwrap().into_rgb8();
            let found = image::load_from_memory(&bytes).unwrap().into_rgb8();
            let apart = stored.as_raw().iter().zip(found.as_raw()).map(|(a, b)| a.abs_diff(*b));
            let mean = apart.map(f64::from).sum::<f64>() / found.as_raw().len() as f64;
            // Two decoders of JPEG differ by one here and there.
            assert!(mean <= if encode_as == Encode::Png { 0.1 } else { 2.0 }, "{mean}");
        };
        let (png, jpeg) = (ImageFormat::Png, ImageFormat::Jpeg);
        check(png, Encode::Webp, Originals::Web, "image/png", true);
        check(png, Encode::Webp, Originals::SameFormat, "image/webp", false);
        check(jpeg, Encode::Png, Originals::SameFormat, "image/png", false);
        check(jpeg, Encode::Jpeg, Originals::SameFormat, "image/jpeg", true);
        check(jpeg, Encode::Jpeg, Originals::Never, "image/jpeg", false);
        check(ImageFormat::Bmp, Encode::Png, Originals::Web, "image/png", false);
    }

    #[test]
    fn each_rule_has_its_reason_and_leaves_its_figures() {
        assert_eq!(reason(encode(gradient(63, 100), ImageFormat::Png)), "too_small");
        assert_eq!(reason(encode(gradient(301, 100), ImageFormat::Png)), "aspect");
        let grey = RgbImage::from_pixel(80, 80, image::Rgb([90, 90, 91]));
        assert_eq!(reason(encode(grey, ImageFormat::Png)), "single_colour");
        assert_eq!(reason(&b""[..]), "empty_file");
        assert_eq!(reason(&b" <!DOCTYPE html><p>404"[..]), "html_page");
        assert_eq!(reason(&b"<svg xmlns='x'/>"[..]), "unsupported_format");
        assert_eq!(reason(&b"hello"[..]), "not_an_image");
        let whole = encode(gradient(100, 100), ImageFormat::Png);
        let rules = ImagePlan { bytes_max: 10, ..ImagePlan::default() };
        assert_eq!(prepare(&whole, &rules).picture.unwrap_err().reason, "too_many_bytes");
        let rules = ImagePlan { pixels_max: 9_999, ..ImagePlan::default() };
        let judged = prepare(&whole, &rules);
        assert_eq!(judged.picture.unwrap_err().reason, "too_many_pixels");
        let names: Vec<_> = judged.figures.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["bytes", "width", "height", "aspect"]);
        let figures = prepare(&whole, &ImagePlan::default()).figures;
        assert_eq!(figures.last(), Some(&("colour_span", 252.0)));
        assert!(figures.iter().all(|(name, _)| crate::figures::NAMES.contains(name)));
    }

    #[test]
    fn formats_that_no_decoder_here_reads_are_named() {
        let check = |bytes: &'static [u8], expected: &str| {
            let drop = prepare(&Bytes::from_static(bytes), &ImagePlan::default()).picture;
            let drop = drop.unwrap_err();
            assert_eq!(
                (drop.reason, drop.detail.as_deref()),
                ("unsupported_format", Some(expected))
            );
        };
        check(b"\0\0\0\x1cftypavif\0\0\0\0", "avif");
        check(b"\0\0\0\x1cftypavis\0\0\0\0", "avif");
        check(b"\0\0\0\x18ftypheic\0\0\0\0", "heif");
        check(b"\0\0\0\x0cJXL \r\n\x87\n", "jxl");
        check(b"\xff\x0a\xfa\x1f", "jxl");
        check(b"\0\0\0\x0cjP  \r\n\x87\n", "jp2");
        check(b"\0\0\x01\0\x01\0", "ico");
    }

    #[test]
    fn a_file_cut_in_half_is_dropped_or_kept_as_the_plan_says() {
        let keep = ImagePlan { truncated: Truncated::Keep, ..ImagePlan::default() };
        let check = |format, expected_kept: Result<(), &str>| {
            let whole = encode(gradient(200, 160), format);
            let half = whole.slice(..whole.len() / 2);
            assert_eq!(reason(half.clone()), "truncated", "{format:?}");
            let kept = prepare(&half, &keep).picture.map(|picture| {
                // Never the broken file itself, which readers of the corpus would choke on.
                image::load_from_memory(&picture.image.bytes).unwrap();
                assert_ne!(picture.image.bytes, half);
            });
            assert_eq!(kept.map_err(|drop| drop.reason), expected_kept, "{format:?}");
        };
        check(ImageFormat::Jpeg, Ok(()));
        check(ImageFormat::Png, Err("bad_image"));
        check(ImageFormat::Gif, Err("bad_image"));
        check(ImageFormat::WebP, Err("bad_image"));
        check(ImageFormat::Bmp, Err("bad_image"));
        let tiff = encode(gradient(200, 160), ImageFormat::Tiff);
        assert_eq!(reason(tiff.slice(..tiff.len() / 2)), "bad_image");
    }

    #[test]
    fn a_damaged_jpeg_with_its_end_in_place_is_dropped() {
        let mut bytes = encode(gradient(400, 300), ImageFormat::Jpeg).to_vec();
        let n = bytes.len();
        bytes.drain(n / 2..n - 2);
        assert_eq!(reason(bytes), "bad_image");
    }

    #[test]
    fn a_jpeg_is_turned_as_its_exif_block_says() {
        let plain = encode(gradient(600, 300), ImageFormat::Jpeg);
        let check = |orientation: u8, size, original_size, corner: [u8; 2]| {
            let mut exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
            exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
            let mut bytes = vec![0xFF, 0xD8, 0xFF, 0xE1, 0, exif.len() as u8 + 2];
            bytes.extend(exif);
            bytes.extend(&plain[2..]);
            let picture = picture(&bytes.into(), &ImagePlan::default());
            assert_eq!((picture.size, picture.original_size), (size, original_size));
            let stored = image::load_from_memory(&picture.image.bytes).unwrap().into_rgb8();
            let [r, g, _] = stored.get_pixel(0, 0).0;
            assert!(
                r.abs_diff(corner[0]) < 8 && g.abs_diff(corner[1]) < 8,
                "{orientation} {r} {g}"
            );
        };
        // Red grows to the right and green downwards in the stored picture.
        check(1, (512, 256), (600, 300), [0, 0]);
        check(3, (512, 256), (600, 300), [255, 255]);
        check(6, (256, 512), (300, 600), [0, 255]);
        check(8, (256, 512), (300, 600), [255, 0]);
    }

    #[test]
    fn resized_jpegs_are_near_the_mean_over_areas() {
        // 1500 to 320: the decoder leaves out what is not needed.
        let found = RgbImage::from_fn(1500, 1000, |x, y| {
            let wave =
                |a: u32, b: u32| ((a as f32 / 37.0).sin() * (b as f32 / 23.0).cos() + 1.0) * 120.0;
            image::Rgb([wave(x, y) as u8, wave(y, x) as u8, (x * y / 6000) as u8])
        });
        let bytes = Bytes::from(encode_jpeg(&found, 95).unwrap());
        let rules = ImagePlan { size: 320, encode: Encode::Png, ..ImagePlan::default() };
        let stored = image::load_from_memory(&picture(&bytes, &rules).image.bytes).unwrap();
        let found = image::load_from_memory(&bytes).unwrap().into_rgb8();
        let expected = resize::resize(found, (320, 213));
        let square = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b)).powi(2);
        let stored = stored.into_rgb8();
        let sum: f64 = stored.as_raw().iter().zip(expected.as_raw()).map(square).sum();
        let psnr = 10.0 * (255.0 * 255.0 * stored.as_raw().len() as f64 / sum).log10();
        assert!(psnr >= 40.0, "{psnr}");
    }

    #[test]
    fn squares_with_a_border_keep_the_hash_of_the_picture() {
        let bytes = encode(gradient(300, 150), ImageFormat::Png);
        let rules =
            |resize| ImagePlan { resize, size: 320, only_if_bigger: false, ..ImagePlan::default() };
        let padded = picture(&bytes, &rules(Resize::MeanPad));
        let plain = picture(&bytes, &rules(Resize::KeepRatioLargest));
        assert_eq!((padded.size, plain.size), ((320, 320), (320, 160)));
        assert_eq!((padded.phash, padded.original_size), (plain.phash, (300, 150)));
    }
}
