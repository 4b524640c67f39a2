"""Reads a corpus over HTTP from a server on loopback that fails in every way, and compares the batches with those of the disk.

  cargo build --release --workspace --bins --examples
  python3 dataset/tests/faulty_store.py

The server answers ranges. Of its answers to them a fifth are errors (500, 503 and connections that are cut), a tenth end before
their length, and a tenth come in small pieces with pauses. Every batch must have the hash that it has from the disk.
"""
import http.server
import random
import re
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RELEASE = ROOT / "target/release"
PHOTOS = ROOT / "../shared/data/real/photos/data-juicer"
BATCHES = 6

if not PHOTOS.exists():
    print(f"skipped: {PHOTOS} is not here")
    sys.exit(0)


class Faulty(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    draw = random.Random(0)
    lock = threading.Lock()
    n_answers, n_faults = 0, 0

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, has_body):
        file = folder / self.path.lstrip("/")
        if not file.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body, status = file.read_bytes(), 200
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        with self.lock:
            fault = self.draw.choice(FAULTS) if found and has_body else None
            Faulty.n_answers += 1
            Faulty.n_faults += fault is not None
        if fault == "cut":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if fault in (500, 503):
            self.send_response(fault)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self_range = None
        if found:
            start, end = int(found[1]), min(int(found[2] or len(body)), len(body) - 1)
            self_range, body, status = f"bytes {start}-{end}/{len(body)}", body[start:end + 1], 206
        self.send_response(status)
        if self_range:
            self.send_header("Content-Range", self_range)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"one"')
        self.send_header("Last-Modified", "Wed, 25 Nov 2026 00:00:00 GMT")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not has_body:
            return
        if fault == "short":
            self.wfile.write(body[:len(body) // 2])
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault == "slow":
            for piece in range(4):
                self.wfile.write(body[piece * len(body) // 4:(piece + 1) * len(body) // 4])
                self.wfile.flush()
                time.sleep(0.02)
        else:
            self.wfile.write(body)

    def handle(self):
        try:
            super().handle()
        except OSError:
            pass

    def log_message(self, *_):
        pass


FAULTS = [None] * 12 + [500, 500, 503, "cut", "short", "short", "slow", "slow"]


def hashes(corpus, threads):
    command = [RELEASE / "examples/read_corpus", corpus, "hashes", str(threads), str(BATCHES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    photos = [path for path in sorted(PHOTOS.glob("*.jpg"))]
    with tarfile.open(folder / "pairs.tar", "w") as tar:
        for i in range(150):
            tar.add(photos[i % len(photos)], f"{i:05}.jpg")
            (folder / "caption.txt").write_text(f"photograph number {i}")
            tar.add(folder / "caption.txt", f"{i:05}.txt")
    (folder / "plan.toml").write_text("[shard]\nrows_max = 60\n[image]\naspect_max = 9.0\n")
    command = [RELEASE / "flamingo-ingest", "alt-text", "--plan", folder / "plan.toml", "--input", folder / "pairs.tar"]
    subprocess.run([*command, "--out", folder / "corpus"], check=True, capture_output=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    expected = hashes(folder / "corpus", 2)
    assert len(set(expected)) == BATCHES
    found = hashes(f"http://127.0.0.1:{server.server_port}/corpus", 2)
    assert found == expected, "a batch differs"
    assert Faulty.n_faults > 20, "the server did not fail"
    print(f"{BATCHES} batches are equal after {Faulty.n_faults} faults in {Faulty.n_answers} answers")
