#!/bin/sh
# Starts the flaky service, runs the job against it, and stops it. Arguments go to `windrow run`; WINDROW names
# another binary.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
address=$scratch/address

python3 "$here/server.py" "$address" &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" || true; rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

tries=0
until [ -s "$address" ]; do
    kill -0 "$server" 2>/dev/null || { echo "the service did not start" >&2; exit 1; }
    tries=$((tries + 1))
    [ "$tries" -le 100 ] || { echo "the service gave no address within 10 s" >&2; exit 1; }
    sleep 0.1
done

FLAKY_URL=$(cat "$address")
export FLAKY_URL
"${WINDROW:-windrow}" run "$here/job.toml" "$@"
