//! Archives in the format of tar, of which larder needs regular files with short names.

/// Everything in an archive comes in pieces of so many bytes.
pub(super) const BLOCK: usize = 512;

/// What stands before the bytes of a file. All that could differ between two machines or two days is left out.
pub(super) fn header(path: &str, size: u64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, path.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if size < 1 << 33 {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        // What eleven octal digits cannot hold is written in binary, as GNU does and everyone reads.
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// How many zeros follow the bytes of a file.
pub(super) fn padding(size: u64) -> usize {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or_default();
    if over == 0 { 0 } else { BLOCK - over }
}

/// The path and size in a header of larder's own.
#[must_use]
pub fn own_header(header: &[u8]) -> Option<(String, u64)> {
    let path = header.get(..100)?.split(|byte| *byte == 0).next()?;
    Some((String::from_utf8(path.to_vec()).ok()?, size(header)?))
}

/// The size of a file: octal digits, or binary where these do not suffice.
fn size(header: &[u8]) -> Option<u64> {
    let field = header.get(124..136)?;
    if field[0] == 0x80 {
        return field[1..4].iter().all(|byte| *byte == 0).then(|| u64::from_be_bytes(field[4..].try_into().unwrap_or_default()));
    }
    let digits = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}
