#!/usr/bin/env bash
# Fuzzes each parser of foreign bytes: ./ingest/fuzz/run.sh [SECONDS [TARGET...]], 600 seconds and every target unless told.
# An input that hangs for 10 s, takes 512 MB or breaks a promise stops the run and is kept below ingest/fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:-600}
targets=("${@:2}")
[ ${#targets[@]} -gt 0 ] || targets=(html http_head warc)

export PATH=$PWD/../../target/tools/bin:$PATH
command -v cargo-fuzz >/dev/null ||
  cargo install --quiet --locked --root ../../target/tools --target-dir ../../target/tools cargo-fuzz@0.13.1
# The sanitizer is a nightly option of the same compiler.
export RUSTC_BOOTSTRAP=1
cargo run --quiet --locked --bin seeds -- corpus
for target in "${targets[@]}"; do
  cargo fuzz run "$target" --fuzz-dir . -- -timeout=10 -rss_limit_mb=512 -max_total_time="$seconds" -print_final_stats=1
done
