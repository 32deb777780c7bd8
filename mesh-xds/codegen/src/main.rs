//! Generates `mesh-xds/src/pb` and its descriptor set from `mesh-xds/proto/*.proto`.
//!
//! ```text
//! cargo run -p mesh-xds-codegen              # write mesh-xds/src/pb
//! cargo run -p mesh-xds-codegen -- --check   # exit 1 when what is committed is not what would be written
//! ```
//!
//! No `protoc` is needed: protox compiles the files. Maps become `BTreeMap`, so that encoding is deterministic and a
//! version can be a hash of the content.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

/// The file that holds the encoded `FileDescriptorSet`, beside the generated modules.
const DESCRIPTORS: &str = "descriptors.binpb";

fn main() -> Result<ExitCode> {
    let crate_dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let committed = crate_dir.join("src/pb");
    let check = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--check") => true,
        Some(other) => bail!("unknown argument {other:?}; only --check is known"),
    };

    let fresh = tempfile::tempdir().context("cannot create a temporary directory")?;
    generate(&crate_dir.join("proto"), fresh.path())?;
    let fresh = read_dir(fresh.path())?;
    let old = read_dir(&committed)?;

    if check {
        let stale = differences(&old, &fresh);
        if stale.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        eprintln!("mesh-xds/src/pb is stale; run `cargo run -p mesh-xds-codegen`:");
        for name in stale {
            eprintln!("  {name}");
        }
        return Ok(ExitCode::FAILURE);
    }

    std::fs::create_dir_all(&committed)?;
    for name in old.keys().filter(|name| !fresh.contains_key(*name)) {
        std::fs::remove_file(committed.join(name))?;
    }
    for (name, bytes) in &fresh {
        if old.get(name) != Some(bytes) {
            std::fs::write(committed.join(name), bytes)?;
        }
    }
    println!("{} files in {}", fresh.len(), committed.display());
    Ok(ExitCode::SUCCESS)
}

/// Compiles every `.proto` file of `protos` into Rust and descriptors in `out`.
fn generate(protos: &Path, out: &Path) -> Result<()> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(protos)
        .with_context(|| format!("cannot list {}", protos.display()))?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|ext| ext == "proto"));
    files.sort();

    let mut compiler = protox::Compiler::new([protos])?;
    compiler.include_imports(true).include_source_info(false).open_files(&files)?;
    // No message here has a field of this type, but an `Any` may hold one, and its JSON is its own.
    compiler.open_file("google/protobuf/field_mask.proto")?;
    let descriptors = compiler.file_descriptor_set();
    // The typed form above loses `debug_redact`, which marks secrets.
    std::fs::write(out.join(DESCRIPTORS), compiler.encode_file_descriptor_set())?;

    let mut config = prost_build::Config::new();
    config
        .enable_type_names()
        .type_name_domain(["."], "type.googleapis.com")
        .btree_map(["."])
        .include_file("mod.rs");
    tonic_prost_build::configure()
        .build_transport(false)
        .client_mod_attribute(".", "#[cfg(feature = \"client\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        .out_dir(out)
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}

/// Reads every file of a directory; a directory that does not exist is empty.
fn read_dir(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    if !dir.exists() {
        return Ok(files);
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path())?);
    }
    Ok(files)
}

/// The names of the files that are missing, surplus or different.
fn differences<'a>(old: &'a BTreeMap<String, Vec<u8>>, fresh: &'a BTreeMap<String, Vec<u8>>) -> Vec<&'a str> {
    let changed = fresh.iter().filter(|(name, bytes)| old.get(*name) != Some(*bytes)).map(|(name, _)| name);
    let surplus = old.keys().filter(|name| !fresh.contains_key(*name));
    changed.chain(surplus).map(String::as_str).collect()
}
