#!/usr/bin/env bash
# Measures state (benches/README.md): epochs of 100,000 rows over 100 thousand to 10 million groups, and a restart with the
# most of them; and one group of a million different values. Needs no broker; takes five minutes and 2 GB of memory.
# An epoch does the same in each run, with the same snapshot beside it, so each size is run RUNS times (5), in turns: by
# medians of an epoch's times what is slow in most runs shows, and in each run by itself all that is slow.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --locked --release --bin millstream
dir=$(mktemp -d "${TMPDIR:-/tmp}/millstream-state.XXXXXX")
trap 'rm -rf "$dir"' EXIT
MILLSTREAM=${CARGO_TARGET_DIR:-target}/release/millstream DIR=$dir python3 - <<'PY'
import json, os, shutil, statistics, subprocess, time

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

SIZES = [100_000, 1_000_000, 5_000_000, 10_000_000]
halves, peaks, delta_sizes, restarts = {}, {}, {}, []
for _ in range(int(os.environ.get("RUNS", "5"))):
    for groups in SIZES:
        epochs, peak = submit(groups, max(3 * groups, 12_000_000))
        whole = [event for _, event in epochs if event["rows_in"] == 100_000]
        halves.setdefault(groups, []).append(whole[-(len(whole) // 2):])
        peaks.setdefault(groups, []).append(peak)
        files = subprocess.run(["find", f"{os.environ['DIR']}/{groups}", "-name", "*-delta-*", "-printf", "%s\n"],
                               stdout=subprocess.PIPE, text=True, check=True).stdout.split()
        delta_sizes[groups] = statistics.median(map(int, files))
        if groups == SIZES[-1]:
            epochs, _ = submit(groups, 3 * groups + 100_000)
            restarts.append(round(epochs[0][0], 2))
        shutil.rmtree(f"{os.environ['DIR']}/{groups}")

def took(event):
    return sum(event["durations_ms"].values())

def is_beside(event):
    """Whether a snapshot was being written."""
    return event["state"]["aggregate-1"].get("compacting", False)

print("groups; an epoch of 100,000 rows, ms, by the medians of the runs, the second half of them: median, 90 %, the longest")
print("beside a snapshot and by the median, the longest of the others; of the medians run, publish, commit; bytes written an")
print("epoch; state in memory, bytes a group; peak memory of the process, MB, in each run")
for groups in SIZES:
    # The same epoch of each run, one after the other.
    epochs = list(zip(*halves[groups]))
    times = [statistics.median(map(took, same)) for same in epochs]
    beside = [time for same, time in zip(epochs, times) if any(map(is_beside, same))]
    others = [time for same, time in zip(epochs, times) if not any(map(is_beside, same))]
    median = statistics.median(times)
    part = lambda name: statistics.median(event["durations_ms"][name] for half in halves[groups] for event in half)
    state = halves[groups][-1][-1]["state"]["aggregate-1"]
    print(f"{groups:>10}  {median:6.1f} {sorted(times)[len(times) * 9 // 10]:6.1f}   {max(beside):6.1f} "
          f"{max(beside) / median:.2f}  {max(others, default=0):6.1f}   {part('run'):5.1f} {part('publish'):5.1f} "
          f"{part('commit'):5.1f}   {delta_sizes[groups]:9.0f}   {state['memory'] / state['rows']:5.1f}   {peaks[groups]}")
print("groups; the longest of each run against its median, beside a snapshot, and of the others; and how many epochs of all")
print("runs took more than 1.5 of it, of how many")
for groups in SIZES:
    longest, slow = {True: [], False: []}, {True: [0, 0], False: [0, 0]}
    for half in halves[groups]:
        median = statistics.median(map(took, half))
        for side in (True, False):
            shares = [took(event) / median for event in half if is_beside(event) == side]
            longest[side].append(round(max(shares, default=0), 2))
            slow[side] = [slow[side][0] + sum(share > 1.5 for share in shares), slow[side][1] + len(shares)]
    print(f"{groups:>10}  {longest[True]} {longest[False]}   {slow[True][0]} of {slow[True][1]}, "
          f"{slow[False][0]} of {slow[False][1]}")
print(f"restart with 10,000,000 groups to the end of a first epoch, s: {restarts}")
epochs, _ = submit("distinct", 0, "distinct")
times = [round(took(event), 1) for _, event in epochs]
print(f"a million values in one group, 100,000 new ones an epoch, ms: {times[:10]}; seen again: {times[10:20]}; "
      f"the window comes out: {times[20:]}")
PY
