"""Peak memory of whole runs on inputs far larger than it: 2 workers, limit 1 GiB.

  cargo build --release -p flamingo-ingest
  python3 ingest/benches/memory.py                 # 5 GB of archive, 3 million rows; minutes, 12 GB of disk
  GIGABYTES=1 ROWS=300000 python3 ingest/benches/memory.py

Needs only the standard library. Inputs are made below target/memory (once for each size) and written as they
are made. Photographs come from ../shared/data/real/photos (or PHOTOS=folder); each copy has a comment of its own,
so no two images are equal. INGEST names another binary. Exit code 1 where a run takes more than the limit.
"""
import os
import shutil
import struct
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INGEST = os.environ.get("INGEST", str(ROOT / "target/release/flamingo-ingest"))
PHOTOS = Path(os.environ.get("PHOTOS", ROOT / "../shared/data/real/photos"))
GIGABYTES = float(os.environ.get("GIGABYTES", "5"))
ROWS = int(os.environ.get("ROWS", "3000000"))
LIMIT_MIB = 1024
WORKERS = "2"
FOLDER = ROOT / "target/memory"
IMAGES_PER_PAGE = 6
WORDS = "a page of the web with words that stand between two images and say what they show".split()


def photos():
    """JPEG files of 50 kB to 2 MB."""
    files = sorted(path for path in PHOTOS.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    found = [path.read_bytes() for path in files if 50_000 < path.stat().st_size < 2_000_000]
    if not found:
        sys.exit(f"no photographs at {PHOTOS}: set PHOTOS to a folder of JPEG files")
    return found


def unique(jpeg, n):
    """The file with a comment after its first marker."""
    comment = b"copy %d" % n
    return jpeg[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + jpeg[2:]


def record(url, kind, body):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind, len(body))
    block = head + body
    return (b"WARC/1.1\r\nWARC-Type: response\r\nWARC-Target-URI: %s\r\nWARC-Date: 2026-11-25T00:00:00Z\r\n"
            b"Content-Type: application/http; msgtype=response\r\nContent-Length: %d\r\n\r\n" % (url, len(block))
            + block + b"\r\n\r\n")


def make_archive(path):
    images, n, size = photos(), 0, 0
    with open(path, "wb", buffering=1 << 20) as file:
        page = 0
        while size < GIGABYTES * 1e9:
            html = [b"<html><head><title>Page %d</title></head><body><h1>Page %d</h1>" % (page, page)]
            for _ in range(IMAGES_PER_PAGE):
                url = b"http://a.example/%d.jpg" % n
                size += file.write(record(url, b"image/jpeg", unique(images[n % len(images)], n)))
                words = b" ".join(WORDS[(n + i * 7) % len(WORDS)].encode() for i in range(60))
                html.append(b"<p>%s %d</p><img src=\"%s\" alt=\"photo %d\">" % (words, n, url, n))
                n += 1
            body = b"".join(html) + b"</body></html>"
            size += file.write(record(b"http://a.example/%d.html" % page, b"text/html", body))
            page += 1


def make_list(path, folder):
    """One row in a thousand has its image, the others ask for files that are not there."""
    images = photos()
    (folder / "there").mkdir(exist_ok=True)
    for i, image in enumerate(images[:20]):
        (folder / f"there/{i}.jpg").write_bytes(image)
    with open(path, "w", buffering=1 << 20) as file:
        file.write("file,caption,url\n")
        for row in range(ROWS):
            name = f"there/{row // 1000 % min(20, len(images))}.jpg" if row % 1000 == 0 else f"gone/{row}.jpg"
            file.write(f"{name},a caption with the number {row} in it,http://a.example/{row}.jpg\n")


def run(arguments):
    """Seconds of wall and of both processors, and MiB, of one run."""
    started = time.time()
    pid = os.posix_spawn(INGEST, [INGEST, *arguments], os.environ,
                         file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)])
    _, status, usage = os.wait4(pid, 0)
    if status != 0:
        sys.exit(f"{INGEST} {' '.join(arguments)} failed: status {status}")
    return time.time() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    archive, pairs = FOLDER / f"{GIGABYTES}.warc", FOLDER / f"{ROWS}.csv"
    for path, make in [(archive, make_archive), (pairs, lambda path: make_list(path, FOLDER))]:
        if not path.exists():
            make(path.with_suffix(".partial"))
            path.with_suffix(".partial").rename(path)
    print("| job | input MB | wall s | CPU s | peak MiB |\n|---|---|---|---|---|")
    worst = 0
    for command, source in [("webpages", archive), ("alt-text", pairs)]:
        out = FOLDER / "out"
        shutil.rmtree(out, ignore_errors=True)
        wall, cpu, peak = run([command, "--input", str(source), "--out", str(out), "--workers", WORKERS])
        shutil.rmtree(out)
        print(f"| {command} | {source.stat().st_size / 1e6:.0f} | {wall:.0f} | {cpu:.0f} | {peak:.0f} |", flush=True)
        worst = max(worst, peak)
    if worst > LIMIT_MIB:
        sys.exit(f"more than {LIMIT_MIB} MiB")


main()
