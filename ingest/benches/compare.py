"""Two builds of flamingo-ingest on the same book, alternating: CPU seconds, peak memory, and whether the shards are equal.

  python3 ingest/benches/compare.py OLD_BINARY NEW_BINARY [RUNS]

Medians of RUNS (11) runs of `webpages --workers 2` on ../shared/data/real/openstax-warc/astronomy.warc.gz, page cache warm.
"""
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

ARCHIVE = Path(__file__).resolve().parents[2] / "../shared/data/real/openstax-warc/astronomy.warc.gz"


def run(binary, out):
    """CPU seconds, wall seconds, MiB, and the shards."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.time()
    arguments = [binary, "webpages", "--input", str(ARCHIVE), "--out", out, "--workers", "2"]
    quiet = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
    _, status, usage = os.wait4(os.posix_spawn(binary, arguments, os.environ, file_actions=quiet), 0)
    if status != 0:
        sys.exit(f"{' '.join(arguments)} failed: status {status}")
    shards = [path.read_bytes() for path in sorted(Path(out).glob("shard-*"))]
    return usage.ru_utime + usage.ru_stime, time.time() - started, usage.ru_maxrss / 1024, shards


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    binaries, n_runs = sys.argv[1:3], int(sys.argv[3]) if len(sys.argv) > 3 else 11
    with tempfile.TemporaryDirectory() as folder:
        runs = [[], []]
        for _ in range(n_runs):
            for found, binary in zip(runs, binaries):
                found.append(run(os.path.abspath(binary), f"{folder}/out"))
    print("| binary | CPU s | least CPU s | wall s | peak MiB |\n|---|---|---|---|---|")
    for found, binary in zip(runs, binaries):
        cpu, wall, peak = ([one[i] for one in found] for i in range(3))
        median = statistics.median
        print(f"| {binary} | {median(cpu):.3f} | {min(cpu):.3f} | {median(wall):.2f} | {median(peak):.0f} |")
    print("equal shards" if runs[0][0][3] == runs[1][0][3] else "the shards differ")


main()
