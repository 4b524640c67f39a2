#!/usr/bin/env bash
# Builds flamingo-train and flamingo-eval for NVIDIA GPUs. The machine that builds needs no GPU, driver or CUDA toolkit.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

usage() {
  cat <<'TEXT'
Builds flamingo-train and flamingo-eval with feature `cuda` into target/gpu/, for A100, H100, H200, B200 and later GPUs.

Usage: ./build-cuda.sh [OPTIONS]

It takes the first CUDA compiler that is 12.8 or later: NVCC, that of CUDA_HOME, of CUDA_PATH or of /usr/local/cuda,
or nvcc in PATH. Where there is none it installs the compiler alone from NVIDIA's Python packages into target/cuda.
What else is missing (cmake, nasm, Python) is installed as ./setup.sh does; FFmpeg is not needed.

  --check  lints the code for GPUs, compiles the kernels for all GPUs and runs the tests that use them on an emulator,
           those of operations once more to find races of threads; builds no programs. Called by test.sh
  --help   this text

FLAMINGO_CUDA_CAPABILITIES=90 compiles the kernels for one kind of GPU alone (80: A100, 90: H100 and H200, 100: B200).
TEXT
}

check=''
case ${1-} in
  '') ;;
  --check) check=yes ;;
  --help | -h) usage; exit 0 ;;
  *) echo "build-cuda.sh: unknown option $1 (see ./build-cuda.sh --help)" >&2; exit 2 ;;
esac
[ $# -le 1 ] || { echo "build-cuda.sh: one option at most (see ./build-cuda.sh --help)" >&2; exit 2; }

# A path given by the caller is meant from where he is; the build script of the crate runs elsewhere.
case ${NVCC-} in
  /*) ;;
  */*) NVCC=$PWD/$NVCC ;;
esac
cd "$here"

# release COMMAND: the CUDA release of a compiler, such as 13.0; nothing if it does not run.
release() { "$1" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\.[0-9]*\).*/\1/p' || true; }
# 12.8 is the first that knows the B200.
new_enough() { [ -n "$1" ] && printf '12.8\n%s\n' "$1" | sort -VC; }

if [ -n "${NVCC-}" ]; then
  found=$(release "$NVCC")
  new_enough "$found" || {
    echo "build-cuda.sh: NVCC=$NVCC is ${found:-no compiler that runs}; 12.8 or later is needed" >&2
    exit 1
  }
else
  for nvcc in ${CUDA_HOME:+"$CUDA_HOME/bin/nvcc"} ${CUDA_PATH:+"$CUDA_PATH/bin/nvcc"} /usr/local/cuda/bin/nvcc "$(command -v nvcc || true)"; do
    [ -x "$nvcc" ] || continue
    found=$(release "$nvcc")
    if new_enough "$found"; then
      NVCC=$nvcc
      break
    fi
    echo "build-cuda.sh: $nvcc is passed over: ${found:-it does not run}, and 12.8 or later is needed"
  done
fi
# The checks compile the whole workspace.
if [ -n "$check" ]; then ./setup.sh --tests; else NVCC=${NVCC-} ./setup.sh --cuda; fi

if [ -z "${NVCC-}" ]; then
  requirements=model/nvcc-requirements.txt toolkit=target/cuda
  # Its copy is written last: without it the installation was cut off.
  if ! cmp -s $requirements $toolkit/requirements.txt; then
    echo "build-cuda.sh: installing the CUDA compiler into $toolkit"
    rm -rf $toolkit
    python3 -m venv $toolkit
    $toolkit/bin/pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
      --requirement $requirements
    cp $requirements $toolkit/requirements.txt
  fi
  NVCC=$(echo "$here"/$toolkit/lib/python3*/site-packages/nvidia/cu13/bin/nvcc)
  found=$(release "$NVCC")
  new_enough "$found" || { echo "build-cuda.sh: $NVCC does not run; delete $toolkit to install it again" >&2; exit 1; }
fi
export NVCC
echo "build-cuda.sh: CUDA $found, $NVCC"

if [ -n "$check" ]; then
  # With the whole workspace, as other builds have it: of other people's crates only cudarc is compiled for this.
  features=flamingo-train/cuda-emulator,flamingo-model/ops-bench
  # Clippy runs build scripts for itself: kernels for one GPU will do, the tests compile those for all.
  FLAMINGO_CUDA_CAPABILITIES=80 cargo clippy --locked --release --workspace --all-targets \
    --features $features,flamingo-train/nccl,flamingo-eval/cuda -- -D warnings
  # Not again the tests that use no GPU; `cli` is the trainer's.
  cargo test --locked --release --workspace --exclude flamingo-eval --lib --test cli --features $features \
    -- ops:: golden:: nfnet:: cuda:: optimizer:: emulated
  # The same programs look for races if they are asked to.
  FLAMINGO_CUDA_RACES=1 cargo test --locked --release --workspace --exclude flamingo-eval --lib --features $features -- ops::
  exit
fi

cargo build --locked --release -p flamingo-train -p flamingo-eval --features flamingo-train/cuda,flamingo-eval/cuda
# Apart from target/release, where a build without the feature puts its programs.
mkdir -p target/gpu
cp target/release/flamingo-train target/release/flamingo-eval target/gpu/

case $found in
  12.*) driver=570 ;;
  *) driver=580 ;;
esac
cat <<TEXT

== done
programs   target/gpu/{flamingo-train,flamingo-eval}

Where they run they need, and load when a GPU is asked for:
driver     NVIDIA's, $driver or later
products   cuBLAS 12.8 or later: libcublasLt.so of a CUDA toolkit, or of the Python package nvidia-cublas, which PyTorch
           brings: put its folder into LD_LIBRARY_PATH (for CUDA 13 it is site-packages/nvidia/cu13/lib)

Example: target/gpu/flamingo-train flamingo --config configs/flamingo.toml --root runs/demo --out runs/gpu --device cuda:0
TEXT
