//! Things that are built once and kept: each has a recipe, and a changed recipe makes a new one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{paths, report};

/// Returns the folder `NAME-HASH` of the cache, where HASH is that of `recipe`. If it does not exist yet,
/// `make` fills it first. An interrupted or failed build leaves nothing behind that would be used.
pub fn build(name: &str, recipe: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = paths::cache()?;
    let dir = cache.join(format!("{name}-{:016x}", hash(recipe.as_bytes())));
    if dir.is_dir() {
        return Ok(dir);
    }
    let lock = File::create(cache.join(format!("{name}.lock")))?;
    lock.lock().context("locking the cache")?;
    if dir.is_dir() {
        return Ok(dir);
    }
    let unfinished = cache.join(format!("{name}.unfinished"));
    remove(&unfinished)?;
    paths::make_dir(&unfinished)?;
    report::step(&format!("preparing {name}"), || make(&unfinished))?;
    fs::rename(&unfinished, &dir).with_context(|| format!("keeping {}", dir.display()))?;
    Ok(dir)
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// FNV-1a with 64 bits: the same in every build, which the standard library's hashes do not promise.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::hash;

    #[test]
    fn hash_is_fnv1a() {
        assert_eq!(hash(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
