#!/usr/bin/env python3
"""Every broken and unusual file, each alone: no crash, 10 s and 256 MB at most, and a reason if nothing is kept.

    python3 ingest/tests/bad_files.py [PROGRAM]

PROGRAM is target/release/flamingo-ingest unless told. The files are those of ../shared/data/real/bad and formats: films
as clips, Parquet files as lists, all others as images of a list. Needs Linux, where memory is counted in kB.
"""
import csv
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "../shared/data/real"
PROGRAM = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "target/release/flamingo-ingest")
SECONDS_MAX, KB_MAX = 10, 256_000
CLIPS = {".3gp", ".mp4"}


def command(file, folder):
    """The command for one file, and its list of one row."""
    out = folder / "out"
    if file.suffix == ".parquet":
        return [PROGRAM, "alt-text", "--input", file, "--out", out]
    rows = folder / "list.csv"
    name = f"file{file.suffix}"
    (folder / name).write_bytes(file.read_bytes())
    with rows.open("w", newline="") as text:
        csv.writer(text).writerows([["file", "caption"], [name, "a caption of some words"]])
    kind = "video-text" if file.suffix in CLIPS or "mp4-" in file.name else "alt-text"
    return [PROGRAM, kind, "--input", rows, "--out", out]


def main():
    files = sorted(file for name in ("bad", "formats") for file in (DATA / name).rglob("*") if file.is_file())
    if not files:
        print("skipped: ../shared/data/real/bad is not here")
        return
    wrong, kept, worst_s, worst_kb = [], 0, (0, None), (0, None)
    for file in files:
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            child = subprocess.Popen(command(file, Path(folder)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            # What hangs is ended; its exit code tells.
            alarm = threading.Timer(SECONDS_MAX, child.kill)
            alarm.start()
            errors = child.stderr.read().decode(errors="replace")
            # Of the program and of the processes that it waited for, the largest.
            _, status, usage = os.wait4(child.pid, 0)
            alarm.cancel()
            seconds = time.monotonic() - started
        code = os.waitstatus_to_exitcode(status)
        kept += code == 0
        worst_s, worst_kb = max(worst_s, (seconds, file.name)), max(worst_kb, (usage.ru_maxrss, file.name))
        if code not in (0, 1, 2) or (code and "error: " not in errors):
            wrong.append(f"{file.name}: exit code {code}: {errors.strip()[-300:]}")
        if seconds > SECONDS_MAX or usage.ru_maxrss > KB_MAX:
            wrong.append(f"{file.name}: {seconds:.1f} s, {usage.ru_maxrss / 1000:.0f} MB")
    print(f"{len(files)} files, {kept} kept; slowest {worst_s[0]:.2f} s ({worst_s[1]}), largest {worst_kb[0] / 1000:.0f} MB ({worst_kb[1]})")
    sys.exit("\n".join(wrong) or None)


main()
