//! Tables of numbers as `NumPy` saves them (`.npy`, versions 1 to 3): `f4` and `f8`, little-endian.

use std::path::Path;

use crate::error::EvalError;

/// Numbers `[rows, columns]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Row after row.
    pub values: Vec<f64>,
    /// How many.
    pub rows: usize,
    /// Numbers in each.
    pub columns: usize,
}

/// Start of every such file.
const MAGIC: &[u8] = b"\x93NUMPY";

/// The table of two dimensions in `bytes`, the content of the file `path`.
///
/// # Errors
/// When it holds something else.
pub fn table(path: &Path, bytes: &[u8]) -> Result<Table, EvalError> {
    parse(bytes).map_err(|problem| EvalError::Annotations { path: path.to_path_buf(), problem })
}

fn parse(bytes: &[u8]) -> Result<Table, String> {
    let (header, body) = split_header(bytes).ok_or("it is not a NumPy file")?;
    let size = match field(header, "descr") {
        Some("'<f4'") => 4,
        Some("'<f8'") => 8,
        other => {
            let other = other.unwrap_or("nothing");
            return Err(format!("it holds {other}, expected '<f4' or '<f8'"));
        }
    };
    if field(header, "fortran_order") != Some("False") {
        return Err(
            "its rows are not stored one after the other: save a copy in C order".to_owned()
        );
    }
    let (rows, columns) = shape(header).ok_or("its table has not two dimensions")?;
    let expected = rows.checked_mul(columns).and_then(|n| n.checked_mul(size));
    if expected != Some(body.len()) {
        let found = body.len();
        return Err(format!("it has {found} bytes of numbers, not {rows} x {columns} x {size}"));
    }
    let values = match size {
        4 => body.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        _ => body.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
    };
    Ok(Table { values, rows, columns })
}

/// The header's text and the numbers behind it.
fn split_header(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (length, rest) = match rest.first()? {
        1 => (u64::from(u16::from_le_bytes(*rest.get(2..)?.first_chunk()?)), rest.get(4..)?),
        2 | 3 => (u64::from(u32::from_le_bytes(*rest.get(2..)?.first_chunk()?)), rest.get(6..)?),
        _ => return None,
    };
    let (header, body) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    Some((std::str::from_utf8(header).ok()?, body))
}

/// The text of a field without commas, of a header such as `{'descr': '<f4', 'shape': (2, 3), }`.
fn field<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = header.split_once(&format!("'{name}':"))?;
    rest.split([',', '}']).next().map(str::trim)
}

fn shape(header: &str) -> Option<(usize, usize)> {
    let (_, rest) = header.split_once("'shape':")?;
    let inside = rest.trim_start().strip_prefix('(')?.split(')').next()?;
    let (rows, columns) = inside.split_once(',')?;
    Some((rows.trim().parse().ok()?, columns.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, body: &[u8]) -> Vec<u8> {
        let length = (header.len() as u16).to_le_bytes();
        [MAGIC, &[1, 0], &length, header.as_bytes(), body].concat()
    }

    #[test]
    fn a_table_is_read_row_by_row() {
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }   \n";
        let body = [1.5_f32.to_le_bytes(), (-2.0_f32).to_le_bytes()].concat();
        let found = parse(&file(header, &body)).unwrap();
        assert_eq!(found, Table { values: vec![1.5, -2.0], rows: 2, columns: 1 });
    }

    #[test]
    fn what_is_no_such_table_is_told() {
        let check = |bytes: &[u8], expected: &str| {
            let error = parse(bytes).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        let header = |descr: &str, order: &str, shape: &str| {
            format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}")
        };
        check(b"PK", "not a NumPy file");
        check(&MAGIC[..4], "not a NumPy file");
        check(&file(&header("'<i8'", "False", "(1, 1)"), &[0; 8]), "it holds '<i8'");
        check(&file(&header("'<f8'", "True", "(1, 1)"), &[0; 8]), "C order");
        check(&file(&header("'<f8'", "False", "(1,)"), &[0; 8]), "two dimensions");
        check(&file(&header("'<f8'", "False", "(1, 2)"), &[0; 8]), "not 1 x 2 x 8");
        check(
            &file(&header("'<f8'", "False", "(9999999999999999, 9999999999999)"), &[0; 8]),
            "8 bytes of numbers",
        );
    }
}
