//! A bar chart of storage figures, as SVG.

use std::fmt::Write as _;

use crate::bench_storage::Row;

const BAR: usize = 16;
const GAP: usize = 14;
const LEFT: usize = 190;
const WIDTH: f64 = 520.0;

/// Bars for each workload, in parts of its best figure, with the figures beside them.
pub fn svg(rows: &[Row]) -> String {
    let mut body = String::new();
    let mut y = 20;
    for group in rows.chunk_by(|a, b| a.job == b.job) {
        let Some(first) = group.first() else { continue };
        let best = group.iter().map(|row| row.iops).fold(1.0, f64::max);
        let middle = y + group.len() * BAR / 2 + 4;
        let name = first.job.name();
        let _ = writeln!(body, "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{name}</text>", LEFT - 8);
        for row in group {
            let width = (row.iops / best * WIDTH).max(1.0);
            let colour = match row.name {
                "vmm" => "#2a6fb0",
                "qemu" => "#c06a2b",
                "cloud" => "#4b9a57",
                _ => "#bbbbbb",
            };
            let height = BAR - 2;
            let _ = writeln!(
                body,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"{height}\" fill=\"{colour}\"/>\n\
                 <text x=\"{:.1}\" y=\"{}\">{} {:.0} IOPS, {:.1} MB/s</text>",
                LEFT as f64 + width + 6.0,
                y + BAR - 5,
                row.name,
                row.iops,
                row.megabytes
            );
            y += BAR;
        }
        y += GAP;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n",
        LEFT + WIDTH as usize + 190,
        y + 10
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fio::Job;

    #[test]
    fn every_row_has_a_bar() {
        let job = Job::new("read", 128, 8, 1);
        let row = |name, iops| Row { job, name, iops, megabytes: 1.0, cpu: None, exits: None, all: vec![] };
        let text = svg(&[row("qemu", 50.0), row("vmm", 100.0)]);
        assert_eq!(text.matches("<rect x=").count(), 2);
        assert!(text.contains("width=\"520.0\"") && text.contains("width=\"260.0\""), "{text}");
    }
}
