#!/usr/bin/env bash
# Measures W1 and W2 (benches/README.md): millstream beside the hand-written loops, in turns, on a real Kafka on this
# machine.
#
#   benches/run.sh [ROUNDS=5] [COUNT=3000000]
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-5} count=${2:-3000000}
. benches/common.sh
without rocketmq namesrv
for topic in bids tiny; do
    kafka create $topic 4 >/dev/null
done
"$bids" produce "$MILLSTREAM_TEST_KAFKA" bids "$count"
"$bids" produce "$MILLSTREAM_TEST_KAFKA" tiny 1000

# Sets `command`, an array, as what is said of a table has blanks.
submit() { # WORK TOPIC ROWS OUT TRIGGER
    command=("$millstream" submit "benches/$1.sql" --var source="$(at_kafka)" --var topic="$2" --var rows="$3" --var out="$4"
        --trigger "$5")
}

# What both wrote, as one line each; they must be the same. Windows that the engine keeps open are left out.
sums() { # WORK DIRECTORY
    local columns="count(*) AS n, sum(auction) AS a, sum(bidder) AS b, sum(price) AS p" where=""
    if [[ $1 == tumble ]]; then
        columns="count(*) AS g, sum(n) AS n, sum(top) AS t, sum(total) AS s"
        where="WHERE start < TIMESTAMP '2026-01-01 00:04:50'"
    fi
    "$millstream" shell </dev/null 2>/dev/null -e "CREATE EXTERNAL TABLE b STORED AS PARQUET LOCATION '$2/';
      SELECT $columns FROM b $where;" | sed -n 4p
}

declare -A written=([filter]=high_bids [tumble]=per_auction)
for work in filter tumble; do
    echo "$work: what wall_s cpu_s peak_mb"
    for ((round = 0; round <= rounds; round++)); do
        # The first round warms up.
        mark=$([[ $round -gt 0 ]] && echo "" || echo "warm-up-")
        measure "${mark}loop" "$bids" "$work" "$MILLSTREAM_TEST_KAFKA" bids "$dir/loop$round"
        submit "$work" bids 2000000 "$dir/out$round" available-now
        measure "${mark}millstream" "${command[@]}"
        if [[ $round -eq 0 ]]; then
            for rows in "$dir/loop0" "$dir/out0/${written[$work]}"; do sums "$work" "$rows"; done | uniq >"$dir/same"
            [[ $(wc -l <"$dir/same") -eq 1 ]] || { echo "the two wrote different rows:"; cat "$dir/same"; exit 1; } >&2
        fi
        rm -rf "$dir/loop$round" "$dir/out$round"
    done | tee "$dir/results"
    awk '!/warm-up/ && NF == 4 { n[$1]++; cpu[$1] += $3; wall[$1] += $2; if ($4 > mb[$1]) mb[$1] = $4 }
         END { printf "means: loop %.2f s CPU, millstream %.2f s CPU, ratio %.2f; wall %.2f and %.2f s; peak %d MB\n",
               cpu["loop"] / n["loop"], cpu["millstream"] / n["millstream"], cpu["millstream"] / cpu["loop"],
               wall["loop"] / n["loop"], wall["millstream"] / n["millstream"], mb["millstream"] }' "$dir/results"
done

echo "start to the end of a first epoch of 1,000 messages:"
for round in 1 2 3; do
    submit filter tiny 2000000 "$dir/tiny$round" available-now
    measure first-commit "${command[@]}"
done

# Runs a submit and prints median and 90th percentile of its epochs.
epochs() {
    "$@" --progress json 2>&1 | python3 -c '
import json, sys
took = sorted(sum(event["durations_ms"].values()) for event in map(json.loads, sys.stdin) if event["event"] == "epoch")
print(f"median {took[len(took) // 2]:.1f} ms, 90 % under {took[len(took) * 9 // 10]:.1f} ms, of {len(took)}")'
}
echo "epochs of one row, checkpoint and Parquet on a local path:"
submit filter tiny 1 "$dir/small" available-now
epochs "${command[@]}"
echo "epochs of one row, checkpoint and Parquet on S3 (versitygw on this machine):"
submit filter tiny 1 "s3://$MILLSTREAM_TEST_S3_BUCKET/small" available-now
epochs "${command[@]}" --set s3.endpoint="$MILLSTREAM_TEST_S3" \
    --set s3.region=us-east-1 --set s3.access-key="$MILLSTREAM_TEST_S3_KEY" --set s3.secret-key="$MILLSTREAM_TEST_S3_SECRET"
