//! The binary against a RocketMQ broker that asks who it is (ACL), and allows only what its access lists say.
//!
//! These tests start that broker, beside the one of all others, and it ends with them. Topics are its own alone.

use millstream::clock::Clock;

use crate::access::{BLACKHOLE, Script, copy};
use crate::brokers::{Broker, assert_exactly_once};
use crate::failover::Extra;
use crate::harness::variable;

/// What the broker is called.
const BROKER: &str = "broker-c";
const DENIED: &str = "access denied; check 'access-key' and 'secret-key', and what that user may do (code 16)";

/// The options of who asks.
fn keys(name: &str, secret: &str) -> String {
    format!(", 'access-key' = '{name}', 'secret-key' = '{secret}'")
}

/// A topic of that broker.
fn topic(what: &str) -> String {
    let name = format!("{what}-{}", Clock::system().random_id());
    Broker::Rocketmq.run(&["create", &format!("{name}@{BROKER}"), "4"]);
    name
}

fn feed(topic: &str, numbers: std::ops::Range<i64>) {
    let mut feeder = Broker::Rocketmq.feeder(topic, &[]);
    feeder.send(numbers);
    feeder.finish();
}

fn table(name: &str, topic: &str, options: &str) -> String {
    Broker::Rocketmq.table(name, topic, "n BIGINT", options)
}

#[test]
#[ignore = "starts a broker that asks who it is: make test runs it by itself"]
fn restart_with_keys_that_a_rocketmq_broker_knows_and_with_others() {
    const WRONG: &str = "not-the-secret";
    let _broker = Extra::start("rocketmq3");
    let (input, output) = (topic("from"), topic("to"));
    feed(&input, 0..1_000);
    let script_of = |from: &str, to: &str| copy(table("input", &input, from), table("output", &output, to));
    let (name, secret) =
        (variable("MILLSTREAM_TEST_ROCKETMQ_ADMIN"), variable("MILLSTREAM_TEST_ROCKETMQ_ADMIN_PASSWORD"));
    let known = keys(&name, &secret);
    let script = Script::new();
    let said = script.passes(&script_of(&known, &known));
    assert_exactly_once(Broker::Rocketmq.numbers(&output), 0..1_000);
    assert!(!said.contains(&secret) && !script.keeps(&secret));

    for others in [keys(&name, WRONG), keys("nobody", WRONG), String::new()] {
        let (reading, writing) = (script_of(&others, &known), script_of(&known, &others));
        let (one, other) = (Script::new(), Script::new());
        // A query that has never run, and one that has.
        for (script, sql, what) in [
            (&one, &reading, "table input: asking for the bounds of topic "),
            (&script, &reading, "table input: "),
            (&other, &writing, "table output: writing "),
        ] {
            let said = script.is_refused(sql, &[what, DENIED]);
            for secret in [secret.as_str(), WRONG] {
                assert!(!said.contains(secret) && !script.keeps(secret), "{said}");
            }
        }
    }
    assert_eq!(Broker::Rocketmq.numbers(&output).len(), 1_000);
}

/// One permission after the other, each where its lack has been told.
#[test]
#[ignore = "starts a broker that asks who it is: make test runs it by itself"]
fn restart_with_only_what_a_user_of_rocketmq_needs() {
    let _broker = Extra::start("rocketmq3");
    let [input, at_least, once] = ["from", "at-least", "once"].map(topic);
    feed(&input, 0..100);
    let (user, group) = (format!("guest-{}", Clock::system().random_id()), format!("g-{input}"));
    Broker::Rocketmq.run(&["user", BROKER, &user, "guest-secret"]);
    let guest = keys(&user, "guest-secret");
    let allow = |resource: &str, actions: &[&str]| {
        Broker::Rocketmq.run(&[&["allow", BROKER, &user, resource], actions].concat());
    };
    let source = || table("input", &input, &guest);

    let (script, reading) = (Script::new(), copy(source(), BLACKHOLE.into()));
    script.is_refused(&reading, &["asking for the bounds of topic ", DENIED]);
    allow(&format!("Topic:{input}"), &["Get"]);
    script.is_refused(&reading, &["reading topic ", DENIED]);
    allow(&format!("Topic:{input}"), &["Get", "Sub"]);
    script.is_refused(&reading, &["reading topic ", DENIED]);
    allow("Group:millstream-*", &["Sub"]);
    script.passes(&reading);

    let from_group = format!("{guest}, 'group' = '{group}', 'scan.startup.mode' = 'group-offsets'");
    let (script, grouped) = (Script::new(), copy(table("input", &input, &from_group), BLACKHOLE.into()));
    script.is_refused(&grouped, &[&format!("asking where group {group} stands"), DENIED]);
    allow(&format!("Group:{group}"), &["Get"]);
    let said = script.passes(&grouped);
    assert!(said.contains("tools do not see how far a query is") && said.contains(DENIED), "{said}");
    allow(&format!("Group:{group}"), &["Get", "Sub", "Create"]);
    script.passes(&grouped);
    let progress = Broker::Rocketmq.run(&["progress", &input, &group]);
    let told = progress.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["group"].as_u64());
    assert_eq!(told.flatten().sum::<u64>(), 100, "{progress}");

    let (script, writing) = (Script::new(), copy(source(), table("output", &at_least, &guest)));
    script.is_refused(&writing, &["table output: writing ", DENIED]);
    allow(&format!("Topic:{at_least}"), &["Pub"]);
    script.passes(&writing);
    assert_exactly_once(Broker::Rocketmq.numbers(&at_least), 0..100);

    let effectively = format!("{guest}, 'sink.delivery-guarantee' = 'effectively-once', 'sink.quiet-period' = '1 s'");
    let (script, writing) = (Script::new(), copy(source(), table("output", &once, &effectively)));
    script.is_refused(&writing, &["asking for the end of topic ", DENIED]);
    allow(&format!("Topic:{once}"), &["Get"]);
    script.is_refused(&writing, &["table output: writing ", DENIED]);
    allow(&format!("Topic:{once}"), &["Get", "Pub"]);
    // Its epoch was under way, so it is looked for what is there.
    script.passes(&writing);
    assert_exactly_once(Broker::Rocketmq.numbers(&once), 0..100);
}
