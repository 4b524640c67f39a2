//! Pixels of images as they come: numbers, or values of 256, which become numbers where the vision tower
//! reads them.
//!
//! Letters: `M` images, `H` and `W` pixels.

use std::borrow::Cow;

/// Pixels of images `[M, 3, H, W]`, the planes of an image being red, green and blue.
#[derive(Debug, Clone, PartialEq)]
pub enum Pixels {
    /// Normalised.
    F32(Vec<f32>),
    /// To be normalised on the device: a quarter of the bytes that are sent there.
    U8 {
        /// Values of 256.
        values: Vec<u8>,
        /// How they become numbers.
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

/// [`Pixels`] of some images, borrowed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PixelsRef<'a> {
    /// Normalised.
    F32(&'a [f32]),
    /// To be normalised.
    U8(&'a [u8], Normal),
}

impl Pixels {
    /// No images.
    pub fn none() -> Self {
        Self::F32(Vec::new())
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
    /// If there are fewer than `n`.
    pub fn rotate_left(&mut self, n: usize) {
        match self {
            Self::F32(numbers) => numbers.rotate_left(n),
            Self::U8 { values, .. } => values.rotate_left(n),
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
            Self::U8(values, _) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Pieces of `n` values each, the last of which may be shorter.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn chunks(self, n: usize) -> Vec<Self> {
        match self {
            Self::F32(numbers) => numbers.chunks(n).map(Self::F32).collect(),
            Self::U8(values, normal) => {
                values.chunks(n).map(|values| Self::U8(values, normal)).collect()
            }
        }
    }

    /// The numbers of whole images of `n` values.
    pub fn numbers(self, n: usize) -> Cow<'a, [f32]> {
        let (values, normal) = match self {
            Self::F32(numbers) => return Cow::Borrowed(numbers),
            Self::U8(values, normal) => (values, normal),
        };
        let mut numbers = Vec::with_capacity(values.len());
        for (plane, colour) in values.chunks(n / 3).zip((0..3).cycle()) {
            numbers.extend(plane.iter().map(|value| normal.number(*value, colour)));
        }
        Cow::Owned(numbers)
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
            Self::U8(values, normal) => Pixels::U8 { values: values.to_vec(), normal },
        };
        for image in images {
            match (&mut all, image) {
                (Pixels::F32(all), Self::F32(numbers)) => all.extend_from_slice(numbers),
                (Pixels::U8 { values: all, normal }, Self::U8(values, of_image))
                    if *normal == of_image =>
                {
                    all.extend_from_slice(values);
                }
                _ => panic!("images of one batch have pixels of one kind"),
            }
        }
        all
    }
}

impl Normal {
    /// The number of a value of red (0), green (1) or blue (2).
    fn number(&self, value: u8, colour: usize) -> f32 {
        f32::from(value) * self.factor[colour] - self.shift[colour]
    }
}

impl<'a> From<&'a Pixels> for PixelsRef<'a> {
    fn from(pixels: &'a Pixels) -> Self {
        match pixels {
            Pixels::F32(numbers) => Self::F32(numbers),
            Pixels::U8 { values, normal } => Self::U8(values, *normal),
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

    #[test]
    fn values_become_numbers_by_their_colour() {
        let normal = Normal { factor: [0.5, 2.0, 1.0], shift: [1.0, 0.0, -3.0] };
        let pixels = Pixels::U8 { values: vec![2, 4, 3, 5, 0, 255, 6, 8, 1, 2, 9, 0], normal };
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
}
