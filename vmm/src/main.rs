//! placeholder
#[allow(dead_code, unused_imports, unreachable_pub, reason = "not wired yet")]
mod console;

fn main() {}
