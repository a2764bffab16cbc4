#!/usr/bin/env bash
# Measures state (benches/README.md): epochs of 100,000 rows over 100 thousand to 10 million groups, and a restart with the
# most of them; and one group of a million different values. Needs no broker; takes three minutes and 2 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --locked --release --bin millstream
dir=$(mktemp -d "${TMPDIR:-/tmp}/millstream-state.XXXXXX")
trap 'rm -rf "$dir"' EXIT
MILLSTREAM=${CARGO_TARGET_DIR:-target}/release/millstream DIR=$dir python3 - <<'PY'
import json, os, statistics, subprocess, time

def submit(groups, rows, file="state"):
    """The epochs of a run, and when each was there, in seconds after its start; its peak memory in MB."""
    command = [os.environ["MILLSTREAM"], "submit", f"benches/{file}.sql", "--progress", "json"]
    command += ["--var", f"out={os.environ['DIR']}/{groups}", "--var", f"groups={groups}", "--var", f"rows={rows}"]
    began, epochs = time.monotonic(), []
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in running.stderr:
        event = json.loads(line)
        if event["event"] == "failed":
            raise SystemExit(event["error"])
        if event["event"] == "epoch":
            epochs.append((time.monotonic() - began, event))
    _, status, used = os.wait4(running.pid, 0)
    assert status == 0, status
    return epochs, used.ru_maxrss // 1024

print("groups; an epoch of 100,000 rows, ms, the last 60: median, 90 %; of the second half the longest beside a snapshot and how")
print("many these are, the longest of the others and how many; of the medians run, publish, commit;")
print("bytes written an epoch; state in memory, bytes a group; peak memory of the process, MB")
for groups in [100_000, 1_000_000, 5_000_000, 10_000_000]:
    epochs, peak = submit(groups, max(3 * groups, 12_000_000))
    whole = [event for _, event in epochs if event["rows_in"] == 100_000]
    half = whole[len(whole) // 2:]
    beside = [[sum(event["durations_ms"].values()) for event in half
               if event["state"]["aggregate-1"].get("compacting", False) == is_beside] for is_beside in (True, False)]
    longest = "  ".join(f"{max(part, default=0):6.1f} of {len(part):3}" for part in beside)
    last = whole[-60:]
    took = sorted(sum(event["durations_ms"].values()) for event in last)
    part = lambda name: statistics.median(event["durations_ms"][name] for event in last)
    state = last[-1]["state"]["aggregate-1"]
    files = subprocess.run(["find", f"{os.environ['DIR']}/{groups}", "-name", "*-delta-*", "-printf", "%s\n"],
                           stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    print(f"{groups:>10}  {took[30]:6.1f} {took[54]:6.1f}   {longest}   {part('run'):5.1f} {part('publish'):5.1f} "
          f"{part('commit'):5.1f}   {statistics.median(map(int, files)):9.0f}   {state['memory'] / state['rows']:5.1f}   {peak}",
          flush=True)
for again in range(3):
    epochs, _ = submit(10_000_000, 30_000_000 + 100_000 * (again + 1))
    print(f"restart with 10,000,000 groups to the end of a first epoch: {epochs[0][0]:.2f} s", flush=True)
epochs, _ = submit("distinct", 0, "distinct")
took = [round(sum(event["durations_ms"].values()), 1) for _, event in epochs]
print(f"a million values in one group, 100,000 new ones an epoch, ms: {took[:10]}; seen again: {took[10:20]}; "
      f"the window comes out: {took[20:]}", flush=True)
PY
