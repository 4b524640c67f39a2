"""Reads over HTTP and writes to an S3-compatible store, both on loopback.

  cargo build -p flamingo-ingest            # or --release
  python3 -m venv target/s3 && target/s3/bin/pip install -r ingest/tests/requirements.txt
  target/s3/bin/python ingest/tests/object_store.py [target/release/flamingo-ingest]

An archive is read from a small HTTP server, by ranges, and the corpus goes to a bucket of moto's server: whole, killed and
resumed, and in two partitions. Clips are read from a bucket, with their captions beside them. What is in the bucket is compared
byte for byte with a run on the disk. Nothing leaves this machine.
"""
import http.server
import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

ROOT = Path(__file__).resolve().parents[2]
INGEST = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "target/release/flamingo-ingest")
ARCHIVE = ROOT / "../shared/data/real/openstax-warc/astronomy.warc.gz"
FILMS = [ROOT / "../shared/data/real/video/mdn" / name for name in ("flower.webm", "friday.mp4")]
PHOTO = ROOT / "../shared/data/real/photos/mdn/moon.jpg"
# Small parts, so that the run writes several shards and can be killed between them.
PLAN = "[shard]\nrows_max = 40\n"


if not ARCHIVE.exists():
    print(f"skipped: {ARCHIVE} is not here")
    sys.exit(0)
# Every request would be a line.
logging.getLogger("werkzeug").setLevel(logging.ERROR)


class Ranges(http.server.BaseHTTPRequestHandler):
    """Serves the archive, whole or by ranges."""
    protocol_version = "HTTP/1.1"
    requests = []

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, has_body):
        body, status = ARCHIVE.read_bytes(), 200
        self.requests.append((self.command, self.headers.get("Range")))
        if self.path != "/books/astronomy.warc.gz":
            body, status = b"", 404
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        self_range = None
        if status == 200 and found:
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
        if has_body:
            self.wfile.write(body)

    def handle(self):
        try:
            super().handle()
        except ConnectionError:
            pass  # The client was killed.

    def log_message(self, *_):
        pass


def command(out, *more, source, kind="webpages"):
    return [INGEST, kind, "--plan", str(folder / "plan.toml"), "--input", source, "--out", out, *more]


def run(arguments):
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return done.stdout


def bucket(prefix):
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="corpora", Prefix=prefix + "/")
    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
    return {key[len(prefix) + 1:]: s3.get_object(Bucket="corpora", Key=key)["Body"].read() for key in keys}


def disk(path):
    files = (file for file in Path(path).rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def expect_same(found, expected):
    assert sorted(found) == sorted(expected), (sorted(found), sorted(expected))
    for name, content in expected.items():
        assert found[name] == content, f"{name} differs"


web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
threading.Thread(target=web.serve_forever, daemon=True).start()
moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
moto.start()
_, port = moto.get_host_and_port()
endpoint = f"http://127.0.0.1:{port}"
s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
s3.create_bucket(Bucket="corpora")

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    (folder / "plan.toml").write_text(PLAN)
    (folder / "scratch").mkdir()
    environment = {
        **os.environ, "AWS_ENDPOINT": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "TMPDIR": str(folder / "scratch"),
    }
    address = f"http://127.0.0.1:{web.server_port}/books/astronomy.warc.gz"
    run(command(str(folder / "whole"), source=str(ARCHIVE)))
    whole = disk(folder / "whole")

    started = time.time()
    print(run(command("s3://corpora/whole", source=address)), end="")
    seconds = time.time() - started
    expect_same(bucket("whole"), whole)
    ranges = [requested for verb, requested in Ranges.requests if verb == "GET"]
    assert ranges and all(ranges), "the archive was read without ranges"
    print(f"whole: {len(whole)} objects are equal; {len(ranges)} ranges were read")
    run([INGEST, "check", "s3://corpora/whole"])

    # A run that is killed goes on: from the bucket's journal, and from its record log on this machine.
    kills = 0
    for share in (0.5, 0.3, 0.4, 0.6):
        child = subprocess.Popen(command("s3://corpora/killed", "--resume", source=address), env=environment,
                                 stdout=subprocess.DEVNULL)
        time.sleep(share * seconds)
        child.kill()
        kills += child.wait() != 0
    print(run(command("s3://corpora/killed", "--resume", source=address)), end="")
    expect_same(bucket("killed"), whole)
    assert kills > 0, "no kill hit the run"
    assert not list((folder / "scratch").iterdir()), "the scratch folder is not empty"
    print(f"killed {kills} times: equal")

    for index in ("1/2", "0/2"):
        print(run(command("s3://corpora/shared", "--index", index, source=address)), end="")
    run([INGEST, "check", "s3://corpora/shared"])
    run(command(str(folder / "shared"), "--index", "0/2", source=str(ARCHIVE)))
    run(command(str(folder / "shared"), "--index", "1/2", source=str(ARCHIVE)))
    expect_same(bucket("shared"), disk(folder / "shared"))
    print("two partitions: equal")

    # Clips of a prefix, with their captions beside them.
    films = folder / "films"
    films.mkdir()
    for file in FILMS:
        (films / file.name).write_bytes(file.read_bytes())
        (films / file.with_suffix(".txt").name).write_text(f"a film called {file.stem}")
    for file in films.iterdir():
        s3.upload_file(str(file), "corpora", f"films/{file.name}")
    (folder / "plan.toml").write_text("[video]\nframes_max = 4\n")
    run(command(str(folder / "clips"), source=str(films), kind="video-text"))
    print(run(command("s3://corpora/clips", source="s3://corpora/films/", kind="video-text")), end="")
    expect_same(bucket("clips"), disk(folder / "clips"))
    print("clips: equal")

    # A list of a prefix, with its pictures beside it.
    lists = folder / "lists"
    lists.mkdir()
    (lists / "moon.jpg").write_bytes(PHOTO.read_bytes())
    (lists / "pairs.csv").write_text("file,caption\nmoon.jpg,the moon above us\n")
    for file in lists.iterdir():
        s3.upload_file(str(file), "corpora", f"lists/{file.name}")
    (folder / "plan.toml").write_text("")
    run(command(str(folder / "pairs"), source=str(lists), kind="alt-text"))
    print(run(command("s3://corpora/pairs", source="s3://corpora/lists/", kind="alt-text")), end="")
    expect_same(bucket("pairs"), disk(folder / "pairs"))
    print("pairs: equal")

    # A bucket that is not there is one clear line.
    failed = subprocess.run(command("s3://nowhere/x", source=address), env=environment, capture_output=True, text=True)
    assert failed.returncode == 1 and "s3://nowhere/x" in failed.stderr, failed.stderr
    print(failed.stderr.strip()[:200])

moto.stop()
