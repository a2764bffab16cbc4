#!/usr/bin/env bash
# Fills the topics orders (Kafka) and OrderTopic (RocketMQ) with the same 10,000 orders, unless they are there already:
#
#   scripts/seed.sh DIR    of the servers that brokers.sh has started in DIR
set -euo pipefail

# shellcheck source=/dev/null
. "${1:?usage: scripts/seed.sh DIR}/env"

kafka_tool() { eval "$MILLSTREAM_TEST_KAFKA_TOOL \"\$@\""; }
rocketmq_tool() { eval "$MILLSTREAM_TEST_ROCKETMQ_TOOL \"\$@\""; }

# Lines of partition, tags (for RocketMQ only), key, order: one about every six seconds of the first day of 2026.
orders() { # kafka|rocketmq
    awk -v broker="$1" 'BEGIN {
        items = split("apple bread cheese coffee lemon olive pasta salt tea wine", item, " ")
        for (i = 1; i <= 10000; i++) {
            name = item[i * 7 % items + 1]
            cents = i * 7919 % 9900 + 100
            ms = 123 + (i - 1) * 6007
            tags = broker == "rocketmq" ? name "\t" : ""
            printf "%d\t%s%d\t{\"order_id\":%d,\"item\":\"%s\",\"amount\":%d.%02d,", (i - 1) % 4, tags, i, i, name, \
                cents / 100, cents % 100
            printf "\"ts\":\"2026-01-01 %02d:%02d:%02d.%03d\"}\n", ms / 3600000, ms / 60000 % 60, ms / 1000 % 60, \
                ms % 1000
        }
    }'
}

answer=$(kafka_tool create "$MILLSTREAM_TEST_KAFKA" orders 4)
if [[ $answer == created ]]; then
    echo "filling the Kafka topic orders"
    orders kafka | kafka_tool produce "$MILLSTREAM_TEST_KAFKA" orders >/dev/null
fi
answer=$(rocketmq_tool create "$MILLSTREAM_TEST_ROCKETMQ" OrderTopic 4)
if [[ $answer == created ]]; then
    echo "filling the RocketMQ topic OrderTopic"
    orders rocketmq | rocketmq_tool produce "$MILLSTREAM_TEST_ROCKETMQ" OrderTopic --batch 500 >/dev/null
fi
