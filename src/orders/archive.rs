//! Archives in the format of tar, of which larder needs regular files.

use std::io;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};

/// Bytes that come with an order.
pub type Input = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send + Sync>>;

/// Everything in an archive comes in pieces of so many bytes.
pub const BLOCK: usize = 512;
/// The longest path that has room in a header.
const LONGEST_NAME: usize = 100;

/// What stands before the bytes of a file. All that could differ between two machines or two days is left out.
#[must_use]
pub fn header(path: &str, size: u64) -> Vec<u8> {
    if path.len() <= LONGEST_NAME {
        return ustar(path, size, b'0').to_vec();
    }
    // A record begins with its own length.
    let record = |length: usize| format!("{length} path={path}\n");
    let mut length = record(0).len();
    while record(length).len() != length {
        length = record(length).len();
    }
    let record = record(length);
    let mut header = ustar("path", record.len() as u64, b'x').to_vec();
    header.extend_from_slice(record.as_bytes());
    header.resize(header.len() + padding(record.len() as u64), 0);
    header.extend_from_slice(&ustar(path.get(..LONGEST_NAME).unwrap_or("path"), size, b'0'));
    header
}

fn ustar(path: &str, size: u64, kind: u8) -> [u8; BLOCK] {
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
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// How many zeros follow the bytes of a file.
#[must_use]
pub fn padding(size: u64) -> usize {
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
    octal(field)
}

/// Reads an archive as it comes, whoever has written it: nothing in it is taken that larder does not need, and nothing that is
/// larger than it need be.
pub struct Archive<'a> {
    input: &'a mut Input,
    buffer: Bytes,
    entries: usize,
    /// How much of the current file is still to come, and of the zeros behind it.
    missing: u64,
    padding: u64,
}

/// A regular file of an archive, or a link to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Without `.` and `..`, and not absolute.
    pub path: String,
    pub size: u64,
    /// Where it leads to, as a path of the archive; there need not be anything.
    pub link: Option<String>,
}

/// More than any archive of images has: one of a thousand images has some ten thousand.
pub(super) const MOST_ENTRIES: usize = 200_000;
const LONGEST_PATH: usize = 1024;
/// The most that may stand between two files to describe the second, in bytes.
const LARGEST_EXTENSION: u64 = 64 << 10;

// === impl Archive ===

impl<'a> Archive<'a> {
    pub fn new(input: &'a mut Input) -> Self {
        Self { input, buffer: Bytes::new(), entries: 0, missing: 0, padding: 0 }
    }

    /// The next regular file or link; `None` at the end of the archive. What of the last one was not read is passed over.
    ///
    /// # Errors
    /// Says in a line what is wrong with the archive. It is of no use then.
    pub async fn next(&mut self) -> Result<Option<Entry>, String> {
        let (mut path, mut longer, mut target) = (None, None, None);
        loop {
            while self.data().await?.is_some() {}
            self.skip_padding().await?;
            let header = self.exactly(BLOCK as u64).await?;
            if header.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            self.entries += 1;
            if self.entries > MOST_ENTRIES {
                return Err(format!("it has more than {MOST_ENTRIES} entries"));
            }
            if Some(checksum(&header)) != octal(&header[148..156]) {
                return Err("it is no tar archive, or a damaged one".into());
            }
            let said = size(&header).ok_or("a file in it has no size")?;
            match header[156] {
                b'x' => {
                    let extension = self.extension(said).await?;
                    for (key, value) in records(&extension)? {
                        match key {
                            "path" => path = Some(value.to_owned()),
                            "linkpath" => target = Some(value.to_owned()),
                            "size" => longer = Some(value.parse().map_err(|_| "a file in it has no size")?),
                            key if key.starts_with("GNU.sparse") => return Err("it has a sparse file".into()),
                            _ => {}
                        }
                    }
                }
                b'L' => {
                    let name = self.extension(said).await?;
                    path = Some(text(&name)?);
                }
                b'K' => {
                    let name = self.extension(said).await?;
                    target = Some(text(&name)?);
                }
                b'g' => drop(self.extension(said).await?),
                kind => {
                    let path = path.take().map_or_else(|| header_path(&header), Ok)?;
                    let path = clean(&path).ok_or_else(|| format!("{:?} is a path that leads out of it", shown(&path)))?;
                    match kind {
                        b'0' | 0 | b'7' => {
                            // Whoever has two of them writes none in the header: it has no room for the true one.
                            let size = match longer {
                                Some(longer) if said != 0 && said != longer => {
                                    return Err(format!("{:?} has two sizes", shown(&path)));
                                }
                                longer => longer.unwrap_or(said),
                            };
                            (self.missing, self.padding) = (size, padding(size) as u64);
                            return Ok(Some(Entry { path, size, link: None }));
                        }
                        b'5' => (longer, target) = (None, None),
                        b'1' | b'2' => {
                            let target = target.take().map_or_else(|| text(&header[157..257]), Ok)?;
                            let link = led_to(if kind == b'2' { &path } else { "" }, &target);
                            if link.is_none() {
                                return Err(format!("{:?} is a link that leads out of it", shown(&path)));
                            }
                            return Ok(Some(Entry { path, size: 0, link }));
                        }
                        b'S' => return Err(format!("{:?} is a sparse file", shown(&path))),
                        _ => return Err(format!("{:?} is no regular file", shown(&path))),
                    }
                }
            }
        }
    }

    /// The next bytes of the file; `None` at its end.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// When the archive ends before.
    pub async fn data(&mut self) -> Result<Option<Bytes>, String> {
        if self.missing == 0 {
            return Ok(None);
        }
        self.more().await?;
        let taken = usize::try_from(self.missing).unwrap_or(usize::MAX).min(self.buffer.len());
        self.missing -= taken as u64;
        Ok(Some(self.buffer.split_to(taken)))
    }

    /// All of a file that is to be small.
    ///
    /// # Errors
    /// When it is larger, or the archive ends before it does.
    pub async fn whole(&mut self, entry: &Entry, most: u64) -> Result<Vec<u8>, String> {
        if entry.size > most {
            return Err(format!("{:?} is larger than {most} bytes", shown(&entry.path)));
        }
        let mut bytes = Vec::new();
        while let Some(more) = self.data().await? {
            bytes.extend_from_slice(&more);
        }
        Ok(bytes)
    }

    async fn extension(&mut self, size: u64) -> Result<Vec<u8>, String> {
        if size > LARGEST_EXTENSION {
            return Err(format!("what it says of a file is larger than {LARGEST_EXTENSION} bytes"));
        }
        self.padding = padding(size) as u64;
        self.exactly(size).await
    }

    async fn skip_padding(&mut self) -> Result<(), String> {
        let padding = std::mem::take(&mut self.padding);
        self.exactly(padding).await.map(drop)
    }

    async fn exactly(&mut self, size: u64) -> Result<Vec<u8>, String> {
        self.missing = size;
        let mut bytes = Vec::new();
        while let Some(more) = self.data().await? {
            bytes.extend_from_slice(&more);
        }
        Ok(bytes)
    }

    async fn more(&mut self) -> Result<(), String> {
        while self.buffer.is_empty() {
            match self.input.next().await {
                Some(Ok(bytes)) => self.buffer = bytes,
                Some(Err(error)) => return Err(format!("it cannot be read: {error}")),
                None => return Err("it ends in the middle".into()),
            }
        }
        Ok(())
    }
}

fn checksum(header: &[u8]) -> u64 {
    let bytes = header.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
    bytes.map(u64::from).sum()
}

fn octal(field: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

/// `key=value` lines, each after its length: <https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html#tag_20_92_13_03>
fn records(extension: &[u8]) -> Result<Vec<(&str, &str)>, String> {
    let (mut found, mut rest) = (Vec::new(), extension);
    while !rest.is_empty() {
        let record = || {
            let space = rest.iter().position(|byte| *byte == b' ')?;
            let length: usize = std::str::from_utf8(&rest[..space]).ok()?.parse().ok()?;
            let record = rest.get(space + 1..length)?.strip_suffix(b"\n")?;
            Some((std::str::from_utf8(record).ok()?.split_once('=')?, length))
        };
        // What names a file in no way that larder could read is not for larder.
        let (record, length) = record().ok_or("what it says of a file cannot be read")?;
        found.push(record);
        rest = &rest[length..];
    }
    Ok(found)
}

fn header_path(header: &[u8]) -> Result<String, String> {
    let name = text(&header[..100])?;
    let prefix = if &header[257..263] == b"ustar\0" { text(&header[345..500])? } else { String::new() };
    Ok(if prefix.is_empty() { name } else { format!("{prefix}/{name}") })
}

fn text(bytes: &[u8]) -> Result<String, String> {
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8(bytes.to_vec()).map_err(|_| "the name of a file in it is no text".into())
}

/// The path as it is within the archive, if it is.
fn clean(path: &str) -> Option<String> {
    let parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
    let fine = !path.starts_with('/') && path.len() <= LONGEST_PATH && !path.contains(char::is_control);
    (fine && parts.clone().all(|part| part != "..")).then(|| parts.collect::<Vec<_>>().join("/"))
}

/// Where a link leads to in the archive, if it does not lead out of it. `from`: its own path, if it is relative to that.
fn led_to(from: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            ".." => _ = parts.pop()?,
            "" | "." => {}
            _ => parts.push(part),
        }
    }
    (!target.starts_with('/')).then(|| parts.join("/"))
}

/// A name in an archive is a stranger's.
pub(super) fn shown(path: &str) -> String {
    path.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry of this kind with these bytes.
    fn entry(kind: u8, path: &str, bytes: &str) -> Vec<u8> {
        let mut entry = ustar(path, bytes.len() as u64, kind).to_vec();
        entry.extend_from_slice(bytes.as_bytes());
        entry.resize(entry.len() + padding(bytes.len() as u64), 0);
        entry
    }

    async fn read(parts: &[Vec<u8>]) -> Result<Vec<(String, String)>, String> {
        let bytes = Bytes::from([parts.concat(), vec![0; 2 * BLOCK]].concat());
        let mut input: Input = Box::pin(futures_util::stream::iter([Ok(bytes)]));
        let (mut archive, mut found) = (Archive::new(&mut input), Vec::new());
        while let Some(entry) = archive.next().await? {
            let bytes = archive.whole(&entry, 1 << 20).await?;
            found.push((entry.path, entry.link.unwrap_or_else(|| String::from_utf8(bytes).unwrap())));
        }
        Ok(found)
    }

    /// Readers that disagree about the end of a file take its bytes for headers (CVE-2025-62518).
    #[tokio::test]
    async fn what_is_said_of_one_entry_holds_for_the_next_one_alone() {
        let size = entry(b'x', "pax", "10 size=9\n");
        let target = entry(b'K', "long", "elsewhere");
        let path = entry(b'L', "long", "renamed");
        let (file, directory) = (entry(b'0', "file", "hello"), entry(b'5', "directory", ""));
        let mut link = ustar("link", 0, b'1');
        link[157..161].copy_from_slice(b"file");
        link[148..156].fill(b' ');
        let sum = checksum(&link);
        link[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let link = link.to_vec();
        // Nine bytes, of which the header says nothing.
        let mut long = entry(b'0', "file", "nine byte");
        long.splice(..BLOCK, ustar("file", 0, b'0'));
        let is = |path: &str, bytes: &str| (path.to_owned(), bytes.to_owned());
        for (parts, found) in [
            (&[&size, &long, &file][..], vec![is("file", "nine byte"), is("file", "hello")]),
            (&[&size, &link, &file], vec![is("link", "file"), is("file", "hello")]),
            (&[&size, &directory, &file], vec![is("file", "hello")]),
            (&[&target, &file, &link], vec![is("file", "hello"), is("link", "file")]),
            (&[&target, &directory, &link], vec![is("link", "file")]),
            (&[&target, &link, &link], vec![is("link", "elsewhere"), is("link", "file")]),
            (&[&path, &directory, &file], vec![is("file", "hello")]),
            (&[&path, &link, &file], vec![is("renamed", "file"), is("file", "hello")]),
        ] {
            let parts: Vec<Vec<u8>> = parts.iter().map(|part| (*part).clone()).collect();
            assert_eq!(read(&parts).await, Ok(found));
        }
        assert_eq!(read(&[size, file]).await, Err("\"file\" has two sizes".into()));
    }
}
