#!/usr/bin/env bash
# Runs every test: with cargo-nextest where it is installed, with plain cargo otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --workspace --bins
export WINDROW_TEST_BINARIES_BUILT=1
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --workspace
    cargo test --workspace --doc
else
    cargo test --workspace
fi
