//! What the guest's kernel complains about.

use anyhow::{Context, Result, ensure};

/// Complaints that are known and harmless, each with its reason.
const ALLOWED: &str = include_str!("allowed-messages.txt");

/// The guest's shell text that prints, with their levels, the kernel's complaints and what concerns disks, between two
/// marks, then how many messages there are in all. The rest is not worth its way over the serial port, where each
/// byte is an exit.
pub(crate) const SHOW: &str = "echo MESSAGES; \
    dmesg -r | awk -F'[<>]' '$2 % 8 < 5 || /megaraid|megasas|scsi| sd /; END { print \"END OF MESSAGES:\", NR }'";

/// A kernel that has booted said at least this much.
const LEAST: u32 = 100;

/// Fails if the output of [`SHOW`] holds a warning or worse that is not allowed, or if it is not all there.
pub(crate) fn check(output: &str) -> Result<()> {
    let (_, rest) = output.split_once("MESSAGES\n").context("the guest did not show its messages")?;
    let (messages, rest) = rest.split_once("END OF MESSAGES:").context("the guest's messages do not end")?;
    let count = rest.split_whitespace().next().and_then(|number| number.parse::<u32>().ok());
    ensure!(count.is_some_and(|count| count >= LEAST), "the guest's messages are lost:\n{output}");
    let bad: Vec<&str> = messages.lines().filter(|line| is_complaint(line) && !is_allowed(line)).collect();
    ensure!(bad.is_empty(), "the guest's kernel complains:\n{}", bad.join("\n"));
    Ok(())
}

/// Whether a complaint is known and harmless.
pub(crate) fn is_allowed(line: &str) -> bool {
    let texts = ALLOWED.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    texts.map(|line| line.split(" # ").next().unwrap_or(line).trim()).any(|text| line.contains(text))
}

/// Whether a line such as "<4>[ 1.0] text" has the level warning or worse.
fn is_complaint(line: &str) -> bool {
    let number = line.strip_prefix('<').and_then(|rest| rest.split('>').next()?.parse::<u32>().ok());
    number.is_some_and(|number| number & 7 <= 4)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn shows_complaints_and_disks() {
        let said = "<6>[ 0.0] Linux\n<28>[ 1.0] odd\n<5>[ 2.0] sd 0:0:0:0: [sda] here\n<11>[ 3.0] broken\n<13>[ 4.0] fine\n";
        let script = format!("dmesg() {{ printf '{said}'; }}; {SHOW}");
        let shown = Command::new("sh").args(["-c", &script]).output().expect("a shell").stdout;
        let shown = String::from_utf8(shown).expect("text");
        let lines = [
            "MESSAGES",
            "<28>[ 1.0] odd",
            "<5>[ 2.0] sd 0:0:0:0: [sda] here",
            "<11>[ 3.0] broken",
            "END OF MESSAGES: 5",
        ];
        assert_eq!(shown.lines().collect::<Vec<_>>(), lines);
    }

    #[test]
    fn finds_complaints() {
        assert!(is_complaint("<4>[ 1.0] odd"));
        assert!(is_complaint("<28>[ 1.0] systemd finds it odd"));
        assert!(!is_complaint("<6>[ 1.0] fine"));
        assert!(check("MESSAGES\n<3>[ 1.0] broken\nEND OF MESSAGES: 300").is_err());
        assert!(check("MESSAGES\n<6>[ 1.0] fine\nEND OF MESSAGES: 300").is_ok());
        assert!(check("MESSAGES\nEND OF MESSAGES: 0").is_err());
    }
}
