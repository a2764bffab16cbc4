# One target directory for all checkouts, and none inside: a fresh clone finds its dependencies built.
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/millstream/target
MILLSTREAM := $(CARGO_TARGET_DIR)/debug/millstream
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help build quickstart brokers brokers-down topics dead-letters check test bench

help: ## what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## compile an optimised millstream
	scripts/setup.sh build
	cargo build --locked --release
	@echo "built $$CARGO_TARGET_DIR/release/millstream"

quickstart: ## a first query, from generated orders into Parquet, then a look at what it wrote (no broker needed)
	scripts/setup.sh build
	cargo build --locked --bin millstream
	$(MILLSTREAM) submit queries/quickstart.sql --var out=.data/quickstart
	@$(MILLSTREAM) shell -f queries/quickstart-read.sql --var out=.data/quickstart </dev/null
	@echo "The files are in .data/quickstart/big_orders, the checkpoint in .data/quickstart/checkpoints."
	@echo "Run it again: nothing is added, because the checkpoint knows what was read."

brokers: ## start Kafka, RocketMQ and S3 on their usual ports, with 10,000 orders in a topic of each broker
	scripts/setup.sh test
	scripts/brokers.sh up .data/brokers --fixed-ports
	scripts/seed.sh .data/brokers
	@echo
	@echo "Kafka 127.0.0.1:9092 has the topic orders, RocketMQ 127.0.0.1:9876 has OrderTopic."
	@echo "Next: make topics"
	@echo "Then: make brokers-down"

brokers-down: ## stop them; their data stays in .data/brokers
	scripts/brokers.sh down .data/brokers

topics: ## a query over the topics that make brokers filled
	cargo build --locked --bin millstream
	@. .data/brokers/env; eval "$$MILLSTREAM_TEST_ROCKETMQ_TOOL" create "$$MILLSTREAM_TEST_ROCKETMQ" LargeOrders 4
	$(MILLSTREAM) submit queries/topics.sql --var out=.data/topics --trigger available-now
	@$(MILLSTREAM) shell --var out=.data/topics -e "CREATE EXTERNAL TABLE all_orders STORED AS PARQUET \
	  LOCATION '.data/topics/all_orders/'; SELECT broker, count(*) AS orders, sum(cents) AS cents FROM all_orders \
	  GROUP BY broker ORDER BY broker;" </dev/null

dead-letters: ## orders that cannot be read: put aside, repaired and sent again (after make brokers)
	cargo build --locked --bin millstream
	@. .data/brokers/env; tool() { eval "$$MILLSTREAM_TEST_KAFKA_TOOL \"\$$@\""; }; \
	for topic in shop-orders bad-orders; do tool create "$$MILLSTREAM_TEST_KAFKA" $$topic 4 >/dev/null; done; \
	for amount in 9.50 '"n/a"' 4.20 '"n/a"' nonsense; do \
	  printf '\ttea\t{"order_id":1,"item":"tea","amount":%s,"ts":"2026-01-01 12:00:00.000"}\n' "$$amount"; \
	done | tool produce "$$MILLSTREAM_TEST_KAFKA" shop-orders
	$(MILLSTREAM) submit queries/dead-letters.sql --var out=.data/dead-letters --trigger available-now
	$(MILLSTREAM) submit queries/replay.sql --var out=.data/dead-letters --trigger available-now
	$(MILLSTREAM) submit queries/dead-letters.sql --var out=.data/dead-letters --trigger available-now
	@$(MILLSTREAM) shell --var out=.data/dead-letters -e "CREATE EXTERNAL TABLE good_orders STORED AS PARQUET \
	  LOCATION '.data/dead-letters/good_orders/'; SELECT amount, count(*) AS orders FROM good_orders \
	  GROUP BY amount ORDER BY amount;" </dev/null

check: ## format, lints, documentation
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked

# The servers start when all is compiled: the machine may be small. What restarts a broker runs at the end, one test at
# a time.
test: ## everything: checks, then unit tests, tests against real servers, documentation's examples
	scripts/setup.sh build
	$(MAKE) --no-print-directory check
	scripts/setup.sh test
	cargo test --locked --no-run
	@dir=$$(mktemp -d "$${TMPDIR:-/tmp}/millstream-test.XXXXXX"); \
	echo "scripts/brokers.sh with $$dir -- cargo test --locked"; \
	scripts/brokers.sh with "$$dir" -- bash -c \
	  'cargo test --locked && cargo test --locked --test it -- --ignored --test-threads 1 restart' || { \
		status=$$?; echo "the servers' logs are in $$dir/logs" >&2; exit $$status; }; \
	rm -rf "$$dir"

bench: ## measure
	benches/run.sh
	benches/topics.sh
	benches/pull.sh
	benches/calm.sh
	benches/shell.sh
	benches/latency.sh
	benches/state.sh
	cargo bench --locked --bench micro
