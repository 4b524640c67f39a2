#!/usr/bin/env python3
"""Checks and times the GPU path on a machine with an NVIDIA GPU, beside PyTorch: everything in one call.

The programs may be built elsewhere (./build-cuda.sh builds flamingo-train; the other two are a test and a
bench of the model crate) and copied here; PyTorch's side needs torch alone. First come the tests, in which every
operation is compared with the processor; then our operations; then the jobs, ours and PyTorch's in turn, each for
itself in memory. One table comes last.

Example, on one machine with everything (NVCC as build-cuda.sh prints it; cargo prints the names of the programs):

    ./build-cuda.sh
    export NVCC=/usr/local/cuda/bin/nvcc
    cargo test --release -p flamingo-model --features cuda --lib --no-run
    cargo bench -p flamingo-model --bench gpu --features cuda,ops-bench --no-run
    python3 model/benches/gpu.py --unit target/release/deps/flamingo_model-0123456789abcdef \\
        --ops target/release/deps/gpu-0123456789abcdef --train target/gpu/flamingo-train --out gpu.log
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

PEER = pathlib.Path(__file__).with_name("torch_flamingo.py")

# Name, arguments of both sides, of ours alone, of PyTorch's alone, seconds that either may take.
STEP = ["--batch", "64", "--tokens", "256", "--images", "3"]
JOBS = {
    "step-3b": (["--preset", "openflamingo-3b", *STEP, "--steps", "6", "--warm", "2"],
                [], ["step", "--alibi", "both"], 150),
    "generate-3b": (["--preset", "openflamingo-3b", "--prompts", "8", "--shots", "32"],
                    ["--write-tokens", "20", "--steps", "5", "--warm", "2"],
                    ["generate", "--new-tokens", "20", "--runs", "5", "--warm", "2"], 120),
    "score-3b": (["--preset", "openflamingo-3b", "--prompts", "8", "--shots", "32"],
                 ["--score", "--steps", "5", "--warm", "2"],
                 ["score", "--new-tokens", "10", "--runs", "5", "--warm", "2"], 120),
    "step-9b": (["--preset", "openflamingo-9b", *STEP, "--steps", "4", "--warm", "2"],
                [], ["step"], 200),
}


def libraries():
    """Where cuBLAS is, if only PyTorch's package has it."""
    try:
        import torch
    except ImportError:
        return []
    near = pathlib.Path(torch.__file__).parent.parent / "nvidia"
    return [str(path) for path in (near / "cu13" / "lib", near / "cublas" / "lib") if path.is_dir()]


def run(command, seconds, log):
    """The output of a command; what it ended with stands in the log."""
    environment = dict(os.environ)
    paths = libraries() + [environment.get("LD_LIBRARY_PATH", "")]
    environment["LD_LIBRARY_PATH"] = ":".join(path for path in paths if path)
    start = time.monotonic()
    try:
        done = subprocess.run(command, env=environment, timeout=seconds, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        text, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as late:
        text, code = late.stdout or "", "time"
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
    took = time.monotonic() - start
    log.write(f"\n$ {' '.join(command)}\n{text}\n-> {code}, {took:.1f} s\n")
    log.flush()
    print(f"# {' '.join(command[:4])} ...: {code}, {took:.1f} s", flush=True)
    return text, code


def lines_of_json(text):
    """The lines that are JSON."""
    found = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                pass
    return found


def row(name, line, text):
    """One line of the table."""
    if line is None:
        last = text.strip().splitlines()[-1] if text.strip() else "nothing"
        return f"| {name} | - | - | - | - | {last[:100]} |"
    seconds = line.get("seconds")
    if seconds is None:
        return f"| {name} | - | - | - | - | {line.get('error', 'no figure')} |"
    mfu = line.get("mfu", line.get("of_peak"))
    peak = line.get("peak_bytes", line.get("peak_memory_bytes"))
    return (f"| {name} | {1e3 * seconds:.2f} | {line.get('samples_per_second', 0):.1f} | "
            f"{line.get('tflops', 0):.0f} | {f'{100 * mfu:.1f} %' if mfu else '-'} | "
            f"{f'{peak / 2**30:.1f} GiB' if peak else '-'} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unit", help="the test program of the model crate, built with feature cuda")
    parser.add_argument("--ops", help="its bench program `gpu`")
    parser.add_argument("--train", help="flamingo-train, built with feature cuda")
    parser.add_argument("--jobs", default=",".join(JOBS), help="some of %(default)s")
    parser.add_argument("--no-peer", action="store_true", help="ours alone")
    parser.add_argument("--profile", action="store_true", help="times every kernel of a step as well")
    parser.add_argument("--out", default="gpu.log", help="everything that was printed")
    args = parser.parse_args()
    table = []
    with open(args.out, "w", encoding="utf-8") as log:
        if args.unit:
            text, code = run([args.unit, "--nocapture", "--test-threads=8"], 180, log)
            for line in text.splitlines():
                if line.startswith("test result") or "FAILED" in line or "panicked" in line:
                    print(line[:200])
        if args.ops:
            print(run([args.ops, "--bench"], 90, log)[0])
        if not args.no_peer:
            for job in ("gemm", "attention"):
                for line in lines_of_json(run([sys.executable, str(PEER), job], 90, log)[0]):
                    what = " ".join(str(line.get(key, "")) for key in ("what", "job", "backend"))
                    table.append(row(f"PyTorch {job} {what}", line, ""))
        for name in filter(None, args.jobs.split(",")):
            both, ours, theirs, seconds = JOBS[name]
            if args.train:
                command = [args.train, "bench", "--device", "cuda:0", "--json", *both, *ours]
                command += ["--profile"] if args.profile and name.startswith("step") else []
                text, _ = run(command, seconds, log)
                found = lines_of_json(text)
                table += [row(f"ours {name}", line, text) for line in found or [None]]
                for line in found:
                    for kernel in line.get("profile", [])[:14]:
                        print(f"    {kernel}")
            if not args.no_peer:
                text, _ = run([sys.executable, str(PEER), *theirs[:1], *both, *theirs[1:]],
                              seconds, log)
                for line in lines_of_json(text) or [None]:
                    alibi = " with ALiBi" if line and line.get("alibi") else ""
                    table.append(row(f"PyTorch {name}{alibi}", line, text))
    print("\n| job | ms | samples/s | TFLOP/s | MFU | peak memory |\n| --- | --- | --- | --- | --- | --- |")
    print("\n".join(table))


if __name__ == "__main__":
    main()
