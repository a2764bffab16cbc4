#!/usr/bin/env bash
# Measures W3 (benches/README.md): a filter from topic to topic, for each pair of Kafka and RocketMQ and each guarantee
# of the target, in turns; from Kafka beside the hand-written loops. Real brokers on this machine. Each run has
# a new checkpoint and a new target, and is followed by a count of what a reader sees there. RocketMQ keeps what was
# deleted: with the defaults this takes 10 GB of disk.
#
#   benches/topics.sh [ROUNDS=3] [COUNT=3000000]
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-3} count=${2:-3000000}
. benches/common.sh

# Sets `command`, an array, as what is said of tables has blanks.
submit() { # FILE SOURCE TARGET TOPIC GUARANTEE
    rm -rf "$dir/out"
    command=("$millstream" submit "benches/$1.sql" --trigger available-now --var "out=$dir/out"
        --var "source=$(at_"$2"), 'topic' = 'bids'" --var "target=$(at_"$3"), 'topic' = '$4'" --var "guarantee=$5")
}

# How many rows a reader sees: committed ones, if it is Kafka's.
rows_in() { # kafka|rocketmq TOPIC EXPECTED
    if [[ $1 == kafka ]]; then
        "$bids" count "$MILLSTREAM_TEST_KAFKA" "$2" "$3"
    else
        in_rocketmq "$2" "$3"
    fi
}

runs=0 expected=0
# One run into a new topic. The first one of all, the loop's, says how many rows every other must give.
run() { # SOURCE TARGET GUARANTEE RESULTS
    local topic=high-bids-$((runs += 1)) command rows
    "$2" create "$topic" 4 >/dev/null
    if [[ "$2 $3" == "kafka loop" ]]; then
        command=("$bids" forward "$MILLSTREAM_TEST_KAFKA" bids "$topic")
    elif [[ $3 == loop ]]; then
        command=("$bids" forward-rocketmq "$MILLSTREAM_TEST_KAFKA" bids "$MILLSTREAM_TEST_ROCKETMQ" "$topic")
    else
        submit topics "$1" "$2" "$topic" "$3"
    fi
    measure "$1 $2 $3" "${command[@]}" | tee -a "$4"
    rows=$(rows_in "$2" "$topic" "$expected")
    ((expected > 0)) || expected=$rows
    if ((rows != expected)); then
        echo "$1 $2 $3: there are $rows rows, and should be $expected" >&2
        # More than once is no fault of this one.
        [[ $3 == at-least-once && $rows -gt $expected ]] || exit 1
    fi
    "$2" delete "$topic" >/dev/null
}

in_turns() { # SOURCE TARGET GUARANTEE...
    local round guarantee
    for ((round = 0; round <= rounds; round++)); do
        for guarantee in "${@:3}"; do
            # The first round warms up.
            run "$1" "$2" "$guarantee" "$([[ $round -gt 0 ]] && echo "$dir/results" || echo /dev/null)"
        done
    done
}

# One broker alone, as long as the other is not needed.
without rocketmq namesrv s3
kafka create bids 4 >/dev/null
"$bids" produce "$MILLSTREAM_TEST_KAFKA" bids "$count"
echo "source target guarantee wall_s cpu_s peak_mb"
in_turns kafka kafka loop exactly-once at-least-once

for server in namesrv rocketmq; do scripts/brokers.sh start "$dir/brokers" "$server" >/dev/null; done
rocketmq create bids 4 >/dev/null
submit copy kafka rocketmq bids at-least-once
"${command[@]}" 2>"$dir/copied" || { cat "$dir/copied" >&2; exit 1; }
copied=$(rows_in rocketmq bids "$count")
((copied == count)) || { echo "RocketMQ has $copied of $count bids" >&2; exit 1; }
in_turns kafka rocketmq loop effectively-once at-least-once
for ((round = 0; round < rounds; round++)); do
    measure "rocketmq nowhere loop" "$bids" drain "$MILLSTREAM_TEST_ROCKETMQ" bids | tee -a "$dir/results"
done
in_turns rocketmq kafka exactly-once at-least-once
without kafka
in_turns rocketmq rocketmq effectively-once at-least-once

echo
python3 - "$dir/results" "$count" "$expected" <<'PY'
import statistics, sys
names, rows_in, rows_out = {"kafka": "Kafka", "rocketmq": "RocketMQ"}, int(sys.argv[2]), int(sys.argv[3])
name = lambda end: names.get(end, end)
runs = {}
for line in open(sys.argv[1]):
    source, target, guarantee, *numbers = line.split()
    runs.setdefault((f"{name(source)} → {name(target)}", guarantee), []).append([float(n) for n in numbers])
mean = {key: [statistics.mean(column) for column in zip(*values)] for key, values in runs.items()}
print(f"{rows_in:,} rows in, {rows_out:,} out; means of {len(next(iter(runs.values())))}")
print("| pair | guarantee | wall s | CPU s | peak MB | rows in per CPU second | CPU against the loop |")
print("|---|---|---|---|---|---|---|")
for (pair, guarantee), (wall, cpu, _) in mean.items():
    guarantee, peak = guarantee.replace("loop", "hand-written loop"), max(run[2] for run in runs[pair, guarantee])
    # A pair without a loop of its own is measured against that of Kafka.
    _, loop, _ = mean.get((pair, "loop"), mean["Kafka → Kafka", "loop"])
    cells = [pair, guarantee, f"{wall:.2f}", f"{cpu:.2f}", f"{peak:.0f}", f"{rows_in / cpu / 1e6:.2f} M"]
    print("|", " | ".join([*cells, f"{cpu / loop:.2f}"]), "|")
for (pair, guarantee), (wall, *_) in mean.items():
    if guarantee in ("exactly-once", "effectively-once"):
        ratio = wall / mean[pair, "at-least-once"][0]
        print(f"{pair}: {guarantee} takes {ratio:.2f} of the time of at-least-once")
PY
