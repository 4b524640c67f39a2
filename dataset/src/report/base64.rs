//! Base64 with padding (RFC 4648), for data URIs.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Appends the base64 form of `bytes` to `out`.
pub(super) fn encode(out: &mut String, bytes: &[u8]) {
    out.reserve(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |group, &byte| group << 8 | u32::from(byte))
            << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let index = (group >> (18 - 6 * i)) & 63;
            out.push(if i <= chunk.len() { ALPHABET[index as usize] as char } else { '=' });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::encode;

    #[test]
    fn matches_the_vectors_of_rfc_4648() {
        let vectors =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (bytes, expected) in vectors {
            let mut out = String::new();
            encode(&mut out, bytes.as_bytes());
            assert_eq!(out, expected);
        }
    }
}
