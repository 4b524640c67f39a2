"""Opens corpora in pyarrow, DuckDB, polars and Hugging Face datasets, and compares what they read.

Usage: python readers.py CORPUS...
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import datasets
import duckdb
import PIL.Image
import polars
import pyarrow.parquet

KEY = {"interleaved": "doc_id", "image_text": "key", "video_text": "key"}


def same(what, expected, found):
    """Stops with both values if they differ."""
    if expected != found:
        sys.exit(f"readers.py: {what}: expected {expected!r}, found {found!r}")


def check_interleaved(row, hf_row):
    """One document: parallel lists, exactly one side filled in each slot, images with their hashes."""
    same("slots", len(row["texts"]), len(row["images"]))
    for text, image in zip(row["texts"], row["images"]):
        same("sides filled in a slot", 1, (text is not None) + (image is not None))
    stored = [image["bytes"] for image in row["images"] if image is not None]
    same("image hashes", [meta["sha256"] for meta in row["image_meta"]], [sha256(b) for b in stored])
    check_pictures(stored, [image for image in hf_row["images"] if image is not None])


def check_image_text(row, hf_row):
    """One pair."""
    same("image hash", row["sha256"], sha256(row["image"]["bytes"]))
    same("image size", (row["width"], row["height"]), hf_row["image"].size)
    check_pictures([row["image"]["bytes"]], [hf_row["image"]])


def check_video_text(row, hf_row):
    """One clip."""
    same("frame times", len(row["frames"]), len(row["frame_ms"]))
    check_pictures([frame["bytes"] for frame in row["frames"]], hf_row["frames"])


def check_pictures(stored, decoded):
    """The reader must hand out pictures, not dictionaries of bytes."""
    same("pictures", len(stored), len(decoded))
    for picture in decoded:
        if not isinstance(picture, PIL.Image.Image):
            sys.exit(f"readers.py: datasets gave {type(picture)}, expected a picture")
        picture.load()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


CHECK = {
    "interleaved": check_interleaved,
    "image_text": check_image_text,
    "video_text": check_video_text,
}


def check(corpus):
    manifest = json.loads((corpus / "manifest.json").read_text())
    kind, rows = manifest["kind"], manifest["rows"]
    files = [str(corpus / shard["file"]) for shard in manifest["shards"]]
    key = KEY[kind]
    table = pyarrow.concat_tables(pyarrow.parquet.read_table(file) for file in files)
    keys = table.column(key).to_pylist()
    same(f"{corpus}: rows in pyarrow", rows, len(keys))
    by_duckdb = duckdb.sql(f"select {key} from read_parquet({files!r})").fetchall()
    same(f"{corpus}: rows in DuckDB", sorted(keys), sorted(k for (k,) in by_duckdb))
    same(f"{corpus}: rows in polars", keys, polars.read_parquet(files)[key].to_list())
    with tempfile.TemporaryDirectory() as cache:
        hf = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
        same(f"{corpus}: rows in datasets", rows, len(hf))
        for row, hf_row in zip(table.to_pylist(), hf):
            same(f"{corpus}: key in datasets", row[key], hf_row[key])
            CHECK[kind](row, hf_row)
    print(f"{corpus}: {rows} {kind} rows, the same in pyarrow, DuckDB, polars and datasets")


for argument in sys.argv[1:]:
    check(Path(argument))
