#!/usr/bin/env bash
# Set-up, then every check and test. Continuous integration calls this; so does anyone before a commit.
set -euo pipefail
cd "$(dirname "$0")"

step() { printf '\n== %s (%ss)\n' "$1" "$SECONDS"; }

step "set-up"
./setup.sh --tests

step "format"
cargo fmt --all --check

step "crate edges"
# Who may link what: see ARCHITECTURE.md. Development dependencies (the fixtures) do not count.
never_links() {
  local crate=$1 found
  shift
  local tree
  tree=$(cargo tree --locked --package "$crate" --edges normal --prefix none | cut -d' ' -f1 | sort -u)
  for banned in "$@"; do
    if found=$(grep -Ex "$banned" <<<"$tree"); then
      echo "test.sh: $crate links $(tr '\n' ' ' <<<"$found"), which it must not" >&2
      exit 1
    fi
  done
}
never_links flamingo-dataset 'dfdx' 'cudarc' 'ffmpeg-.*' 'flamingo-(ingest|model|train|eval|fixtures)'
never_links flamingo-ingest 'dfdx' 'cudarc' 'flamingo-(model|train|eval|fixtures)'
# Without feature `cuda` nobody links what loads CUDA.
never_links flamingo-model 'cudarc' 'arrow(-.*)?' 'parquet' 'tokio' 'hyper' 'reqwest' 'object_store' 'ffmpeg-.*' 'flamingo-(ingest|dataset|train|eval|fixtures)'
never_links flamingo-train 'cudarc' 'ffmpeg-.*' 'flamingo-(ingest|eval|fixtures)'
never_links flamingo-eval 'cudarc' 'ffmpeg-.*' 'flamingo-(ingest|train|fixtures)'
never_links flamingo-fixtures 'flamingo-(ingest|dataset|model|train|eval)'

step "lints"
# In the profile of the tests, so that macros and build scripts are compiled once for both.
cargo clippy --locked --release --workspace --all-targets -- -D warnings

step "licences"
deny=$PWD/target/tools/bin/cargo-deny
if [ ! -x "$deny" ]; then
  # Unoptimised: it runs for a second and compiles for minutes.
  cargo install --quiet --locked --debug --root target/tools --target-dir target/tools cargo-deny@0.20.2
fi
# It looks at the crates of all platforms, of which a build fetches those of one.
cargo fetch --locked --quiet
"$deny" --offline check licenses bans sources

step "tests"
cargo test --locked --release --workspace

step "ranks that talk by MPI"
# With the whole workspace, as other builds have it: the trainer alone is compiled once more.
cargo clippy --locked --release --workspace --all-targets --features flamingo-train/mpi -- -D warnings
cargo test --locked --release --workspace --features flamingo-train/mpi --test cli ranks

step "the code for GPUs, on an emulator"
./build-cuda.sh --check

step "the main job on real data, and the corpora in Python"
./eval/tests/real_data.sh

step "broken files, each alone"
cargo build --quiet --locked --release --workspace
python3 ingest/tests/bad_files.py

step "object stores and HTTPS on loopback, and a store that fails"
s3=target/s3/bin/python
if ! $s3 -c 'import boto3, moto, pyarrow, trustme' 2>/dev/null; then
  python3 -m venv target/s3
  target/s3/bin/pip install --quiet --requirement ingest/tests/requirements.txt
fi
$s3 ingest/tests/object_store.py
$s3 ingest/tests/https.py
$s3 dataset/tests/faulty_store.py

step "done"
