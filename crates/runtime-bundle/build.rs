//! Packs the Python runtime into one zip that the binary embeds. The bytes depend on the sources alone (sorted names,
//! fixed times), so that the digest names the runtime's version.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

use sha2::{Digest, Sha256};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../runtime");
    let package = root.join("daskade_runtime");
    let mut files = Vec::new();
    collect(&package, &mut files)?;
    files.sort();

    let mut bytes = Vec::new();
    let mut writer = ZipWriter::new(std::io::Cursor::new(&mut bytes));
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644);
    // By which a test makes another version of it.
    writer.set_comment("daskade_runtime")?;
    for file in &files {
        // The files and not their folder, where Python leaves its compiled modules.
        println!("cargo:rerun-if-changed={}", file.display());
        let name = file.strip_prefix(&root)?.to_str().ok_or("a file name in runtime/ is not UTF-8")?;
        writer.start_file(name, options)?;
        writer.write_all(&fs::read(file)?)?;
    }
    writer.finish()?;

    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("runtime.zip"), &bytes)?;
    println!("cargo:rustc-env=DASKADE_RUNTIME_DIGEST={}", hex::encode(Sha256::digest(&bytes)));
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "__pycache__") {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|ext| ext == "py") || path.file_name().is_some_and(|n| n == "py.typed") {
            files.push(path);
        }
    }
    Ok(())
}
