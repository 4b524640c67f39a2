#!/usr/bin/env python3
"""Compares the records of archives with what warcio and FastWARC read: count, type, address, SHA-256 of the block.

    cargo build --release -p flamingo-ingest --example records
    python3 -m venv target/peers && target/peers/bin/pip install -r ingest/benches/requirements.txt
    target/peers/bin/python ingest/tests/archives_against_warcio.py target/release/examples/records FILE_OR_FOLDER...

Peers differ from each other on damaged and odd files; each known difference is listed with its reason, and any
other is a failure.
"""
import hashlib
import json
import pathlib
import subprocess
import sys

from fastwarc.warc import ArchiveIterator as FastIterator
from warcio.archiveiterator import ArchiveIterator

# File, peer: why it reads something else.
KNOWN = {
    ("example.arc", "fastwarc"): "reads no ARC",
    ("example.arc.gz", "fastwarc"): "reads no ARC",
    ("block-sized-records.warc.lz4", "warcio"): "reads no lz4",
    ("warcfile.warc.lz4", "warcio"): "reads no lz4",
    ("example-bad.warc.gz.bad", "warcio"): "refuses an archive in one gzip member after its first record",
    ("clipped.warc.gz", "warcio"): "gives the beginning of the record that is cut off; ours is a reject",
    ("clipped.warc.gz", "fastwarc"): "gives the beginning of the record that is cut off; ours is a reject",
}


def plain(target):
    return target.strip("<>") if target else None


def without_version(record):
    """The first record of an ARC file without its block: warcio reads it as a part of the header."""
    kind, target, digest = record
    return kind, target, None if (target or "").startswith("filedesc:") else digest


def by_warcio(path):
    with open(path, "rb") as stream:
        for record in ArchiveIterator(stream, no_record_parse=True):
            kind = "warcinfo" if record.rec_type == "arc_header" else record.rec_type
            target = record.rec_headers.get_header("WARC-Target-URI") or record.rec_headers.get_header("uri")
            yield kind, plain(target), hashlib.sha256(record.raw_stream.read()).hexdigest()


def by_fastwarc(path):
    for record in FastIterator(str(path), parse_http=False, quirks_mode=True):
        headers = {name.lower(): value for name, value in record.headers.items()}
        kind, target = headers.get("warc-type"), headers.get("warc-target-uri")
        yield kind, plain(target), hashlib.sha256(record.reader.read()).hexdigest()


def by_ours(program, path):
    lines = subprocess.run([program, "list", str(path)], check=True, capture_output=True, text=True).stdout
    for line in lines.splitlines():
        record = json.loads(line)
        if record.get("damage") is None:
            yield record["type"], plain(record["target"]), record["sha256"]


def main():
    program, *places = sys.argv[1:]
    files = []
    for place in map(pathlib.Path, places):
        found = [place] if place.is_file() else sorted(place.rglob("*"))
        files += [file for file in found if ".warc" in file.name or ".arc" in file.name]
    failed = 0
    for path in files:
        ours = [without_version(record) for record in by_ours(program, path)]
        for peer, read in (("warcio", by_warcio), ("fastwarc", by_fastwarc)):
            theirs, error = [], ""
            try:
                for record in read(path):
                    theirs.append(without_version(record))
            except Exception as failure:  # peers stop with many kinds of errors
                error = f" ({type(failure).__name__})"
            same = ours == theirs
            known = KNOWN.get((path.name, peer))
            failed += not same and known is None
            verdict = "same" if same else f"DIFFERS, known: {known}" if known else "DIFFERS"
            print(f"{path.name:45} {peer:9} {len(ours):6} {len(theirs):6}{error} {verdict}")
            if not same and known is None:
                for i, (a, b) in enumerate(zip(ours, theirs)):
                    if a != b:
                        print(f"    record {i}: ours {a}, theirs {b}")
                        break
    print(f"{len(files)} files, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
