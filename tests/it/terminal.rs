//! The shell in a terminal: keys go in, and what is on the screen comes out.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread::{self, sleep};
use std::time::Duration;

use pty_process::Size;
use pty_process::blocking::{Command, Pty, open};

const UP: &str = "\u{1b}[A";
const CTRL_C: &str = "\u{3}";
const CTRL_D: &str = "\u{4}";
/// What the shell asks with.
pub const PROMPT: &str = "millstream> ";

const NUMBERS: &str = "CREATE TABLE numbers (n BIGINT) WITH ('connector' = 'datagen', 'rows-per-second' = '100', \
                       'fields.n.kind' = 'sequence', 'fields.n.start' = '1');";

/// A shell in a terminal.
pub struct Terminal {
    pty: Arc<Pty>,
    shell: Child,
    written: Arc<Mutex<Vec<u8>>>,
    /// How much of what is plainly shown was looked at.
    seen: usize,
}

impl Terminal {
    /// One of 24 lines of 80 characters in this directory, which has its history, at its first prompt.
    fn new(home: &Path, variables: &[(&str, &str)]) -> Self {
        Self::sized(home, variables, Size::new(24, 80))
    }

    fn sized(home: &Path, variables: &[(&str, &str)], size: Size) -> Self {
        let command = Command::new(env!("CARGO_BIN_EXE_millstream")).arg("shell").env("TERM", "xterm-256color");
        let command = command.current_dir(home).env("XDG_STATE_HOME", home).envs(variables.iter().copied());
        Self::running(command, size)
    }

    fn running(command: Command, size: Size) -> Self {
        let (pty, pts) = open().unwrap();
        pty.resize(size).unwrap();
        let shell = command.spawn(pts).unwrap();
        let (pty, written) = (Arc::new(pty), Arc::new(Mutex::new(vec![])));
        let (source, sink) = (Arc::clone(&pty), Arc::clone(&written));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = (&*source).read(&mut bytes) {
                sink.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        let mut terminal = Self { pty, shell, written, seen: 0 };
        terminal.expect(PROMPT);
        terminal
    }

    fn plain(home: &Path) -> Self {
        Self::new(home, &[("NO_COLOR", "1"), ("PAGER", "cat")])
    }

    /// One without colours, in which every answer has its place.
    pub fn large(home: &Path) -> Self {
        Self::sized(home, &[("NO_COLOR", "1"), ("PAGER", "cat")], Size::new(200, 130))
    }

    /// Types a statement, and gives what is shown between it and the next prompt: as soon as that is what is expected,
    /// or what it is at last.
    pub fn answer(&mut self, typed: &str, expected: Option<&str>) -> String {
        self.type_in(&typed.replace('\n', "\r"));
        self.type_in("\r");
        let last_line = format!("{}\n", typed.lines().next_back().unwrap_or_default());
        let (mut newest, mut unchanged) = (String::new(), 0);
        for _ in 0..3000 {
            sleep(Duration::from_millis(20));
            let shown = plain(&self.written.lock().unwrap());
            let rest = String::from_utf8_lossy(&shown[self.seen..]);
            let Some(said) = rest.split_once(&last_line).and_then(|(_, said)| said.strip_suffix(PROMPT)) else {
                continue;
            };
            // What is told above a prompt takes its place.
            let said = said.replace(PROMPT, "").trim_end_matches('\n').to_string();
            unchanged = if said == newest { unchanged + 1 } else { 0 };
            newest = said;
            if expected == Some(newest.as_str()) || (expected.is_none() && unchanged > 100) {
                self.seen = shown.len();
                break;
            }
        }
        newest
    }

    fn type_in(&mut self, keys: &str) {
        (&*self.pty).write_all(keys.as_bytes()).unwrap();
    }

    /// Types a line, and waits for this in what comes behind what was seen before.
    fn ask(&mut self, line: &str, expected: &str) {
        self.type_in(line);
        self.type_in("\r");
        self.expect(expected);
    }

    fn expect(&mut self, expected: &str) {
        for _ in 0..3000 {
            let shown = plain(&self.written.lock().unwrap());
            let rest = &shown[self.seen..];
            if let Some(at) = rest.windows(expected.len()).position(|window| window == expected.as_bytes()) {
                self.seen += at + expected.len();
                return;
            }
            sleep(Duration::from_millis(20));
        }
        let shown = plain(&self.written.lock().unwrap());
        panic!("no {expected:?} behind\n{}", String::from_utf8_lossy(&shown[self.seen..]));
    }

    pub fn leave(mut self) -> ExitStatus {
        self.type_in(CTRL_D);
        self.shell.wait().unwrap()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It has left already, where all went well.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// What was written, without the sequences that move the cursor or give colours, and without carriage returns.
fn plain(written: &[u8]) -> Vec<u8> {
    let (mut shown, mut bytes) = (vec![], written.iter().copied());
    while let Some(byte) = bytes.next() {
        match byte {
            b'\r' | 7 => {}
            0x1b => {
                // `ESC [ … letter`.
                bytes.next();
                bytes.by_ref().find(u8::is_ascii_alphabetic);
            }
            byte => shown.push(byte),
        }
    }
    shown
}

#[test]
fn tab_completes_lines_go_on_and_up_brings_them_back() {
    let home = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::plain(home.path());
    terminal.ask(NUMBERS, "table numbers created");
    terminal.expect(PROMPT);
    terminal.ask("SELECT n FROM numb\t LIMIT 2;", "| 2 |");
    terminal.expect(PROMPT);
    terminal.ask("SELECT", "SELECT");
    terminal.ask(" 40 + 2 AS answer;", "|     42 |");
    terminal.expect(PROMPT);
    terminal.ask(UP, "|     42 |");
    terminal.expect(PROMPT);
    assert!(terminal.leave().success());

    // A secret that was typed is not there any more; the statement before it is.
    let mut terminal = Terminal::plain(home.path());
    terminal.ask("SET 's3.secret-key' = 'hunter2';", "s3.secret-key set");
    terminal.expect(PROMPT);
    assert!(terminal.leave().success());
    let mut terminal = Terminal::plain(home.path());
    terminal.ask(UP, "|     42 |");
    let history = std::fs::read_to_string(home.path().join("millstream/history")).unwrap();
    assert!(history.contains("answer") && !history.contains("hunter2"), "{history}");
}

#[test]
fn ctrl_c_clears_a_line_or_ends_a_query_and_never_the_shell() {
    let home = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::plain(home.path());
    terminal.ask(NUMBERS, "table numbers created");
    terminal.expect(PROMPT);
    terminal.type_in("SELECT nonsense");
    terminal.expect("nonsense");
    terminal.type_in(CTRL_C);
    terminal.expect(PROMPT);
    terminal.ask("SELECT n FROM numbers;", "| 3");
    terminal.type_in(CTRL_C);
    terminal.expect("stopped");
    terminal.expect(PROMPT);
    terminal.ask("SELECT 1 AS one;", "|   1 |");
    terminal.expect(PROMPT);
    assert!(terminal.leave().success());
}

#[test]
fn ctrl_c_ends_what_always_has_rows_and_leaving() {
    let home = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::plain(home.path());
    terminal.type_in("SELECT count(*) AS c FROM generate_series(1, 1000000000000);\r");
    // It says how far it is, so it runs: before that the key would clear the line.
    terminal.expect("0 rows so far");
    terminal.type_in(CTRL_C);
    terminal.expect("stopped");
    terminal.expect(PROMPT);
    terminal.ask(NUMBERS, "table numbers created");
    let set = format!("SET 'checkpoint.location' = '{}/ck';", home.path().display());
    terminal.ask(&set, "checkpoint.location set");
    terminal.ask("CREATE TABLE lines (n BIGINT) WITH ('connector' = 'print');", "table lines created");
    terminal.expect(PROMPT);
    terminal.ask("INSERT INTO lines SELECT n FROM numbers;", "query shell/lines started");
    // Its lines are above the prompt, which comes back behind them.
    terminal.expect("+I[3]\n");
    terminal.expect(PROMPT);
    terminal.type_in(CTRL_D);
    terminal.expect("or (c)ancel leaving? ");
    terminal.type_in(CTRL_C);
    terminal.expect(PROMPT);
    terminal.ask("STOP QUERY 'shell/lines';", "query shell/lines stopped after epoch");
    terminal.expect(PROMPT);
    assert!(terminal.leave().success());
}

#[test]
fn the_prompt_is_no_part_of_the_output() {
    let home = tempfile::tempdir().unwrap();
    let rows = home.path().join("rows");
    let command = Command::new(env!("CARGO_BIN_EXE_millstream")).arg("shell").env("TERM", "xterm-256color");
    let command = command.env("XDG_STATE_HOME", home.path()).env("NO_COLOR", "1");
    let mut terminal = Terminal::running(command.stdout(std::fs::File::create(&rows).unwrap()), Size::new(24, 80));
    terminal.ask("\\o csv", "shell.output is csv");
    terminal.ask("\\timing", "shell.timing is true");
    terminal.ask("SELECT 1 AS one;", "Time: ");
    terminal.expect(PROMPT);
    assert!(terminal.leave().success());
    assert_eq!(std::fs::read_to_string(&rows).unwrap(), "one\n1\n");
}

#[test]
fn a_terminal_that_can_do_little_shows_changes_a_line_each() {
    let home = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::new(home.path(), &[("TERM", "dumb"), ("NO_COLOR", "1")]);
    terminal.ask(NUMBERS, "table numbers created");
    terminal.expect(PROMPT);
    terminal.ask("SELECT count(*) AS c FROM numbers;", "| +U |");
    terminal.type_in(CTRL_C);
    terminal.expect("stopped");
    terminal.expect(PROMPT);
    assert!(terminal.leave().success());
}

#[test]
fn a_result_that_changes_refreshes_in_place_and_fits_the_screen() {
    let home = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::plain(home.path());
    terminal.ask(NUMBERS, "table numbers created");
    terminal.expect(PROMPT);
    let groups = |of: &str| format!("SELECT n % 2 AS k, count(*) AS c FROM numbers {of} GROUP BY n % 2;");
    terminal.ask(&groups(""), "| 1 | ");
    // Three lines up, and the same again: the second time it is drawn over three that are there.
    for _ in 0..2 {
        terminal.expect("| k | c");
        terminal.expect("| 1 | ");
    }
    let written = String::from_utf8_lossy(&terminal.written.lock().unwrap()).into_owned();
    assert!(written.contains("\u{1b}[3A| k | c"), "{written:?}");
    terminal.pty.resize(Size::new(24, 8)).unwrap();
    terminal.expect("| k | c…\n");
    terminal.pty.resize(Size::new(4, 80)).unwrap();
    terminal.expect("… 1 more row\n");
    terminal.pty.resize(Size::new(24, 80)).unwrap();
    terminal.expect("| 1 | ");
    terminal.type_in(CTRL_C);
    terminal.expect("stopped");
    terminal.expect(PROMPT);
    // One that ends is printed whole.
    terminal.ask(
        &groups("/*+ OPTIONS('number-of-rows' = '60') */"),
        "+---+----+\n| 0 | 30 |\n| 1 | 30 |\n+---+----+\n2 rows\n",
    );
    terminal.expect(PROMPT);
    // For other programs each change is a row.
    terminal.ask("\\o csv", "shell.output is csv");
    terminal.ask(&groups(""), "op,k,c\n");
    terminal.expect("+U,0,");
    terminal.type_in(CTRL_C);
    terminal.expect("stopped");
    terminal.expect(PROMPT);
    assert!(terminal.leave().success());
}

#[test]
fn a_smaller_window_breaks_long_cells() {
    let home = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::plain(home.path());
    terminal.pty.resize(Size::new(20, 40)).unwrap();
    terminal.ask("SELECT repeat('x', 50) AS long;", &format!("| {} |\n| {}", "x".repeat(36), "x".repeat(14)));
    terminal.expect(PROMPT);
    terminal.type_in("SELECT 2");
    terminal.pty.resize(Size::new(24, 100)).unwrap();
    terminal.ask(" AS two;", "|   2 |");
    terminal.ask("SELECT repeat('x', 50) AS long;", &format!("| {} |", "x".repeat(50)));
    terminal.expect(PROMPT);
    assert!(terminal.leave().success());
}

#[test]
fn commands_say_how_results_are_shown() {
    let home = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::new(home.path(), &[("NO_COLOR", "1"), ("PAGER", "sed s/^/paged:/")]);
    terminal.ask("\\timing", "shell.timing is true");
    terminal.ask("\\x", "shell.output is expanded");
    terminal.ask("SELECT 7 AS seven;", "-[ RECORD 1 ]-------\nseven | 7\n1 row\n");
    terminal.expect("Time: ");
    terminal.ask("\\x", "shell.output is table");
    terminal.ask("SELECT nothing FROM (SELECT 1 AS n) AS t;", "error: line 1, column 8");
    terminal.expect("\n         ^\n");
    terminal.ask("\\q now", "error: \\q takes nothing");
    let rows = (1..=30).map(|n| format!("({n})")).collect::<Vec<_>>().join(",");
    terminal.ask(&format!("SELECT * FROM (VALUES {rows}) AS v (n);"), "paged:| 29 |");
    terminal.ask("\\pager off", "shell.pager is false");
    terminal.ask("help;", "\\timing [on|off]");
    terminal.expect(PROMPT);
    terminal.type_in("exit\r");
    assert!(terminal.shell.wait().unwrap().success());
}

#[test]
fn a_file_goes_before_the_prompt() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("init.sql");
    std::fs::write(&file, format!("{NUMBERS}\n\\o csv\n")).unwrap();
    let command = Command::new(env!("CARGO_BIN_EXE_millstream")).args(["shell", "-f"]).arg(&file);
    let command = command.env("TERM", "xterm-256color").env("XDG_STATE_HOME", home.path()).env("NO_COLOR", "1");
    let mut terminal = Terminal::running(command, Size::new(24, 80));
    terminal.ask("SELECT n FROM numbers LIMIT 2;", "n\n1\n2\n");
    terminal.expect(PROMPT);
    assert!(terminal.leave().success());
}

#[test]
fn keywords_have_colours() {
    let home = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::new(home.path(), &[("NO_COLOR", "")]);
    terminal.ask("SELECT 'a' AS b;", "| a |");
    let written = String::from_utf8_lossy(&terminal.written.lock().unwrap()).into_owned();
    assert!(written.contains("\u{1b}[1;34mSELECT\u{1b}[0m \u{1b}[32m'a'\u{1b}[0m"), "{written:?}");
}
