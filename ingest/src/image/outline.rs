//! What the parts of an image file tell without a pixel decoded: its size, whether it is whole.
//!
//! A decoder that is asked for the size of a hostile file may first unpack a profile, a comment or a
//! table of tiles. This walk reads the few bytes that count, costs microseconds, allocates only the
//! colour profile of a JPEG, and sees what most decoders forgive: a file that ends too early.
//! Formats whose parts lie anywhere in the file (TIFF) are left to their decoder.

use image::ImageFormat;

/// Most bytes of a colour profile that are put together; printers' profiles hold about 2 MB.
const PROFILE_BYTES_MAX: usize = 4 << 20;
/// Most scans of a progressive JPEG: encoders write about ten, a hostile file a thousand, each of
/// which costs a pass over all pixels.
pub(super) const SCANS_MAX: u32 = 200;

/// What is known of a file before it is decoded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Outline {
    /// Width and height as stored, where the walk found them.
    pub(super) size: Option<(u32, u32)>,
    /// Where the file ends too early: what was missing.
    pub(super) missing: Option<&'static str>,
    /// Whether more than one picture is shown, one after the other.
    pub(super) is_animated: bool,
    /// What only a JPEG has.
    pub(super) jpeg: Jpeg,
}

/// Markers of a JPEG.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Jpeg {
    /// Colour components: 1 grey, 3 colour, 4 inks.
    pub(super) components: u8,
    /// Whether Adobe's marker is there: then inks are stored inverted.
    pub(super) is_adobe: bool,
    /// Number of scans.
    pub(super) scans: u32,
    /// The Exif block, a TIFF file of its own.
    pub(super) exif: Option<Vec<u8>>,
    /// The colour profile.
    pub(super) profile: Option<Vec<u8>>,
}

/// Walks over the parts of a file.
pub(super) fn outline(format: ImageFormat, bytes: &[u8]) -> Outline {
    let missing = |missing| Outline { missing: Some(missing), ..Outline::default() };
    let outline = match format {
        ImageFormat::Jpeg => return jpeg(bytes),
        ImageFormat::Png => png(bytes),
        ImageFormat::Gif => gif(bytes),
        ImageFormat::WebP => webp(bytes),
        ImageFormat::Bmp => bmp(bytes),
        _ => Some(Outline::default()),
    };
    outline.unwrap_or_else(|| missing("header"))
}

fn jpeg(bytes: &[u8]) -> Outline {
    let mut found = Outline { missing: Some("end marker"), ..Outline::default() };
    let mut profile = Vec::new();
    let mut at = 0;
    while let Some((marker, after)) = next_marker(bytes, at) {
        at = after;
        match marker {
            0xD9 => {
                found.missing = None;
                break;
            }
            0x01 | 0xD0..=0xD8 => continue,
            _ => {}
        }
        let Some(length) = be16(bytes, at).filter(|&length| length >= 2) else { break };
        let Some(segment) = bytes.get(at + 2..at + usize::from(length)) else { break };
        at += usize::from(length);
        match marker {
            // Frame headers; C4, C8 and CC are tables and a reserved code.
            0xC0..=0xCF if ![0xC4, 0xC8, 0xCC].contains(&marker) => {
                if let (None, &[_, h1, h0, w1, w0, components, ..]) = (found.size, segment) {
                    let (width, height) =
                        (u16::from_be_bytes([w1, w0]), u16::from_be_bytes([h1, h0]));
                    found.size = Some((width.into(), height.into()));
                    found.jpeg.components = components;
                }
            }
            0xDA => found.jpeg.scans += 1,
            0xE1 if found.jpeg.exif.is_none() => {
                found.jpeg.exif = segment.strip_prefix(b"Exif\0\0").map(<[u8]>::to_vec);
            }
            0xE2 => {
                if let Some([part, _, data @ ..]) = segment.strip_prefix(b"ICC_PROFILE\0") {
                    profile.push((*part, data));
                }
            }
            0xEE => found.jpeg.is_adobe |= segment.starts_with(b"Adobe"),
            _ => {}
        }
    }
    profile.sort_by_key(|(part, _)| *part);
    let n_bytes: usize = profile.iter().map(|(_, data)| data.len()).sum();
    if (1..=PROFILE_BYTES_MAX).contains(&n_bytes) {
        found.jpeg.profile = Some(profile.iter().flat_map(|(_, data)| *data).copied().collect());
    }
    found
}

/// The next marker at or after `at` and the place behind it. Bytes of coded pixels and rubbish
/// between the segments are passed over, as decoders do.
fn next_marker(bytes: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += memchr::memchr(0xFF, bytes.get(at..)?)? + 1;
        while bytes.get(at) == Some(&0xFF) {
            at += 1;
        }
        match bytes.get(at)? {
            // A coded byte FF, and the marks that restart a decoder.
            0x00 | 0xD0..=0xD7 => at += 1,
            &marker => return Some((marker, at + 1)),
        }
    }
}

fn png(bytes: &[u8]) -> Option<Outline> {
    const SIGNATURE: usize = 8;
    let size = (be32(bytes, SIGNATURE + 8)?, be32(bytes, SIGNATURE + 12)?);
    let missing = Some("IEND chunk");
    let mut found = Outline { size: Some(size), missing, ..Outline::default() };
    let mut at = SIGNATURE;
    while let (Some(length), Some(name)) = (be32(bytes, at), bytes.get(at + 4..at + 8)) {
        let after = at + 12 + length as usize;
        if after > bytes.len() {
            break;
        }
        match name {
            b"acTL" => found.is_animated = true,
            b"IEND" => {
                found.missing = None;
                break;
            }
            _ => {}
        }
        at = after;
    }
    Some(found)
}

/// Blocks up to the trailer. A file without the trailer that ends behind a picture is whole enough.
fn gif(bytes: &[u8]) -> Option<Outline> {
    const HEADER: usize = 13;
    let size = (le16(bytes, 6)?.into(), le16(bytes, 8)?.into());
    let mut found = Outline { size: Some(size), ..Outline::default() };
    let mut at = HEADER + palette_bytes(*bytes.get(10)?);
    let mut n_images = 0;
    while let Some(block) = bytes.get(at) {
        at = match block {
            0x21 => at + 2,
            0x2C => {
                n_images += 1;
                at + 11 + palette_bytes(bytes.get(at + 9).copied().unwrap_or(0))
            }
            // The trailer; or rubbish, and what came before it is all that a decoder will see.
            _ => break,
        };
        loop {
            let Some(&length) = bytes.get(at) else {
                found.missing = Some("end of a block");
                return Some(found);
            };
            at += 1 + usize::from(length);
            if length == 0 {
                break;
            }
        }
    }
    found.is_animated = n_images > 1;
    if n_images == 0 {
        found.missing = Some("picture");
    }
    Some(found)
}

/// Bytes of a colour table, from the flags that announce it.
fn palette_bytes(flags: u8) -> usize {
    if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) }
}

fn webp(bytes: &[u8]) -> Option<Outline> {
    let u24 = |at: usize| Some(u32::from(le16(bytes, at)?) | u32::from(*bytes.get(at + 2)?) << 16);
    let length = le32(bytes, 4)? as usize;
    let mut found = Outline::default();
    if length.saturating_add(8) > bytes.len() {
        found.missing = Some("end of the RIFF container");
    }
    match bytes.get(12..16)? {
        b"VP8X" => {
            found.is_animated = bytes.get(20)? & 2 != 0;
            found.size = Some((u24(24)? + 1, u24(27)? + 1));
        }
        b"VP8L" => {
            let packed = le32(bytes, 21)?;
            found.size = Some(((packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1));
        }
        b"VP8 " => {
            let side = |at| Some(u32::from(le16(bytes, at)? & 0x3FFF));
            found.size = Some((side(26)?, side(28)?));
        }
        _ => {}
    }
    Some(found)
}

fn bmp(bytes: &[u8]) -> Option<Outline> {
    const UNCOMPRESSED: u32 = 0;
    let mut found = Outline::default();
    // The oldest header has sides of two bytes, and no compression.
    let (size, bits, compression) = if le32(bytes, 14)? == 12 {
        let size = (le16(bytes, 18)?.into(), le16(bytes, 20)?.into());
        (size, le16(bytes, 24)?, UNCOMPRESSED)
    } else {
        // A negative height means rows from the top.
        let height = (le32(bytes, 22)? as i32).unsigned_abs();
        ((le32(bytes, 18)?, height), le16(bytes, 28)?, le32(bytes, 30)?)
    };
    found.size = Some(size);
    let row = (u64::from(size.0) * u64::from(bits)).div_ceil(32) * 4;
    let end = u64::from(le32(bytes, 10)?).saturating_add(row.saturating_mul(size.1.into()));
    if compression == UNCOMPRESSED && end > bytes.len() as u64 {
        found.missing = Some("rows of pixels");
    }
    Some(found)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use image::RgbImage;

    use super::*;
    use crate::image::tests::{encode, gradient};

    #[test]
    fn the_size_is_read_and_every_cut_is_seen() {
        for format in [
            ImageFormat::Jpeg,
            ImageFormat::Png,
            ImageFormat::Gif,
            ImageFormat::WebP,
            ImageFormat::Bmp,
        ] {
            let bytes = encode(gradient(90, 70), format);
            let whole = outline(format, &bytes);
            assert_eq!((whole.size, whole.missing), (Some((90, 70)), None), "{format:?}");
            // The last byte of a GIF only says that nothing follows.
            let last = bytes.len() - if format == ImageFormat::Gif { 2 } else { 1 };
            for n in (0..=last).filter(|n| n % 7 == 0 || *n == last) {
                assert!(outline(format, &bytes[..n]).missing.is_some(), "{format:?} {n}");
            }
        }
    }

    #[test]
    fn markers_of_a_jpeg_are_collected() {
        let plain = encode(RgbImage::new(8, 8), ImageFormat::Jpeg);
        let segment = |marker: u8, data: &[u8]| {
            let mut bytes = vec![0xFF, marker];
            bytes.extend((data.len() as u16 + 2).to_be_bytes());
            bytes.extend(data);
            bytes
        };
        let mut bytes = vec![0xFF, 0xD8];
        bytes.extend(segment(0xE2, b"ICC_PROFILE\0\x02\x02second"));
        bytes.extend(segment(0xE2, b"ICC_PROFILE\0\x01\x02first "));
        bytes.extend(segment(0xE1, b"Exif\0\0tiff"));
        bytes.extend(segment(0xEE, b"Adobe\0\x64\0\0\0\0\x02"));
        bytes.extend(&plain[2..]);
        let found = jpeg(&bytes);
        assert_eq!(found.jpeg.profile.as_deref(), Some(&b"first second"[..]));
        assert_eq!(found.jpeg.exif.as_deref(), Some(&b"tiff"[..]));
        assert_eq!((found.jpeg.is_adobe, found.jpeg.components, found.jpeg.scans), (true, 3, 1));
        assert_eq!((found.size, found.missing), (Some((8, 8)), None));
    }
}
