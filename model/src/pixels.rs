//! Pixels of images as they come: numbers, or values of 256, which are augmented and become numbers where the
//! vision tower reads them.
//!
//! Letters: `M` images, `H` and `W` pixels.

use std::borrow::Cow;

use crate::error::ModelError;

/// Pixels of images `[M, 3, H, W]`, the planes of an image being red, green and blue.
#[derive(Debug, Clone, PartialEq)]
pub enum Pixels {
    /// Normalised.
    F32(Vec<f32>),
    /// To be normalised on the device: a quarter of the bytes that are sent there.
    U8 {
        /// Values of 256.
        values: Vec<u8>,
        /// `[M]`: what is done with each image before that; empty where it is nothing.
        frames: Vec<FrameAugment>,
        /// How values become numbers.
        normal: Normal,
    },
}

/// What makes a number of a value of 256: `value * factor - shift`, product and difference each rounded to
/// f32, so that all devices make the same number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normal {
    /// Factor of red, green and blue.
    pub factor: [f32; 3],
    /// What is taken off red, green and blue.
    pub shift: [f32; 3],
}

/// The part of a square that an image takes, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rectangle {
    /// Pixels to the left of it.
    pub left: usize,
    /// Pixels above it.
    pub top: usize,
    /// Its width.
    pub width: usize,
    /// Its height.
    pub height: usize,
}

/// How an image changes before its values are normalised. Products and sums are rounded one after the other, as
/// a loader of numbers does it (`dataset/src/augment.rs`), so that all devices make the same numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FrameAugment {
    /// Where the image is; numbers around it are 0.
    pub rectangle: Rectangle,
    /// Left and right of the rectangle are swapped.
    pub flip: bool,
    /// Factor on all values; 1 changes nothing.
    pub brightness: f32,
    /// Then, factor on the distance from the mean grey of the rectangle; 1 changes nothing.
    pub contrast: f32,
    /// Then, factor on the distance from the pixel's own grey; 1 changes nothing.
    pub saturation: f32,
}

/// [`Pixels`] of some images, borrowed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PixelsRef<'a> {
    /// Normalised.
    F32(&'a [f32]),
    /// To be normalised, as in [`Pixels::U8`].
    U8 {
        /// Values of 256.
        values: &'a [u8],
        /// What is done with each image before that, or empty.
        frames: &'a [FrameAugment],
        /// How values become numbers.
        normal: Normal,
    },
}

impl Pixels {
    /// No images.
    pub fn none() -> Self {
        Self::F32(Vec::new())
    }

    /// Values of 256 `[M, 3, H, W]`, and what is done with each image `[M]`, of which nothing is kept where none
    /// of them changes.
    pub fn of_256(values: Vec<u8>, mut frames: Vec<FrameAugment>, normal: Normal) -> Self {
        let size = (values.len() / frames.len().max(1) / 3).isqrt();
        if frames.iter().all(|frame| *frame == FrameAugment::none(size)) {
            frames.clear();
        }
        Self::U8 { values, frames, normal }
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        PixelsRef::from(self).len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Turns the images: value `n` becomes the first, and those before it the last.
    ///
    /// # Panics
    /// If there are fewer than `n`, or `n` is within an image that changes.
    pub fn rotate_left(&mut self, n: usize) {
        match self {
            Self::F32(numbers) => numbers.rotate_left(n),
            Self::U8 { values, frames, .. } => {
                let n_frames = n_frames(n, values.len(), frames.len());
                values.rotate_left(n);
                frames.rotate_left(n_frames);
            }
        }
    }
}

impl From<Vec<f32>> for Pixels {
    fn from(numbers: Vec<f32>) -> Self {
        Self::F32(numbers)
    }
}

impl<'a> PixelsRef<'a> {
    /// How many values there are.
    pub fn len(self) -> usize {
        match self {
            Self::F32(numbers) => numbers.len(),
            Self::U8 { values, .. } => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Pieces of `n` values each, the last of which may be shorter.
    ///
    /// # Panics
    /// If `n` is 0, or not of whole images where these change.
    pub fn chunks(self, n: usize) -> Vec<Self> {
        match self {
            Self::F32(numbers) => numbers.chunks(n).map(Self::F32).collect(),
            Self::U8 { values, frames: [], normal } => {
                let piece = |values| Self::U8 { values, frames: &[], normal };
                values.chunks(n).map(piece).collect()
            }
            Self::U8 { values, frames, normal } => {
                let frames = frames.chunks(n_frames(n, values.len(), frames.len()));
                let pieces = values.chunks(n).zip(frames);
                pieces.map(|(values, frames)| Self::U8 { values, frames, normal }).collect()
            }
        }
    }

    /// The numbers of whole images of `n` values.
    pub fn numbers(self, n: usize) -> Cow<'a, [f32]> {
        let (values, frames, normal) = match self {
            Self::F32(numbers) => return Cow::Borrowed(numbers),
            Self::U8 { values, frames, normal } => (values, frames, normal),
        };
        let mut numbers = Vec::with_capacity(values.len());
        if frames.is_empty() {
            for (plane, colour) in values.chunks(n / 3).zip((0..3).cycle()) {
                let number = |value: &u8| normal.number(f32::from(*value), colour);
                numbers.extend(plane.iter().map(number));
            }
        }
        for (frame, values) in frames.iter().zip(values.chunks(n)) {
            frame.add_numbers(&mut numbers, values, normal);
        }
        Cow::Owned(numbers)
    }

    /// Fails unless each image has what is done with it, or none has, within its `size` by `size` pixels.
    pub(crate) fn check_frames(self, size: usize) -> Result<(), ModelError> {
        let Self::U8 { values, frames, .. } = self else { return Ok(()) };
        let n_images = values.len() / (3 * size * size);
        if !frames.is_empty() && frames.len() != n_images {
            return Err(ModelError::Input {
                what: "pixels",
                found: format!("{} images that change", frames.len()),
                expected: format!("{n_images}, or none"),
            });
        }
        let fits = |frame: &&FrameAugment| {
            let Rectangle { left, top, width, height } = frame.rectangle;
            let ends = [left.checked_add(width), top.checked_add(height)];
            ends.iter().all(|end| end.is_some_and(|end| end <= size))
        };
        match frames.iter().find(|frame| !fits(frame)) {
            None => Ok(()),
            Some(frame) => Err(ModelError::Input {
                what: "pixels",
                found: format!("an image in {:?}", frame.rectangle),
                expected: format!("one within {size} x {size} pixels"),
            }),
        }
    }

    /// Images one after the other; those of one batch, so that all are of one kind.
    ///
    /// # Panics
    /// If they are not.
    pub fn join(images: impl IntoIterator<Item = Self>) -> Pixels {
        let mut images = images.into_iter();
        let Some(first) = images.next() else { return Pixels::none() };
        let mut all = match first {
            Self::F32(numbers) => Pixels::F32(numbers.to_vec()),
            Self::U8 { values, frames, normal } => {
                Pixels::U8 { values: values.to_vec(), frames: frames.to_vec(), normal }
            }
        };
        for image in images {
            match (&mut all, image) {
                (Pixels::F32(all), Self::F32(numbers)) => all.extend_from_slice(numbers),
                (
                    Pixels::U8 { values: all, frames: all_frames, normal },
                    Self::U8 { values, frames, normal: of_image },
                ) if *normal == of_image && all_frames.is_empty() == frames.is_empty() => {
                    all.extend_from_slice(values);
                    all_frames.extend_from_slice(frames);
                }
                _ => panic!("images of one batch have pixels of one kind"),
            }
        }
        all
    }
}

/// How many frames have `n` values, where `n_frames` have `n_values`.
fn n_frames(n: usize, n_values: usize, n_frames: usize) -> usize {
    let one = n_values / n_frames.max(1);
    assert!(n_frames == 0 || n.is_multiple_of(one), "{n} values are not of frames of {one}");
    if n_frames == 0 { 0 } else { n / one }
}

impl Normal {
    /// The number of a value of red (0), green (1) or blue (2).
    fn number(&self, value: f32, colour: usize) -> f32 {
        value * self.factor[colour] - self.shift[colour]
    }
}

/// Greys are counted in steps of 2^-18 where they are summed: of images of up to 8192 x 8192 pixels the sum fits
/// 53 bits, and a step is smaller than what f32 tells apart in a mean grey above 32.
const GREY_STEPS: f32 = (1 << 18) as f32;

impl FrameAugment {
    /// What leaves an image of `size` by `size` pixels as it is.
    pub fn none(size: usize) -> Self {
        Self {
            rectangle: Rectangle { left: 0, top: 0, width: size, height: size },
            flip: false,
            brightness: 1.0,
            contrast: 1.0,
            saturation: 1.0,
        }
    }

    /// Whether the mean grey is asked for.
    pub(crate) fn changes_contrast(&self) -> bool {
        is_a_change(self.contrast)
    }

    /// Adds the numbers `[3, H, W]` of values `[3, H, W]`.
    fn add_numbers(&self, numbers: &mut Vec<f32>, values: &[u8], normal: Normal) {
        let Rectangle { left, top, width, height } = self.rectangle;
        let plane = values.len() / 3;
        let size = plane.isqrt();
        let pixel = |i: usize| [values[i], values[plane + i], values[2 * plane + i]];
        let rows = || (top..top + height).map(|y| y * size + left);
        let mean_grey = if self.changes_contrast() {
            // A sum of whole numbers, so that it is the same in any order.
            let greys = rows().flat_map(|first| first..first + width).map(|i| {
                let grey = luma(pixel(i).map(|value| self.bright(value)));
                i64::from((grey * GREY_STEPS) as i32)
            });
            (greys.sum::<i64>() as f64 / ((width * height) as f64 * f64::from(GREY_STEPS))) as f32
        } else {
            0.0
        };
        let first_number = numbers.len();
        numbers.resize(first_number + values.len(), 0.0);
        let numbers = &mut numbers[first_number..];
        for first in rows() {
            for x in 0..width {
                let from = first + if self.flip { width - 1 - x } else { x };
                let colours = self.colours(pixel(from), mean_grey);
                for (colour, value) in colours.into_iter().enumerate() {
                    numbers[colour * plane + first + x] = normal.number(value, colour);
                }
            }
        }
    }

    fn bright(&self, value: u8) -> f32 {
        (f32::from(value) * self.brightness).clamp(0.0, 255.0)
    }

    /// Red, green and blue of a pixel, 0 to 255.
    fn colours(&self, pixel: [u8; 3], mean_grey: f32) -> [f32; 3] {
        let mut colours = pixel.map(|value| self.bright(value));
        let spread = |colours: [f32; 3], grey: f32, factor: f32| {
            colours.map(|value| (grey + (value - grey) * factor).clamp(0.0, 255.0))
        };
        if self.changes_contrast() {
            colours = spread(colours, mean_grey, self.contrast);
        }
        if is_a_change(self.saturation) {
            colours = spread(colours, luma(colours), self.saturation);
        }
        colours
    }
}

/// Whether a factor on a distance changes it.
fn is_a_change(factor: f32) -> bool {
    (factor - 1.0).abs() > f32::EPSILON
}

/// Grey of red, green and blue by the weights of ITU-R BT.601.
fn luma([red, green, blue]: [f32; 3]) -> f32 {
    0.299 * red + 0.587 * green + 0.114 * blue
}

impl<'a> From<&'a Pixels> for PixelsRef<'a> {
    fn from(pixels: &'a Pixels) -> Self {
        match pixels {
            Pixels::F32(numbers) => Self::F32(numbers),
            Pixels::U8 { values, frames, normal } => Self::U8 { values, frames, normal: *normal },
        }
    }
}

impl<'a> From<&'a [f32]> for PixelsRef<'a> {
    fn from(numbers: &'a [f32]) -> Self {
        Self::F32(numbers)
    }
}

impl<'a> From<&'a Vec<f32>> for PixelsRef<'a> {
    fn from(numbers: &'a Vec<f32>) -> Self {
        Self::F32(numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NORMAL: Normal = Normal { factor: [0.5, 2.0, 1.0], shift: [1.0, 0.0, -3.0] };

    #[test]
    fn values_become_numbers_by_their_colour() {
        let values = vec![2, 4, 3, 5, 0, 255, 6, 8, 1, 2, 9, 0];
        let pixels = Pixels::U8 { values, frames: Vec::new(), normal: NORMAL };
        let numbers = [0.0, 1.0, 6.0, 10.0, 3.0, 258.0, 2.0, 3.0, 2.0, 4.0, 12.0, 3.0];
        let all = PixelsRef::from(&pixels);
        assert_eq!(all.numbers(6), &numbers[..]);
        let images = all.chunks(6);
        assert_eq!(images[1].numbers(6), &numbers[6..]);
        assert_eq!(PixelsRef::join(images.iter().copied()), pixels);
        let mut turned = pixels.clone();
        turned.rotate_left(6);
        assert_eq!(turned, PixelsRef::join([images[1], images[0]]));
        assert!(PixelsRef::join([]).is_empty());
    }

    /// Three images of two by two pixels, of which the second is flipped, and the third but its left half.
    fn changed() -> Pixels {
        let values = (0..36).collect();
        let mut frames = vec![FrameAugment::none(2); 3];
        frames[1].flip = true;
        frames[2].rectangle.width = 1;
        Pixels::of_256(values, frames, Normal { factor: [1.0; 3], shift: [0.0; 3] })
    }

    #[test]
    fn what_is_done_with_images_goes_where_they_go() {
        let pixels = changed();
        let all = PixelsRef::from(&pixels);
        let numbers = all.numbers(12).into_owned();
        assert_eq!(numbers[..12], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11].map(|n| n as f32));
        assert_eq!(numbers[12..20], [13, 12, 15, 14, 17, 16, 19, 18].map(|n| n as f32));
        assert_eq!(numbers[24..30], [24, 0, 26, 0, 28, 0].map(|n| n as f32));
        let images = all.chunks(12);
        for (image, expected) in images.iter().zip(numbers.chunks(12)) {
            assert_eq!(image.numbers(12), expected);
        }
        let [two, one] = all.chunks(24)[..] else { panic!("three images") };
        assert_eq!((two.numbers(12), one.len()), (numbers[..24].into(), 12));
        assert_eq!(PixelsRef::join([two, one]), pixels);
        let mut turned = pixels.clone();
        turned.rotate_left(24);
        assert_eq!(turned, PixelsRef::join([one, two]));
    }

    #[test]
    fn images_that_do_not_change_carry_nothing() {
        let plain = Pixels::of_256(vec![7; 24], vec![FrameAugment::none(2); 2], NORMAL);
        assert_eq!(plain, Pixels::U8 { values: vec![7; 24], frames: Vec::new(), normal: NORMAL });
        let one: [fn(&mut FrameAugment); 8] = [
            |frame| frame.rectangle.left = 1,
            |frame| frame.rectangle.top = 1,
            |frame| frame.rectangle.width = 1,
            |frame| frame.rectangle.height = 1,
            |frame| frame.flip = true,
            |frame| frame.brightness = 0.5,
            |frame| frame.contrast = 0.5,
            |frame| frame.saturation = 0.5,
        ];
        for change in one {
            let mut frames = vec![FrameAugment::none(2); 2];
            change(&mut frames[1]);
            let pixels = Pixels::of_256(vec![7; 24], frames.clone(), NORMAL);
            assert_eq!(pixels, Pixels::U8 { values: vec![7; 24], frames, normal: NORMAL });
        }
    }

    #[test]
    fn images_outside_their_square_are_refused() {
        let check = |change: fn(&mut Vec<FrameAugment>)| {
            let mut pixels = changed();
            let Pixels::U8 { frames, .. } = &mut pixels else { panic!("values of 256") };
            change(frames);
            PixelsRef::from(&pixels).check_frames(2).map_err(|error| error.to_string())
        };
        check(|_| ()).unwrap();
        check(Vec::clear).unwrap();
        let outside: [fn(&mut Vec<FrameAugment>); 3] = [
            |frames| frames[1].rectangle.left = 1,
            |frames| frames[1].rectangle.top = 1,
            |frames| frames[1].rectangle.width = usize::MAX,
        ];
        for change in outside {
            let error = check(change).unwrap_err();
            assert!(error.contains("one within 2 x 2 pixels"), "{error}");
        }
        let error = check(|frames| frames.truncate(2)).unwrap_err();
        assert!(error.contains("2 images that change"), "{error}");
    }
}
