//! An encoded image to pixels that are upright.
//!
//! Sizes are checked in the header before anything is decoded. Transparent images are laid on
//! white, the colour of the page they most likely came from.
//!
//! A JPEG with at least four times the pixels that are wanted along each side is decoded at a half, a
//! quarter or an eighth of its sides, so that at least twice as many are left: the inverse transform
//! then makes fewer pixels. What comes out after resizing is within 40 dB (PSNR) of what the whole
//! image gives, on the photographs of the tests.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbaImage};
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

/// Upright pixels, perhaps at a fraction of the sides of the file. They have four bytes each, which
/// processors handle faster than three; the fourth is not used.
pub(crate) struct Decoded {
    pub(crate) image: RgbaImage,
    /// Width of the image in the file, once upright.
    pub(crate) width: usize,
    pub(crate) height: usize,
}

impl From<RgbaImage> for Decoded {
    fn from(image: RgbaImage) -> Self {
        let (width, height) = (image.width() as usize, image.height() as usize);
        Self { image, width, height }
    }
}

/// The upright pixels, where `wanted` is the side that is left of them in the end; `room` may be used
/// for them.
///
/// # Errors
/// When the bytes are no image, are cut off, or the image is larger than the limits.
pub(crate) fn decode(bytes: &[u8], wanted: usize, room: Vec<u8>) -> Result<Decoded, CorpusError> {
    if bytes.starts_with(&[0xff, 0xd8])
        && let Some(image) = decode_jpeg(bytes, wanted, room)?
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
        let [red, green, blue] = [0, 1, 2].map(|c| black - share(255 - pixel[c], black));
        [red, green, blue, 255]
    });
    colours.collect()
}

/// A JPEG by libjpeg-turbo; none where it is no JPEG after all.
fn decode_jpeg(bytes: &[u8], wanted: usize, room: Vec<u8>) -> Result<Option<Decoded>, CorpusError> {
    let words = |error: turbojpeg::Error| match error {
        turbojpeg::Error::TurboJpegError(message) => failed(message),
        error => failed(error.to_string()),
    };
    // A new one for each image: what one that failed has seen of a file stays in it, and so do tables
    // that a later file may lack.
    let mut decompressor = Decompressor::new().map_err(words)?;
    let Ok(header) = decompressor.read_header(bytes) else { return Ok(None) };
    let for_print = matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK);
    let format = if for_print { PixelFormat::CMYK } else { PixelFormat::RGBA };
    check_size(header.width as u64, header.height as u64)?;
    let factor = fraction(header.width.min(header.height), wanted);
    decompressor.set_scaling_factor(factor).map_err(words)?;
    decompressor.set_scan_limit(SCANS_MAX).map_err(words)?;
    let (width, height) = (factor.scale(header.width), factor.scale(header.height));
    let mut pixels = room;
    pixels.resize(4 * width * height, 0);
    let pitch = 4 * width;
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
    let Some(image) = RgbaImage::from_raw(width as u32, height as u32, pixels) else {
        return Ok(None);
    };
    let orientation = exif(bytes).and_then(Orientation::from_exif_chunk);
    let upright = match orientation.unwrap_or(Orientation::NoTransforms) {
        Orientation::NoTransforms => image,
        orientation => {
            let mut image = DynamicImage::from(image);
            image.apply_orientation(orientation);
            image.into_rgba8()
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
pub(crate) fn decode_any(bytes: &[u8]) -> Result<RgbaImage, CorpusError> {
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

fn on_white(image: DynamicImage) -> RgbaImage {
    let has_alpha = image.color().has_alpha();
    let mut image = image.into_rgba8();
    if has_alpha {
        for pixel in image.pixels_mut() {
            let [red, green, blue, alpha] = pixel.0.map(u32::from);
            let over = |c: u32| ((c * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
            pixel.0 = [over(red), over(green), over(blue), 255];
        }
    }
    image
}

pub(crate) fn failed(problem: String) -> CorpusError {
    CorpusError::Image { name: None, problem }
}

#[cfg(test)]
pub(crate) mod tests {
    use image::{Rgb, RgbImage};

    use super::*;

    pub(crate) fn jpeg(image: &RgbImage) -> Vec<u8> {
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
        let Decoded { image: decoded, width, height } = decode(&turned, 8, Vec::new()).unwrap();
        assert_eq!((decoded.dimensions(), width, height), ((16, 32), 16, 32));
        assert!(decoded.get_pixel(8, 4).0[0] > 200 && decoded.get_pixel(8, 28).0[0] < 50);
        for end in 0..turned.len() {
            let _ = exif(&turned[..end]); // does not panic
        }
    }

    #[test]
    fn the_fraction_leaves_twice_what_is_wanted() {
        assert_eq!(fraction(480, 60), ScalingFactor::new(1, 4));
        assert_eq!(fraction(479, 60), ScalingFactor::new(1, 2));
        assert_eq!(fraction(448, 224), ScalingFactor::new(1, 1));
    }
}
