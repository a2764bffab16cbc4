#!/usr/bin/env bash
# Measures RocketMQ as a source (benches/README.md): the raw client's pull from four queues, millstream reading the same
# messages into nowhere, and W1 from there, in turns. A real broker on this machine.
#
#   benches/pull.sh [ROUNDS=3] [COUNT=3000000]
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-3} count=${2:-3000000}
. benches/common.sh
without s3
fill_both "$count"
without kafka

echo "what wall_s cpu_s peak_mb"
for ((round = 0; round <= rounds; round++)); do
    # The first round warms up.
    mark=$([[ $round -gt 0 ]] && echo "" || echo "warm-up-")
    measure "${mark}client" "$bids" drain "$MILLSTREAM_TEST_ROCKETMQ" bids
    for work in pull filter; do
        measure "$mark$work" "$millstream" submit "benches/$work.sql" --trigger available-now --var out="$dir/$work$round" \
            --var source="$(at_rocketmq)" --var topic=bids --var rows=2000000
        rm -rf "$dir/$work$round"
    done
    measure "${mark}pull-4" "$millstream" submit benches/pull.sql --set parallelism=4 --trigger available-now \
        --var out="$dir/pull-4-$round" --var source="$(at_rocketmq)" --var topic=bids --var rows=2000000
done | tee "$dir/results"
awk -v count="$count" '!/warm-up/ && NF == 4 { n[$1]++; wall[$1] += $2; cpu[$1] += $3; if ($4 > mb[$1]) mb[$1] = $4 }
     END { for (what in n) printf "%s: %.2f s, %.2f s CPU, %.2f us CPU a message, peak %d MB; against the client %.2f, CPU %.2f\n",
           what, wall[what] / n[what], cpu[what] / n[what], cpu[what] / n[what] / count * 1e6, mb[what],
           wall[what] / wall["client"] * n["client"] / n[what], cpu[what] / cpu["client"] * n["client"] / n[what] }' "$dir/results"
