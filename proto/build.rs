//! Compiles `protos/*.proto` to Rust, without a protobuf compiler on the machine.
//!
//! Messages come from prost-build. Services come from [`services::Generator`], since handlers here are `!Send` and
//! bound to no transport.

#[path = "build/commands.rs"]
mod commands;
#[path = "build/services.rs"]
mod services;

use prost::Message;
use std::error::Error;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=protos");
    println!("cargo::rerun-if-changed=build");

    let files = proto_files(Path::new("protos"))?;
    let descriptors = protox::Compiler::new(["protos"])?.include_imports(true).open_files(files)?.file_descriptor_set();

    let out_dir = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec())?;

    let commands = commands::generate(&descriptors).ok_or("tikvpb has no BatchCommandsRequest.Request")?;
    std::fs::write(out_dir.join("commands.rs"), commands)?;

    prost_build::Config::new()
        .bytes(["."])
        .btree_map(["."])
        .service_generator(Box::new(services::Generator))
        .compile_fds(descriptors)?;
    Ok(())
}

/// The `.proto` files of `folder`, in the order of their names.
fn proto_files(folder: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
