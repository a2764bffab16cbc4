#!/usr/bin/env bash
# Measures the shell (benches/README.md): from start to prompt, in a pseudo-terminal; the first row of a topic of each
# broker; and how many messages an answer takes out of a topic of three million. Real brokers on this machine.
#
#   benches/shell.sh [COUNT=3000000]
set -euo pipefail
cd "$(dirname "$0")/.."
count=${1:-3000000}
. benches/common.sh
without s3
fill_both "$count"

table() { # kafka|rocketmq
    local partition=partition
    [[ $1 == kafka ]] || partition=queue
    echo "CREATE TABLE bids (auction BIGINT, price BIGINT, p INT METADATA FROM '$partition' VIRTUAL,
      o BIGINT METADATA FROM 'offset' VIRTUAL) WITH ($("at_$1"), 'topic' = 'bids', 'format' = 'json');"
}

python3 - "$millstream" "$(table kafka)" "$(table rocketmq)" <<'PY'
import os, pty, re, statistics, subprocess, sys, time
millstream, tables = sys.argv[1], dict(zip(["Kafka", "RocketMQ"], sys.argv[2:]))

def to_prompt():
    began = time.monotonic()
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(millstream, [millstream, "shell"], {**os.environ, "TERM": "xterm-256color", "XDG_STATE_HOME": "/nonexistent"})
    shown = b""
    while b"millstream> " not in shown:
        shown += os.read(terminal, 4096)
    took = time.monotonic() - began
    os.write(terminal, b"\x04")
    try:
        while os.read(terminal, 4096):
            pass
    except OSError:
        pass
    os.waitpid(pid, 0)
    return took

def first_row(table):
    began = time.monotonic()
    shell = subprocess.Popen([millstream, "shell", "-e", f"{table} SELECT * FROM bids LIMIT 1;"], stdout=subprocess.PIPE, text=True,
                             stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    while not re.match(r"\| +\d", line := shell.stdout.readline()):
        assert line, "no row"
    took = time.monotonic() - began
    shell.wait()
    return took

def messages(table, select):
    said = subprocess.run([millstream, "shell", "-e", f"SET 'execution.mode' = 'batch'; {table} EXPLAIN ANALYZE {select};"],
                          stdout=subprocess.PIPE, text=True, check=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL).stdout
    return re.search(r"\bmessages=([\d.]+ ?[KM]?)", said)[1].strip()

ms = lambda measure: [round(measure() * 1000) for _ in range(7)]
print(f"start to prompt, ms: {ms(to_prompt)}")
for broker, table in tables.items():
    print(f"{broker}: start to the first row of SELECT * FROM bids LIMIT 1, ms: {ms(lambda: first_row(table))}")
    for select in ["SELECT * FROM bids WHERE p = 2 AND o BETWEEN 500000 AND 500009", "SELECT * FROM bids LIMIT 10"]:
        print(f"{broker}: {select}: {messages(table, select)} messages")
PY
