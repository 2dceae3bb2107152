//! A pipeline's code as one archive whose digest names it: the same files give the same bytes.

use std::collections::BTreeMap;
use std::io::{self, Write};

use sha2::{Digest, Sha256};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

/// Code of a run: a zip archive and its SHA-256.
#[derive(Debug, Clone)]
pub struct Code {
    /// SHA-256 of the archive, in hexadecimal.
    pub digest: String,
    /// The archive.
    pub zip: Vec<u8>,
}

/// Why code could not be packed; reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file could not be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// There is too much of it.
    #[error("pack {path}: the code is larger than {} KiB; put it into the image or on S3", most >> 10)]
    TooLarge {
        /// The folder or field.
        path: String,
        /// Bytes that are allowed.
        most: u64,
    },
    /// The archive could not be made.
    #[error("pack {path}: {source}")]
    Zip {
        /// The file.
        path: String,
        /// What went wrong.
        source: io::Error,
    },
}

/// Packs the text files of a manifest, by their relative names.
pub fn pack_files(files: &BTreeMap<String, String>) -> Result<Code, PackError> {
    let entries = files.iter().map(|(name, text)| (name.clone(), text.clone().into_bytes())).collect();
    pack(&entries, "spec.code.files")
}

/// Code that was packed before.
pub fn from_zip(zip: Vec<u8>) -> Code {
    Code { digest: hex::encode(Sha256::digest(&zip)), zip }
}

/// Packs files, by their relative names. `what`: where they come from, for people.
pub fn pack(entries: &BTreeMap<String, Vec<u8>>, what: &str) -> Result<Code, PackError> {
    let mut zip = Vec::new();
    let mut write = || -> io::Result<()> {
        let mut writer = ZipWriter::new(io::Cursor::new(&mut zip));
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .last_modified_time(DateTime::default())
            .unix_permissions(0o644);
        for (name, bytes) in entries {
            writer.start_file(name.as_str(), options)?;
            writer.write_all(bytes)?;
        }
        writer.finish()?;
        Ok(())
    };
    write().map_err(|source| PackError::Zip { path: what.to_owned(), source })?;
    Ok(from_zip(zip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_give_the_same_digest_and_a_changed_one_another() {
        let files = |text: &str| BTreeMap::from([("flow.py".to_owned(), text.to_owned())]);
        let digest = |text| pack_files(&files(text)).map(|code| code.digest).unwrap();
        assert_eq!(digest("x = 1"), digest("x = 1"));
        assert_ne!(digest("x = 1"), digest("x = 2"));
    }
}
