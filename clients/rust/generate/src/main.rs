//! Writes the generated code of the contract. protox compiles the protos in pure
//! Rust, so that nothing but crates.io is needed.

use std::error::Error;
use std::fs;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let protos = repository.join("protos");
    let mut files: Vec<_> = fs::read_dir(protos.join("headrace/v1"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    let mut compiler = protox::Compiler::new([&protos])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(&files)?;
    let into = std::env::args()
        .nth(1)
        .map_or_else(|| repository.join("clients/rust/src"), Into::into);
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .out_dir(&into)
        .compile_fds(compiler.file_descriptor_set())?;
    fs::rename(into.join("headrace.v1.rs"), into.join("v1.rs"))?;
    Ok(())
}
