//! The binary against a Kafka that asks who it is (SASL_SSL), and allows only what its access lists say.

use std::process::Command;

use millstream::clock::Clock;

use crate::brokers::{Broker, assert_exactly_once};
use crate::harness::variable;

/// A user of the listener that asks for names.
struct User {
    name: String,
    password: String,
}

impl User {
    /// Who may do everything.
    fn admin() -> Self {
        Self::of("MILLSTREAM_TEST_KAFKA_ADMIN")
    }

    /// Who may do what was allowed.
    fn guest() -> Self {
        Self::of("MILLSTREAM_TEST_KAFKA_GUEST")
    }

    fn of(name: &str) -> Self {
        Self { name: variable(name), password: variable(&format!("{name}_PASSWORD")) }
    }

    /// DDL of a table `n BIGINT` over a topic.
    fn table(&self, name: &str, topic: &str, more: &str) -> String {
        let (servers, ca) = (variable("MILLSTREAM_TEST_KAFKA_SASL"), variable("MILLSTREAM_TEST_KAFKA_CA"));
        format!(
            "CREATE TABLE {name} (n BIGINT) WITH ('connector' = 'kafka', 'topic' = '{topic}', 'format' = 'json',
               'properties.bootstrap.servers' = '{servers}', 'properties.security.protocol' = 'SASL_SSL',
               'properties.ssl.ca.location' = '{ca}', 'properties.sasl.mechanism' = 'PLAIN',
               'properties.sasl.username' = '{}', 'properties.sasl.password' = '{}'{more});\n",
            self.name, self.password
        )
    }
}

/// A SQL file and its checkpoint, in a directory of their own.
pub struct Script(tempfile::TempDir);

impl Script {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Reads what is there, and ends: the exit code, and all that was printed.
    fn run(&self, sql: &str) -> (Option<i32>, String) {
        let (dir, file) = (self.0.path(), self.0.path().join("job.sql"));
        std::fs::write(&file, format!("SET 'checkpoint.location' = '{}/ck';\n{sql}", dir.display())).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
        let output = command.arg("submit").arg(&file).args(["--trigger", "available-now"]).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    }

    /// It ends well: all that was printed.
    pub fn passes(&self, sql: &str) -> String {
        let (code, said) = self.run(sql);
        assert_eq!(code, Some(0), "{said}");
        said
    }

    /// An error with these parts ends it, without another try: all that was printed.
    pub fn is_refused(&self, sql: &str, parts: &[&str]) -> String {
        let (code, said) = self.run(sql);
        assert_eq!(code, Some(1), "{said}");
        assert!(!said.contains("\"event\":\"retry\""), "{said}");
        let failed = said.lines().find(|line| line.contains("\"event\":\"failed\"")).expect(&said);
        let failed: serde_json::Value = serde_json::from_str(failed).unwrap();
        let error = failed["error"].as_str().unwrap();
        for part in parts {
            assert!(error.contains(part), "{part}: {error}");
        }
        said
    }

    /// Whether a file of the checkpoint holds this.
    pub fn keeps(&self, secret: &str) -> bool {
        let checkpoint = self.0.path().join("ck");
        assert!(checkpoint.exists());
        Command::new("grep").args(["-r", "-q", "-F", secret]).arg(checkpoint).status().unwrap().success()
    }
}

fn feed(topic: &str, numbers: std::ops::Range<i64>) {
    let mut feeder = Broker::Kafka.feeder(topic, &[]);
    feeder.send(numbers);
    feeder.finish();
}

fn allow(operation: &str, kind: &str, name: &str) {
    Broker::Kafka.run(&["allow", &User::guest().name, operation, kind, name]);
}

/// From topic to topic.
pub fn copy(from: String, to: String) -> String {
    format!("{from}{to}INSERT INTO output SELECT n FROM input;")
}

#[test]
fn a_user_reads_and_writes_by_sasl_ssl_and_the_password_stays_secret() {
    let (input, output) = (Broker::Kafka.topic("from"), Broker::Kafka.topic("to"));
    feed(&input, 0..1_000);
    let script_of = |user: &User| copy(user.table("input", &input, ""), user.table("output", &output, ""));
    let user = User::admin();
    let script = Script::new();
    let said = script.passes(&script_of(&user));
    assert_exactly_once(Broker::Kafka.numbers(&output), 0..1_000);
    assert!(!said.contains(&user.password) && !script.keeps(&user.password));

    let wrong = User { password: "not-the-password".into(), ..user };
    // A query that has never run, and one that has.
    for script in [Script::new(), script] {
        let parts = ["the cluster refused the connection", "uthentication failed", "'properties.sasl.*'"];
        let said = script.is_refused(&script_of(&wrong), &parts);
        assert!(!said.contains(&wrong.password) && !script.keeps(&wrong.password));
    }
    assert_eq!(Broker::Kafka.numbers(&output).len(), 1_000);
}

#[test]
fn a_certificate_that_nobody_vouches_for_is_refused() {
    let input = Broker::Kafka.topic("from");
    let table = User::admin().table("input", &input, "").replace(&variable("MILLSTREAM_TEST_KAFKA_CA"), "probe");
    Script::new().is_refused(&copy(table, BLACKHOLE.into()), &["the cluster refused the connection", "certificate"]);
}

pub const BLACKHOLE: &str = "CREATE TABLE output (n BIGINT) WITH ('connector' = 'blackhole');\n";
const HIDDEN: &str =
    "TopicAuthorizationFailed (Broker: Topic authorization failed); the user needs DESCRIBE on the topic";

/// One permission after the other, each where its lack has been told.
#[test]
fn what_the_user_may_not_do_is_named_at_once() {
    let [input, at_least, once] = ["from", "at-least", "once"].map(|name| Broker::Kafka.topic(name));
    feed(&input, 0..100);
    let guest = User::guest();
    let source = || guest.table("input", &input, "");

    let (script, reading) = (Script::new(), copy(source(), BLACKHOLE.into()));
    script.is_refused(&reading, &[&format!("topic {input}: {HIDDEN}")]);
    allow("DESCRIBE", "topic", &input);
    script.is_refused(&reading, &[&format!("{input}:"), "Topic authorization failed", "needs READ on the topic"]);
    allow("READ", "topic", &input);
    script.passes(&reading);

    let group = format!("group-{}", Clock::system().random_id());
    let from_group = format!(", 'properties.group.id' = '{group}', 'scan.startup.mode' = 'group-offsets'");
    let (script, grouped) = (Script::new(), copy(guest.table("input", &input, &from_group), BLACKHOLE.into()));
    let needed = "GroupAuthorizationFailed (Broker: Group authorization failed); the user needs READ on the group";
    script.is_refused(&grouped, &[&format!("group {group}: "), needed]);
    allow("DESCRIBE", "group", &group);
    let said = script.passes(&grouped);
    assert!(said.contains("offsets are not committed to the group") && said.contains(needed), "{said}");
    allow("READ", "group", &group);
    // Said at the end of each run, which does not wait for it for long.
    let is_told = || {
        script.passes(&grouped);
        let told = Broker::Kafka.run(&["group", &group]);
        let next = told.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["offset"].as_u64());
        next.flatten().sum::<u64>() == 100
    };
    assert!((0..5).any(|_| is_told()), "the group does not stand where the query does");

    let delivery = ", 'sink.delivery-guarantee' = 'at-least-once'";
    let (script, writing) = (Script::new(), copy(source(), guest.table("output", &at_least, delivery)));
    script.is_refused(&writing, &[&format!("topic {at_least}: {HIDDEN}")]);
    allow("DESCRIBE", "topic", &at_least);
    // Who may write nowhere is not even made a producer.
    let needed = format!("the user needs WRITE on topic {at_least}");
    script.is_refused(&writing, &["was refused", "authorization failed", &needed]);
    allow("WRITE", "topic", &at_least);
    script.passes(&writing);
    assert_exactly_once(Broker::Kafka.numbers(&at_least), 0..100);

    let progress = format!("progress-{}", Clock::system().random_id());
    let sink = guest.table("output", &once, &format!(", 'sink.progress-topic' = '{progress}'"));
    let (script, writing) = (Script::new(), copy(source(), sink));
    script.is_refused(&writing, &[&format!("topic {once}: {HIDDEN}")]);
    allow("DESCRIBE", "topic", &once);
    script.is_refused(&writing, &[&format!("progress topic: topic {progress}: {HIDDEN}")]);
    allow("DESCRIBE", "topic", &progress);
    let missing = format!("the progress topic {progress} is missing, and cannot be created: TopicAuthorizationFailed");
    script.is_refused(&writing, &[&missing, "let the user CREATE it"]);
    allow("CREATE", "topic", &progress);
    let needed = "WRITE on the transactional id ";
    let said = script.is_refused(&writing, &["TransactionalIdAuthorizationFailed", needed]);
    let (_, id) = said.split_once(needed).unwrap();
    let id = id.split(';').next().unwrap();
    assert!(id.starts_with("millstream-") && id.ends_with(&once), "{said}");
    allow("DESCRIBE", "txn", id);
    script.is_refused(&writing, &["TransactionalIdAuthorizationFailed", &format!("{needed}{id}")]);
    allow("WRITE", "txn", id);
    let needed = format!("the user needs WRITE on topic {once}, READ and WRITE on the progress topic {progress}");
    script.is_refused(&writing, &["was refused", "Topic authorization failed", &needed]);
    allow("WRITE", "topic", &once);
    script.is_refused(&writing, &["was refused", "Topic authorization failed", &needed]);
    allow("WRITE", "topic", &progress);
    script.passes(&writing);
    assert_exactly_once(Broker::Kafka.numbers(&once), 0..100);
    let unreadable = format!("progress topic {progress}: Fetch");
    script.is_refused(&writing, &[&unreadable, "Topic authorization failed", "the user needs READ and WRITE on it"]);
    allow("READ", "topic", &progress);
    feed(&input, 100..200);
    script.passes(&writing);
    assert_exactly_once(Broker::Kafka.numbers(&once), 0..200);
}
