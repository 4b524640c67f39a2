#!/usr/bin/env bash
# Installs what the build needs and the machine lacks: FFmpeg's development files, clang, pkg-config,
# and for libjpeg-turbo, which a crate builds, cmake and nasm.
# With `--tests` also what the checks need: Python, the ffmpeg command, Open MPI and WordNet. With `--cuda` what build-cuda.sh needs:
# no FFmpeg, and Python where NVCC is empty. Called by demo.sh, test.sh and build-cuda.sh; safe to run again.
set -euo pipefail
cd "$(dirname "$0")"

if ! command -v cargo >/dev/null; then
  echo "setup.sh: cargo is missing: install Rust 1.95 or later with rustup" >&2
  exit 1
fi

# Debian and Ubuntu package, and a command that succeeds when it is there.
needs=(
  "build-essential|echo '#include <stdio.h>' | cc -E - "
  "cmake|command -v cmake"
  "nasm|command -v nasm"
)
films=(
  "pkg-config|command -v pkg-config"
  "libclang-dev|ls /usr/lib/llvm-*/lib/libclang*.so*"
  "clang|command -v clang"
  "libavcodec-dev|pkg-config --exists libavcodec"
  "libavformat-dev|pkg-config --exists libavformat"
  "libavutil-dev|pkg-config --exists libavutil"
  "libswscale-dev|pkg-config --exists libswscale"
)
# For feature `mpi` of flamingo-train: the compiler's wrapper and the launcher.
mpi=(
  "libopenmpi-dev|command -v mpicc"
  "openmpi-bin|command -v mpirun"
)
python="python3-venv|python3 -c 'import venv, ensurepip'"
case ${1-} in
  --cuda) [ -n "${NVCC-}" ] || needs+=("$python") ;;
  --tests) needs+=("${films[@]}" "${mpi[@]}" "$python" "ffmpeg|command -v ffmpeg"
    "wordnet-base|ls ${FLAMINGO_WORDNET:-/usr/share/wordnet}/data.noun") ;;
  *) needs+=("${films[@]}") ;;
esac
missing=()
for need in "${needs[@]}"; do
  bash -c "${need#*|}" >/dev/null 2>&1 || missing+=("${need%%|*}")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ]; then
  as_root=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  as_root=(sudo -n)
else
  as_root=(false)
fi
if command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null; then
  echo "setup.sh: installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
else
  echo "setup.sh: missing packages: ${missing[*]}" >&2
  echo "setup.sh: install them, on Debian or Ubuntu with: sudo apt-get install ${missing[*]}" >&2
  exit 1
fi
