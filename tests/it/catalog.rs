//! A catalog that outlives its sessions, shared by processes: at a path, and on the real S3 server.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use millstream::clock::Clock;

use crate::brokers::s3_settings;
use crate::harness::variable;

/// Processes that share a catalog.
struct Shared {
    dir: tempfile::TempDir,
    /// `--catalog` and its value, and the settings to reach it.
    flags: Vec<String>,
}

impl Shared {
    fn at(location: impl FnOnce(&Path) -> String, settings: impl IntoIterator<Item = (String, String)>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut flags = vec!["--catalog".into(), location(dir.path())];
        flags.extend(settings.into_iter().flat_map(|(key, value)| ["--set".into(), format!("{key}={value}")]));
        Self { dir, flags }
    }

    fn local() -> Self {
        Self::at(|dir| dir.join("catalog").display().to_string(), [])
    }

    fn run(&self, mode: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
        command.arg(mode).args(&self.flags).args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// What a shell prints.
    fn shell(&self, sql: &str) -> String {
        let output = self.run("shell", &["-e", sql]);
        assert_eq!(output.status.code(), Some(0), "{sql}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn refused(&self, sql: &str, expected: &str) {
        let output = self.run("shell", &["-e", sql]);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{sql}: {message}");
        assert!(message.contains(expected), "{sql}\n  says  {message}\n  not   {expected}");
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One process defines, others use, change and drop it.
fn is_shared(shared: &Shared) {
    let out = shared.path("out");
    shared.shell(&format!(
        "CREATE TABLE numbers (n BIGINT, twice AS n * 2) WITH ('connector' = 'datagen', 'number-of-rows' = '1000',
           'rows-per-second' = '1000000', 'fields.n.kind' = 'sequence', 'fields.n.start' = '1');
         CREATE TABLE big (n BIGINT) WITH ('connector' = 'filesystem', 'path' = '{out}', 'format' = 'parquet');
         CREATE VIEW `big ones` AS SELECT twice AS n FROM numbers WHERE n > 10"
    ));
    let file = shared.path("job.sql");
    std::fs::write(&file, "INSERT INTO big SELECT n FROM `big ones`;").unwrap();
    let submitted = shared.run("submit", &[&file, "--checkpoint", &shared.path("ck"), "--trigger", "continuous"]);
    assert_eq!(submitted.status.code(), Some(0), "{}", text(&submitted.stderr));

    let files = format!("CREATE EXTERNAL TABLE files STORED AS PARQUET LOCATION '{out}/'");
    shared.shell(&files);
    let read = shared.shell("SELECT count(*) AS c, min(n) AS least FROM files");
    assert!(read.contains("| 990 |    22 |"), "{read}");
    let tables = shared.shell("SHOW TABLES");
    for line in ["| big     | filesystem | catalog |", "| files   | external   | catalog |", "| numbers | datagen    |"]
    {
        assert!(tables.contains(line), "{line} in {tables}");
    }
    shared.refused(&files, "table files exists already");
    shared.refused("DROP TABLE numbers", "numbers is read by the view big ones");
    shared.shell("ALTER TABLE numbers SET ('number-of-rows' = '20'); DROP TABLE files");
    let altered = shared.shell("DESCRIBE `big ones`; SHOW CREATE TABLE numbers");
    assert!(altered.contains("'number-of-rows' = '20'"), "{altered}");
    shared.shell("DROP VIEW `big ones`; DROP TABLE IF EXISTS numbers; DROP TABLE big");
    shared.refused("SELECT * FROM numbers", "numbers");
    assert!(!shared.shell("SHOW TABLES").contains("catalog"));
}

#[test]
fn a_catalog_at_a_path_is_shared() {
    is_shared(&Shared::local());
}

#[test]
fn a_catalog_on_s3_is_shared() {
    let bucket = variable("MILLSTREAM_TEST_S3_BUCKET");
    let location = format!("s3://{bucket}/catalog-{}", Clock::system().random_id());
    is_shared(&Shared::at(|_| location, s3_settings()));
}

#[test]
fn secrets_and_what_is_temporary_are_not_written() {
    let shared = Shared::local();
    let table = |what: &str, password: &str| {
        format!(
            "CREATE {what} t (n BIGINT) WITH ('connector' = 'kafka', 'topic' = 't', 'format' = 'json',
               'properties.bootstrap.servers' = 'localhost:9092', 'properties.security.protocol' = 'SASL_PLAINTEXT',
               'properties.sasl.mechanism' = 'PLAIN', 'properties.sasl.username' = 'u',
               'properties.sasl.password' = '{password}')"
        )
    };
    shared
        .refused(&table("TABLE", "hunter2"), "'properties.sasl.password' is a secret, which the catalog does not keep");
    let shown = shared.shell(&format!("{}; SHOW TABLES", table("TEMPORARY TABLE", "hunter2")));
    assert!(shown.contains("| t    | kafka     | session |"), "{shown}");
    assert!(!shared.dir.path().join("catalog").exists(), "something was written");
    // HOME is set.
    shared.shell(&table("TABLE", "${env:HOME}"));
    let path = shared.dir.path().join("catalog/tables/t/00000000000000000001.json");
    let record = std::fs::read_to_string(path).unwrap();
    assert!(record.contains("'properties.sasl.password' = '${env:HOME}'"), "{record}");
}

#[test]
fn of_editors_at_once_one_creates_each_name() {
    const EDITORS: usize = 4;
    let shared = Shared::local();
    let create = |n: usize| {
        let sql = format!("CREATE TABLE t (n{n} BIGINT) WITH ('connector' = 'datagen')");
        shared.run("shell", &["-e", &sql])
    };
    let create = &create;
    let ended: Vec<Output> = std::thread::scope(|scope| {
        let editors: Vec<_> = (0..EDITORS).map(|n| scope.spawn(move || create(n))).collect();
        editors.into_iter().map(|editor| editor.join().unwrap()).collect()
    });
    let winners: Vec<usize> = (0..EDITORS).filter(|n| ended[*n].status.success()).collect();
    let [winner] = winners.as_slice() else { panic!("winners: {winners:?}") };
    for loser in ended.iter().filter(|output| !output.status.success()) {
        let message = text(&loser.stderr);
        assert!(message.contains("t exists already") || message.contains("t was changed meanwhile"), "{message}");
    }
    let described = shared.shell("DESCRIBE t");
    assert!(described.contains(&format!("| n{winner} ")), "{described}");
}
