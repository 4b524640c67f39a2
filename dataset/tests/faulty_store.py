"""Reads corpora over HTTP and S3 from servers on loopback that fail in every way, and compares the batches with those of the disk.

  python3 -m venv target/s3 && target/s3/bin/pip install --requirement ingest/tests/requirements.txt
  cargo build --release --workspace --bins --examples
  target/s3/bin/python dataset/tests/faulty_store.py

A server passes on what lies in a folder or in moto, an S3-compatible server, and answers ranges. Of its answers to them a fifth are
errors (500, 503 and connections that are cut), a tenth end before their length, and a tenth come in small pieces with pauses.
Every batch must have the hash that it has from the disk, with and without a disk cache, and whatever happened to the cache.
"""
import http.client
import http.server
import logging
import os
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

import boto3
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)

ROOT = Path(__file__).resolve().parents[2]
RELEASE = ROOT / "target/release"
PHOTOS = ROOT / "../shared/data/real/photos/data-juicer"
BATCHES = 6

if not PHOTOS.exists():
    print(f"skipped: {PHOTOS} is not here")
    sys.exit(0)


class Faulty(http.server.BaseHTTPRequestHandler):
    """A server that fails between its reader and what `whole` gives."""
    protocol_version = "HTTP/1.1"
    draw = random.Random(0)
    lock = threading.Lock()
    n_answers, n_faults, n_bytes = 0, 0, 0
    fails = True

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, has_body):
        body = self.whole(self.path)
        if body is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        status = 200
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        with Faulty.lock:
            fault = Faulty.draw.choice(FAULTS) if found and has_body and Faulty.fails else None
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
        content_range = None
        if found:
            start, end = int(found[1]), min(int(found[2] or len(body)), len(body) - 1)
            content_range, body, status = f"bytes {start}-{end}/{len(body)}", body[start:end + 1], 206
        self.send_response(status)
        if content_range:
            self.send_header("Content-Range", content_range)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"one"')
        self.send_header("Last-Modified", "Wed, 25 Nov 2026 00:00:00 GMT")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not has_body:
            return
        with Faulty.lock:
            Faulty.n_bytes += len(body)
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


class FaultyFolder(Faulty):
    @staticmethod
    def whole(path):
        file = folder / path.lstrip("/")
        return file.read_bytes() if file.is_file() else None


class FaultyMoto(Faulty):
    kept = {}

    @staticmethod
    def whole(path):
        # Objects do not change here, and moto is slow.
        if path not in FaultyMoto.kept:
            connection = http.client.HTTPConnection("127.0.0.1", moto_port)
            connection.request("GET", path)
            answer = connection.getresponse()
            FaultyMoto.kept[path] = answer.read() if answer.status == 200 else None
        return FaultyMoto.kept[path]


FAULTS = [None] * 12 + [500, 500, 503, "cut", "short", "short", "slow", "slow"]


def hashes(corpus, threads, **environment):
    command = [RELEASE / "examples/read_corpus", corpus, "hashes", str(threads), str(BATCHES)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def start(handler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def check(what, found):
    assert found == expected, f"{what}: a batch differs"
    print(f"{what}: {BATCHES} batches are equal after {Faulty.n_faults} faults in {Faulty.n_answers} answers")


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
    expected = hashes(folder / "corpus", 2)
    assert len(set(expected)) == BATCHES

    http_server = start(FaultyFolder)
    check("HTTP", hashes(f"{http_server}/corpus", 2))
    assert Faulty.n_faults > 20, "the server did not fail"

    # A cache of small pieces, for all of the corpus.
    cache = {"DISK_CACHE": f"{folder}/cache,1000000000,20000"}
    check("HTTP, disk cache", hashes(f"{http_server}/corpus", 2, **cache))
    before = Faulty.n_bytes
    check("HTTP, filled disk cache", hashes(f"{http_server}/corpus", 2, **cache))
    manifest = (folder / "corpus/manifest.json").stat().st_size
    assert Faulty.n_bytes - before == manifest, f"{Faulty.n_bytes - before} bytes were fetched again"
    # Spoilt by a crash: cut off, other bytes, gone.
    pieces = sorted(folder.glob("cache/*/*.piece"))
    assert len(pieces) > 50, len(pieces)
    for i, piece in enumerate(pieces):
        body = piece.read_bytes()
        if i % 4 == 0:
            piece.write_bytes(body[:len(body) // 2])
        elif i % 4 == 1:
            piece.write_bytes(bytes(100) + body[100:])
        elif i % 4 == 2:
            piece.unlink()
    check("HTTP, spoilt disk cache", hashes(f"{http_server}/corpus", 2, **cache))
    # A bound that holds a tenth of the corpus.
    size = sum(path.stat().st_size for path in folder.glob("corpus/*.parquet"))
    small = {"DISK_CACHE": f"{folder}/small,{size // 10},20000"}
    check("HTTP, small disk cache", hashes(f"{http_server}/corpus", 2, **small))
    kept = sum(path.stat().st_size for path in folder.glob("small/*/*.piece"))
    assert 0 < kept <= size // 10, f"{kept} bytes kept of {size // 10}"
    assert not list(folder.glob("*/*/*.new")), "a file is left behind"

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    moto_port = moto.get_host_and_port()[1]
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{moto_port}", region_name="us-east-1", aws_access_key_id="key",
                          aws_secret_access_key="secret")
    client.create_bucket(Bucket="corpora", ACL="public-read")
    for path in folder.glob("corpus/*"):
        if path.is_file():
            client.upload_file(str(path), "corpora", f"pairs/{path.name}", ExtraArgs={"ACL": "public-read"})
    Faulty.n_answers = Faulty.n_faults = 0
    s3 = {**keys, "AWS_ENDPOINT": start(FaultyMoto), "AWS_ALLOW_HTTP": "true"}
    check("S3", hashes("s3://corpora/pairs", 2, **s3))
    assert Faulty.n_faults > 20, "the server did not fail"
    check("S3, disk cache", hashes("s3://corpora/pairs", 2, **s3, DISK_CACHE=f"{folder}/s3-cache,1000000000,20000"))
    moto.stop()
