//! Measures a disk under one condition after the other, and prints one table: how many times QEMU's operations ours does.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::bed::Bed;
use crate::bench_plan::{Engine, HALT_POLL_DEFAULT, Plan, QemuSuite};
use crate::bench_storage::{self, Outcome, ratio};
use crate::guest::{HbaKind, Vmm};
use crate::kernel::Debian;
use crate::paths;
use crate::report::note;

/// Below this a workload counts as slower than QEMU.
const SLOWER: f64 = 1.0;

/// All conditions, in their order; the first is what the others differ from in one thing.
fn all(base: &Plan) -> Vec<(&'static str, Plan)> {
    let base = || base.clone();
    let hpet = || Some("hpet".to_string());
    vec![
        ("base", base()),
        ("libaio", Plan { engine: Engine::Libaio, ..base() }),
        ("guest 6.1", Plan { debian: Debian::Bookworm, ..base() }),
        ("halt_poll", Plan { halt_poll: Some(HALT_POLL_DEFAULT), ..base() }),
        ("2 queues", Plan { cpus: 2, spread: true, ..base() }),
        ("hpet", Plan { clock: hpet(), ..base() }),
        ("newest QEMU", Plan { qemu: QemuSuite::Sid, ..base() }),
        ("megasas", Plan { hba: HbaKind::Megasas, ..base() }),
        ("megasas, hpet", Plan { hba: HbaKind::Megasas, clock: hpet(), ..base() }),
    ]
}

/// Measures, prints the table, and writes `conditions.json`.
pub fn run(
    bed: &Bed,
    rounds: Option<u32>,
    quick: bool,
    conditions: &[String],
    only: &[String],
) -> Result<()> {
    let base = Plan {
        rounds: rounds.unwrap_or(if quick { 1 } else { 2 }),
        quick: true,
        seconds: Some(if quick { 3 } else { 4 }),
        host: false,
        only: only.to_vec(),
        ..Plan::default()
    };
    let mut list = all(&base);
    list.retain(|(name, _)| {
        conditions.is_empty() || conditions.iter().any(|word| name.contains(word.as_str()))
    });
    ensure!(!list.is_empty(), "no condition has such a name");
    let (start, count) = (Instant::now(), list.len());
    let mut outcomes = Vec::new();
    for (number, (name, plan)) in list.iter().enumerate() {
        note(&format!("condition {} of {count}, {name}, after {} s", number + 1, start.elapsed().as_secs()));
        let outcome = bench_storage::measure(bed, plan, &[Vmm::Ours, Vmm::Qemu]);
        match outcome {
            Ok(outcome) => outcomes.push((*name, outcome)),
            // The others are worth having all the same.
            Err(error) => note(&format!("{name}: failed: {error:#}")),
        }
        bed.clear()?;
    }
    let failed = count - outcomes.len();
    print!("{}", table(&outcomes));
    let json = paths::runs()?.join("conditions.json");
    std::fs::write(&json, to_json(&outcomes, &base))
        .with_context(|| format!("writing {}", json.display()))?;
    println!("written: {}", json.display());
    ensure!(failed == 0, "{failed} of {count} conditions could not be measured");
    Ok(())
}

/// The ratios of a condition by the workload's name without its number of jobs.
fn ratios(outcome: &Outcome) -> Vec<(String, f64)> {
    let short = |name: &str| name.rsplit_once("-j").map_or(name, |(name, _)| name).to_string();
    let rows = outcome.rows.iter();
    rows.filter_map(|row| Some((short(&row.job.name()), ratio(&outcome.rows, row, Vmm::Qemu)?))).collect()
}

fn table(outcomes: &[(&str, Outcome)]) -> String {
    let mut text = String::new();
    let Some((_, first)) = outcomes.first() else { return text };
    for (name, outcome) in outcomes {
        let _ = writeln!(text, "{name}: {}", outcome.conditions.line());
    }
    let _ = write!(text, "\n{:14}", "to QEMU, IOPS");
    for (job, _) in ratios(first) {
        let _ = write!(text, " {job:>18}");
    }
    text.push('\n');
    let (mut slower, mut count, mut clear) = (Vec::new(), 0, 0);
    for (name, outcome) in outcomes {
        let _ = write!(text, "{name:14}");
        for (job, ratio) in ratios(outcome) {
            let _ = write!(text, " {ratio:>18.2}");
            count += 1;
            clear += u32::from(ratio >= 1.3);
            if ratio < SLOWER {
                slower.push(format!("{name} {job} {ratio:.2}"));
            }
        }
        text.push('\n');
    }
    let slower = if slower.is_empty() { "none".into() } else { slower.join(", ") };
    let _ = writeln!(text, "\n1.30 and more: {clear} of {count}; slower than QEMU: {slower}");
    text
}

fn to_json(outcomes: &[(&str, Outcome)], base: &Plan) -> String {
    let items: Vec<String> = outcomes
        .iter()
        .map(|(name, outcome)| {
            let rows: Vec<String> = outcome
                .rows
                .iter()
                .map(|row| {
                    let all: Vec<String> = row.all.iter().map(|iops| format!("{iops:.1}")).collect();
                    format!(
                        "      {{\"workload\": \"{}\", \"where\": \"{}\", \"iops\": {:.1}, \"rounds\": [{}]}}",
                        row.job.name(),
                        row.name,
                        row.iops,
                        all.join(", ")
                    )
                })
                .collect();
            format!(
                "    {{\"name\": \"{name}\", \"conditions\": {{{}}}, \"results\": [\n{}\n    ]}}",
                outcome.conditions.json(),
                rows.join(",\n")
            )
        })
        .collect();
    format!(
        "{{\n  \"rounds\": {},\n  \"seconds\": {},\n  \"conditions\": [\n{}\n  ]\n}}\n",
        base.rounds,
        base.seconds(),
        items.join(",\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench_plan::Conditions;
    use crate::bench_storage::Row;
    use crate::fio::Job;

    fn outcome(ours: f64, theirs: f64) -> Outcome {
        let row = |name, iops| Row {
            job: Job::new("randread", 4, 32, 1),
            name,
            iops,
            megabytes: 1.0,
            cpu: None,
            exits: None,
            all: vec![iops],
        };
        let conditions = Conditions { list: vec![("clock", "hpet".into())] };
        Outcome { rows: vec![row("vmm", ours), row("qemu", theirs)], conditions }
    }

    #[test]
    fn every_condition_differs_from_the_first_in_one_thing() {
        let all = all(&Plan::default());
        assert_eq!(all.len(), 9);
        let names: std::collections::BTreeSet<_> = all.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), 9);
    }

    #[test]
    fn one_table_of_ratios() {
        let text = table(&[("base", outcome(150.0, 100.0)), ("hpet", outcome(73.0, 100.0))]);
        assert!(text.contains("hpet: clock hpet\n"), "{text}");
        assert!(
            text.contains(
                "randread-4k-d32\nbase                         1.50\nhpet                         0.73\n"
            ),
            "{text}"
        );
        assert!(
            text.ends_with("1.30 and more: 1 of 2; slower than QEMU: hpet randread-4k-d32 0.73\n"),
            "{text}"
        );
        let json = to_json(&[("base", outcome(150.0, 100.0))], &Plan::default());
        assert!(
            json.contains("\"conditions\": {\"clock\": \"hpet\"}") && json.contains("\"rounds\": [150.0]")
        );
    }
}
