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
