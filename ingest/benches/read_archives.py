#!/usr/bin/env python3
"""WARC.gz, every payload read: ours against FastWARC, in MB (unpacked) per CPU-second.

    cargo build --release -p flamingo-ingest --example records
    python3 -m venv target/peers && target/peers/bin/pip install -r ingest/benches/requirements.txt
    target/peers/bin/python ingest/benches/read_archives.py target/release/examples/records FILE.warc.gz...

The files are joined until they hold 100 MB: as they are, and only their HTML responses (packed again, one gzip
member per record). Both readers must first agree on every record and on the SHA-256 of every block. Then they take
turns, each in a process of its own; the table has medians of user + system seconds, with what starting Python and
importing FastWARC costs taken off the peer's.
"""
import gzip
import hashlib
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from fastwarc.warc import ArchiveIterator

RAW_BYTES = 100_000_000
REPEATS = 7
# What the peer's process runs; its fastest settings: the file by name, HTTP heads not parsed.
PEER = """
import sys
from fastwarc.warc import ArchiveIterator
n_records = n_bytes = 0
for path in sys.argv[1:]:
    for record in ArchiveIterator(path, parse_http=False):
        n_bytes += len(record.reader.read())
        n_records += 1
print(f"{n_records} records, {n_bytes} bytes")
"""


def joined(files, folder, pick):
    """One file of at least RAW_BYTES, and its unpacked length."""
    path, raw = folder / f"{pick.__name__}.warc.gz", 0
    with open(path, "wb") as out:
        while raw < RAW_BYTES:
            for file in files:
                packed, n = pick(file)
                out.write(packed)
                raw += n
    return path, raw


def whole(file):
    packed = pathlib.Path(file).read_bytes()
    return packed, len(gzip.decompress(packed))


def pages(file, made={}):
    if file not in made:
        packed, raw = io.BytesIO(), 0
        for record in ArchiveIterator(file, parse_http=False):
            block = record.reader.read()
            headers = {name: value for name, value in record.headers.items()}
            is_page = headers.get("WARC-Type") == "response" and b"text/html" in block[:2000]
            if is_page:
                head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
                bytes_ = b"WARC/1.1\r\n" + head.encode() + b"\r\n" + block + b"\r\n\r\n"
                packed.write(gzip.compress(bytes_, 6))
                raw += len(bytes_)
        made[file] = packed.getvalue(), raw
    return made[file]


def agree(program, path):
    lines = subprocess.run([program, "list", path], check=True, capture_output=True, text=True).stdout
    ours = [json.loads(line)["sha256"] for line in lines.splitlines()]
    theirs = [
        hashlib.sha256(record.reader.read()).hexdigest()
        for record in ArchiveIterator(str(path), parse_http=False)
    ]
    assert ours == theirs, f"{path}: {len(ours)} and {len(theirs)} records, or other payloads"
    return len(ours)


def measure(command):
    """User + system seconds, output."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write, 1)
        os.execv(command[0], [str(part) for part in command])
    os.close(write)
    output = b"".join(iter(lambda: os.read(read, 1 << 16), b""))
    os.close(read)
    _, status, used = os.wait4(pid, 0)
    assert status == 0, command
    return used.ru_utime + used.ru_stime, output.decode()


def main():
    program, *files = sys.argv[1:]
    program = str(pathlib.Path(program).resolve())
    start = statistics.median(measure([sys.executable, "-c", PEER])[0] for _ in range(REPEATS))
    print(f"starting the peer: {start:.3f} s, taken off")
    print("| input | records | MB | ours, MB/CPU-s | FastWARC, MB/CPU-s | ratio |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for pick in (whole, pages):
            path, raw = joined(files, pathlib.Path(folder), pick)
            n_records = agree(program, path)
            ours, theirs = [], []
            for _ in range(REPEATS):
                ours.append(measure([program, "read", path]))
                theirs.append(measure([sys.executable, "-c", PEER, path]))
                assert ours[-1][1] == theirs[-1][1], (ours[-1][1], theirs[-1][1])
            a = raw / 1e6 / statistics.median(run[0] for run in ours)
            b = raw / 1e6 / (statistics.median(run[0] for run in theirs) - start)
            print(f"| {pick.__name__} | {n_records} | {raw / 1e6:.0f} | {a:.0f} | {b:.0f} | {a / b:.2f} |")


if __name__ == "__main__":
    main()
