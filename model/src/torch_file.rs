//! Tensors written as `torch.save` writes a dict of them, so that `torch.load` reads them, with
//! `weights_only=True` too.
//!
//! The file is a zip file without compression: `data.pkl` is a pickle of protocol 2 that builds the
//! dict, `data/N` the bytes of its N-th tensor. [`crate::pickle`] reads what is written here.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use safetensors::View;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::error::ModelError;
use crate::weights_file::Tensors;

/// The folder of all entries, PyTorch's own name for it.
const ROOT: &str = "archive";
/// Where a tensor's bytes begin is a multiple of this, so that they can be mapped (PyTorch).
const ALIGNMENT: u16 = 64;
/// Version of the format that PyTorch writes.
const FORMAT_VERSION: &[u8] = b"3\n";
/// Protocol 2, an empty dict, and the mark above which its keys and values lie on the stack.
const BEGIN: &[u8] = b"\x80\x02}(";
/// Puts keys and values into the dict, which is the result.
const END: &[u8] = b"u.";

impl Tensors {
    /// Writes the tensors to a file as `torch.save` does, as f32, and waits until they are on disk.
    /// The file must not be one that they come from.
    ///
    /// # Errors
    /// When a tensor is not of floating-point numbers, or when the file cannot be written; there is
    /// none then.
    pub fn write_torch(&self, path: &Path) -> Result<(), ModelError> {
        write(path, &self.views(path)?.collect::<Vec<_>>()).map_err(|source| {
            // The error that matters is the first one.
            let _ = std::fs::remove_file(path);
            ModelError::File { action: "write", path: path.into(), source }
        })
    }
}

/// Bytes are made of one tensor at a time.
fn write<V: View + Copy>(path: &Path, tensors: &[(&String, V)]) -> io::Result<()> {
    let mut zip = ZipWriter::new(BufWriter::new(File::create(path)?));
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .with_alignment(ALIGNMENT);
    let mut pickle = BEGIN.to_vec();
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        add_tensor(&mut pickle, i, name, tensor.shape());
    }
    pickle.extend(END);
    for (name, bytes) in [("data.pkl", &*pickle), ("byteorder", b"little")] {
        zip.start_file(format!("{ROOT}/{name}"), options)?;
        zip.write_all(bytes)?;
    }
    for (i, (_, tensor)) in tensors.iter().enumerate() {
        let is_large = u32::try_from(tensor.data_len()).is_err();
        zip.start_file(format!("{ROOT}/data/{i}"), options.large_file(is_large))?;
        zip.write_all(&tensor.data())?;
    }
    zip.start_file(format!("{ROOT}/version"), options)?;
    zip.write_all(FORMAT_VERSION)?;
    zip.finish()?.into_inner()?.sync_all()
}

/// Adds a name and the call that rebuilds the `i`-th tensor, contiguous from the start of a storage
/// of its own.
fn add_tensor(pickle: &mut Vec<u8>, i: usize, name: &str, shape: &[usize]) {
    add_text(pickle, name);
    pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n(");
    // The storage is a persistent id: a tuple of kind, type, key, device and number of values.
    pickle.push(b'(');
    add_text(pickle, "storage");
    pickle.extend(b"ctorch\nFloatStorage\n");
    add_text(pickle, &i.to_string());
    add_text(pickle, "cpu");
    add_number(pickle, shape.iter().product());
    pickle.extend(b"tQ");
    // Its first value, then shape and strides.
    add_number(pickle, 0);
    let strides = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product());
    for numbers in [shape.to_vec(), strides.collect()] {
        pickle.push(b'(');
        for number in numbers {
            add_number(pickle, number);
        }
        pickle.push(b't');
    }
    // No gradient wanted, no hooks.
    pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
}

/// `BINUNICODE`.
fn add_text(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X');
    pickle.extend((text.len() as u32).to_le_bytes());
    pickle.extend(text.as_bytes());
}

/// `BININT`, or `LONG1` of eight bytes where that is too small.
fn add_number(pickle: &mut Vec<u8>, number: usize) {
    if let Ok(number) = i32::try_from(number) {
        pickle.push(b'J');
        pickle.extend(number.to_le_bytes());
    } else {
        pickle.extend(b"\x8a\x08");
        pickle.extend((number as i64).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_bit_by_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.pt");
        let mut tensors = Tensors::default();
        tensors.insert("a.weight", &[2, 3], vec![1.0, -0.0, f32::MIN_POSITIVE, 3.5, -2.0, 1e30]);
        tensors.insert("gate", &[1], vec![0.5]);
        tensors.insert("scalar", &[], vec![7.0]);
        tensors.write_torch(&path).unwrap();
        let back = Tensors::open(&path).unwrap();
        assert_eq!(back.names().collect::<Vec<_>>(), tensors.names().collect::<Vec<_>>());
        for name in tensors.names() {
            assert_eq!(back.shape(name), tensors.shape(name), "{name}");
            let bits = |tensors: &Tensors| -> Vec<u32> {
                tensors.get(name).unwrap().iter().map(|v| v.to_bits()).collect()
            };
            assert_eq!(bits(&back), bits(&tensors), "{name}");
        }
        let error = tensors.write_torch(&folder.path().join("none/w.pt")).unwrap_err().to_string();
        assert!(error.starts_with("cannot write"), "{error}");
    }

    #[test]
    fn large_numbers_take_eight_bytes() {
        let mut pickle = Vec::new();
        add_number(&mut pickle, 1 << 31);
        assert_eq!(pickle, b"\x8a\x08\x00\x00\x00\x80\x00\x00\x00\x00");
    }
}
