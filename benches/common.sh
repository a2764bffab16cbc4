# What run.sh, topics.sh, latency.sh, shell.sh and profile.sh begin with: an optimised millstream, the loops of bids.rs,
# and real servers in a directory of their own, which is gone at the end. They source this in the root of the checkout.
# shellcheck shell=bash

scripts/setup.sh test
cargo build --locked --release --bin millstream
bids=$(cargo bench --locked --bench bids --no-run --message-format short 2>&1 |
    sed -n 's/.*(\(.*bids-[0-9a-f]*\)).*/\1/p')
millstream=${CARGO_TARGET_DIR:-target}/release/millstream
dir=$(mktemp -d "${TMPDIR:-/tmp}/millstream-bench.XXXXXX")
trap 'scripts/brokers.sh down "$dir/brokers" --now; rm -rf "$dir"' EXIT
# The JVM's full compiler, as servers have it that stay.
export MILLSTREAM_BROKER_JAVA_OPTS=
scripts/brokers.sh up "$dir/brokers" >/dev/null
# shellcheck source=/dev/null
. "$dir/brokers/env"

kafka() { # COMMAND TOPIC...
    local command=$1
    shift
    eval "$MILLSTREAM_TEST_KAFKA_TOOL \"\$command\" \"\$MILLSTREAM_TEST_KAFKA\" \"\$@\""
}

rocketmq() { # COMMAND TOPIC...
    local command=$1
    shift
    eval "$MILLSTREAM_TEST_ROCKETMQ_TOOL \"\$command\" \"\$MILLSTREAM_TEST_ROCKETMQ\" \"\$@\""
}

# Options of a table that say which broker.
at_kafka() { echo "'connector' = 'kafka', 'properties.bootstrap.servers' = '$MILLSTREAM_TEST_KAFKA'"; }
at_rocketmq() { echo "'connector' = 'rocketmq', 'name-server' = '$MILLSTREAM_TEST_ROCKETMQ'"; }

# How many messages a topic of RocketMQ has: a broker counts one a moment after it has acknowledged it.
in_rocketmq() { # TOPIC EXPECTED
    local rows
    for _ in {1..10}; do
        rows=$(rocketmq ends "$1" | python3 -c '
import json, sys
print(sum(queue["max"] - queue["min"] for queue in map(json.loads, sys.stdin)))')
        ((rows < $2)) || break
        sleep 1
    done
    echo "$rows"
}

# Makes a topic bids of four partitions at either broker, with the same messages in both.
fill_both() { # COUNT
    kafka create bids 4 >/dev/null
    rocketmq create bids 4 >/dev/null
    "$bids" produce "$MILLSTREAM_TEST_KAFKA" bids "$1"
    "$millstream" submit benches/copy.sql --trigger available-now --progress none --var out="$dir/filled" \
        --var guarantee=at-least-once --var source="$(at_kafka), 'topic' = 'bids'" \
        --var target="$(at_rocketmq), 'topic' = 'bids'"
    (($(in_rocketmq bids "$1") >= $1)) || { echo "RocketMQ lacks some of the $1 bids" >&2; exit 1; }
}

# Ends servers that are not measured: idle, RocketMQ takes a fifth of a core.
without() { # SERVER...
    local server
    for server in "$@"; do scripts/brokers.sh stop "$dir/brokers" "$server" --kill >/dev/null; done
}

# Runs a command and prints its name, wall and CPU seconds and peak memory.
measure() { # NAME COMMAND...
    python3 - "$@" <<'PY'
import resource, subprocess, sys, time
name, command = sys.argv[1], sys.argv[2:]
began = time.monotonic()
done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
wall, used = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
if done.returncode:
    sys.exit(f"{name} failed: {done.stderr}")
print(f"{name} {wall:.2f} {used.ru_utime + used.ru_stime:.2f} {used.ru_maxrss / 1024:.0f}", flush=True)
PY
}
