//! The inputs that are kept in the repository: one file for each target, compressed (RFC 1951), in which each input follows its
//! length, 32 bits, big-endian.

use std::fs;
use std::path::Path;

use miniz_oxide::inflate::decompress_to_vec;

/// The inputs of a target: those of `corpus/TARGET`, then the files of `seeds/TARGET`.
///
/// # Panics
/// When a file cannot be read or is cut off.
pub fn of(folder: &Path, target: &str) -> Vec<Vec<u8>> {
    let kept = fs::read(folder.join("corpus").join(target));
    let kept = kept.map_or(Vec::new(), |bytes| decompress_to_vec(&bytes).expect("a corpus"));
    let mut inputs = unpack(&kept);
    let mut seeds: Vec<_> = fs::read_dir(folder.join("seeds").join(target))
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .collect();
    seeds.sort();
    inputs.extend(seeds.into_iter().map(|path| fs::read(path).expect("a seed")));
    inputs
}

fn unpack(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut inputs = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk() {
        let (input, rest) = rest.split_at(u32::from_be_bytes(*len) as usize);
        inputs.push(input.to_vec());
        bytes = rest;
    }
    assert!(bytes.is_empty(), "a corpus is cut off");
    inputs
}
