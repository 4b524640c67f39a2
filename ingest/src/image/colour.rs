//! Pixels of any kind to 8-bit sRGB: transparency, inks, colour profiles.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use image::{DynamicImage, Rgb, RgbImage};
use moxcms::{ColorProfile, DataColorSpace, Layout, TransformExecutor, TransformOptions};

/// Colour profiles whose conversion is kept by each worker: most files carry one of a few.
const PROFILES_MAX: usize = 64;
/// A profile that moves no colour of a grid by more than this (of 255) says sRGB in other words.
const SRGB_TOLERANCE: u8 = 3;
/// Steps of the grid along each channel.
const GRID: u8 = 5;

/// A conversion of 8-bit pixels to sRGB; none where the profile needs none or is of no use.
type Conversion = Option<(Layout, Arc<dyn TransformExecutor<u8> + Send + Sync>)>;

thread_local! {
    /// Conversions by the bytes of their profile.
    static CONVERSIONS: RefCell<HashMap<Vec<u8>, Conversion>> = RefCell::default();
}

/// Eight-bit RGB, transparent parts on white.
pub(super) fn on_white(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let rgba = image.into_rgba8();
    let (width, height) = rgba.dimensions();
    let mut raw = Vec::with_capacity(3 * width as usize * height as usize);
    for pixel in rgba.as_raw().chunks_exact(4) {
        let alpha = u32::from(pixel[3]);
        let over_white = |c: u8| ((u32::from(c) * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        raw.extend([over_white(pixel[0]), over_white(pixel[1]), over_white(pixel[2])]);
    }
    RgbImage::from_raw(width, height, raw).expect("three bytes were made for each pixel")
}

/// Cyan, magenta, yellow and black to red, green and blue, without a profile: what an ink leaves of
/// the light, times what black leaves. `is_inverted`: 255 means no ink, as Adobe writes JPEGs.
pub(super) fn inks_to_rgb(inks: &[u8], is_inverted: bool) -> Vec<u8> {
    let flip = if is_inverted { 0 } else { 255 };
    let mut rgb = Vec::with_capacity(inks.len() / 4 * 3);
    for pixel in inks.chunks_exact(4) {
        let [c, m, y, k] = [pixel[0], pixel[1], pixel[2], pixel[3]].map(|i| u32::from(i ^ flip));
        rgb.extend([c, m, y].map(|light| ((light * k + 127) / 255) as u8));
    }
    rgb
}

/// Converts pixels to sRGB by their profile; whether any pixel could change. A profile that cannot
/// be read, or is not of the pixels' kind, is passed over, as browsers do.
pub(super) fn to_srgb(rgb: &mut RgbImage, profile: &[u8]) -> bool {
    let known = CONVERSIONS.with_borrow(|known| known.get(profile).cloned());
    let conversion = known.unwrap_or_else(|| {
        let conversion = conversion(profile);
        CONVERSIONS.with_borrow_mut(|known| {
            if known.len() >= PROFILES_MAX {
                known.clear();
            }
            known.insert(profile.to_vec(), conversion.clone());
        });
        conversion
    });
    let Some((layout, transform)) = conversion else { return false };
    let converted = convert(rgb.as_raw(), layout, &*transform);
    let Some(converted) = converted.and_then(|c| RgbImage::from_raw(rgb.width(), rgb.height(), c))
    else {
        return false;
    };
    *rgb = converted;
    true
}

fn conversion(profile: &[u8]) -> Conversion {
    let profile = ColorProfile::new_from_slice(profile).ok()?;
    let layout = match profile.color_space {
        DataColorSpace::Rgb => Layout::Rgb,
        DataColorSpace::Gray => Layout::Gray,
        _ => return None,
    };
    let options = TransformOptions::default();
    let srgb = ColorProfile::new_srgb();
    let transform = profile.create_transform_8bit(layout, &srgb, Layout::Rgb, options).ok()?;
    let step = |i: u8| i * (255 / (GRID - 1));
    let grid: Vec<u8> = match layout {
        Layout::Gray => (0..GRID).flat_map(|i| [step(i); 3]).collect(),
        _ => (0..GRID)
            .flat_map(|r| (0..GRID).flat_map(move |g| (0..GRID).map(move |b| [r, g, b])))
            .flat_map(|pixel| pixel.map(step))
            .collect(),
    };
    let moved = convert(&grid, layout, &*transform)?;
    let changes = grid.iter().zip(moved).any(|(old, new)| old.abs_diff(new) > SRGB_TOLERANCE);
    changes.then_some((layout, transform))
}

fn convert(
    pixels: &[u8],
    layout: Layout,
    transform: &(dyn TransformExecutor<u8> + Send + Sync),
) -> Option<Vec<u8>> {
    let mut converted = vec![0; pixels.len()];
    let result = match layout {
        Layout::Gray => {
            let grey: Vec<u8> = pixels.iter().copied().step_by(3).collect();
            transform.transform(&grey, &mut converted)
        }
        _ => transform.transform(pixels, &mut converted),
    };
    result.ok().map(|()| converted)
}

/// The widest range of values that any channel spans.
pub(super) fn span(rgb: &RgbImage) -> u8 {
    let (mut low, mut high) = ([u8::MAX; 3], [u8::MIN; 3]);
    for pixel in rgb.as_raw().chunks_exact(3) {
        for (channel, &value) in pixel.iter().enumerate() {
            low[channel] = low[channel].min(value);
            high[channel] = high[channel].max(value);
        }
    }
    (0..3).map(|channel| high[channel].saturating_sub(low[channel])).max().unwrap_or(0)
}

/// The mean colour, rounded.
pub(super) fn mean(rgb: &RgbImage) -> Rgb<u8> {
    let n = (rgb.as_raw().len() as u64 / 3).max(1);
    let mut sums = [0_u64; 3];
    for pixel in rgb.as_raw().chunks_exact(3) {
        for (sum, &value) in sums.iter_mut().zip(pixel) {
            *sum += u64::from(value);
        }
    }
    Rgb(sums.map(|sum| ((sum + n / 2) / n) as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transparent_parts_are_white() {
        let rgba = image::RgbaImage::from_fn(80, 80, |x, _| {
            image::Rgba([0, 0, 0, if x < 40 { 0 } else { 255 }])
        });
        let rgb = on_white(rgba.into());
        assert_eq!((rgb.get_pixel(0, 0).0, rgb.get_pixel(79, 0).0), ([255; 3], [0; 3]));
        let grey = image::GrayAlphaImage::from_pixel(1, 1, image::LumaA([100, 51]));
        assert_eq!(on_white(grey.into()).get_pixel(0, 0).0, [224; 3]);
    }

    #[test]
    fn inks_are_read_either_way_round() {
        assert_eq!(inks_to_rgb(&[255, 0, 128, 255], true), [255, 0, 128]);
        assert_eq!(inks_to_rgb(&[0, 255, 127, 0], false), [255, 0, 128]);
        assert_eq!(inks_to_rgb(&[200, 200, 200, 0], true), [0; 3]);
    }

    #[test]
    fn a_wide_profile_is_converted_and_srgb_is_left_alone() {
        let check = |profile: ColorProfile, pixel: [u8; 3], expected: Option<[u8; 3]>| {
            let mut rgb = RgbImage::from_pixel(2, 2, Rgb(pixel));
            let changed = to_srgb(&mut rgb, &profile.encode().unwrap());
            assert_eq!(changed, expected.is_some());
            for (got, expected) in rgb.get_pixel(1, 1).0.iter().zip(expected.unwrap_or(pixel)) {
                assert!(got.abs_diff(expected) <= 1, "{:?}", rgb.get_pixel(1, 1));
            }
        };
        check(ColorProfile::new_srgb(), [10, 200, 100], None);
        // Expected values from the primaries and curves of the two standards, in floating point.
        check(ColorProfile::new_display_p3(), [102, 128, 153], Some([95, 129, 156]));
        check(ColorProfile::new_adobe_rgb(), [102, 128, 153], Some([89, 129, 155]));
        let mut rgb = RgbImage::new(1, 1);
        assert!(!to_srgb(&mut rgb, b"no profile"));
    }

    #[test]
    fn the_widest_channel_counts() {
        let rgb = RgbImage::from_fn(3, 1, |x, _| Rgb([9, 10 + 20 * x as u8, 200]));
        assert_eq!((span(&rgb), mean(&rgb)), (40, Rgb([9, 30, 200])));
    }
}
