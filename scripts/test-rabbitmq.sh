#!/usr/bin/env bash
# Runs the suites that meet a RabbitMQ: on the machine's own, or on the one WINDROW_TEST_RABBITMQ_ROOT names.
set -euo pipefail
cd "$(dirname "$0")/.."
suites=(
    broker_contract rabbitmq_faults kill_rabbitmq breaker control rates operator take_over bad_input wire_versions chaos
)
cargo build --workspace --bins
export WINDROW_TEST_BINARIES_BUILT=1
runner=(test)
if cargo nextest --version >/dev/null 2>&1; then
    runner=(nextest run)
fi
cargo "${runner[@]}" --no-fail-fast -p windrow-tests "${suites[@]/#/--test=}"
