#!/usr/bin/env bash
# Measures the time from a message in one Kafka topic to the row in another (benches/README.md): bids at a steady rate,
# a query that runs continuously and exactly once under a local checkpoint that is synced, and a reader of committed
# messages. Sender and reader are one process, so that one clock measures.
#
#   benches/latency.sh [RATE=10000] [SECONDS=30]
set -euo pipefail
cd "$(dirname "$0")/.."
rate=${1:-10000} seconds=${2:-30} warm_up=20
. benches/common.sh
without rocketmq namesrv s3
for topic in sent received; do kafka create $topic 4 >/dev/null; done

"$millstream" submit benches/latency.sql --var kafka="$MILLSTREAM_TEST_KAFKA" --var out="$dir/out" --progress json \
    2>"$dir/progress" &
query=$!
# Whatever happens, before the servers go.
trap 'kill -KILL $query 2>/dev/null || true; scripts/brokers.sh down "$dir/brokers" --now; rm -rf "$dir"' EXIT
until grep -q '"event":"started"' "$dir/progress"; do
    kill -0 $query 2>/dev/null || { cat "$dir/progress" >&2; exit 1; }
    sleep 0.1
done

"$bids" latency "$MILLSTREAM_TEST_KAFKA" sent received "$rate" $warm_up "$seconds" ||
    { tail -n 5 "$dir/progress" >&2; exit 1; }
kill -TERM $query
wait $query || { cat "$dir/progress" >&2; exit 1; }
all=$((rate * (warm_up + seconds)))
rows=$("$bids" count "$MILLSTREAM_TEST_KAFKA" received $all)
[[ $rows -eq $all ]] || { echo "$rows rows came out of $all" >&2; exit 1; }
python3 - "$dir/progress" <<'PY'
import json, statistics, sys
events = [json.loads(line) for line in open(sys.argv[1]) if line.startswith("{")]
epochs = [event for event in events if event["event"] == "epoch" and event["rows_in"]]
median = lambda of: statistics.median(map(of, epochs))
part = lambda name: f"{name} {median(lambda epoch: epoch['durations_ms'][name]):.1f}"
parts = ", ".join(map(part, epochs[0]["durations_ms"]))
print(f"{len(epochs)} epochs; medians: {median(lambda epoch: epoch['rows_in']):.0f} rows, "
      f"{median(lambda epoch: sum(epoch['durations_ms'].values())):.1f} ms, of it {parts}")
PY
