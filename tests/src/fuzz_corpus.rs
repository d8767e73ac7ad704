//! What the repository keeps of the fuzz targets' inputs, a file for each target: `tests/fuzz/src/corpus.rs` says how.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};
use miniz_oxide::deflate::compress_to_vec;
use miniz_oxide::inflate::decompress_to_vec;

use crate::fuzz::folder;
use crate::paths::{make_dir, runs, target};

/// No longer input is kept: an image of a disk is a seed, if it is worth it.
const LONGEST: usize = 64 << 10;

/// Builds the targets as plain programs, and runs each input of the repository once.
pub fn replay(filters: &[String]) -> Result<()> {
    let program = build(&target()?, "")?;
    let status = Command::new(program).arg(folder()).arg(runs()?).args(filters).status()?;
    ensure!(status.success(), "an input of a fuzz target is not taken");
    Ok(())
}

/// Builds the program that runs inputs, below `dir` and with these flags of the compiler; returns it.
pub fn build(dir: &Path, flags: &str) -> Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--bin", "replay", "--target-dir"]).arg(dir);
    if !flags.is_empty() {
        // What is built anew for one run need not be fast. Build scripts are counted, too, and leave their counts where they run.
        cargo.env("RUSTFLAGS", flags).env("LLVM_PROFILE_FILE", dir.join("build-%m.profraw"));
        cargo.envs([("CARGO_PROFILE_DEV_OPT_LEVEL", "0"), ("CARGO_PROFILE_DEV_DEBUG", "0")]);
    }
    ensure!(
        cargo.current_dir(folder()).status().context("running cargo")?.success(),
        "the targets do not build"
    );
    Ok(dir.join("debug/replay"))
}

fn file(name: &str) -> PathBuf {
    folder().join("corpus").join(name)
}

/// Makes `dir` an empty folder.
pub fn empty(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("emptying {}", dir.display()))?;
    }
    make_dir(dir)
}

/// Writes the kept inputs of a target into `dir`, which is emptied before: a file each.
pub fn unpack(name: &str, dir: &Path) -> Result<()> {
    empty(dir)?;
    let Ok(bytes) = fs::read(file(name)) else { return Ok(()) };
    let bytes = decompress_to_vec(&bytes).map_err(|error| anyhow!("the corpus of {name}: {error}"))?;
    for (number, input) in
        split(&bytes).with_context(|| format!("the corpus of {name}"))?.into_iter().enumerate()
    {
        fs::write(dir.join(number.to_string()), input)?;
    }
    Ok(())
}

/// Keeps the files in `dir`, the shortest first; returns how many and the length of all.
pub fn pack(name: &str, dir: &Path) -> Result<(usize, usize)> {
    let mut inputs = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("{}", dir.display()))? {
        inputs.push(fs::read(entry?.path())?);
    }
    inputs.retain(|input| input.len() <= LONGEST);
    inputs.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    let bytes = compress_to_vec(&join(&inputs), 9);
    make_dir(&folder().join("corpus"))?;
    fs::write(file(name), &bytes)?;
    Ok((inputs.len(), bytes.len()))
}

/// Each after its length.
fn join(inputs: &[Vec<u8>]) -> Vec<u8> {
    let each = inputs.iter().map(|input| [&(input.len() as u32).to_be_bytes(), input.as_slice()].concat());
    each.collect::<Vec<_>>().concat()
}

fn split(mut bytes: &[u8]) -> Result<Vec<&[u8]>> {
    let mut inputs = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk() {
        let (input, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize).context("is cut off")?;
        inputs.push(input);
        bytes = rest;
    }
    ensure!(bytes.is_empty(), "is cut off");
    Ok(inputs)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn inputs_follow_their_length() {
        let inputs = [vec![], vec![7], vec![1; 300]];
        let bytes = join(&inputs);
        assert_eq!(bytes.get(..10), Some(&[0, 0, 0, 0, 0, 0, 0, 1, 7, 0][..]));
        assert_eq!(split(&bytes).unwrap(), inputs);
        assert!(split(&bytes[..bytes.len() - 1]).is_err());
        assert!(split(&bytes[..6]).is_err());
    }
}
