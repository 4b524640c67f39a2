//! JPEG in and out, by libjpeg-turbo: the decoder can leave out what a smaller picture does not need.

use std::cell::RefCell;

use image::RgbImage;
use turbojpeg::{Compressor, Decompressor, Image, PixelFormat, ScalingFactor, Subsamp};

use super::SIDE_MAX;
use super::colour;
use super::outline::{Jpeg, SCANS_MAX};
use crate::reject::DropReason;

thread_local! {
    /// The tables and buffers of the encoder, made once for each worker.
    static COMPRESSOR: RefCell<Option<Compressor>> = const { RefCell::new(None) };
}

/// How a JPEG came out of the decoder.
pub(super) struct Decoded {
    /// The pixels, as stored, perhaps at a half, quarter or eighth of the sides.
    pub(super) rgb: RgbImage,
    /// What the decoder found wrong in the coded pixels.
    pub(super) damage: Option<String>,
}

/// Decodes a JPEG of `size`, at a fraction of it where that leaves `oversampling_min` pixels along
/// a side for each that is `wanted`.
///
/// # Errors
/// When the library cannot decode the file, in its own words.
pub(super) fn decode(
    bytes: &[u8],
    size: (u32, u32),
    wanted: (u32, u32),
    oversampling_min: u32,
    jpeg: &Jpeg,
) -> Result<Decoded, String> {
    // A new one for each file: what one that failed has seen of a file stays in it, and so do tables
    // that a later file may lack.
    let decode = || {
        let mut decompressor = Decompressor::new()?;
        let factor = fraction(size, wanted, oversampling_min);
        decompressor.set_scaling_factor(factor)?;
        decompressor.set_scan_limit(SCANS_MAX)?;
        let side = |side: u32| factor.scale(side as usize);
        let (width, height) = (side(size.0), side(size.1));
        let format = if jpeg.components == 4 { PixelFormat::CMYK } else { PixelFormat::RGB };
        let pitch = width * format.size();
        let mut pixels = vec![0; pitch * height];
        let target = Image { pixels: &mut pixels[..], width, pitch, height, format };
        let damage = match decompressor.decompress(bytes, target) {
            Ok(()) => None,
            Err(turbojpeg::Error::TurboJpegError(message)) if is_warning(&message) => {
                (!is_harmless(&message)).then_some(message)
            }
            Err(error) => return Err(error),
        };
        if format == PixelFormat::CMYK {
            pixels = colour::inks_to_rgb(&pixels, jpeg.is_adobe);
        }
        let rgb = RgbImage::from_raw(width as u32, height as u32, pixels);
        Ok(Decoded { rgb: rgb.expect("three bytes were made for each pixel"), damage })
    };
    decode().map_err(words)
}

/// Whether the decoder went on after this complaint: the pixels are there, some of them made up.
fn is_warning(message: &str) -> bool {
    ["Premature end of JPEG", "Corrupt JPEG data", "Inconsistent progression", "Invalid SOS"]
        .iter()
        .any(|start| message.starts_with(start))
}

/// Whether a warning is about rubbish between segments, which harms no pixel.
fn is_harmless(message: &str) -> bool {
    message.contains("extraneous bytes before marker")
}

/// The smallest fraction that leaves enough pixels. It saves the inverse transform, not the reading
/// of the codes: about a third of the time at one half.
fn fraction(size: (u32, u32), wanted: (u32, u32), oversampling_min: u32) -> ScalingFactor {
    let is_enough = |part: &u32| {
        let side = |side: u32, wanted: u32| side / part >= wanted.saturating_mul(oversampling_min);
        oversampling_min > 0 && side(size.0, wanted.0) && side(size.1, wanted.1)
    };
    ScalingFactor::new(1, [8, 4, 2].into_iter().find(is_enough).unwrap_or(1) as usize)
}

/// The image as a JPEG file, with colour at half the sides as most files of the web.
///
/// # Errors
/// When a side is longer than a JPEG allows.
pub fn encode_jpeg(rgb: &RgbImage, quality: u8) -> Result<Vec<u8>, DropReason> {
    let (width, height) = rgb.dimensions();
    if width.max(height) > SIDE_MAX {
        return Err(DropReason::limit("too_large", width.max(height).into(), SIDE_MAX.into()));
    }
    let (width, height) = (width as usize, height as usize);
    let pixels = &rgb.as_raw()[..];
    let source = Image { pixels, width, pitch: 3 * width, height, format: PixelFormat::RGB };
    let taken = COMPRESSOR.take();
    let encoded = taken.map_or_else(Compressor::new, Ok).and_then(|mut compressor| {
        compressor.set_quality(quality.into())?;
        compressor.set_subsamp(Subsamp::Sub2x2)?;
        let encoded = compressor.compress_to_vec(source);
        COMPRESSOR.set(Some(compressor));
        encoded
    });
    encoded.map_err(|error| DropReason::detail("not_encoded", words(error)))
}

fn words(error: turbojpeg::Error) -> String {
    match error {
        turbojpeg::Error::TurboJpegError(message) => message,
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_leaves_twice_the_pixels() {
        let check = |size, wanted, denominator| {
            assert_eq!(fraction(size, wanted, 0), ScalingFactor::ONE);
            assert_eq!(fraction(size, wanted, 2), ScalingFactor::new(1, denominator), "{size:?}");
        };
        check((1024, 800), (256, 200), 2);
        check((1023, 800), (256, 200), 1);
        check((4096, 3072), (256, 192), 8);
        check((2048, 1536), (256, 192), 4);
        check((100, 80), (256, 200), 1);
        check((60_000, 10), (256, 1), 4);
    }

    #[test]
    fn a_side_that_no_jpeg_can_have_is_refused() {
        assert!(encode_jpeg(&RgbImage::new(65_500, 1), 90).is_ok());
        let error = encode_jpeg(&RgbImage::new(SIDE_MAX + 1, 1), 90).unwrap_err();
        assert_eq!(error.reason, "too_large");
    }
}
