//! Power losses: what was flushed is there, and an image has leaks at most, whenever the power fails.
//!
//! `CRASHES` in the environment says how many losses of power are modelled; without it, enough for each change of the code.

mod bench;
mod drive;
mod missing;

use super::CacheMode;
use super::raw::Forcing;
use crate::testing::power::Without;
use bench::{Bench, Scenario};

/// Losses of power in all, unless the environment says how many.
const CRASHES: u64 = 12_000;

fn crashes() -> u64 {
    std::env::var("CRASHES").ok().and_then(|count| count.parse().ok()).unwrap_or(CRASHES)
}

/// Runs scenarios until there were `count` losses of power in each.
fn survive(scenarios: &[Scenario], share: u64) {
    let Some(bench) = Bench::new() else { return };
    let count = (crashes() / share / scenarios.len() as u64).max(1);
    for (n, scenario) in scenarios.iter().enumerate() {
        let begin = std::time::Instant::now();
        let done = bench.run(scenario, n as u64 + 1, count, Without::Nothing);
        let done = done.unwrap_or_else(|fault| panic!("{scenario:?}: {fault}"));
        eprintln!("{done} losses of power in {:?}: {scenario:?}", begin.elapsed());
    }
}

#[test]
fn raw_images_keep_what_was_flushed() {
    let scenario = |cache| Scenario { cache, len: 2000, ..Scenario::default() };
    let caches = [CacheMode::Writeback, CacheMode::None, CacheMode::Writethrough, CacheMode::Directsync];
    survive(&caches.map(scenario), 6);
}

/// The host does nothing for RWF_DSYNC.
#[test]
fn raw_images_keep_what_was_forced_where_only_syncs_count() {
    let Some(bench) = Bench::new() else { return };
    for cache in [CacheMode::Writeback, CacheMode::Directsync] {
        let scenario = Scenario { cache, len: 2000, forcing: Forcing::Sync, ..Scenario::default() };
        let done = bench.run(&scenario, 1, (crashes() / CRASHES).max(1), Without::StableWrites);
        done.unwrap_or_else(|fault| panic!("{scenario:?}: {fault}"));
    }
}

#[test]
fn qcow2_images_of_all_cluster_sizes_keep_what_was_flushed() {
    survive(&bench::SHAPES, 2);
}

#[test]
fn qcow2_images_over_others_keep_what_was_flushed() {
    survive(&bench::CHAINS, 3);
}
