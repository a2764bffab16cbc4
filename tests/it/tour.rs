//! The transcripts of the documentation, typed into a shell in a terminal: it shows what they show. With
//! `MILLSTREAM_WRITE_DOCS=1` they are written anew, with what it shows.

use crate::brokers::Broker;
use crate::terminal::{PROMPT, Terminal};

const BEGIN: &str = "```console\n";
const END: &str = "```\n";

/// Types what stands in the blocks of a page into one shell. In the place of some texts of the page there are others
/// here.
fn check(page: &str, replaced: &[(&str, &str)]) {
    let path = format!("{}/{page}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap();
    let here = |text: &str| replaced.iter().fold(text.to_string(), |text, (there, here)| text.replace(there, here));
    let there = |text: &str| replaced.iter().fold(text.to_string(), |text, (there, here)| text.replace(here, there));
    let is_written = std::env::var("MILLSTREAM_WRITE_DOCS").is_ok_and(|write| write == "1");

    let home = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::large(home.path());
    let mut blocks = text.split(BEGIN);
    let mut written = blocks.next().unwrap_or_default().to_string();
    for block in blocks {
        let (steps, behind) = block.split_once(END).unwrap();
        written += BEGIN;
        for step in steps.split(PROMPT).skip(1) {
            let (typed, shown) = split(step);
            let expected = here(shown.trim_matches('\n'));
            let said = terminal.answer(&here(typed), (!is_written).then_some(expected.as_str()));
            assert!(is_written || said == expected, "{page}: {typed}\nsays\n{said}\nnot\n{expected}");
            let end = if said.is_empty() { "" } else { "\n" };
            written += &format!("{PROMPT}{typed}\n{}{end}", there(&said));
        }
        written += END;
        written += behind;
    }
    assert!(terminal.leave().success());
    match is_written {
        true => std::fs::write(path, written).unwrap(),
        false => assert_eq!(written, text),
    }
}

/// A statement, which ends with `;`, or a command, which is one line; and what is shown then.
fn split(step: &str) -> (&str, &str) {
    let end = match step.starts_with('\\') {
        true => step.find('\n'),
        false => step.find(";\n").map(|end| end + 1),
    };
    step.split_at(end.unwrap_or(step.len()))
}

#[test]
fn the_readme_shows_what_the_shell_does() {
    check("README.md", &[]);
}

#[test]
fn the_tour_shows_what_the_shell_does() {
    check("docs/tour.md", &[]);
}

#[test]
fn the_tour_of_brokers_shows_what_the_shell_does() {
    Broker::Kafka.run(&["delete", "tour_orders"]);
    check("docs/brokers-tour.md", &[("127.0.0.1:9092", &Broker::Kafka.address())]);
}
