#!/usr/bin/env bash
# Run the tests several times, the second half under a load on every core, to find flaky tests.
#
#   scripts/repeat_tests.sh [RUNS] [PYTEST ARGUMENT...]
#
# Ten runs by default. The load needs stress-ng (Debian's package of that name).
set -euo pipefail
cd "$(dirname "$0")/.."

runs=${1:-10}
shift || true
load=
trap '[ -z "$load" ] || kill "$load"' EXIT
command -v stress-ng >/dev/null || { echo "stress-ng is missing: apt install stress-ng" >&2; exit 1; }

for run in $(seq "$runs"); do
    if [ "$run" -gt $((runs / 2)) ] && [ -z "$load" ]; then
        stress-ng --cpu "$(nproc)" --quiet &
        load=$!
    fi
    started=$SECONDS
    .venv/bin/python -m pytest -q -n 2 --dist loadgroup -m 'not long' "$@" >"/tmp/repeat_tests.$$.log" 2>&1 || {
        cat "/tmp/repeat_tests.$$.log"
        echo "run $run of $runs failed${load:+ (under load)}"
        exit 1
    }
    echo "run $run of $runs passed in $((SECONDS - started)) s${load:+ under load}: $(tail -1 "/tmp/repeat_tests.$$.log")"
done
rm -f "/tmp/repeat_tests.$$.log"
