//! A barrier that is missing is found.

use super::bench::{Bench, Scenario};
use super::*;
use crate::storage::barrier::Barrier;

/// Losses of power until a missing barrier must have been found. Most take some dozens; how tasks interleave is up to chance, so the
/// bound is generous.
const PATIENCE: u64 = 120_000;

/// What is left out, and the image that needs it.
fn cases() -> Vec<(Without, Scenario)> {
    let [plain, _, _, _, small, ..] = bench::SHAPES;
    let over = bench::CHAINS[0];
    let raw = Scenario { len: 2000, ..Scenario::default() };
    let mut cases: Vec<(Without, Scenario)> = Barrier::ALL
        .into_iter()
        .map(|barrier| {
            let scenario = match barrier {
                Barrier::Autoclear => bench::BITMAP,
                Barrier::Reftable | Barrier::ReftableMoved | Barrier::ReftableNamed => small,
                Barrier::L1Moved => small,
                // Copies of tables that the snapshot has too.
                Barrier::Tables => bench::CHAINS[3],
                Barrier::Flush => raw,
                Barrier::Zeroed => Scenario { cache: CacheMode::Writethrough, ..raw },
                Barrier::Size => over,
                _ => plain,
            };
            (Without::Barrier(barrier.name()), scenario)
        })
        .collect();
    cases.push((Without::Barrier(Barrier::Flush.name()), plain));
    cases.push((Without::StableWrites, raw));
    cases.push((Without::StableWrites, Scenario { cache: CacheMode::Writethrough, ..raw }));
    cases.push((Without::StableWrites, Scenario { cache: CacheMode::Writethrough, ..plain }));
    cases
}

#[test]
fn the_model_finds_each_missing_barrier() {
    let Some(bench) = Bench::new() else { return };
    let mut unnoticed = Vec::new();
    for (n, (without, scenario)) in cases().into_iter().enumerate() {
        let begin = std::time::Instant::now();
        match bench.run(&scenario, n as u64 + 1, PATIENCE, without) {
            Ok(done) => unnoticed.push(format!("{without:?} in {scenario:?}: {done} losses of power")),
            Err(fault) => eprintln!("{without:?}: {fault} ({:?})", begin.elapsed()),
        }
    }
    assert_eq!(unnoticed, Vec::<String>::new());
}
