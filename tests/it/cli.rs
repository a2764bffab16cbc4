//! The binary, as people run it: files, exit codes, messages, the shell from a pipe. No broker is needed here.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn millstream() -> Command {
    Command::new(env!("CARGO_BIN_EXE_millstream"))
}

fn submit(dir: &Path, sql: &str, more: &[&str]) -> Output {
    let file = dir.join("job.sql");
    std::fs::write(&file, sql).unwrap();
    let out = format!("out={}", dir.display());
    millstream().arg("submit").arg(&file).args(["--var", &out]).args(more).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const JOB: &str = "SET 'checkpoint.location' = '${out}/ck';
CREATE TABLE numbers (n BIGINT) WITH ('connector' = 'datagen', 'number-of-rows' = '1000',
  'rows-per-second' = '1000000', 'fields.n.kind' = 'sequence', 'fields.n.start' = '1');
CREATE TABLE big (n BIGINT) WITH ('connector' = 'filesystem', 'path' = '${out}/big', 'format' = 'parquet');
INSERT INTO big SELECT n FROM numbers WHERE n > 10;";

#[test]
fn a_file_runs_to_its_end_and_again_adds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let output = submit(dir.path(), JOB, &["--trigger", "continuous"]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    }
    let read = format!(
        "CREATE EXTERNAL TABLE big STORED AS PARQUET LOCATION '{}/big/'; SELECT count(*) c, count(DISTINCT n) d FROM big;",
        dir.path().display()
    );
    let output = millstream().args(["shell", "-e", &read]).output().unwrap();
    assert!(text(&output.stdout).contains("| 990 | 990 |"), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn explain_shows_plan_and_guarantee_and_runs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let output = submit(dir.path(), JOB, &["--explain"]);
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for part in ["query job/big", "exactly-once", "Filter: numbers.n > Int64(10)", "ScanExec: numbers"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    assert!(!dir.path().join("ck").exists() && !dir.path().join("big").exists());
}

/// What a wrong file is told; exit code 1.
fn check_error(sql: &str, expected: &str) {
    let dir = tempfile::tempdir().unwrap();
    let output = submit(dir.path(), sql, &[]);
    assert_eq!(output.status.code(), Some(1), "{sql}");
    let message = text(&output.stderr);
    assert!(message.contains(expected), "{sql}\n  says  {message}\n  not   {expected}");
}

#[test]
fn errors_say_what_where_and_what_next() {
    check_error("SELECT 1", "has no INSERT INTO");
    check_error(
        "SET 'checkpoint.locaton' = 'x'",
        "line 1: there is no setting 'checkpoint.locaton'; did you mean 'checkpoint.location'?",
    );
    check_error("SELECT ${nme}", "nme");
    check_error(
        &JOB.replace("'number-of-rows'", "'number-of-row'"),
        "line 2: table numbers: there is no option 'number-of-row'; did you mean 'number-of-rows'?",
    );
    check_error(&JOB.replace("'datagen'", "'datagn'"), "there is no connector 'datagn'; did you mean 'datagen'?");
    check_error(&JOB.replace("SELECT n FROM", "SELECT m FROM"), "line 5, column 24");
    check_error(&JOB.replace("SELECT n FROM numbers", "SELECT N FROM numbers"), "Did you mean");
    check_error(
        &JOB.replace("SELECT n FROM numbers WHERE n > 10", "SELECT count(*) FROM numbers"),
        "the result changes as rows arrive",
    );
    check_error(
        "CREATE TABLE numbers (n BIGINT) WITH ('connector' = 'datagen'); SELECT n % 2, count(*) FROM numbers GROUP BY 1",
        "a SELECT over a stream never ends",
    );
    check_error(
        &JOB.replace("SELECT n FROM numbers WHERE n > 10", "SELECT n FROM numbers ORDER BY n"),
        "ORDER BY over a stream",
    );
    check_error(
        &JOB.replace("SELECT n FROM numbers WHERE n > 10", "SELECT n FROM numbers LIMIT 3"),
        "LIMIT over a stream",
    );
    check_error(&JOB.replace("SELECT n FROM numbers WHERE n > 10", "SELECT random() FROM numbers"), "random()");
    check_error(
        &JOB.replace("SELECT n FROM numbers WHERE n > 10", "SELECT n, 1 FROM numbers"),
        "the SELECT has 2 columns, and big takes 1: n",
    );
    check_error(&format!("{JOB}\nINSERT INTO big SELECT n FROM numbers"), "line 6: there is a query job/big already");
    check_error(&JOB.replace("SET 'checkpoint.location' = '${out}/ck';", ""), "needs a checkpoint");
    check_error(&JOB.replace("INSERT INTO big", "INSERT INTO bigg"), "did you mean 'big'?");
}

#[test]
fn a_secret_appears_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let sql = format!("SET 's3.secret-key' = 'hunter2'; SET 's3.access-key' = 'hunter2';\nSET;\n{JOB}");
    let output = submit(dir.path(), &sql, &["--trigger", "continuous"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(!text(&output.stdout).contains("hunter2") && !text(&output.stderr).contains("hunter2"));
    let found = Command::new("grep").args(["-r", "hunter2"]).arg(dir.path().join("ck")).output().unwrap();
    assert_eq!(text(&found.stdout), "");
}

#[test]
fn a_changed_query_goes_on_where_that_is_safe_and_is_refused_where_not() {
    let dir = tempfile::tempdir().unwrap();
    let run = |sql: &str| submit(dir.path(), sql, &["--trigger", "continuous"]);
    assert_eq!(run(JOB).status.code(), Some(0));
    let changed = run(&JOB.replace("n > 10", "n > 20"));
    assert_eq!(changed.status.code(), Some(0), "{}", text(&changed.stderr));
    let refused = run(&JOB.replace("${out}/big'", "${out}/elsewhere'"));
    assert_eq!(refused.status.code(), Some(1));
    let message = text(&refused.stderr);
    assert!(message.contains("belongs to another target") && message.contains("elsewhere"), "{message}");
}

#[test]
fn one_querys_end_leaves_the_others_running() {
    let dir = tempfile::tempdir().unwrap();
    let sql = format!(
        "{JOB}\nCREATE TABLE small (n TINYINT) WITH ('connector' = 'filesystem', 'path' = '${{out}}/small', 'format' = 'parquet');
         INSERT INTO small SELECT CAST(CAST(n AS STRING) || 'x' AS TINYINT) FROM numbers;"
    );
    let output = submit(dir.path(), &sql, &["--trigger", "continuous"]);
    let events = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{events}");
    assert!(events.contains(r#"{"event":"finished","query":"job/big""#), "{events}");
    assert!(events.contains(r#"{"event":"failed","query":"job/small""#), "{events}");
}

/// The shell, with this from a pipe.
pub fn shell(sql: &str) -> Output {
    let mut shell =
        millstream().arg("shell").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
    shell.wait_with_output().unwrap()
}

#[test]
fn the_shell_works_from_a_pipe() {
    let sql = "CREATE TABLE t (n BIGINT, m AS n * 2) WITH ('connector' = 'datagen', 'fields.n.kind' = 'sequence',
                 'fields.n.start' = '1', 'rows-per-second' = '1000000');
               SELECT m, n FROM t WHERE n > 2
                 LIMIT 2; SHOW TABLES; DESCRIBE t;";
    let output = shell(sql);
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for part in ["| 6 | 3 |", "| 8 | 4 |", "| t    | datagen   | session |", "| AS n * 2 "] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
}

/// The shell with these arguments and nothing to read: exit code, standard output, standard error.
fn asked(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = millstream().arg("shell").args(arguments).stdin(Stdio::null()).output().unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn scripts_have_rows_on_standard_output_and_nothing_else() {
    let rows = "CREATE TABLE t (n BIGINT, item STRING) WITH ('connector' = 'print');
        SELECT * FROM (VALUES (1, 'a|b'), (22, NULL)) AS v (n, item) ORDER BY n;";
    for (format, expected) in [
        ("table", "+----+------+\n|  n | item |\n+----+------+\n|  1 | a|b  |\n| 22 | NULL |\n+----+------+\n2 rows\n"),
        (
            "expanded",
            "-[ RECORD 1 ]-------\nn    | 1\nitem | a|b\n-[ RECORD 2 ]-------\nn    | 22\nitem | NULL\n2 rows\n",
        ),
        ("csv", "n,item\n1,a|b\n22,\n"),
        ("json", "{\"n\":1,\"item\":\"a|b\"}\n{\"n\":22,\"item\":null}\n"),
        ("markdown", "| n | item |\n| ---: | --- |\n| 1 | a\\|b |\n| 22 | NULL |\n"),
    ] {
        let set = format!("shell.output={format}");
        let (code, output, said) = asked(&["--set", &set, "-e", rows]);
        assert_eq!((code, output.as_str()), (Some(0), expected), "{format}: {said}");
        assert!(said.contains("table t created"), "{said}");
        assert_eq!(asked(&["-e", &format!("\\o {format}"), "-e", rows]).1, expected, "{format}");
    }
    // A stream as well, row by row.
    let stream = "CREATE TABLE t (n BIGINT) WITH ('connector' = 'datagen', 'fields.n.kind' = 'sequence',
        'fields.n.start' = '1'); SELECT n FROM t LIMIT 2;";
    assert_eq!(asked(&["--set", "shell.output=json", "-e", stream]).1, "{\"n\":1}\n{\"n\":2}\n");
}

#[test]
fn the_first_error_ends_a_script_and_is_marked_in_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let (file, inner) = (dir.path().join("job.sql"), dir.path().join("inner.sql"));
    std::fs::write(
        &file,
        "\\timing on\n\nSELECT 1 AS one;\n  SELECT nothing FROM (SELECT 1 AS n) AS t;\nSELECT 2 AS two;\n",
    )
    .unwrap();
    let name = file.display().to_string();
    let (code, output, said) = asked(&["-f", &name]);
    assert_eq!(code, Some(1), "{said}");
    assert!(output.contains("one") && !output.contains("two"), "{output}");
    assert!(said.contains("Time: ") && said.contains(&format!("error: {name}: line 4, column 10: ")), "{said}");
    assert!(said.contains("\n    SELECT nothing FROM (SELECT 1 AS n) AS t;\n           ^\n"), "{said}");

    // Some editors begin a file with a mark.
    std::fs::write(&inner, "\u{feff}SELECT 3 AS three;").unwrap();
    std::fs::write(&file, format!("\\i {}\n\\q\nSELECT 4 AS four;", inner.display())).unwrap();
    let (code, output, said) = asked(&["-f", &name, "-e", "SELECT 5 AS five"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(output.contains("three") && !output.contains("four") && !output.contains("five"), "{output}");

    std::fs::write(&inner, format!("\\i {}", inner.display())).unwrap();
    let (code, _, said) = asked(&["-e", &format!("\\i {}", inner.display())]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("files execute files more than 16 deep"), "{said}");
    for (wrong, expected) in [
        ("\\timming", "there is no command \\timming; did you mean 'timing'?"),
        ("SET 'shell.output' = 'jsn'", "setting 'shell.output': 'jsn' is no choice; did you mean 'json'?"),
        ("SELECT 1; SELECT", "line 1"),
    ] {
        let (code, output, said) = asked(&["-e", wrong]);
        assert_eq!((code, output.as_str()), (Some(1), ""), "{wrong}: {said}");
        assert!(said.contains(expected) && !said.contains('^'), "{wrong}: {said}");
    }
}

#[test]
fn a_query_that_fails_or_is_stopped_ends_its_script() {
    let dir = tempfile::tempdir().unwrap();
    let tables = format!(
        "SET 'checkpoint.location' = '{}/ck';
         CREATE TABLE numbers (n BIGINT) WITH ('connector' = 'datagen', 'rows-per-second' = '1000',
           'fields.n.kind' = 'sequence', 'fields.n.start' = '1');
         CREATE TABLE small (n TINYINT) WITH ('connector' = 'blackhole');
         CREATE TABLE lines (n BIGINT) WITH ('connector' = 'print');",
        dir.path().display()
    );
    let fails = "INSERT INTO small SELECT CAST(CAST(n AS STRING) || 'x' AS TINYINT) FROM numbers; SELECT 2 AS two;";
    let (code, output, said) = asked(&["-e", &format!("{tables} {fails}"), "-e", "SELECT 3 AS three"]);
    assert_eq!((code, output.as_str()), (Some(1), ""), "{said}");

    let endless = format!("{tables} INSERT INTO lines SELECT n FROM numbers; SELECT 2 AS two;");
    let mut running = millstream()
        .args(["shell", "-e", &endless])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut shown, mut line, mut rest) =
        (BufReader::new(running.stdout.take().unwrap()), String::new(), String::new());
    shown.read_line(&mut line).unwrap();
    assert_eq!(line, "+I[1]\n");
    assert!(Command::new("kill").args(["-TERM", &running.id().to_string()]).status().unwrap().success());
    shown.read_to_string(&mut rest).unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(130));
    assert!(!rest.contains("two"), "{rest}");
}

#[test]
fn who_stops_reading_ends_a_script_without_a_word() {
    let start = |arguments: &[&str]| {
        let mut shell = millstream();
        shell.arg("shell").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        shell.spawn().unwrap()
    };
    let mut running = start(&["-e", "\\o csv", "-e", "SELECT 1 AS one", "-e", "\\x"]);
    drop(running.stdout.take());
    let output = running.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(141), "shell.output is csv\n"));
    // Who does not want to hear notices gets the rows.
    let mut running = start(&["-e", "\\timing on", "-e", "SELECT 1 AS one"]);
    drop(running.stderr.take());
    let output = running.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("|   1 |"));
}

#[test]
fn help_needs_no_prompt() {
    let (code, output, _) = asked(&["-e", "\\?", "-e", "\\h show tables", "-e", "\\h 'scan.startup.mode'"]);
    assert_eq!(code, Some(0));
    for part in ["\\timing [on|off]", "SHOW TABLES", "'scan.startup.mode' (kafka, rocketmq; reading)"] {
        assert!(output.contains(part), "{part} in {output}");
    }
    assert!(text(&shell("help;\nexit;\nSELECT 1;").stdout).contains("Tab completes"));
}

#[test]
fn state_is_a_table() {
    let dir = tempfile::tempdir().unwrap();
    let bids = dir.path().join("bids");
    std::fs::create_dir(&bids).unwrap();
    let line =
        |(item, second): &(&str, u32)| format!("{{\"item\":\"{item}\",\"ts\":\"2026-01-01 00:00:{second:02}\"}}\n");
    // An epoch each: what the first one remembers of 0 to 10 s is complete in the second, though its file has it.
    for (name, rows) in
        [("1.json", vec![("apple", 1), ("pear", 3), ("apple", 20)]), ("2.json", vec![("apple", 25), ("pear", 21)])]
    {
        std::fs::write(bids.join(name), rows.iter().map(line).collect::<String>()).unwrap();
    }
    let sql = "SET 'checkpoint.location' = '${out}/ck';
        CREATE TABLE bids (item STRING, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) WITH (
          'connector' = 'filesystem', 'path' = '${out}/bids', 'format' = 'json', 'scan.max-rows-per-epoch' = '1');
        CREATE TABLE out (opens TIMESTAMP(3), item STRING, n BIGINT) WITH ('connector' = 'blackhole');
        INSERT INTO out SELECT date_bin(INTERVAL '10 seconds', ts), item, count(*) FROM bids GROUP BY 1, 2;";
    let output = submit(dir.path(), sql, &["--trigger", "available-now"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));

    let ask = |sql: &str| shell(&format!("SET 'checkpoint.location' = '{}/ck'; {sql};", dir.path().display()));
    let check = |sql: &str, rows: &[&str]| {
        let output = ask(sql);
        assert_eq!(output.status.code(), Some(0), "{sql}: {}", text(&output.stderr));
        let shown = text(&output.stdout);
        let found: Vec<&str> = shown.lines().filter(|line| line.starts_with('|')).skip(1).collect();
        assert_eq!(found, rows, "{sql}");
    };
    let columns = "(opens, item, n)";
    check(
        &format!("SELECT * FROM state('job/out', 'aggregate-1') AS s {columns} ORDER BY opens, item"),
        &["| 2026-01-01 00:00:20 | apple | 2 |", "| 2026-01-01 00:00:20 | pear  | 1 |"],
    );
    check(
        &format!("SELECT * FROM state('job/out', 'aggregate-1', 1) AS s {columns} ORDER BY opens, item"),
        &[
            "| 2026-01-01 00:00:00 | apple | 1 |",
            "| 2026-01-01 00:00:00 | pear  | 1 |",
            "| 2026-01-01 00:00:20 | apple | 1 |",
        ],
    );
    check(
        &format!(
            "SELECT b.item, b.n - coalesce(a.n, 0) AS more FROM TABLE(STATE('job/out', 'aggregate-1', 2)) AS b {columns}
             LEFT JOIN state('job/out', 'aggregate-1', 1) AS a {columns} ON a.opens = b.opens AND a.item = b.item
             ORDER BY 1"
        ),
        &["| apple |    1 |", "| pear  |    1 |"],
    );

    let refused = |output: Output, expected: &str| {
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(expected), "{message}\n  is not  {expected}");
    };
    let whole = "SELECT * FROM state('job/out', 'aggregate-1')";
    let view = format!("CREATE VIEW v AS {whole}");
    let insert = format!("CREATE TABLE t (n BIGINT) WITH ('connector' = 'blackhole'); INSERT INTO t {whole}");
    for (sql, expected) in [
        (
            "SELECT * FROM state('job/out', 'aggregate-2')",
            "job/out has no state of aggregate-2 after epoch 2; did you mean 'aggregate-1'?",
        ),
        ("SELECT * FROM state('job/ot', 'aggregate-1')", "has no query job/ot; did you mean 'job/out'?"),
        ("SELECT * FROM state('job/out', 'aggregate-1', 7)", "epoch 7 of job/out is not kept; kept are 1 to 2"),
        ("SELECT * FROM state('job/out')", "say state('query', 'operator' [, epoch])"),
        (view.as_str(), "state() is of one epoch"),
        (insert.as_str(), "state() is of one epoch"),
    ] {
        refused(ask(sql), expected);
    }
    refused(shell(&format!("{whole};")), "SET 'checkpoint.location'");
}

#[test]
fn a_state_file_that_was_damaged_is_refused_by_whoever_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let sql = "SET 'checkpoint.location' = '${out}/ck';
        CREATE TABLE numbers (n BIGINT) WITH ('connector' = 'datagen', 'number-of-rows' = '1000',
          'rows-per-second' = '1000000', 'fields.n.kind' = 'sequence', 'scan.max-rows-per-epoch' = '500');
        CREATE TABLE out (k BIGINT, n BIGINT) WITH ('connector' = 'blackhole');
        INSERT INTO out SELECT n % 7, count(*) FROM numbers GROUP BY 1;";
    let submitted = || submit(dir.path(), sql, &["--trigger", "available-now"]);
    assert_eq!(submitted().status.code(), Some(0));

    let ck = dir.path().join("ck");
    let folder = ck.join("job/out/00000000000000000001/state/aggregate-1");
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let first = files.filter(|file| file.extension().is_some_and(|kind| kind == "zst")).min().unwrap();
    let name = first.file_name().unwrap().to_string_lossy();
    let whole = std::fs::read(&first).unwrap();
    let asked = || {
        let sql = "SELECT * FROM state('job/out', 'aggregate-1')";
        shell(&format!("SET 'checkpoint.location' = '{}'; {sql};", ck.display()))
    };
    let rewound = || {
        millstream()
            .args(["query", "rewind", "job/out", "--epoch", "1", "--output", "keep", "--checkpoint"])
            .arg(&ck)
            .output()
            .unwrap()
    };
    let refused = |output: Output, expected: &str| {
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(name.as_ref()) && message.contains(expected), "{message}\n  is not  {expected}");
    };

    std::fs::write(&first, &whole[..whole.len() - 1]).unwrap();
    let cut = format!("has {} bytes, and {} by the commit that names it", whole.len() - 1, whole.len());
    [submitted(), asked(), rewound()].into_iter().for_each(|output| refused(output, &cut));
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    std::fs::write(&first, changed).unwrap();
    [submitted(), asked()].into_iter().for_each(|output| refused(output, "cannot be read; restore it from a copy"));
    std::fs::write(&first, whole).unwrap();
    [submitted(), asked(), rewound()].into_iter().for_each(|output| assert_eq!(output.status.code(), Some(0)));
}

#[test]
fn sigterm_finishes_the_epoch_and_leaves_with_0() {
    let dir = tempfile::tempdir().unwrap();
    let sql = JOB.replace("'number-of-rows' = '1000',", "").replace("'1000000'", "'1000'");
    let file = dir.path().join("job.sql");
    std::fs::write(&file, sql).unwrap();
    let out = format!("out={}", dir.path().display());
    let mut running = millstream()
        .arg("submit")
        .arg(&file)
        .args(["--var", &out, "--trigger", "continuous"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while std::fs::read_dir(dir.path().join("big")).map_or(0, Iterator::count) < 3 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(Command::new("kill").args(["-TERM", &running.id().to_string()]).status().unwrap().success());
    assert_eq!(running.wait().unwrap().code(), Some(0));
    let root = dir.path().join("ck/job/big/00000000000000000001");
    let count = |folder: &str| {
        let names = std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().ends_with(".json")).count()
    };
    assert_eq!(count("intents"), count("commits"));
}

#[test]
fn the_examples_run() {
    let dir = tempfile::tempdir().unwrap();
    let run = |mode: &str, name: &str, more: &[&str]| {
        let file = format!("{}/queries/{name}.sql", env!("CARGO_MANIFEST_DIR"));
        let out = format!("out={}/{}", dir.path().display(), name.trim_end_matches("-read"));
        let flag = if mode == "shell" { "-f" } else { "--progress=none" };
        let arguments = if mode == "shell" { vec![mode, flag, &file] } else { vec![mode, &file, flag] };
        let output =
            millstream().args(arguments).args(["--var", &out]).args(more).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{name}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    run("submit", "quickstart", &[]);
    let read = run("shell", "quickstart-read", &[]);
    assert!(read.contains("| 300530 | 100.01 | 250.00 |"), "{read}");
    run("submit", "enrich", &[]);
    assert!(dir.path().join("enrich/named_orders/day=2026-01-02").is_dir());
    let plans = run("submit", "hot-items", &["--explain"]);
    assert!(plans.contains("remembers [count(Int64(1))[count]] by ["), "{plans}");
    assert!(plans.contains("append-only") && plans.contains("until the watermark has passed"), "{plans}");
    run("submit", "hot-items", &[]);
    run("submit", "hourly-totals", &[]);
    run("submit", "deduplicated-orders", &[]);
    run("submit", "sessions", &[]);
    run("submit", "fan-out", &[]);
    let written = [
        ("hot-items/hot_items", 66),
        ("hourly-totals/hourly_totals", 224),
        ("deduplicated-orders/orders", 18355),
        ("sessions/user_sessions", 3546),
        ("sessions/late_clicks", 80),
        ("fan-out/all_orders", 100_000),
        ("fan-out/hourly_totals", 224),
    ];
    for (location, rows) in written {
        let location = dir.path().join(location).display().to_string();
        let sql =
            format!("CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{location}/'; SELECT count(*) AS n FROM t;");
        let output = millstream().args(["shell", "-e", &sql]).stdin(Stdio::null()).output().unwrap();
        let said = text(&output.stdout);
        assert!(said.contains(&format!("| {rows} ")), "{location}: {said}");
    }
    let checkpoint = dir.path().join("hot-items/checkpoints").display().to_string();
    let state = |more: &[&str]| {
        let output = millstream().args(["state", "--checkpoint", &checkpoint]).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    // The stream has ended, so nothing is remembered any more.
    let all = state(&[]);
    assert!(all.contains("| hot-items/hot_items |") && all.contains("| aggregate-1 | 0     | 0    | 0     |"), "{all}");
    assert!(state(&["hot-items/hot_items"]).lines().count() > 2);
    // These need the brokers; what they would do is said without.
    let plans = run("submit", "topics", &["--explain"]);
    assert!(plans.contains("query topics/all_orders") && plans.contains("at-least-once"), "{plans}");
    let plans = run("submit", "dead-letters", &["--explain"]);
    assert!(plans.contains("writes dead letters to bad_orders"), "{plans}");
    let plans = run("submit", "replay", &["--explain"]);
    assert!(plans.contains("query replay/orders_again") && plans.contains("append-only"), "{plans}");
}
