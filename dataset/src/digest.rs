//! SHA-256 as lower-case hex.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// Hex SHA-256 of `bytes`.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes as lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}"); // writing to a String cannot fail
        hex
    })
}

/// The first 64 bits of the SHA-256 of `bytes`, as a key.
pub(crate) fn sha256_u64(bytes: &[u8]) -> u64 {
    Sha256::digest(bytes).iter().take(8).fold(0, |key, &byte| key << 8 | u64::from(byte))
}
