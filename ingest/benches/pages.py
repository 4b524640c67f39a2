"""Pages to main content: this crate (text and images in order) against resiliparse (text only), same pages.

Ours runs twice: as the peer does, and with the figures, language and rules of the preset m3w.

  python3 -m venv target/peers && target/peers/bin/pip install -r ingest/benches/requirements.txt
  cargo build --release -p flamingo-ingest --example pages
  python3 ingest/benches/pages.py [RUNS]

Alternates RUNS (5) runs of each and prints medians of user and system CPU seconds. Each run starts a process; what it takes
to start and to load the pages is measured by a run that reads none and is taken off. PEERS names the interpreter
that has resiliparse (default target/peers/bin/python). The pages are those of ../shared/data/real/html: articles,
readability and trafilatura, decoded to UTF-8 beforehand into target/pages.
"""
import gzip
import os
import statistics
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "../shared/data/real/html"
PAGES = ROOT / "target/pages"
PEERS = os.environ.get("PEERS", str(ROOT / "target/peers/bin/python"))
OURS = os.environ.get("OURS", str(ROOT / "target/release/examples/pages"))

RESILIPARSE = """
import pathlib, sys
from resiliparse.extract.html2text import extract_plain_text
pages = [path.read_text(encoding="utf-8") for path in pathlib.Path(sys.argv[1]).iterdir()]
n_bytes = 0
for _ in range(int(sys.argv[2])):
    for page in pages:
        n_bytes += len(extract_plain_text(page, main_content=True).encode())
print(len(pages), "pages,", n_bytes, "bytes of text")
"""


def make_pages():
    """Writes the pages as UTF-8, once."""
    if PAGES.exists():
        return
    new = PAGES.with_name("pages.new")
    new.mkdir(parents=True, exist_ok=True)
    pages = [(path.name, gzip.decompress(path.read_bytes())) for path in sorted(DATA.glob("scrapinghub/html/*.gz"))]
    pages += [(path.parent.name, gzip.decompress(path.read_bytes())) for path in sorted(DATA.glob("readability/*/source.html.gz"))]
    with tarfile.open(DATA / "trafilatura/eval-pages.tar.xz") as archive:
        files = [member for member in archive if member.isfile()]
        pages += [(os.path.basename(member.name), archive.extractfile(member).read()) for member in files]
    for name, page in pages:
        (new / f"{name}.html").write_text(page.decode("utf-8", "replace"), encoding="utf-8")
    new.rename(PAGES)


def cpu_seconds(arguments):
    quiet = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
    _, status, usage = os.wait4(os.posix_spawn(arguments[0], arguments, os.environ, file_actions=quiet), 0)
    if status != 0:
        sys.exit(f"{' '.join(arguments[:3])} failed: status {status}")
    return usage.ru_utime + usage.ru_stime


def main():
    n_runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    make_pages()
    # What stands before and after the number of times.
    readers = {
        "flamingo-ingest": ([OURS, str(PAGES)], []),
        "flamingo-ingest, rules of m3w": ([OURS, str(PAGES)], ["m3w"]),
        "resiliparse": ([PEERS, "-c", RESILIPARSE, str(PAGES)], []),
    }
    runs = {name: [] for name in readers}
    for _ in range(n_runs):
        for name, (before, after) in readers.items():
            once, never = ([*before, times, *after] for times in ("1", "0"))
            runs[name].append(cpu_seconds(once) - cpu_seconds(never))
    files = list(PAGES.iterdir())
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    median = {name: statistics.median(seconds) for name, seconds in runs.items()}
    print("| reader | CPU s | pages per CPU second | MB per CPU second | ratio |\n|---|---|---|---|---|")
    for name, seconds in median.items():
        ratio = median["resiliparse"] / seconds
        print(f"| {name} | {seconds:.2f} | {len(files) / seconds:.0f} | {megabytes / seconds:.0f} | {ratio:.2f} |")


main()
