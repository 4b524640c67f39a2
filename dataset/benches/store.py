"""Counts the bytes that a shuffled epoch of a corpus in a distant store fetches for each byte that it uses.

  cargo build --release --workspace --examples --bins
  python3 dataset/benches/store.py CORPUS...

A server on loopback passes on the files of each corpus and counts what it sends. Used are the bytes of images and texts; fetched is
everything: manifest, footers, pages and what lies between. Without a disk cache, with one that holds the corpus (in its first epoch
and in its second), and with one that holds a third.

Then the loader's batches of decoded images a second, with two threads and a server that waits 30 ms before each answer, as stores do.
"""
import http.server
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

RELEASE = Path(__file__).resolve().parents[2] / "target/release"
BATCH = 64
PIECE = 1 << 20
STORE_SECONDS = 0.03


class Counting(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    lock = threading.Lock()
    n_bytes, n_requests = 0, 0
    seconds = 0.0

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, has_body):
        time.sleep(Counting.seconds)
        path = folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start, end = (int(found[1]), min(int(found[2] or size) + 1, size)) if found else (0, size)
        self.send_response(206 if found else 200)
        if found:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("ETag", f'"{size}"')
        self.send_header("Last-Modified", "Wed, 25 Nov 2026 00:00:00 GMT")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if has_body:
            with open(path, "rb") as file:
                file.seek(start)
                self.wfile.write(file.read(end - start))
            with self.lock:
                Counting.n_bytes += end - start
                Counting.n_requests += 1

    def log_message(self, *_):
        pass


def epoch(address, n_rows, **environment):
    """Bytes fetched for each byte used, and rows for each request, of an epoch with four threads."""
    Counting.n_bytes = Counting.n_requests = 0
    # At least a batch; a last batch goes on with the rows of the beginning.
    command = [RELEASE / "examples/read_corpus", address, "bytes", "4", str(-(-n_rows // BATCH))]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})
    used = int(done.stdout.split()[-2])
    return f"{Counting.n_bytes / used:.3f} | {-(-n_rows // BATCH) * BATCH / max(1, Counting.n_requests):.1f}"


if __name__ == "__main__":
    print("| corpus | rows | KB a row | cache | bytes fetched / used | rows a request |\n|---|---|---|---|---|---|")
    for corpus in map(Path, sys.argv[1:]):
        folder = corpus.resolve()
        manifest = json.loads((folder / "manifest.json").read_text())
        size, n_rows = sum(shard["bytes"] for shard in manifest["shards"]), manifest["rows"]
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counting)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with tempfile.TemporaryDirectory() as cache:
            whole, third = f"{cache}/whole,{10 * size},{PIECE}", f"{cache}/third,{size // 3},{PIECE}"
            for what, named in (("none", ""), ("whole", whole), ("whole, again", whole), ("a third", third)):
                environment = {"DISK_CACHE": named} if named else {}
                row = epoch(address, n_rows, **environment)
                print(f"| {corpus.name} | {n_rows} | {size / n_rows / 1000:.1f} | {what} | {row} |", flush=True)
        Counting.seconds = STORE_SECONDS
        command = [RELEASE / "examples/read_corpus", address, "pixels", "2", "40"]
        done = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        Counting.seconds = 0.0
        print(f"{STORE_SECONDS * 1000:.0f} ms a request, batches of {BATCH}: {done.strip()}", flush=True)
        server.shutdown()
