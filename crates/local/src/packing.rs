//! The files of a pipeline's code on this machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use run_model::archive::{Code, PackError, pack};

/// The largest code a run may bring, in bytes before compression. Larger code belongs into the image or on S3.
pub const MAX_CODE: u64 = 64 << 20;

/// Packs a folder, or a single file.
pub fn pack_path(path: &Path) -> Result<Code, PackError> {
    pack(&read_path(path, MAX_CODE)?, &path.display().to_string())
}

/// What a folder holds: every file but caches, version control and environments, by relative names. Of a single file, it alone.
/// `most`: bytes of all together.
pub fn read_path(path: &Path, most: u64) -> Result<BTreeMap<String, Vec<u8>>, PackError> {
    let read = |path: &Path, source| PackError::Read { path: path.display().to_string(), source };
    let too_large = || PackError::TooLarge { path: path.display().to_string(), most };
    let mut entries = BTreeMap::new();
    let metadata = fs::metadata(path).map_err(|source| read(path, source))?;
    if metadata.is_file() {
        if metadata.len() > most {
            return Err(too_large());
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        entries.insert(name, fs::read(path).map_err(|source| read(path, source))?);
        return Ok(entries);
    }
    let mut total = 0;
    let mut folders: Vec<PathBuf> = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|source| read(&folder, source))? {
            let entry = entry.map_err(|source| read(&folder, source))?;
            let (found, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let kind = entry.file_type().map_err(|source| read(&found, source))?;
            if name.starts_with('.') || name == "__pycache__" || name.ends_with(".pyc") {
                continue;
            }
            if kind.is_dir() {
                folders.push(found);
            } else if kind.is_file() {
                total += entry.metadata().map_err(|source| read(&found, source))?.len();
                if total > most {
                    return Err(too_large());
                }
                let relative = found.strip_prefix(path).unwrap_or(&found).to_string_lossy().into_owned();
                entries.insert(relative, fs::read(&found).map_err(|source| read(&found, source))?);
            }
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_beyond_the_limit_is_refused_before_it_is_read() {
        let folder = std::env::temp_dir().join(format!("daskade-pack-{}", uuid::Uuid::new_v4()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("data.py");
        // Sparse: only its length is large.
        fs::File::create(&file).unwrap().set_len(MAX_CODE + 1).unwrap();
        assert!(matches!(pack_path(&file), Err(PackError::TooLarge { .. })));
        assert!(matches!(pack_path(&folder), Err(PackError::TooLarge { .. })));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_folder_is_packed_without_caches_and_a_missing_one_is_named() {
        let folder = std::env::temp_dir().join(format!("daskade-pack-{}", uuid::Uuid::new_v4()));
        fs::create_dir_all(folder.join("__pycache__")).unwrap();
        fs::write(folder.join("flow.py"), "x = 1").unwrap();
        let before = pack_path(&folder).unwrap();
        fs::write(folder.join("__pycache__/flow.pyc"), "junk").unwrap();
        assert_eq!(before.digest, pack_path(&folder).unwrap().digest);
        fs::remove_dir_all(&folder).unwrap();
        assert!(pack_path(&folder).unwrap_err().to_string().contains(&folder.display().to_string()));
    }
}
