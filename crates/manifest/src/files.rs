//! Paths → texts: files, folders (recursive, sorted), `-` for standard input; bounded.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use api::problem::Problem;
use api::reason::Reason;

/// Largest file.
pub const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Most files of a folder.
pub const FILES_MAX: usize = 10_000;
const FOLDER_DEPTH_MAX: usize = 32;
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// A file to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    /// Found in a folder rather than named: what is no manifest at all is then left alone.
    pub(crate) found: bool,
}

/// All files that `path` stands for.
pub(crate) fn sources(path: &Path) -> Result<Vec<Source>, Problem> {
    if path == Path::new("-") {
        return Ok(vec![Source { path: path.to_owned(), found: false }]);
    }
    let about = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if !about.is_dir() {
        return Ok(vec![Source { path: path.to_owned(), found: false }]);
    }
    let mut found = Vec::new();
    walk(path, 0, &mut found)?;
    if found.is_empty() {
        return Err(Problem::new(Reason::Empty, "", "the folder has no file that ends in .yaml, .yml or .json"));
    }
    Ok(found)
}

fn walk(folder: &Path, depth: usize, found: &mut Vec<Source>) -> Result<(), Problem> {
    if depth > FOLDER_DEPTH_MAX {
        return Err(Problem::new(Reason::TooDeep, "", format!("{}: folders are nested too deeply", folder.display())));
    }
    let entries = fs::read_dir(folder).map_err(|error| unreadable(folder, &error))?;
    let mut entries: Vec<_> = entries.collect::<Result<_, _>>().map_err(|error| unreadable(folder, &error))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        // Links to files are read (ConfigMap mounts are links); links to folders are not followed: they may be circles.
        let kind = entry.file_type().map_err(|error| unreadable(&path, &error))?;
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if kind.is_dir() {
            walk(&path, depth + 1, found)?;
        } else if ENDINGS.contains(&ending)
            && (kind.is_file() || fs::metadata(&path).is_ok_and(|about| about.is_file()))
        {
            if found.len() >= FILES_MAX {
                return Err(Problem::new(Reason::TooLarge, "", format!("the folder has more than {FILES_MAX} files")));
            }
            found.push(Source { path, found: true });
        }
    }
    Ok(())
}

/// The text of a file, without a byte order mark.
pub(crate) fn text(path: &Path, stdin: &mut dyn Read) -> Result<String, Problem> {
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        stdin.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| unreadable(path, &error))?;
    } else {
        let file = fs::File::open(path).map_err(|error| unreadable(path, &error))?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| unreadable(path, &error))?;
    }
    decode(bytes)
}

/// Bytes → text: UTF-8, at most [`FILE_BYTES_MAX`], no NUL.
pub(crate) fn decode(mut bytes: Vec<u8>) -> Result<String, Problem> {
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Problem::new(
            Reason::TooLarge,
            "",
            format!("the file is larger than {} MiB", FILE_BYTES_MAX >> 20),
        ));
    }
    if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) {
        return Err(Problem::new(Reason::InvalidText, "", "the file is UTF-16").help("save it as UTF-8"));
    }
    if bytes.starts_with(&[0xEF, 0xBB, 0xBF]) {
        bytes.drain(..3);
    }
    if let Some(at) = bytes.iter().position(|byte| *byte == 0) {
        return Err(Problem::new(Reason::InvalidText, "", format!("the file has a NUL byte at byte {at}")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Problem::new(Reason::InvalidText, "", format!("the file is not UTF-8 at byte {at}")).help("save it as UTF-8")
    })?;
    // As YAML has it; U+0085 is a line break there.
    let control = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}');
    if let Some((at, c)) = text.char_indices().find(|(_, c)| control(*c)) {
        let message = format!("the file has the control character U+{:04X} at byte {at}", u32::from(c));
        return Err(Problem::new(Reason::InvalidText, "", message).help("write it as an escape in double quotes"));
    }
    Ok(text)
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    Problem::new(Reason::Unreadable, "", format!("cannot read {}: {error}", path.display()))
}
