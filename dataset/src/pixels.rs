//! An encoded image to the numbers that a vision encoder reads.
//!
//! Sizes are checked in the header before anything is decoded. Transparent images are laid on
//! white, the colour of the page they most likely came from.
//!
//! A JPEG with at least four times the pixels that are wanted along each side is decoded at a half, a
//! quarter or an eighth of its sides, so that at least twice as many are left: the inverse transform
//! then makes fewer pixels. What comes out after resizing is within 40 dB (PSNR) of what the whole
//! image gives, on the photographs of the tests.

use std::cell::RefCell;
use std::io::Cursor;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType as Layout, ResizeAlg, ResizeOptions, Resizer};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage};
use serde::{Deserialize, Serialize};
use turbojpeg::{Colorspace, Decompressor, PixelFormat, ScalingFactor};

use crate::CorpusError;

/// Longest side of an image that is decoded, in pixels.
const SIDE_MAX: u32 = 16_384;

/// Most pixels of an image that is decoded.
const PIXELS_MAX: u64 = 64_000_000;

/// Most scans of a JPEG that is decoded: progressive ones have about ten, and a hostile one takes time
/// for each.
const SCANS_MAX: u32 = 500;

/// Most memory that a decoder may take: `PIXELS_MAX` at 8 bytes.
const DECODER_BYTES_MAX: u64 = 512 << 20;

/// How an image of any shape becomes a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// The whole image, its aspect kept, centred and padded with the mean (paper appendix B.1.2).
    MeanPad,
    /// The shorter side becomes `size` and the middle of the longer one is kept, as CLIP sees images
    /// (`Resize` and `CenterCrop` of torchvision).
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

/// How pixels leave the loader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PixelType {
    /// Normalised numbers.
    #[default]
    F32,
    /// Values of 256, which a device normalises: a quarter of the memory and of what is copied. What pads
    /// is the mean to the nearest of them, and augmented colours are rounded.
    U8,
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

    fn keeps_colours(&self) -> bool {
        Self { flip: false, ..*self } == Self::NONE
    }
}

/// The normalised numbers of the 256 values of each colour.
pub(crate) fn normalised_tables(mean: [f32; 3], std: [f32; 3]) -> [[f32; 256]; 3] {
    std::array::from_fn(|colour| {
        std::array::from_fn(|value| (value as f32 / 255.0 - mean[colour]) / std[colour])
    })
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

/// The same without normalising: `[3, size, size]` values of 256, where the mean pads.
///
/// # Errors
/// As [`image_pixels`].
pub fn image_bytes(
    bytes: &[u8],
    config: &ImageConfig,
    augment: Option<Augment>,
) -> Result<Vec<u8>, CorpusError> {
    let mut values = Vec::new();
    add_bytes(&mut values, bytes, config, augment)?;
    Ok(values)
}

/// Adds the numbers of [`image_pixels`] to others.
pub(crate) fn add_pixels(
    pixels: &mut Vec<f32>,
    bytes: &[u8],
    config: &ImageConfig,
    augment: Option<Augment>,
) -> Result<(), CorpusError> {
    let (image, placed) = resized_image(bytes, config)?;
    let augment = augment.unwrap_or(Augment::NONE);
    if augment.keeps_colours() {
        let tables = normalised_tables(config.mean, config.std);
        add_planes(pixels, &placed.pixels, &placed, augment.flip, config.size, |value, colour| {
            tables[colour][usize::from(value)]
        });
    } else {
        let values = jittered(&placed.pixels, &augment);
        add_planes(pixels, &values, &placed, augment.flip, config.size, |value, colour| {
            (value - config.mean[colour]) / config.std[colour]
        });
    }
    reuse(image, placed);
    Ok(())
}

/// Adds the values of [`image_bytes`] to others.
pub(crate) fn add_bytes(
    values: &mut Vec<u8>,
    bytes: &[u8],
    config: &ImageConfig,
    augment: Option<Augment>,
) -> Result<(), CorpusError> {
    let (image, placed) = resized_image(bytes, config)?;
    let augment = augment.unwrap_or(Augment::NONE);
    let of_256 = |value: f32| (255.0 * value).round().clamp(0.0, 255.0) as u8;
    let (first, plane) = (values.len(), config.size * config.size);
    for mean in config.mean {
        values.resize(values.len() + plane, of_256(mean));
    }
    let planes = &mut values[first..];
    if augment.keeps_colours() {
        write_planes(planes, &placed.pixels, &placed, augment.flip, config.size, |v, _| v);
    } else {
        let jittered = jittered(&placed.pixels, &augment);
        write_planes(planes, &jittered, &placed, augment.flip, config.size, |v, _| of_256(v));
    }
    reuse(image, placed);
    Ok(())
}

fn resized_image(bytes: &[u8], config: &ImageConfig) -> Result<(RgbImage, Placed), CorpusError> {
    let Decoded { image, width, height } = decode(bytes, config.size)?;
    let placed = fit(&image, [width, height], config)?;
    Ok((image, placed))
}

/// Upright pixels, perhaps at a fraction of the sides of the file.
struct Decoded {
    image: RgbImage,
    /// Width of the image in the file, once upright.
    width: usize,
    height: usize,
}

impl From<RgbImage> for Decoded {
    fn from(image: RgbImage) -> Self {
        let (width, height) = (image.width() as usize, image.height() as usize);
        Self { image, width, height }
    }
}

/// An image resized, and where it stands in the square.
struct Placed {
    /// Red, green, blue of each pixel, row by row.
    pixels: Vec<u8>,
    width: usize,
    left: usize,
    top: usize,
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
const SPARE_BYTES_MAX: usize = 16 << 20;

thread_local! {
    static TOOLS: RefCell<Tools> = RefCell::default();
}

/// Keeps the room that an image took for the next one, unless it is large.
fn reuse(image: RgbImage, placed: Placed) {
    let kept = |room: Vec<u8>| if room.capacity() <= SPARE_BYTES_MAX { room } else { Vec::new() };
    TOOLS.with_borrow_mut(|tools| {
        tools.pixels = kept(image.into_raw());
        tools.resized = kept(placed.pixels);
    });
}

/// The upright pixels, where `wanted` is the side that is left of them in the end.
fn decode(bytes: &[u8], wanted: usize) -> Result<Decoded, CorpusError> {
    if bytes.starts_with(&[0xff, 0xd8])
        && let Some(image) = decode_jpeg(bytes, wanted)?
    {
        return Ok(image);
    }
    decode_any(bytes).map(Decoded::from)
}

/// Red, green and blue of cyan, magenta, yellow and black, which JPEGs store inverted, as Pillow makes
/// them.
fn from_print(pixels: &[u8]) -> Vec<u8> {
    let share = |a: u8, b: u8| {
        let product = u32::from(a) * u32::from(b) + 128;
        ((product + (product >> 8)) >> 8) as u8
    };
    let colours = pixels.chunks_exact(4).flat_map(|pixel| {
        let black = pixel[3];
        [0, 1, 2].map(|colour| black - share(255 - pixel[colour], black))
    });
    colours.collect()
}

/// A JPEG by libjpeg-turbo; none where it is no JPEG after all.
fn decode_jpeg(bytes: &[u8], wanted: usize) -> Result<Option<Decoded>, CorpusError> {
    let words = |error: turbojpeg::Error| match error {
        turbojpeg::Error::TurboJpegError(message) => failed(message),
        error => failed(error.to_string()),
    };
    // A new one for each image: what one that failed has seen of a file stays in it, and so do tables
    // that a later file may lack.
    let mut decompressor = Decompressor::new().map_err(words)?;
    let Ok(header) = decompressor.read_header(bytes) else { return Ok(None) };
    let for_print = matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK);
    let (format, n_colours) =
        if for_print { (PixelFormat::CMYK, 4) } else { (PixelFormat::RGB, 3) };
    check_size(header.width as u64, header.height as u64)?;
    let factor = fraction(header.width.min(header.height), wanted);
    decompressor.set_scaling_factor(factor).map_err(words)?;
    decompressor.set_scan_limit(SCANS_MAX).map_err(words)?;
    let (width, height) = (factor.scale(header.width), factor.scale(header.height));
    let mut pixels = TOOLS.with_borrow_mut(|tools| std::mem::take(&mut tools.pixels));
    pixels.resize(n_colours * width * height, 0);
    let pitch = n_colours * width;
    let target = turbojpeg::Image { pixels: &mut pixels[..], width, pitch, height, format };
    match decompressor.decompress(bytes, target) {
        // Rubbish between segments harms no pixel, but only the first complaint is told: a file that is
        // also cut off does not end as it should.
        Err(turbojpeg::Error::TurboJpegError(message))
            if message.contains("extraneous bytes before marker")
                && bytes.ends_with(&[0xff, 0xd9]) => {}
        decoded => decoded.map_err(words)?,
    }
    if for_print {
        pixels = from_print(&pixels);
    }
    let Some(image) = RgbImage::from_raw(width as u32, height as u32, pixels) else {
        return Ok(None);
    };
    let orientation = exif(bytes).and_then(Orientation::from_exif_chunk);
    let upright = match orientation.unwrap_or(Orientation::NoTransforms) {
        Orientation::NoTransforms => image,
        orientation => {
            let mut image = DynamicImage::from(image);
            image.apply_orientation(orientation);
            image.into_rgb8()
        }
    };
    let is_turned = orientation.is_some_and(|orientation| {
        use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
        matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
    });
    let (width, height) = (header.width, header.height);
    let (width, height) = if is_turned { (height, width) } else { (width, height) };
    Ok(Some(Decoded { image: upright, width, height }))
}

/// The smallest fraction at which the shorter side keeps twice the pixels that are wanted.
fn fraction(side: usize, wanted: usize) -> ScalingFactor {
    let part = [8, 4, 2].into_iter().find(|part| side / part >= wanted.saturating_mul(2));
    ScalingFactor::new(1, part.unwrap_or(1))
}

/// The EXIF block of a JPEG.
fn exif(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.get(2..)?;
    // Segments up to the coded pixels: a marker, then a length that counts itself.
    while let [0xff, marker, high, low, ..] = *rest {
        let length = usize::from(u16::from_be_bytes([high, low]));
        let content = rest.get(4..2 + length)?;
        match marker {
            0xe1 if content.starts_with(b"Exif\0\0") => return Some(&content[6..]),
            0xda => return None,
            _ => rest = &rest[2 + length..],
        }
    }
    None
}

fn check_size(width: u64, height: u64) -> Result<(), CorpusError> {
    let side = u64::from(SIDE_MAX);
    if width > side || height > side || width * height > PIXELS_MAX {
        let limits = format!("{PIXELS_MAX} and {side} a side");
        return Err(failed(format!("{width} x {height} pixels, at most {limits} are decoded")));
    }
    Ok(())
}

/// An image of any format, at its full size.
fn decode_any(bytes: &[u8]) -> Result<RgbImage, CorpusError> {
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
    check_size(width.into(), height.into())?;
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

/// Resizes an image whose file has these sides: they decide, and not those that were decoded.
fn fit(
    image: &RgbImage,
    [width, height]: [usize; 2],
    config: &ImageConfig,
) -> Result<Placed, CorpusError> {
    let size = config.size;
    let (decoded_width, decoded_height) = (f64::from(image.width()), f64::from(image.height()));
    let whole = [0.0, 0.0, decoded_width, decoded_height];
    match config.fit {
        Fit::Squash => resized(image, whole, [size, size], [0, 0]),
        Fit::CenterCrop => {
            // A part resized is that part of the whole resized: the filter looks beyond its edges.
            resized(image, crop(image, [width, height], size), [size, size], [0, 0])
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
fn crop(image: &RgbImage, whole: [usize; 2], size: usize) -> [f64; 4] {
    let [width, height] = whole;
    let part = |side: usize, decoded: u32| {
        let decoded = f64::from(decoded);
        let scaled = size * side / width.min(height);
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
    image: &RgbImage,
    [from_left, from_top, from_width, from_height]: [f64; 4],
    [width, height]: [usize; 2],
    [left, top]: [usize; 2],
) -> Result<Placed, CorpusError> {
    let source = ImageRef::new(image.width(), image.height(), image.as_raw(), Layout::U8x3)
        .map_err(|e| failed(e.to_string()))?;
    let mut pixels = TOOLS.with_borrow_mut(|tools| std::mem::take(&mut tools.resized));
    pixels.resize(3 * width * height, 0);
    let mut target = Image::from_vec_u8(width as u32, height as u32, pixels, Layout::U8x3)
        .map_err(|e| failed(e.to_string()))?;
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom))
        .crop(from_left, from_top, from_width, from_height);
    TOOLS
        .with_borrow_mut(|tools| tools.resizer.resize(&source, &mut target, &options))
        .map_err(|e| failed(e.to_string()))?;
    Ok(Placed { pixels: target.into_vec(), width, left, top })
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

/// Adds planes of red, green and blue `[3, size, size]`; what is no image is 0, the mean once normalised.
fn add_planes<V: Copy>(
    pixels: &mut Vec<f32>,
    values: &[V],
    at: &Placed,
    flip: bool,
    size: usize,
    number: impl Fn(V, usize) -> f32,
) {
    if at.width < size || values.len() < 3 * size * size {
        let first = pixels.len();
        pixels.resize(first + 3 * size * size, 0.0);
        write_planes(&mut pixels[first..], values, at, flip, size, number);
        return;
    }
    // Nothing pads, so nothing need be cleared before it is written. Three passes over what is in the
    // cache take half the time of one that writes to three places.
    let (all, _) = values.as_chunks::<3>();
    if flip {
        let rows = || all.chunks_exact(size);
        for row in rows() {
            pixels.extend(row.iter().rev().map(|pixel| number(pixel[0], 0)));
        }
        for row in rows() {
            pixels.extend(row.iter().rev().map(|pixel| number(pixel[1], 1)));
        }
        for row in rows() {
            pixels.extend(row.iter().rev().map(|pixel| number(pixel[2], 2)));
        }
    } else {
        pixels.extend(all.iter().map(|pixel| number(pixel[0], 0)));
        pixels.extend(all.iter().map(|pixel| number(pixel[1], 1)));
        pixels.extend(all.iter().map(|pixel| number(pixel[2], 2)));
    }
}

/// Writes an image into planes of red, green and blue `[3, size, size]`.
fn write_planes<V: Copy, N>(
    planes: &mut [N],
    values: &[V],
    at: &Placed,
    flip: bool,
    size: usize,
    number: impl Fn(V, usize) -> N,
) {
    let (red, rest) = planes.split_at_mut(size * size);
    let (green, blue) = rest.split_at_mut(size * size);
    for (y, row) in values.chunks_exact(3 * at.width).enumerate() {
        let from = (at.top + y) * size + at.left;
        let place = from..from + at.width;
        let [red, green, blue] =
            [&mut *red, &mut *green, &mut *blue].map(|plane| &mut plane[place.clone()]);
        let targets = red.iter_mut().zip(green).zip(blue);
        let write = |(((red, green), blue), pixel): (((&mut N, &mut N), &mut N), &[V])| {
            *red = number(pixel[0], 0);
            *green = number(pixel[1], 1);
            *blue = number(pixel[2], 2);
        };
        let pixels = row.chunks_exact(3);
        if flip {
            targets.zip(pixels.rev()).for_each(write);
        } else {
            targets.zip(pixels).for_each(write);
        }
    }
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
    fn a_crop_is_that_part_of_the_whole_resized() {
        let noise = |x: u32, y: u32| (x * 7919 + y * 104_729 + x * y * 31) as u8;
        for (width, height) in [(101, 67), (40, 150), (33, 32), (97, 32), (640, 41)] {
            let image = RgbImage::from_fn(width, height, |x, y| {
                Rgb([noise(x, y), noise(y, x), noise(x + 9, y)])
            });
            let config =
                ImageConfig { size: 32, fit: Fit::CenterCrop, mean: [0.; 3], std: [1.; 3] };
            let sides = [width as usize, height as usize];
            let crop = fit(&image, sides, &config).unwrap();
            let shorter = width.min(height);
            let [w, h] = [width, height].map(|side| (32 * side / shorter) as usize);
            let box_ = [0.0, 0.0, f64::from(width), f64::from(height)];
            let whole = resized(&image, box_, [w, h], [0, 0]).unwrap();
            let (left, top) = (middle(w - 32), middle(h - 32));
            for y in 0..32 {
                let from = 3 * ((top + y) * w + left);
                let expected = &whole.pixels[from..from + 96];
                let found = &crop.pixels[96 * y..96 * (y + 1)];
                let most = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max();
                assert!(most <= Some(1), "{width} x {height}, row {y}: {most:?}");
            }
        }
        assert_eq!([0, 1, 2, 3, 5, 7].map(middle), [0, 0, 1, 2, 2, 4]);
    }

    #[test]
    fn every_shape_is_cropped() {
        for size in [224, 240, 336, 518] {
            let config = ImageConfig { size, fit: Fit::CenterCrop, mean: [0.; 3], std: [1.; 3] };
            for side in (1..1100).chain([1999, 2047, 3001]) {
                for (width, height) in [(side, 3), (3, side), (side, side)] {
                    let image = RgbImage::new(width, height);
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
    fn crop_only(image: &RgbImage, whole: [usize; 2], config: &ImageConfig) -> Result<(), String> {
        let [left, top, width, height] = crop(image, whole, config.size);
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

    fn jpeg(image: &RgbImage) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 95);
        image.write_with_encoder(encoder).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn a_jpeg_is_turned_as_its_exif_says() {
        let wide = RgbImage::from_fn(32, 16, |x, _| Rgb([if x < 16 { 255 } else { 0 }, 0, 0]));
        let plain = jpeg(&wide);
        assert!(exif(&plain).is_none());
        // Little-endian TIFF with one entry: tag 0x112 (orientation), a short, 6 (a quarter to the right).
        let tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        let mut turned = vec![0xff, 0xd8, 0xff, 0xe1, 0, (8 + tiff.len()) as u8];
        turned.extend(b"Exif\0\0");
        turned.extend(tiff);
        turned.extend(&plain[2..]);
        assert_eq!(exif(&turned), Some(&tiff[..]));
        let Decoded { image: decoded, width, height } = decode(&turned, 8).unwrap();
        assert_eq!((decoded.dimensions(), width, height), ((16, 32), 16, 32));
        assert!(decoded.get_pixel(8, 4).0[0] > 200 && decoded.get_pixel(8, 28).0[0] < 50);
        for end in 0..turned.len() {
            let _ = exif(&turned[..end]); // does not panic
        }
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
            let decoded = decode_jpeg(&good, 8).unwrap().expect("still decoded by libjpeg-turbo");
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
        assert_eq!(fraction(480, 60), ScalingFactor::new(1, 4));
        assert_eq!(fraction(479, 60), ScalingFactor::new(1, 2));
        assert_eq!(fraction(448, 224), ScalingFactor::new(1, 1));
        for fit_to in [Fit::Squash, Fit::CenterCrop, Fit::MeanPad] {
            let config = ImageConfig { size: 60, fit: fit_to, mean: [0.0; 3], std: [1.0; 3] };
            let small = image_pixels(&bytes, &config, None).unwrap();
            let whole = fit(&decode_any(&bytes).unwrap(), [640, 480], &config).unwrap();
            let mut numbers = Vec::new();
            add_planes(&mut numbers, &whole.pixels, &whole, false, 60, |value, _| {
                f32::from(value) / 255.0
            });
            let error: f32 = small.iter().zip(&numbers).map(|(a, b)| (a - b) * (a - b)).sum();
            let psnr = -10.0 * (error / small.len() as f32).log10();
            assert!(psnr > 40.0, "{fit_to:?}: {psnr} dB");
        }
    }

    #[test]
    fn colours_that_stay_are_the_same_numbers_by_the_table() {
        let config = config(Fit::MeanPad);
        let photo = png(RgbImage::from_fn(9, 5, |x, y| Rgb([x as u8 * 28, y as u8 * 50, 77])));
        // A change too small to be one, so that the other way is taken.
        let same = Augment { contrast: 1.0 + f32::EPSILON, ..Augment::NONE };
        assert!(!same.keeps_colours());
        let numbers = |augment| image_pixels(&photo, &config, augment).unwrap();
        assert_eq!(numbers(None), numbers(Some(same)));
    }

    #[test]
    fn values_of_256_are_the_same_numbers_once_normalised() {
        let photo = png(RgbImage::from_fn(9, 5, |x, y| Rgb([x as u8 * 28, y as u8 * 50, 77])));
        let config = ImageConfig { mean: [0.2, 0.4, 0.6], ..config(Fit::MeanPad) };
        let flip = Some(Augment { flip: true, ..Augment::NONE });
        let (numbers, values) = (
            image_pixels(&photo, &config, flip).unwrap(),
            image_bytes(&photo, &config, flip).unwrap(),
        );
        let tables = normalised_tables(config.mean, config.std);
        let padding = [51, 102, 153];
        for (i, (number, value)) in numbers.iter().zip(&values).enumerate() {
            let (colour, y) = (i / 64, i / 8 % 8);
            if (2..6).contains(&y) {
                assert_eq!(number.to_bits(), tables[colour][usize::from(*value)].to_bits());
            } else {
                assert_eq!((*number, *value), (0.0, padding[colour]));
            }
        }
        let jitter = Some(Augment { brightness: 0.7, contrast: 1.2, ..Augment::NONE });
        let (numbers, values) = (
            image_pixels(&photo, &config, jitter).unwrap(),
            image_bytes(&photo, &config, jitter).unwrap(),
        );
        let apart = numbers.iter().zip(&values).enumerate().map(|(i, (number, value))| {
            (number - tables[i / 64][usize::from(*value)]).abs() * config.std[0] * 255.0
        });
        assert!(apart.fold(0.0, f32::max) < 0.51);
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
