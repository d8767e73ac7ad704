//! What the guest's kernel complains about.

use anyhow::{Context, Result, ensure};

/// Complaints that are known and harmless, each with its reason.
const ALLOWED: &str = include_str!("allowed-messages.txt");

/// The guest's shell text that prints the kernel's messages with their levels between two marks.
pub(crate) const SHOW: &str = "echo MESSAGES; dmesg -r; echo END OF MESSAGES";

/// Fails if the output of [`SHOW`] holds a warning or worse that is not allowed.
pub(crate) fn check(output: &str) -> Result<()> {
    let (_, rest) = output.split_once("MESSAGES\n").context("the guest did not show its messages")?;
    let (messages, _) = rest.split_once("END OF MESSAGES").context("the guest's messages do not end")?;
    let allowed: Vec<&str> = ALLOWED
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split(" # ").next().unwrap_or(line).trim())
        .collect();
    let bad: Vec<&str> = messages
        .lines()
        .filter(|line| is_complaint(line) && !allowed.iter().any(|text| line.contains(text)))
        .collect();
    ensure!(bad.is_empty(), "the guest's kernel complains:\n{}", bad.join("\n"));
    Ok(())
}

/// Whether a line such as "<4>[ 1.0] text" has the level warning or worse.
fn is_complaint(line: &str) -> bool {
    let number = line.strip_prefix('<').and_then(|rest| rest.split('>').next()?.parse::<u32>().ok());
    number.is_some_and(|number| number & 7 <= 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_complaints() {
        assert!(is_complaint("<4>[ 1.0] odd"));
        assert!(is_complaint("<28>[ 1.0] systemd finds it odd"));
        assert!(!is_complaint("<6>[ 1.0] fine"));
        assert!(check("MESSAGES\n<3>[ 1.0] broken\nEND OF MESSAGES").is_err());
        assert!(check("MESSAGES\n<6>[ 1.0] fine\nEND OF MESSAGES").is_ok());
    }
}
