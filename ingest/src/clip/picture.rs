//! A decoded frame to an RGB image as a viewer sees it: upright, with square pixels, in the colours
//! that the stream means, shrunk to the size of the plan.
//!
//! Colour: the matrix and the range that the frame names; without a name BT.601 and limited range, as
//! the ffmpeg command line has it. Transfer curves are left alone: HDR is not mapped to SDR.

use ffmpeg::codec::packet::side_data::Type as SideDataType;
use ffmpeg::color::{Range, Space};
use ffmpeg::format::Pixel;
use ffmpeg::format::stream::Stream;
use ffmpeg::software::scaling::{Context, Flags};
use ffmpeg::{Rational, frame};
use ffmpeg_next as ffmpeg;
use image::RgbImage;

use super::library_error;
use crate::image::{SIDE_MAX, fit};
use crate::plan::VideoPlan;
use crate::reject::DropReason;

/// Results do not depend on the processor.
const FLAGS: Flags = Flags::ACCURATE_RND.union(Flags::BITEXACT);
/// Bits after the point of the colour matrix.
const FRACTION_BITS: i32 = 14;

/// Makes images of the frames of one stream.
pub(super) struct Easel<'a> {
    rules: &'a VideoPlan,
    turn: Turn,
    /// Shape of a pixel where a frame does not tell.
    pixel: Rational,
    scaler: Option<Context>,
    scaled: frame::Video,
}

impl<'a> Easel<'a> {
    pub(super) fn new(stream: &Stream<'_>, pixel: Rational, rules: &'a VideoPlan) -> Self {
        let matrix = stream.side_data().find(|data| data.kind() == SideDataType::DisplayMatrix);
        let turn = matrix.map_or(Turn::default(), |matrix| Turn::of_matrix(matrix.data()));
        Self { rules, turn, pixel, scaler: None, scaled: frame::Video::empty() }
    }

    /// The frame as an image.
    pub(super) fn rgb(&mut self, decoded: &frame::Video) -> Result<RgbImage, DropReason> {
        check_size((decoded.width(), decoded.height()), self.rules)?;
        let pixel = decoded.aspect_ratio();
        let pixel = if pixel.numerator() > 0 { pixel } else { self.pixel };
        let size = stored_size((decoded.width(), decoded.height()), pixel, self.rules)?;
        let is_yuv = decoded.format().descriptor().is_some_and(|d| d.name().starts_with("yuv"));
        let raw = if is_yuv {
            let range = self.scale(decoded, Pixel::YUV444P, size)?;
            matrix_rgb(&self.scaled, size, &Matrix::new(decoded.color_space(), range))
        } else {
            self.scale(decoded, Pixel::RGB24, size)?;
            packed_rows(&self.scaled, size)
        };
        let rgb = RgbImage::from_raw(size.0, size.1, raw)
            .ok_or_else(|| DropReason::detail("bad_video", "a frame is not whole"))?;
        Ok(self.turn.apply(rgb))
    }

    /// Scales into `self.scaled`; returns the range of the result's colours.
    fn scale(
        &mut self,
        decoded: &frame::Video,
        to: Pixel,
        (to_width, to_height): (u32, u32),
    ) -> Result<Range, DropReason> {
        let (format, width, height) = (decoded.format(), decoded.width(), decoded.height());
        let is_same = self.scaler.as_ref().is_some_and(|scaler| {
            let (from, made) = (scaler.input(), scaler.output());
            (from.format, from.width, from.height) == (format, width, height)
                && (made.format, made.width, made.height) == (to, to_width, to_height)
        });
        if !is_same {
            // Averages where a frame shrinks; else its colours, stored at half the size, are made larger.
            let is_shrunk = to_width < width || to_height < height;
            let flags = FLAGS | if is_shrunk { Flags::AREA } else { Flags::BICUBIC };
            let scaler = Context::get(format, width, height, to, to_width, to_height, flags);
            self.scaler = Some(scaler.map_err(library_error)?);
            self.scaled = frame::Video::empty();
        }
        let scaler = self.scaler.as_mut().expect("the scaler was made above");
        scaler.run(decoded, &mut self.scaled).map_err(library_error)?;
        // The library makes the old formats of full range limited on the way; of the others it does
        // not look at the range.
        let is_old_full = format.descriptor().is_some_and(|d| d.name().starts_with("yuvj"));
        Ok(if is_old_full { Range::MPEG } else { decoded.color_range() })
    }
}

/// Checks the size of a frame before it is decoded or scaled.
pub(super) fn check_size((width, height): (u32, u32), rules: &VideoPlan) -> Result<(), DropReason> {
    let pixels = u64::from(width) * u64::from(height);
    let short = width.min(height);
    if short == 0 {
        return Err(DropReason::detail("bad_video", "its pictures have no size"));
    }
    if pixels > rules.pixels_max {
        return Err(DropReason::limit("too_many_pixels", pixels as f64, rules.pixels_max as f64));
    }
    if short < rules.side_min {
        return Err(DropReason::limit("too_small", f64::from(short), f64::from(rules.side_min)));
    }
    Ok(())
}

/// The size at which a frame of this size and shape of pixels is stored.
fn stored_size(
    (width, height): (u32, u32),
    pixel: Rational,
    rules: &VideoPlan,
) -> Result<(u32, u32), DropReason> {
    let (width, height) = fit((square_pixels(width, pixel), height), rules.stored_side_max);
    let (pixels, long) = (u64::from(width) * u64::from(height), width.max(height));
    // Pixels that are not square can make a frame up to four times as wide.
    if pixels > rules.pixels_max {
        return Err(DropReason::limit("too_many_pixels", pixels as f64, rules.pixels_max as f64));
    }
    if long > SIDE_MAX {
        return Err(DropReason::limit("too_large", f64::from(long), f64::from(SIDE_MAX)));
    }
    Ok((width, height))
}

/// The width at which a frame is shown on square pixels, at most four times its own.
fn square_pixels(width: u32, pixel: Rational) -> u32 {
    let (n, d) = (i64::from(pixel.numerator()), i64::from(pixel.denominator()));
    if n <= 0 || d <= 0 || n > 4 * d || d > 4 * n {
        return width;
    }
    ((i64::from(width) * n + d / 2) / d).max(1) as u32
}

/// Rows of a packed frame without what stands between them.
fn packed_rows(frame: &frame::Video, (width, height): (u32, u32)) -> Vec<u8> {
    let row_bytes = 3 * width as usize;
    let rows = frame.data(0).chunks(frame.stride(0)).take(height as usize);
    rows.flat_map(|row| &row[..row_bytes]).copied().collect()
}

/// Luma and chroma to RGB, in whole numbers with [`FRACTION_BITS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Matrix {
    luma_zero: i32,
    luma: i32,
    red_of_v: i32,
    green_of_u: i32,
    green_of_v: i32,
    blue_of_u: i32,
}

impl Matrix {
    /// The matrix of a colour space (ITU-T H.273, table 4).
    fn new(space: Space, range: Range) -> Self {
        let (kr, kb) = match space {
            Space::BT709 => (0.2126, 0.0722),
            Space::FCC => (0.30, 0.11),
            Space::SMPTE240M => (0.212, 0.087),
            Space::BT2020NCL | Space::BT2020CL => (0.2627, 0.0593),
            _ => (0.299, 0.114),
        };
        let (luma_zero, luma_span, chroma_span) =
            if range == Range::JPEG { (0, 255.0, 255.0) } else { (16, 219.0, 224.0) };
        let kg: f64 = 1.0 - kr - kb;
        let fixed = |value: f64| (value * f64::from(1 << FRACTION_BITS)).round() as i32;
        let chroma = 255.0 / chroma_span;
        Self {
            luma_zero,
            luma: fixed(255.0 / luma_span),
            red_of_v: fixed(2.0 * (1.0 - kr) * chroma),
            green_of_u: fixed(2.0 * (1.0 - kb) * kb / kg * chroma),
            green_of_v: fixed(2.0 * (1.0 - kr) * kr / kg * chroma),
            blue_of_u: fixed(2.0 * (1.0 - kb) * chroma),
        }
    }

    fn rgb(&self, y: u8, u: u8, v: u8) -> [u8; 3] {
        let half = 1 << (FRACTION_BITS - 1);
        let y = (i32::from(y) - self.luma_zero) * self.luma + half;
        let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
        let whole = |value: i32| (value >> FRACTION_BITS).clamp(0, 255) as u8;
        [
            whole(y + self.red_of_v * v),
            whole(y - self.green_of_u * u - self.green_of_v * v),
            whole(y + self.blue_of_u * u),
        ]
    }
}

/// A frame of three whole planes as packed RGB.
fn matrix_rgb(frame: &frame::Video, (width, height): (u32, u32), matrix: &Matrix) -> Vec<u8> {
    let (width, height) = (width as usize, height as usize);
    let mut raw = vec![0; 3 * width * height];
    let [y, u, v] = [0, 1, 2].map(|plane| frame.data(plane).chunks(frame.stride(plane)));
    for (((y, u), v), row) in y.zip(u).zip(v).zip(raw.chunks_exact_mut(3 * width)) {
        let samples = y[..width].iter().zip(&u[..width]).zip(&v[..width]);
        for (((&y, &u), &v), out) in samples.zip(row.chunks_exact_mut(3)) {
            out.copy_from_slice(&matrix.rgb(y, u, v));
        }
    }
    raw
}

/// What sets a frame upright: first the axes are exchanged, then mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Turn {
    transpose: bool,
    mirror_x: bool,
    mirror_y: bool,
}

impl Turn {
    /// The quarter turn and mirroring of a display matrix: nine numbers of 32 bits, of which `a b`,
    /// then after a third `c d`, send a point `(x, y)` to `(a x + c y, b x + d y)`. Angles between
    /// quarter turns go to the nearest one.
    fn of_matrix(matrix: &[u8]) -> Self {
        let number = |i: usize| {
            let bytes = matrix.get(4 * i..4 * i + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, |bytes| i64::from(i32::from_ne_bytes(bytes)))
        };
        let (a, b, c, d) = (number(0), number(1), number(3), number(4));
        if a.abs() >= b.abs() {
            Self { transpose: false, mirror_x: a < 0, mirror_y: d < 0 }
        } else {
            Self { transpose: true, mirror_x: c < 0, mirror_y: b < 0 }
        }
    }

    fn apply(self, rgb: RgbImage) -> RgbImage {
        if self == Self::default() {
            return rgb;
        }
        let (width, height) = rgb.dimensions();
        let (to_width, to_height) = if self.transpose { (height, width) } else { (width, height) };
        RgbImage::from_fn(to_width, to_height, |x, y| {
            let x = if self.mirror_x { to_width - 1 - x } else { x };
            let y = if self.mirror_y { to_height - 1 - y } else { y };
            if self.transpose { *rgb.get_pixel(y, x) } else { *rgb.get_pixel(x, y) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_become_square() {
        assert_eq!(square_pixels(720, Rational::new(16, 15)), 768);
        assert_eq!(square_pixels(720, Rational::new(0, 1)), 720);
        assert_eq!(square_pixels(720, Rational::new(1000, 1)), 720);
    }

    #[test]
    fn a_frame_is_measured_as_it_is_stored() {
        let rules = |stored_side_max| VideoPlan { stored_side_max, ..VideoPlan::default() };
        let wide = Rational::new(4, 1);
        let reason = |size| stored_size(size, wide, &rules(0)).unwrap_err().reason;
        assert_eq!(reason((20_000, 64)), "too_large");
        assert_eq!(reason((8_000, 4_000)), "too_many_pixels");
        assert_eq!(stored_size((20_000, 100), wide, &rules(800)), Ok((800, 1)));
    }

    #[test]
    fn the_display_matrix_tells_the_turn() {
        // A frame of two by one: which pixel comes where.
        let frame = RgbImage::from_raw(2, 1, vec![1, 1, 1, 2, 2, 2]).unwrap();
        let check = |[a, b, c, d]: [i32; 4], size, expected: [u8; 2]| {
            let one = 1 << 16;
            let matrix = [a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30];
            let turn = Turn::of_matrix(&matrix.map(i32::to_ne_bytes).concat());
            let upright = turn.apply(frame.clone());
            assert_eq!(upright.dimensions(), size);
            assert_eq!(upright.pixels().map(|p| p.0[0]).collect::<Vec<_>>(), expected);
        };
        check([1, 0, 0, 1], (2, 1), [1, 2]);
        // A quarter clockwise: the left end comes to the top.
        check([0, 1, -1, 0], (1, 2), [1, 2]);
        check([-1, 0, 0, -1], (2, 1), [2, 1]);
        check([0, -1, 1, 0], (1, 2), [2, 1]);
        check([-1, 0, 0, 1], (2, 1), [2, 1]);
        check([0, 1, 1, 0], (1, 2), [1, 2]);
        assert_eq!(Turn::of_matrix(&[]), Turn::default());
    }

    #[test]
    fn colours_follow_matrix_and_range() {
        let check = |space, range, [y, u, v]: [u8; 3], expected: [u8; 3]| {
            let rgb = Matrix::new(space, range).rgb(y, u, v);
            let off = rgb.iter().zip(expected).map(|(a, b)| a.abs_diff(b)).max();
            assert!(off <= Some(1), "{space:?} {range:?}: {rgb:?}, expected {expected:?}");
        };
        // Pure red in each system, by the definitions of BT.601, BT.709 and BT.2020.
        check(Space::Unspecified, Range::Unspecified, [81, 90, 240], [255, 0, 0]);
        check(Space::BT709, Range::MPEG, [63, 102, 240], [255, 0, 0]);
        check(Space::BT2020NCL, Range::MPEG, [74, 97, 240], [255, 0, 0]);
        check(Space::SMPTE170M, Range::JPEG, [76, 85, 255], [254, 0, 0]);
        for (range, black, white) in [(Range::MPEG, 16, 235), (Range::JPEG, 0, 255)] {
            check(Space::BT709, range, [black, 128, 128], [0, 0, 0]);
            check(Space::BT709, range, [white, 128, 128], [255, 255, 255]);
        }
    }
}
