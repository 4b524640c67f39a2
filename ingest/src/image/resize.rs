//! Sizes and shapes of stored images: the modes of img2dataset, and the paper's square with a
//! border of the mean colour.
//!
//! Smaller images are made of means over areas, each source pixel counted by the part of it that a
//! new pixel covers (`cv2.INTER_AREA`); larger ones by Lanczos interpolation over 8 pixels.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{Filter, FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::{Rgb, RgbImage, imageops};

use super::colour::mean;
use crate::plan::{ImagePlan, Resize};

/// Sum of the weights of the rows that make a new row: the most for which a sum of 8-bit values
/// times weights fits 16 bits, so that eight are added at once.
const ROW_UNIT: u64 = 1 << 8;
/// Sum of the weights of the columns; their products with sums of rows fit 32 bits.
const COLUMN_UNIT: u64 = 1 << 14;
/// Largest ratio of old to new side for which [`ROW_UNIT`] tells weights apart; above it whole
/// pixels are counted, an error below one in this many.
const RATIO_MAX: u32 = 16;

/// Width and height to which the rules resize an image, before it is cropped or padded.
pub(super) fn resized_size(size: (u32, u32), rules: &ImagePlan) -> (u32, u32) {
    let side = match rules.resize {
        Resize::No => return size,
        Resize::KeepRatio | Resize::CenterCrop => size.0.min(size.1),
        Resize::Border | Resize::KeepRatioLargest | Resize::MeanPad => size.0.max(size.1),
    };
    if is_left_alone(size, rules) { size } else { scaled(size, rules.size, side) }
}

/// Whether the rules take an image as it is because it is small.
fn is_left_alone(size: (u32, u32), rules: &ImagePlan) -> bool {
    let side = match rules.resize {
        Resize::No => return true,
        Resize::KeepRatio | Resize::CenterCrop => size.0.min(size.1),
        Resize::Border | Resize::KeepRatioLargest | Resize::MeanPad => size.0.max(size.1),
    };
    rules.only_if_bigger && side <= rules.size
}

/// Width and height with the longest side at most `side_max`, never zero; 0 keeps them.
pub fn fit(size: (u32, u32), side_max: u32) -> (u32, u32) {
    let long = size.0.max(size.1);
    if side_max == 0 || long <= side_max { size } else { scaled(size, side_max, long) }
}

/// Both sides times `to / from`, halves to the even number as Python rounds, never zero.
fn scaled((width, height): (u32, u32), to: u32, from: u32) -> (u32, u32) {
    let (to, from) = (u64::from(to), u64::from(from));
    let scaled = |side: u32| {
        let product = u64::from(side) * to;
        let (whole, rest) = (product / from, product % from);
        let is_up = 2 * rest > from || (2 * rest == from && whole % 2 == 1);
        ((whole + u64::from(is_up)) as u32).max(1)
    };
    (scaled(width), scaled(height))
}

/// The image at another size.
pub(super) fn resize(rgb: RgbImage, to: (u32, u32)) -> RgbImage {
    let (width, height) = rgb.dimensions();
    if (width, height) == to {
        rgb
    } else if to.0 > width || to.1 > height {
        convolve(&rgb, to, lanczos4())
    } else if width / to.0 >= RATIO_MAX || height / to.1 >= RATIO_MAX {
        convolve(&rgb, to, FilterType::Box)
    } else {
        area(&rgb, to)
    }
}

/// The part of the image that is stored, in the middle, with a border where the mode has one.
/// `found` is the size of the image as it was found.
pub(super) fn frame(rgb: RgbImage, found: (u32, u32), rules: &ImagePlan) -> RgbImage {
    const WHITE: Rgb<u8> = Rgb([255; 3]);
    if is_left_alone(found, rules) {
        return rgb;
    }
    match rules.resize {
        Resize::No | Resize::KeepRatio | Resize::KeepRatioLargest => rgb,
        Resize::CenterCrop => {
            let (x, y) = ((rgb.width() - rules.size) / 2, (rgb.height() - rules.size) / 2);
            imageops::crop_imm(&rgb, x, y, rules.size, rules.size).to_image()
        }
        Resize::Border => pad(&rgb, rules.size, WHITE),
        Resize::MeanPad => pad(&rgb, rules.size, mean(&rgb)),
    }
}

fn pad(rgb: &RgbImage, side: u32, colour: Rgb<u8>) -> RgbImage {
    let mut square = RgbImage::from_pixel(side, side, colour);
    let (x, y) = ((side - rgb.width()) / 2, (side - rgb.height()) / 2);
    imageops::replace(&mut square, rgb, x.into(), y.into());
    square
}

/// Means over areas, in integers, so that every machine makes the same pixels.
///
/// The box filter of `fast_image_resize` counts whole pixels: against `cv2.INTER_AREA` that is 33 dB on
/// photographs at odd ratios, and its filters know only distances, not the size of a pixel.
fn area(rgb: &RgbImage, (to_width, to_height): (u32, u32)) -> RgbImage {
    const HALF: u32 = (ROW_UNIT * COLUMN_UNIT / 2) as u32;
    const SHIFT: u32 = (ROW_UNIT * COLUMN_UNIT).ilog2();
    let columns = covers(rgb.width(), to_width, COLUMN_UNIT);
    let rows = covers(rgb.height(), to_height, ROW_UNIT);
    let stride = 3 * rgb.width() as usize;
    let mut sums = vec![0_u16; stride];
    let mut pixels = Vec::with_capacity(3 * to_width as usize * to_height as usize);
    for row in &rows {
        sums.fill(0);
        let lines = rgb.as_raw()[stride * row.first..].chunks_exact(stride);
        for (&weight, line) in row.weights.iter().zip(lines) {
            // Wrapping, since nothing can overflow (see `ROW_UNIT`) and a check would cost a half.
            for (sum, &value) in sums.iter_mut().zip(line) {
                *sum = sum.wrapping_add(u16::from(value).wrapping_mul(weight));
            }
        }
        for column in &columns {
            let mut pixel = [HALF; 3];
            let covered = sums[3 * column.first..].chunks_exact(3);
            for (&weight, covered) in column.weights.iter().zip(covered) {
                for (sum, &value) in pixel.iter_mut().zip(covered) {
                    *sum = sum.wrapping_add(u32::from(weight).wrapping_mul(value.into()));
                }
            }
            pixels.extend(pixel.map(|sum| (sum >> SHIFT) as u8));
        }
    }
    RgbImage::from_raw(to_width, to_height, pixels).expect("three bytes were made for each pixel")
}

/// The old pixels along one side that a new one covers, with the part of each.
struct Cover {
    first: usize,
    weights: Vec<u16>,
}

/// What each of `to` new pixels covers of `from` old ones; the weights of each sum to `unit`.
fn covers(from: u32, to: u32, unit: u64) -> Vec<Cover> {
    let (from, to) = (u64::from(from), u64::from(to));
    // Lengths in units in which an old pixel is `to` long and a new one `from`.
    let cover = |i: u64| {
        let (start, end) = (i * from, (i + 1) * from);
        let first = start / to;
        // Differences of a rounded running total: rounding never changes the sum.
        let total = |old: u64| ((old * to).clamp(start, end) - start) * unit / from;
        let weights = (first..end.div_ceil(to)).map(|old| (total(old + 1) - total(old)) as u16);
        Cover { first: first as usize, weights: weights.collect() }
    };
    (0..to).map(cover).collect()
}

fn convolve(rgb: &RgbImage, to: (u32, u32), filter: FilterType) -> RgbImage {
    // Typed, so that the resizer is compiled for these pixels alone.
    let source = TypedImageRef::<U8x3>::from_buffer(rgb.width(), rgb.height(), rgb.as_raw())
        .expect("an RGB image has three bytes per pixel");
    let mut resized = RgbImage::new(to.0, to.1);
    let mut target = TypedImage::<U8x3>::from_buffer(to.0, to.1, &mut resized)
        .expect("an RGB image has three bytes per pixel");
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter));
    Resizer::new()
        .resize_typed(&source, &mut target, &options)
        .expect("source and result have the same kind of pixels");
    resized
}

/// The Lanczos filter over 8 pixels, as `cv2.INTER_LANCZOS4`.
fn lanczos4() -> FilterType {
    const RADIUS: f64 = 4.0;
    fn sinc(x: f64) -> f64 {
        let x = x * std::f64::consts::PI;
        if x == 0.0 { 1.0 } else { x.sin() / x }
    }
    fn filter(x: f64) -> f64 {
        if x.abs() < RADIUS { sinc(x) * sinc(x / RADIUS) } else { 0.0 }
    }
    FilterType::Custom(Filter::new("Lanczos4", filter, RADIUS).expect("the radius is positive"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tests::gradient;

    #[test]
    fn sizes_are_those_of_img2dataset() {
        let check = |resize, only_if_bigger, size, expected: (u32, u32), stored: (u32, u32)| {
            let rules = ImagePlan { resize, size: 100, only_if_bigger, ..ImagePlan::default() };
            let resized = resized_size(size, &rules);
            let framed = frame(RgbImage::new(resized.0, resized.1), size, &rules);
            assert_eq!((resized, framed.dimensions()), (expected, stored), "{resize:?} {size:?}");
        };
        check(Resize::No, false, (300, 150), (300, 150), (300, 150));
        check(Resize::KeepRatio, false, (300, 150), (200, 100), (200, 100));
        check(Resize::KeepRatioLargest, false, (300, 150), (100, 50), (100, 50));
        check(Resize::CenterCrop, false, (300, 151), (199, 100), (100, 100));
        check(Resize::Border, false, (300, 150), (100, 50), (100, 100));
        check(Resize::MeanPad, false, (150, 300), (50, 100), (100, 100));
        // Small ones grow, or are left alone with no crop and no border.
        check(Resize::Border, false, (50, 20), (100, 40), (100, 100));
        check(Resize::Border, true, (50, 20), (50, 20), (50, 20));
        check(Resize::CenterCrop, true, (300, 100), (300, 100), (300, 100));
        check(Resize::KeepRatio, true, (300, 101), (297, 100), (297, 100));
        // Halves go to the even number: 100 * 201 / 400 = 50.25, 100 * 202 / 400 = 50.5.
        check(Resize::KeepRatioLargest, false, (400, 201), (100, 50), (100, 50));
        check(Resize::KeepRatioLargest, false, (400, 202), (100, 50), (100, 50));
        check(Resize::KeepRatioLargest, false, (400, 206), (100, 52), (100, 52));
        check(Resize::KeepRatioLargest, false, (4000, 3), (100, 1), (100, 1));
    }

    #[test]
    fn the_border_has_the_mean_colour_and_the_picture_lies_in_the_middle() {
        let rules = ImagePlan {
            resize: Resize::MeanPad,
            size: 8,
            only_if_bigger: false,
            ..ImagePlan::default()
        };
        let picture =
            RgbImage::from_fn(8, 3, |x, _| if x < 4 { Rgb([0; 3]) } else { Rgb([100, 51, 3]) });
        let framed = frame(picture, (8, 3), &rules);
        let column: Vec<[u8; 3]> = (0..8).map(|y| framed.get_pixel(7, y).0).collect();
        let (border, inside) = ([50, 26, 2], [100, 51, 3]);
        assert_eq!(column, [border, border, inside, inside, inside, border, border, border]);
    }

    #[test]
    fn an_area_is_a_mean_weighted_by_what_is_covered() {
        // Three pixels to two: each new one is one whole and half of the middle one.
        let line = RgbImage::from_fn(3, 1, |x, _| Rgb([[30, 60, 240][x as usize]; 3]));
        assert_eq!(area(&line, (2, 1)).as_raw()[..], [40, 40, 40, 180, 180, 180]);
        let standing = RgbImage::from_fn(1, 3, |_, y| Rgb([[30, 60, 240][y as usize]; 3]));
        assert_eq!(area(&standing, (1, 2)).as_raw()[..], [40, 40, 40, 180, 180, 180]);
        let white = RgbImage::from_pixel(997, 601, Rgb([255; 3]));
        assert!(area(&white, (101, 60)).as_raw().iter().all(|&value| value == 255));
        for cover in covers(997, 101, ROW_UNIT) {
            assert_eq!(cover.weights.iter().map(|&w| u64::from(w)).sum::<u64>(), ROW_UNIT);
        }
    }

    #[test]
    fn growing_keeps_the_picture() {
        let small = gradient(60, 40);
        let large = resize(small.clone(), (120, 80));
        for (x, y) in [(5, 5), (30, 20), (55, 33)] {
            let (old, new) = (small.get_pixel(x, y).0, large.get_pixel(2 * x, 2 * y).0);
            assert!(old.iter().zip(new).all(|(old, new)| old.abs_diff(new) <= 3), "{x} {y}");
        }
    }

    #[test]
    fn sides_fit_and_never_vanish() {
        assert_eq!(fit((1000, 10), 100), (100, 1));
        assert_eq!(fit((1000, 1), 100), (100, 1));
        assert_eq!(fit((50, 50), 100), (50, 50));
        assert_eq!(fit((5000, 50), 0), (5000, 50));
    }
}
