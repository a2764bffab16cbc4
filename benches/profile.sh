#!/usr/bin/env bash
# Where W1 spends its CPU (benches/README.md): perf looks 4,999 times in a CPU second at what runs. Self times by crate
# and by function, of the whole process, with what the kernel does for it; what the compiler put inside another
# function counts for that one. Needs perf.
#
#   benches/profile.sh [COUNT=3000000]
set -euo pipefail
cd "$(dirname "$0")/.."
count=${1:-3000000} frequency=4999
command -v perf >/dev/null || { echo "there is no perf; install linux-perf" >&2; exit 1; }
. benches/common.sh
without rocketmq namesrv s3
kafka create bids 4 >/dev/null
"$bids" produce "$MILLSTREAM_TEST_KAFKA" bids "$count"

# By the clock: virtual machines often have no counter of cycles.
perf record --quiet --event cpu-clock --freq $frequency --output "$dir/perf" -- \
    "$millstream" submit benches/filter.sql --var source="$(at_kafka)" --var topic=bids --var rows=2000000 \
    --var out="$dir/out" --trigger available-now --progress json 2>"$dir/progress" ||
    { tail -n 5 "$dir/progress" >&2; exit 1; }
perf report --input "$dir/perf" --stdio --quiet --fields sample,dso,symbol --field-separator '|' >"$dir/samples" \
    2>"$dir/trouble" || { cat "$dir/trouble" >&2; exit 1; }
python3 - "$dir/samples" $frequency <<'PY'
import collections, re, sys
samples, frequency = sys.argv[1], int(sys.argv[2])
c_libraries = {"zstd": r"ZSTD_|HUF_|FSE_|HIST_", "librdkafka": r"rd_|rk|snappy_|LZ4"}

def crate(place, function):
    """The crate that a function is of; else the library, or the kernel."""
    if place.startswith("["):
        return "kernel"
    if "::" in function:
        name = re.search(r"\w+(?=::)", function)[0]
        return "std" if name in ("core", "alloc", "std") else name
    if place != "millstream":
        return place
    return next((library for library, names in c_libraries.items() if re.match(names, function)), "other C")

crates, functions = collections.Counter(), collections.Counter()
for line in open(samples):
    fields = [field.strip() for field in line.split("|", 2)]
    if len(fields) < 3 or not fields[0].isdigit():
        continue
    count, place, function = int(fields[0]), fields[1], re.sub(r"^\[.\] ", "", fields[2].split("|")[0].strip())
    whose = crate(place, function)
    crates[whose] += count
    functions[function if "::" in function else f"{function} ({whose})"] += count
total = sum(crates.values())
print(f"{total / frequency:.2f} s CPU")
for title, counts, most in [("crate", crates, 15), ("function", functions, 25)]:
    print(f"\n   self  CPU s  {title}")
    for name, count in counts.most_common(most):
        print(f"{count / total:7.1%} {count / frequency:6.3f}  {name[:110]}")
PY
