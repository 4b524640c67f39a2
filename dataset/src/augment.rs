//! Values of 256 to the numbers that a vision encoder reads: mirrored, coloured, normalised, and 0 around the
//! image. `model/src/ops/unfold.rs` and `unfold.cu` do the same where a model runs, each product and each sum
//! rounded as here, so that numbers are the same to the last bit whoever makes them.

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

    pub(crate) fn keeps_colours(&self) -> bool {
        Self { flip: false, ..*self } == Self::NONE
    }
}

/// The part of a square that an image takes, in pixels; what is around it is padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rectangle {
    /// Pixels to the left of it.
    pub left: usize,
    /// Pixels above it.
    pub top: usize,
    /// Its width.
    pub width: usize,
    /// Its height; 0 where there is no image.
    pub height: usize,
}

impl Rectangle {
    /// No image.
    pub(crate) const NOTHING: Self = Self { left: 0, top: 0, width: 0, height: 0 };
}

/// What is still to be done with the values of one frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FrameAugment {
    /// Where the image is; numbers around it are 0.
    pub rectangle: Rectangle,
    /// How it changes, within the rectangle.
    pub augment: Augment,
}

impl FrameAugment {
    /// Adds the numbers `[3, size, size]` of values `[3, size, size]`.
    pub(crate) fn add_numbers(&self, numbers: &mut Vec<f32>, values: &[u8], normalise: &Normalise) {
        let plane = values.len() / 3;
        let size = plane.isqrt();
        let Rectangle { left, top, width, height } = self.rectangle;
        let mut pixels = Vec::with_capacity(width * height);
        for y in top..top + height {
            let row = y * size + left..y * size + left + width;
            pixels.extend(row.map(|i| [values[i], values[plane + i], values[2 * plane + i], 0]));
        }
        if self.augment.flip {
            mirror(&mut pixels, width);
        }
        self.add_numbers_of(numbers, &pixels, size, normalise);
    }

    /// The same of the pixels within the rectangle, row by row: red, green, blue and one value that is not
    /// looked at; already mirrored.
    pub(crate) fn add_numbers_of(
        &self,
        numbers: &mut Vec<f32>,
        pixels: &[[u8; 4]],
        size: usize,
        normalise: &Normalise,
    ) {
        if self.augment.keeps_colours() {
            // Of a word the compiler makes vectors; four loads of a byte each would take four times as long.
            let number = |pixel: &[u8; 4], colour| {
                let value = u32::from_le_bytes(*pixel) >> (8 * colour) & 0xff;
                normalise.number(value as i32 as f32, colour)
            };
            add_planes(numbers, pixels, self.rectangle, size, number);
        } else {
            let values = coloured(pixels, &self.augment);
            let number = |pixel: &[f32; 4], colour: usize| normalise.number(pixel[colour], colour);
            add_planes(numbers, &values, self.rectangle, size, number);
        }
    }
}

/// What makes values of 256 to numbers of mean 0 and deviation 1. One product and one difference: the same
/// value gives the same number wherever it is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normalise {
    /// What values of red, green and blue are multiplied by.
    pub factor: [f32; 3],
    /// What is taken off the products.
    pub shift: [f32; 3],
}

impl Normalise {
    /// By mean and standard deviation of red, green and blue, 0 to 1.
    pub fn new(mean: [f32; 3], std: [f32; 3]) -> Self {
        Self {
            factor: std.map(|std| 1.0 / (255.0 * std)),
            shift: std::array::from_fn(|colour| mean[colour] / std[colour]),
        }
    }

    /// The number of a value of red (0), green (1) or blue (2).
    fn number(&self, value: f32, colour: usize) -> f32 {
        value * self.factor[colour] - self.shift[colour]
    }
}

/// Swaps left and right of rows of so many pixels.
pub(crate) fn mirror(pixels: &mut [[u8; 4]], width: usize) {
    // Where there is no image there is no row.
    pixels.chunks_exact_mut(width.max(1)).for_each(<[_]>::reverse);
}

/// Values 0 to 255 after brightness, contrast and saturation, in this order.
fn coloured(pixels: &[[u8; 4]], augment: &Augment) -> Vec<[f32; 4]> {
    let bright = |value: u8| (f32::from(value) * augment.brightness).clamp(0.0, 255.0);
    let mut values: Vec<[f32; 4]> = pixels.iter().map(|pixel| pixel.map(bright)).collect();
    let spread = |pixel: &mut [f32; 4], grey: f32, factor: f32| {
        *pixel = pixel.map(|value| (grey + (value - grey) * factor).clamp(0.0, 255.0));
    };
    if (augment.contrast - 1.0).abs() > f32::EPSILON {
        let grey = mean_grey(&values);
        for pixel in &mut values {
            spread(pixel, grey, augment.contrast);
        }
    }
    if (augment.saturation - 1.0).abs() > f32::EPSILON {
        for pixel in &mut values {
            let grey = luma(pixel);
            spread(pixel, grey, augment.saturation);
        }
    }
    values
}

/// Grey of a pixel by the weights of ITU-R BT.601.
fn luma(pixel: &[f32; 4]) -> f32 {
    0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]
}

/// Greys are counted in steps of 2^-18 where they are summed: of images of up to 8192 x 8192 pixels the sum fits
/// 53 bits, and a step is smaller than what f32 tells apart in a mean grey above 32.
const GREY_STEPS: f32 = (1 << 18) as f32;

/// Mean grey of pixels. The sum is one of whole numbers, so that it is the same in any order.
fn mean_grey(values: &[[f32; 4]]) -> f32 {
    let steps = |pixel| i64::from((luma(pixel) * GREY_STEPS) as i32);
    let sum: i64 = values.iter().map(steps).sum();
    (sum as f64 / (values.len() as f64 * f64::from(GREY_STEPS))) as f32
}

/// Adds planes of red, green and blue `[3, size, size]`, each made of the `value`s of pixels within the
/// rectangle, and zeros around it.
pub(crate) fn add_planes<P, V: Copy + Default>(
    planes: &mut Vec<V>,
    pixels: &[P],
    at: Rectangle,
    size: usize,
    value: impl Fn(&P, usize) -> V,
) {
    // Nothing need be cleared before it is written where nothing pads. Three passes over what is in the
    // cache take half the time of one that writes to three places.
    if pixels.len() == size * size {
        planes.extend(pixels.iter().map(|pixel| value(pixel, 0)));
        planes.extend(pixels.iter().map(|pixel| value(pixel, 1)));
        planes.extend(pixels.iter().map(|pixel| value(pixel, 2)));
        return;
    }
    for colour in 0..3 {
        let first = planes.len();
        planes.resize(first + size * size, V::default());
        let rows = planes[first..].chunks_exact_mut(size).skip(at.top);
        for (row, pixels) in rows.zip(pixels.chunks_exact(at.width.max(1))) {
            for (place, pixel) in row[at.left..].iter_mut().zip(pixels) {
                *place = value(pixel, colour);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NORMALISE: Normalise = Normalise { factor: [0.01, 0.02, 0.03], shift: [1.0, 0.5, 0.25] };

    fn pixels(n: usize, seed: u64) -> Vec<[u8; 4]> {
        let mut state = seed;
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..n).map(|_| [byte(), byte(), byte(), 255]).collect()
    }

    proptest! {
        #[test]
        fn the_mean_grey_is_the_same_in_any_order(
            seed: u64, n in 1_usize..3000, first in 0_usize..3000, brightness in 0.0_f32..2.0,
        ) {
            let bright = Augment { brightness, ..Augment::NONE };
            let mut values = coloured(&pixels(n, seed), &bright);
            let grey = mean_grey(&values);
            let exact = |p: &[f32; 4]| {
                let [red, green, blue] = [p[0], p[1], p[2]].map(f64::from);
                0.299 * red + 0.587 * green + 0.114 * blue
            };
            let mean = values.iter().map(exact).sum::<f64>() / n as f64;
            prop_assert!((f64::from(grey) - mean).abs() < 2e-5, "{} is not {}", grey, mean);
            values.rotate_left(first % n);
            values[..n.min(first)].reverse();
            prop_assert_eq!(mean_grey(&values).to_bits(), grey.to_bits());
        }
    }

    #[test]
    fn the_brightest_greys_are_summed_without_overflow() {
        let white = vec![[255.0; 4]; 1 << 16];
        assert!((mean_grey(&white) - 255.0).abs() < 2e-5);
        assert_eq!(mean_grey(&[[0.0; 4]]).to_bits(), 0);
    }

    /// By the formulas for one pixel, in f64.
    fn expected(pixel: [u8; 4], mean_grey: f64, augment: &Augment) -> [f64; 3] {
        let [brightness, contrast, saturation] =
            [augment.brightness, augment.contrast, augment.saturation].map(f64::from);
        let clamp = |value: f64| value.clamp(0.0, 255.0);
        let rgb = [pixel[0], pixel[1], pixel[2]].map(|v| clamp(f64::from(v) * brightness));
        let rgb = rgb.map(|v| clamp(mean_grey + (v - mean_grey) * contrast));
        let grey = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2];
        rgb.map(|v| clamp(grey + (v - grey) * saturation))
    }

    #[test]
    fn planes_are_what_the_formulas_say_within_the_rectangle_and_zero_around_it() {
        let size = 7;
        let whole = Rectangle { left: 0, top: 0, width: 7, height: 7 };
        let wide = Rectangle { left: 0, top: 2, width: 7, height: 2 };
        let high = Rectangle { left: 1, top: 0, width: 5, height: 7 };
        let jitter = Augment { flip: false, brightness: 1.3, contrast: 0.6, saturation: 1.7 };
        let values: Vec<u8> = pixels(49, 3).iter().flat_map(|p| [p[0], p[1], p[2]]).collect();
        let flip = |augment| Augment { flip: true, ..augment };
        for rectangle in [whole, wide, high, Rectangle::NOTHING] {
            for augment in [Augment::NONE, jitter, flip(Augment::NONE), flip(jitter)] {
                let mut numbers = vec![9.0];
                let frame = FrameAugment { rectangle, augment };
                frame.add_numbers(&mut numbers, &values, &NORMALISE);
                let Rectangle { left, top, width, height } = rectangle;
                let pixel = |x: usize, y: usize| {
                    let at = |plane: usize| values[plane * 49 + y * size + x];
                    [at(0), at(1), at(2), 0]
                };
                let inside = || {
                    (0..49).map(|i| (i % size, i / size)).filter(|(x, y)| {
                        (left..left + width).contains(x) && (top..top + height).contains(y)
                    })
                };
                let bright = Augment { flip: false, contrast: 1.0, saturation: 1.0, ..augment };
                let grey = |rgb: [f64; 3]| 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2];
                let greys = inside().map(|(x, y)| grey(expected(pixel(x, y), 0.0, &bright)));
                let mean_grey = greys.sum::<f64>() / inside().count() as f64;
                let mut all = vec![0.0; 3 * 49];
                for (x, y) in inside() {
                    let from = if augment.flip { 2 * left + width - 1 - x } else { x };
                    let rgb = expected(pixel(from, y), mean_grey, &augment);
                    for colour in 0..3 {
                        all[colour * 49 + y * size + x] = rgb[colour]
                            * f64::from(NORMALISE.factor[colour])
                            - f64::from(NORMALISE.shift[colour]);
                    }
                }
                assert_eq!((numbers.len(), numbers[0]), (1 + all.len(), 9.0));
                for (found, expected) in numbers[1..].iter().zip(&all) {
                    let same = (f64::from(*found) - expected).abs() < 1e-5;
                    assert!(same, "{found}, not {expected}: {frame:?}");
                    assert!(*expected != 0.0 || found.to_bits() == 0, "{frame:?}");
                }
            }
        }
    }
}
