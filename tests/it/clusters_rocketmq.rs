//! Catalogs of RocketMQ through the shell: what it shows and changes is what RocketMQ's own Java tools say.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};

use millstream::clock::Clock;
use serde_json::Value;

use crate::rocketmq::{name_server, produce, tool};

/// What the shell comes to with these statements, which know the brokers as the catalog `k`.
fn shell(sql: &str) -> Output {
    let catalog = format!("CREATE CATALOG k WITH ('type' = 'rocketmq', 'name-server' = '{}')", name_server());
    let mut shell = Command::new(env!("CARGO_BIN_EXE_millstream"));
    shell.args(["shell", "-e", &format!("{catalog}; {sql};")]).stdin(Stdio::null()).output().unwrap()
}

/// What it shows, if nothing is wrong.
fn shown(sql: &str) -> String {
    let output = shell(sql);
    assert_eq!(output.status.code(), Some(0), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The rows of the only table that it shows, without the heading; NULL is an empty text.
fn rows(sql: &str) -> Vec<Vec<String>> {
    let shown = shown(sql);
    let cell = |cell: &str| if cell.trim() == "NULL" { String::new() } else { cell.trim().to_string() };
    let cells = |line: &str| line.trim_matches('|').split('|').map(cell).collect();
    shown.lines().filter(|line| line.starts_with('|')).skip(1).map(cells).collect()
}

/// The rows that begin with this, without it.
fn rows_of(kind: &str, sql: &str) -> Vec<Vec<String>> {
    let rows = rows(sql).into_iter().filter(|row| row[0] == kind);
    rows.map(|row| row[1..].to_vec()).collect()
}

fn refused(sql: &str, parts: &[&str]) {
    let output = shell(sql);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{sql}: {message}");
    for part in [&["catalog k: "][..], parts].concat() {
        assert!(message.contains(part), "{sql}\n  says  {message}\n  not   {part}");
    }
}

/// What the Java tool says, a JSON object a line.
fn told(arguments: &[&str]) -> Vec<Value> {
    tool(arguments, "").iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn new_name(name: &str) -> String {
    format!("it-{name}-{}", Clock::system().random_id())
}

/// Waits until queues end here: a broker indexes messages a moment after it acknowledged them.
fn ends(topic: &str, expected: &[u64]) {
    // Each takes a second or so.
    let found = (0..30).any(|_| {
        let told = told(&["ends", &name_server(), topic]);
        told.iter().map(|queue| queue["max"].as_u64().unwrap()).eq(expected.iter().copied())
    });
    assert!(found, "{topic} does not hold {expected:?}");
}

#[test]
fn a_topic_is_created_described_and_dropped() {
    let topic = new_name("made");
    let create = format!("CREATE TOPIC k.`{topic}` WITH ('queues' = '3', 'message-type' = 'FIFO')");
    shown(&create);
    let settings = told(&["settings", &name_server(), &topic]);
    let expected = r#"{"broker":"broker-a","perm":6,"read":3,"write":3,"order":false,"type":"FIFO"}"#;
    assert_eq!(settings, [serde_json::from_str::<Value>(expected).unwrap()], "there is one broker");
    produce(&topic, 0, 0, 10, &["--batch", "10"]);
    produce(&topic, 2, 10, 4, &["--batch", "4"]);
    ends(&topic, &[10, 0, 4]);

    let describe = format!("DESCRIBE TOPIC k.`{topic}`");
    let queues = rows_of("partition", &describe);
    let expected = [("broker-a:0", "10"), ("broker-a:1", "0"), ("broker-a:2", "4")];
    let found: Vec<_> = queues.iter().map(|queue| queue[..4].to_vec()).collect();
    assert_eq!(found, expected.map(|(queue, end)| vec![queue.to_string(), "0".into(), end.into(), end.into()]));
    for queue in &queues {
        assert!(queue[4].parse::<SocketAddr>().is_ok(), "{queue:?}");
    }
    let settings: Vec<_> =
        rows_of("setting", &describe).into_iter().map(|row| (row[0].clone(), row[4].clone())).collect();
    let expected =
        [("message-type", "FIFO"), ("order", "false"), ("perm", "RW"), ("read-queues", "3"), ("write-queues", "3")];
    for (name, value) in expected {
        assert!(settings.contains(&(name.into(), value.into())), "{name} in {settings:?}");
    }

    assert_eq!(rows(&format!("SHOW TOPICS FROM k LIKE '{topic}'")), [[topic.clone()]]);
    refused(&create, &[&format!("topic {topic} exists already")]);
    let wrong = topic.replace("made", "mdae");
    refused(&format!("DESCRIBE TOPIC k.`{wrong}`"), &[&format!("there is no topic '{wrong}'"), "did you mean '"]);
    let drop_topic = format!("DROP TOPIC k.`{topic}`");
    shown(&drop_topic);
    assert_eq!(tool(&["delete", &name_server(), &topic], ""), ["absent"]);
    assert!(!tool(&["topics", &name_server()], "").contains(&topic));
    refused(&drop_topic, &[&format!("there is no topic '{topic}'")]);
}

#[test]
fn what_a_topic_cannot_be_is_refused_by_name() {
    let topic = new_name("refused");
    for (options, part) in [
        ("'partitions' = '3'", "there is no option 'partitions'"),
        ("'queue' = '3'", "did you mean 'queues'?"),
        ("'queues' = '0'", "'0' is not a number from 1 to 65535"),
        ("'message-type' = 'FIFA'", "did you mean 'FIFO'?"),
    ] {
        refused(&format!("CREATE TOPIC k.`{topic}` WITH ({options})"), &[part]);
    }
    refused("CREATE TOPIC k.`a b`", &["topic: 'a b' is no name"]);
    refused("DROP TOPIC k.`TBW102`", &["topic TBW102 is RocketMQ's own"]);
    assert_eq!(tool(&["delete", &name_server(), &topic], ""), ["absent"]);
}

#[test]
fn what_brokers_have_for_themselves_is_not_shown() {
    let own = ["TBW102", "SELF_TEST_TOPIC", "broker-a", "DefaultCluster"];
    let all = tool(&["topics", &name_server()], "");
    let shown: Vec<String> = rows("SHOW TOPICS FROM k").concat();
    for topic in own {
        assert!(all.iter().any(|known| known == topic), "{topic} in {all:?}");
        assert!(!shown.iter().any(|known| known == topic), "{topic} in {shown:?}");
    }
    assert!(!shown.iter().any(|topic| topic.starts_with('%') || topic.starts_with("rmq_sys_")), "{shown:?}");
    let groups: Vec<String> = rows("SHOW GROUPS FROM k").into_iter().map(|row| row[0].clone()).collect();
    assert!(!groups.iter().any(|group| group == "TOOLS_CONSUMER" || group.starts_with("CID_RMQ_SYS_")), "{groups:?}");
    let reset = "RESET GROUP k.`TOOLS_CONSUMER` FOR TOPIC `TBW102` TO LATEST";
    refused(reset, &["group TOOLS_CONSUMER is RocketMQ's own; it is not reset"]);
}

/// A topic whose queues hold 10 and 5 messages, and a group that stands at 4 in the first.
fn half_read() -> (String, String) {
    let (topic, group) = (new_name("read"), new_name("group"));
    tool(&["create", &name_server(), &topic, "2"], "");
    produce(&topic, 0, 0, 10, &["--batch", "10"]);
    produce(&topic, 1, 10, 5, &["--batch", "5"]);
    ends(&topic, &[10, 5]);
    tool(&["commit", &name_server(), &topic, &group, "0=4"], "");
    (topic, group)
}

/// Where a group stands, by the Java tool: end and offset of each queue.
fn progress(topic: &str, group: &str) -> Vec<(u64, u64)> {
    let told = told(&["progress", &name_server(), topic, group]);
    told.iter().map(|queue| (queue["end"].as_u64().unwrap(), queue["group"].as_u64().unwrap())).collect()
}

/// The same by the shell, with the lag; where it stands nowhere, texts are empty.
fn described(topic: &str, group: &str) -> Vec<[String; 4]> {
    let offsets = rows_of("offset", &format!("DESCRIBE GROUP k.`{group}`")).into_iter();
    let offsets = offsets.filter(|row| row[0] == topic);
    offsets.map(|row| [1, 2, 3, 4].map(|column| row[column].clone())).collect()
}

fn texts<const N: usize>(rows: &[[&str; N]]) -> Vec<[String; N]> {
    rows.iter().map(|row| row.map(str::to_string)).collect()
}

#[test]
fn a_group_is_described_reset_and_read_from() {
    let (topic, group) = half_read();
    assert_eq!(
        described(&topic, &group),
        texts(&[["broker-a:0", "4", "10", "6"], ["broker-a:1", "", "5", ""]]),
        "queue, committed, end, lag"
    );
    let expected = [[group.as_str(), "offline", "0"]];
    assert_eq!(rows(&format!("SHOW GROUPS FROM k LIKE '{group}'")), expected);
    assert!(tool(&["groups", &name_server()], "").contains(&group));

    let reset = |to: &str| format!("RESET GROUP k.`{group}` FOR TOPIC `{topic}` TO {to}");
    for (to, first, second) in [
        ("EARLIEST", "0", "0"),
        ("LATEST", "10", "5"),
        ("TIMESTAMP '2000-01-01 00:00:00'", "0", "0"),
        ("TIMESTAMP '2100-01-01 00:00:00'", "10", "5"),
        ("OFFSETS ('0' = '7', 'broker-a:1' = '2')", "7", "2"),
    ] {
        let expected = [[topic.as_str(), "broker-a:0", "4", first], [&topic, "broker-a:1", "", second]];
        assert_eq!(rows(&reset(to)), expected, "{to}");
    }
    assert_eq!(described(&topic, &group)[0], texts(&[["broker-a:0", "4", "10", "6"]])[0], "a dry run changes nothing");

    let expected = [[topic.as_str(), "broker-a:1", "", "2"]];
    assert_eq!(rows(&reset("OFFSETS ('1' = '2') EXECUTE")), expected, "what was done is shown");
    assert_eq!(progress(&topic, &group), [(10, 4), (5, 2)]);
    let expected = texts(&[["broker-a:0", "4", "10", "6"], ["broker-a:1", "2", "5", "3"]]);
    assert_eq!(described(&topic, &group), expected);
    shown(&reset("OFFSETS ('0' = '8', '1' = '4') EXECUTE"));
    let read = format!(
        "CREATE TABLE t (id BIGINT) WITH ('connector' = 'rocketmq', 'name-server' = '{}', 'topic' = '{topic}',
           'format' = 'json', 'group' = '{group}', 'scan.startup.mode' = 'group-offsets',
           'scan.bounded.mode' = 'latest-offset');
         SELECT id FROM t ORDER BY id",
        name_server()
    );
    assert_eq!(rows(&read).concat(), ["8", "9", "14"]);

    for (to, part) in [
        ("OFFSETS ('2' = '0')", "has no partition '2'; there are broker-a:0, broker-a:1"),
        ("OFFSETS ('0' = '11')", "offset 11 is not in"),
    ] {
        refused(&reset(to), &[part]);
    }
    let wrong = group.replace("group", "gruop");
    refused(&format!("DESCRIBE GROUP k.`{wrong}`"), &[&format!("there is no group '{wrong}'"), "did you mean '"]);
}

#[test]
fn a_group_that_nobody_knows_may_be_given_a_place_to_begin() {
    let (topic, _) = half_read();
    let group = new_name("group");
    let reset = format!("RESET GROUP k.`{group}` FOR TOPIC `{topic}` TO LATEST");
    let expected = [[topic.as_str(), "broker-a:0", "", "10"], [&topic, "broker-a:1", "", "5"]];
    assert_eq!(rows(&reset), expected);
    assert!(rows(&format!("SHOW GROUPS FROM k LIKE '{group}'")).is_empty(), "a dry run makes no group");
    shown(&format!("{reset} EXECUTE"));
    assert_eq!(progress(&topic, &group), [(10, 10), (5, 5)]);
}

/// A member of a group, until it is dropped: then its standard input ends.
struct Member(Child);

impl Member {
    fn join(group: &str, topic: &str) -> Self {
        let variable = "MILLSTREAM_TEST_ROCKETMQ_TOOL";
        let prefix = std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run by `make test`"));
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{prefix} \"$@\""), "tool", "join", &name_server(), group, topic]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "READY");
        Self(child)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().ok();
    }
}

#[test]
fn a_group_with_members_is_not_reset() {
    let (topic, group) = half_read();
    let member = Member::join(&group, &topic);
    let expected = [[group.as_str(), "online", "1"]];
    assert_eq!(rows(&format!("SHOW GROUPS FROM k LIKE '{group}'")), expected);
    let told = told(&["members", &name_server(), &group]);
    assert_eq!(told.len(), 1, "{told:?}");
    let [id, client, host] = ["member", "client", "host"].map(|key| told[0][key].as_str().unwrap());
    let members = rows_of("member", &format!("DESCRIBE GROUP k.`{group}`"));
    assert_eq!(members.len(), 1, "{members:?}");
    assert!(members[0].contains(&format!("{client} at {host}, {id}")), "{members:?}");

    let reset = format!("RESET GROUP k.`{group}` FOR TOPIC `{topic}` TO EARLIEST");
    for reset in [reset.clone(), format!("{reset} EXECUTE")] {
        refused(&reset, &[&format!("group {group} has members, such as {id}"), "; stop its members first"]);
    }
    assert_eq!(progress(&topic, &group), [(10, 4), (5, 0)]);
    drop(member);
    shown(&format!("{reset} EXECUTE"));
    assert_eq!(progress(&topic, &group), [(10, 0), (5, 0)]);
    assert_eq!(rows(&format!("SHOW GROUPS FROM k LIKE '{group}'")), [[group.as_str(), "offline", "0"]]);
}
