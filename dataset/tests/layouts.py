"""Writes corpora with the packages of others, and compares what this crate reads of them.

  cargo build --release --workspace --bins --examples
  .venv/bin/python dataset/tests/layouts.py

Hugging Face `datasets` and webdataset write their own files; those of img2dataset, OBELICS and mmc4 are written here with the
columns and keys that these programs write.
"""
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import datasets
import pyarrow
import pyarrow.parquet
import webdataset
from PIL import Image

RELEASE = Path(__file__).resolve().parents[2] / "target/release"
N = 30


def sha256(body):
    return hashlib.sha256(body).hexdigest()


def jpeg(i):
    body = io.BytesIO()
    Image.linear_gradient("L").resize((64 + i, 48)).rotate(3 * i).convert("RGB").save(body, "JPEG")
    return body.getvalue()


def read(folder, layout):
    command = [RELEASE / "examples/read_corpus", folder, "rows", json.dumps(layout)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def refused(folder, layout, word):
    command = [RELEASE / "examples/read_corpus", folder, "rows", json.dumps(layout)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and word in done.stderr, done.stderr


def same(what, expected, found):
    if expected != found:
        sys.exit(f"layouts.py: {what}: expected {expected!r}, found {found!r}")


def check_pairs(what, rows, wanted):
    same(what, [([CAPTIONS[i]], [sha256(JPEGS[i])]) for i in wanted], [(row.get("texts"), row.get("images")) for row in rows])
    print(f"{what}: {len(rows)} rows")


JPEGS = [jpeg(i) for i in range(N)]
CAPTIONS = [f"caption {i} \u00e9\U0001f9a9" for i in range(N)]
URLS = [f"https://example.org/{i}.jpg" for i in range(N)]

with tempfile.TemporaryDirectory() as name:
    work = Path(name)

    # Hugging Face datasets, in several files and row groups.
    (work / "hf").mkdir()
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.Value("int64"), "alt": datasets.Value("string")})
    for part, first in enumerate(range(0, N, 15)):
        pictures = [{"bytes": body, "path": f"{part}.jpg"} for body in JPEGS[first:first + 15]]
        rows = {"picture": pictures, "label": list(range(15)), "alt": CAPTIONS[first:first + 15]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(work / f"hf/train-{part:05}.parquet", batch_size=4)
    hugging_face = {"format": "hugging_face", "image": "picture", "text": "alt"}
    check_pairs("hugging_face", read(work / "hf", hugging_face), range(N))
    check_pairs("hugging_face, one file", read(work / "hf", {**hugging_face, "files": "train-00001"}), range(15, N))
    refused(work / "hf", {**hugging_face, "text": "caption"}, "no column `caption`")
    refused(work / "hf", {"format": "webdataset"}, "no file *.tar")

    # webdataset, in two tars.
    (work / "wds").mkdir()
    with webdataset.ShardWriter(str(work / "wds/%05d.tar"), maxcount=17, verbose=0) as writer:
        for i in range(N):
            caption = {"txt": CAPTIONS[i]} if i % 2 else {"json": {"caption": CAPTIONS[i], "url": URLS[i]}}
            writer.write({"__key__": f"{i:06}", "jpg": JPEGS[i], **caption})
    check_pairs("webdataset", read(work / "wds", {"format": "webdataset"}), range(N))
    whole = (work / "wds/00001.tar").read_bytes()
    (work / "wds/00001.tar").write_bytes(whole[:len(whole) // 2 + 700])
    refused(work / "wds", {"format": "webdataset"}, "00001.tar")
    refused(work / "hf", {"format": "img2dataset", "missing": "leave_out"}, "unknown field")

    # img2dataset, of which every third image could not be fetched.
    (work / "i2d").mkdir()
    fetched = [i for i in range(N) if i % 3]
    table = {
        "key": [f"{i:09}" for i in range(N)],
        "jpg": [JPEGS[i] if i % 3 else None for i in range(N)],
        "caption": CAPTIONS,
        "url": URLS,
        "status": ["success" if i % 3 else "failed_to_download" for i in range(N)],
        "error_message": [None] * N,
        "width": [64 + i for i in range(N)],
        "sha256": [sha256(body) for body in JPEGS],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), work / "i2d/00000.parquet", row_group_size=7)
    check_pairs("img2dataset", read(work / "i2d", {"format": "img2dataset"}), fetched)

    # OBELICS: images as URLs, in a folder, in a corpus of pairs, or in the file; page 2 lacks an image.
    (work / "images").mkdir()
    for i in range(N):
        if i != 7:
            (work / "images" / sha256(URLS[i].encode())).write_bytes(JPEGS[i])
    pages = [[f"page {p}", 3 * p, f"between {p}", 3 * p + 1, 3 * p + 2] for p in range(10)]
    texts = [[part if isinstance(part, str) else None for part in page] for page in pages]
    urls = [[None if isinstance(part, str) else URLS[part] for part in page] for page in pages]
    known = [json.dumps({"url": f"https://example.org/{p}", "warc_filename": "a.warc.gz", "warc_record_offset": p,
                         "warc_record_length": 9}) for p in range(10)]
    (work / "obelics").mkdir()
    columns = {"images": urls, "texts": texts, "metadata": ["[]"] * 10, "general_metadata": known}
    pyarrow.parquet.write_table(pyarrow.table(columns), work / "obelics/train.parquet", row_group_size=4)
    layout = {"format": "obelics", "images": str(work / "images")}

    def check_pages(what, rows, lacking):
        for p, row in enumerate(rows):
            images = [i for i in (3 * p, 3 * p + 1, 3 * p + 2) if i not in lacking]
            same(f"{what} page {p}", ([f"page {p}", f"between {p}"], [sha256(JPEGS[i]) for i in images]), (row.get("texts"), row.get("images")))
            if len(images) == 3:
                same(f"{what} page {p}", f"page {p}<image>between {p}<image><image>", row["slots"])
        print(f"{what}: {len(rows)} pages")

    rows = read(work / "obelics", layout)
    assert URLS[7] in rows[2]["error"], rows[2]
    check_pages("obelics, images in a folder", rows[:2], [])
    check_pages("obelics, images in a folder", read(work / "obelics", {**layout, "missing": "leave_out"}), [7])
    refused(work / "obelics", {"format": "hugging_face"}, "no column")
    same("obelics without its images", {"error"}, {key for row in read(work / "obelics", {"format": "obelics"}) for key in row})
    (work / "plan.toml").write_text('[image]\noriginals = "web"\nresize = "no"\nside_min = 1\naspect_max = 99.0\n')
    with webdataset.ShardWriter(str(work / "pairs-%05d.tar"), maxcount=99, verbose=0) as writer:
        for i in range(N):
            writer.write({"__key__": f"{i:06}", "jpg": JPEGS[i], "txt": CAPTIONS[i], "json": {"url": URLS[i]}})
    ingest = [RELEASE / "flamingo-ingest", "alt-text", "--plan", work / "plan.toml", "--input", work / "pairs-00000.tar"]
    done = subprocess.run([*ingest, "--out", work / "pairs"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_pages("obelics, images in a corpus", read(work / "obelics", {"format": "obelics", "images": str(work / "pairs")}), [])
    (work / "filled").mkdir()
    pictures = [[None if isinstance(part, str) else {"bytes": JPEGS[part], "path": None} for part in page] for page in pages]
    features = datasets.Features({"images": datasets.Sequence(datasets.Image()), "texts": datasets.Sequence(datasets.Value("string"))})
    filled = datasets.Dataset.from_dict({"images": pictures, "texts": texts}, features=features)
    filled.to_parquet(work / "filled/train.parquet")
    check_pages("obelics, images in the file", read(work / "filled", {"format": "obelics"}), [])

    # mmc4: each image before the sentence that it matches.
    (work / "mmc4").mkdir()
    (work / "names").mkdir()
    for i in range(N):
        (work / f"names/{i}.jpg").write_bytes(JPEGS[i])
    with open(work / "mmc4/docs_shard_0_v2.jsonl", "w") as lines:
        for p in range(10):
            images = [{"image_name": f"{3 * p + i}.jpg", "raw_url": URLS[3 * p + i], "matched_text_index": at, "matched_sim": sim}
                      for i, (at, sim) in enumerate([(1, 0.3), (0, 0.25), (1, 0.1)])]
            lines.write(json.dumps({"url": "u", "text_list": ["First.", "Second."], "image_info": images}) + "\n")
    layout = {"format": "mmc4", "images": str(work / "names"), "similarity_min": 0.24}
    rows = read(work / "mmc4", layout)
    same("mmc4", 10, len(rows))
    for p, row in enumerate(rows):
        same("mmc4", [sha256(JPEGS[3 * p + 1]), sha256(JPEGS[3 * p])], row["images"])
        same("mmc4", "<image>First.<image>Second.", row["slots"])
    print(f"mmc4: {len(rows)} pages")
