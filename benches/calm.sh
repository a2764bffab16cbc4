#!/usr/bin/env bash
# Measures how calm the engine is (benches/README.md): a backlog of 20 million messages into Parquet with epochs at their
# default size, in a control group of 256 MB where the machine has them (version 1), and its memory over time; then
# queries over topics where nothing comes. A real Kafka, and RocketMQ, on this machine.
#
#   benches/calm.sh [COUNT=20000000] [SECONDS=30]
set -euo pipefail
cd "$(dirname "$0")/.."
count=${1:-20000000} seconds=${2:-30}
. benches/common.sh
without s3
for topic in bids idle; do kafka create $topic 4 >/dev/null; done
rocketmq create idle 4 >/dev/null
"$bids" produce "$MILLSTREAM_TEST_KAFKA" bids "$count"

group=/sys/fs/cgroup/memory/millstream-bench-$$ limit="no limit"
if [[ -d ${group%/*} ]] && mkdir "$group" 2>/dev/null; then
    echo 256M >"$group/memory.limit_in_bytes"
    limit="a limit of 256 MB"
fi
(
    [[ ! -d $group ]] || echo $BASHPID >"$group/cgroup.procs"
    exec "$millstream" submit benches/filter.sql --trigger available-now --progress json --var out="$dir/out" \
        --var source="$(at_kafka)" --var topic=bids --var rows=1000000000
) 2>"$dir/progress" &
query=$!
trap 'kill -KILL $query 2>/dev/null || true; rmdir "$group" 2>/dev/null || true
      scripts/brokers.sh down "$dir/brokers" --now; rm -rf "$dir"' EXIT
: >"$dir/memory"
while kill -0 $query 2>/dev/null; do
    awk '/VmRSS/ { rss = $2 } /VmHWM/ { peak = $2 } END { if (rss) print rss / 1024, peak / 1024 }' /proc/$query/status \
        >>"$dir/memory" 2>/dev/null || true
    sleep 0.25
done
wait $query
echo "under $limit:"
python3 - "$dir" <<'PY'
import json, sys
epochs = [json.loads(line) for line in open(sys.argv[1] + "/progress") if '"event":"epoch"' in line]
memory = [list(map(float, line.split())) for line in open(sys.argv[1] + "/memory")]
rss = [now for now, _ in memory]
quarter = lambda part: max(rss[len(rss) * part // 4:len(rss) * (part + 1) // 4])
took = [sum(epoch["durations_ms"].values()) for epoch in epochs]
rows = sum(epoch["rows_in"] for epoch in epochs)
print(f"{rows} rows in {len(epochs)} epochs of at most {max(epoch['rows_in'] for epoch in epochs)} rows, {sum(took) / 1000:.1f} s; "
      f"MB of memory in each quarter of the time, at most: {', '.join(f'{quarter(part):.0f}' for part in range(4))}; "
      f"peak {max(peak for _, peak in memory):.0f}")
PY

for broker in kafka rocketmq; do
    "$millstream" submit benches/pull.sql --trigger continuous --progress none --var out="$dir/idle-$broker" \
        --var source="$("at_$broker")" --var topic=idle --var rows=1000000 &
    query=$!
    sleep 8
    ticks() { awk '{ print $14 + $15 }' /proc/$query/stat; }
    before=$(ticks)
    sleep "$seconds"
    python3 -c "print(f'idle over $broker: {($(ticks) - $before) / $(getconf CLK_TCK) / $seconds:.2%} of a core')"
    kill -TERM $query
    wait $query
done
