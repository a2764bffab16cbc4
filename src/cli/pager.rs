//! Texts that are taller than the screen: through `$PAGER`, or `less` where there is one.

use std::io::Write;
use std::process::{Command, Stdio};

use super::output::say;
use crate::error::Result;

/// Without a pager of the user's own: colours and lines as they are, and nothing is left if it fits after all.
const DEFAULT: &str = "if command -v less >/dev/null; then exec less -RFX; else exec cat; fi";

/// Shows the text and waits until its reader leaves; prints it where no pager can be started.
pub(super) fn page(text: &str) -> Result<()> {
    let own = std::env::var("PAGER").ok().filter(|pager| !pager.trim().is_empty());
    let command = own.as_deref().unwrap_or(DEFAULT);
    let Ok(mut pager) = Command::new("sh").args(["-c", command]).stdin(Stdio::piped()).spawn() else {
        return say(text);
    };
    if let Some(mut input) = pager.stdin.take() {
        // Who leaves before the end has seen enough.
        let _ = writeln!(input, "{text}");
    }
    // 127: there is no such program.
    match pager.wait()?.code() {
        Some(127) => say(text),
        _ => Ok(()),
    }
}
