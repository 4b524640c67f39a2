#!/usr/bin/env python3
"""3,000 pictures from loopback to Parquet: flamingo-ingest against img2dataset, images per CPU-second.

Both get the same list and fetch from the same server, which runs in a process of its own and is not
counted. Both shrink to 256 pixels with a border and store JPEG of quality 95. They take turns; the
medians of user + system seconds are compared, children included.

    python3 -m venv target/peers && target/peers/bin/pip install -r ingest/benches/requirements.txt
    cargo build --release -p flamingo-ingest
    ${PEERS:-target/peers/bin/python} ingest/benches/fetch.py [--images 3000] [--repeats 3]
"""

import argparse
import csv
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np

SIDE, ASPECT = 1100, 0.75  # 0.91 megapixels, as in the published figures of the peer.
SEED = 7


def photo(rng, width, height):
    """Noise in octaves, which a JPEG encoder treats about as it treats a photo."""
    pixels = np.zeros((height, width, 3), np.float32)
    step, strength = 256, 64.0
    while step >= 1:
        small = rng.standard_normal((height // step + 2, width // step + 2, 3), np.float32)
        pixels += strength * cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
        step, strength = step // 2, strength * 0.72
    return np.clip(pixels + 128, 0, 255).astype(np.uint8)


def make_pictures(folder, n):
    """Writes n different pictures; those of an earlier run are used again."""
    folder.mkdir(parents=True, exist_ok=True)
    if len(list(folder.glob("*.jpg"))) >= n:
        return
    rng = np.random.default_rng(SEED)
    bases = [photo(rng, SIDE, int(SIDE * ASPECT)) for _ in range(40)]
    for i in range(n):
        # Another place and brightness each: equal pictures would be stored once by the peer.
        pixels = np.roll(bases[i % len(bases)], (31 * i, 17 * i), (0, 1))
        pixels = np.clip(pixels.astype(np.int16) + i % 13 - 6, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{i:05}.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 80])


def serve(folder, n):
    """The server's process: pictures from memory, robots.txt is not there."""
    bodies = [(folder / f"{i:05}.jpg").read_bytes() for i in range(n)]

    class Pictures(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self):
            name = self.path.strip("/").removesuffix(".jpg")
            body = bodies[int(name)] if name.isdigit() and int(name) < n else None
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 512
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Pictures)
    print(server.server_address[1], flush=True)
    server.serve_forever()


def measure(command, env=None):
    """Wall and CPU seconds of a command with its children, and MB of its largest process."""
    started = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env)
    errors = []
    reader = threading.Thread(target=lambda: errors.append(child.stderr.read()))
    reader.start()
    _, status, usage = os.wait4(child.pid, 0)
    reader.join()
    if status != 0:
        sys.exit(f"{command[0]} failed: {errors[0].decode(errors='replace')[-2000:]}")
    return time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def rows(folder):
    import pyarrow.parquet as parquet

    n = 0
    for file in sorted(pathlib.Path(folder).glob("*.parquet")):
        table = parquet.read_table(file)
        if "status" in table.column_names:
            n += sum(status == "success" for status in table["status"].to_pylist())
        else:
            n += table.num_rows
    return n


PLAN = """[image]
{image}

[fetch]
contact = "benchmark@localhost.example"
networks_allowed = ["127.0.0.1/32"]
ports = []
host_concurrency = 64
host_per_second = 100000.0
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ingest", default="target/release/flamingo-ingest")
    parser.add_argument("--work", default="target/bench-fetch", type=pathlib.Path)
    parser.add_argument("--image-keys", default=IMAGE_KEYS, help="lines of [image] of our plan")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    pictures = args.work / "pictures"
    if args.serve:
        return serve(pictures, args.images)
    make_pictures(pictures, args.images)
    command = [sys.executable, __file__, "--serve", "--images", str(args.images), "--work", str(args.work)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        compare(args, int(server.stdout.readline()))
    finally:
        server.kill()
        server.wait()


def compare(args, port):
    work = args.work
    listed = work / "list.csv"
    with listed.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["url", "caption"])
        writer.writerows((f"http://127.0.0.1:{port}/{i:05}.jpg", f"picture {i}") for i in range(args.images))
    (work / "plan.toml").write_text(PLAN.format(image=args.image_keys))
    ours, theirs = work / "ours", work / "theirs"
    peer = str(pathlib.Path(sys.executable).parent / "img2dataset")
    jobs = {
        "flamingo-ingest": (
            ours,
            [args.ingest, "alt-text", "--plan", work / "plan.toml", "--input", listed, "--out", ours]
            + ["--workers", str(args.workers)],
        ),
        "img2dataset": (
            theirs,
            [peer, "--url_list", listed, "--input_format", "csv", "--url_col", "url"]
            + ["--caption_col", "caption", "--output_folder", theirs, "--output_format", "parquet"]
            + ["--image_size", "256", "--resize_mode", "border", "--encode_quality", "95"]
            + ["--processes_count", "2", "--thread_count", "32"]
            # Both processes have work: one shard each at a time, of a quarter of the list.
            + ["--number_sample_per_shard", str((args.images + 3) // 4)],
        ),
    }
    taken = {name: [] for name in jobs}
    for _ in range(args.repeats):
        for name, (out, command) in jobs.items():
            shutil.rmtree(out, ignore_errors=True)
            taken[name].append(measure([str(word) for word in command]))
            found = rows(out)
            if found != args.images:
                sys.exit(f"{name} made {found} rows of {args.images}")
            print(f"  {name}: {taken[name][-1][1]:.1f} CPU-s", file=sys.stderr)
    print(f"| program | images per CPU-s | CPU-s | wall s | MB of its largest process |")
    print("|---|---|---|---|---|")
    rate = {}
    for name, runs in taken.items():
        wall, cpu, memory = (statistics.median(run[i] for run in runs) for i in range(3))
        rate[name] = args.images / cpu
        print(f"| {name} | {rate[name]:.1f} | {cpu:.1f} | {wall:.1f} | {memory:.0f} |")
    ours, theirs = rate["flamingo-ingest"], rate["img2dataset"]
    print(f"\n{ours / theirs:.2f} times img2dataset, medians of {args.repeats} runs in turn")


# What the flags that img2dataset is given mean.
IMAGE_KEYS = """resize = "border"
size = 256
only_if_bigger = false
quality = 95
originals = "never"
"""

if __name__ == "__main__":
    main()
