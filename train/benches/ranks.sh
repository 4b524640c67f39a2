#!/usr/bin/env bash
# Samples a second of two ranks with one thread each, against one process with one thread, and their ratio.
#
# Usage: train/benches/ranks.sh [STEPS [DEMO]]     (20 steps if not given). Needs mpirun and what feature `mpi` needs to build.
#
# A language model of three million parameters with random weights on made-up text, all of whose gradient is summed; or the Flamingo
# stage of a demo, whose towers are frozen, on its corpora. The first steps of a run do not count. BIN=PROGRAM takes a program that is
# built already.
set -euo pipefail
cd "$(dirname "$0")/../.."

steps=${1:-20} demo=${2-}
skip=3
[ "$steps" -gt $skip ] || { echo "ranks.sh: more than $skip steps expected, not $steps" >&2; exit 2; }

if [ -z "${BIN-}" ]; then
  # Apart from the program that runs without MPI.
  cargo build --quiet --locked --release -p flamingo-train --features mpi --target-dir target/mpi
  BIN=target/mpi/release/flamingo-train
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir "$work/texts"
awk 'BEGIN {
  n = split("red green blue square circle on a white the paper small large next to below above one two", word, " ")
  srand(7)
  for (row = 0; row < 400; row++) {
    text = ""
    for (i = 0; i < 200; i++) text = text " " word[int(rand() * n) + 1]
    printf "{\"text\": \"%s\"}\n", text
  }
}' >"$work/texts/all.jsonl"
stage=language root_folder=$work
if [ -n "$demo" ]; then
  stage=flamingo root_folder=$demo
  # Without looks between steps.
  sed -e '/^blindness_every/d' -e '/^gates_every/d' -e "s/^steps = .*/steps = $steps/" -e 's/^checkpoint_every = .*/checkpoint_every = 1000000/' \
    configs/flamingo.toml >"$work/config.toml"
else
cat >"$work/config.toml" <<TOML
seed = 0
steps = $steps
checkpoint_every = 1000000
keep_last = 1

[optimizer]
lr = 1e-3
warmup_steps = 5
schedule = "constant"

[tokenizer.train]
vocabulary = 300
rows_max = 100

[model]
vocabulary = 300
context = 128
width = 256
layers = 4
heads = 4
activation = "gelu"

[[data]]
name = "texts"
corpus = "texts"
layout = { format = "json_lines" }
batch = 8
weight = 1.0
tokens = 128
TOML
fi

# run NAME LAUNCHER...: trains; prints samples a second.
run() {
  local name=$1
  shift
  RAYON_NUM_THREADS=1 "$@" "$BIN" $stage --config "$work/config.toml" --root "$root_folder" --out "$work/$name" \
    --device cpu 2>"$work/$name.log" || { cat "$work/$name.log" >&2; exit 1; }
  awk -v skip=$skip '
    NR > skip {
      match($0, /"samples":[0-9]+/); samples += substr($0, RSTART + 10, RLENGTH - 10)
      match($0, /"seconds":[0-9.e-]+/); seconds += substr($0, RSTART + 10, RLENGTH - 10)
    }
    END { printf "%.3f\n", samples / seconds }' "$work/$name/metrics.jsonl"
}

root=()
[ "$(id -u)" -ne 0 ] || root=(--allow-run-as-root)
one=$(run one)
two=$(run two mpirun -n 2 "${root[@]}" --oversubscribe --bind-to none)
echo "1 process, 1 thread:        $one samples/s"
echo "2 ranks, 1 thread each:     $two samples/s"
awk -v one="$one" -v two="$two" 'BEGIN { printf "ratio:                      %.2f\n", two / one }'
