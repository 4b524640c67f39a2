"""Opens exports with the libraries they are made for and compares them with the corpus.

Usage: python exports.py CORPUS FOLDER, where FOLDER holds the exports `webdataset`, `nemo`, `jsonl`
and, of documents, `mmc4`. Needs pyarrow and webdataset.
"""

import base64
import hashlib
import json
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import webdataset

REFERENCE = pyarrow.struct(
    [
        ("uri", pyarrow.string()),
        ("offset", pyarrow.int64()),
        ("size", pyarrow.int64()),
        ("content_type", pyarrow.string()),
        ("checksum", pyarrow.string()),
        ("inline", pyarrow.binary()),
    ]
)
# What NeMo Curator calls INTERLEAVED_SCHEMA.
NEMO = pyarrow.schema(
    [
        pyarrow.field("sample_id", pyarrow.string(), nullable=False),
        pyarrow.field("position", pyarrow.int32(), nullable=False),
        pyarrow.field("modality", pyarrow.string(), nullable=False),
        pyarrow.field("content_type", pyarrow.string()),
        pyarrow.field("text_content", pyarrow.string()),
        pyarrow.field("binary_content", pyarrow.large_binary()),
        pyarrow.field("source_ref", REFERENCE),
        pyarrow.field("source_member", pyarrow.string()),
        pyarrow.field("source_frame_index", pyarrow.int32()),
        pyarrow.field("materialize_error", pyarrow.string()),
    ]
)


def same(what, expected, found):
    """Stops with both values if they differ."""
    if expected != found:
        sys.exit(f"exports.py: {what}: expected {str(expected)[:300]}, found {str(found)[:300]}")


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def slots(kind, row):
    """Texts as they are, images as hashes, in order."""
    if kind == "interleaved":
        return [text if image is None else sha256(image["bytes"]) for text, image in zip(row["texts"], row["images"])]
    if kind == "image_text":
        return [sha256(row["image"]["bytes"]), row["caption"]]
    return [sha256(frame["bytes"]) for frame in row["frames"]] + [row["caption"]]


def check_webdataset(folder, kind, rows):
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    same("webdataset: samples", len(rows), len(samples))
    for row, sample in zip(rows, samples):
        about = json.loads(sample["json"])
        if kind == "interleaved":
            same("webdataset: document", row["doc_id"], about["doc_id"])
            found = [
                text if name is None else sha256(sample[name]) for text, name in zip(about["texts"], about["images"])
            ]
        elif kind == "image_text":
            same("webdataset: key", row["key"], about["key"])
            image = next(sample[name] for name in ("jpg", "png", "webp") if name in sample)
            found = [sha256(image), sample["txt"].decode()]
        else:
            names = [name for name in sample if name[0].isdigit()]
            names.sort(key=lambda name: int(name.split(".")[0]))
            found = [sha256(sample[name]) for name in names] + [sample["txt"].decode()]
        same("webdataset: content", slots(kind, row), found)


def check_mmc4(folder, rows):
    """As OpenFlamingo's loader reads it: images before the sentence that they are matched with."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    same("mmc4: samples", len(rows), len(samples))
    for row, sample in zip(rows, samples):
        document = json.loads(sample["json"])
        texts = [text for text in row["texts"] if text is not None]
        same("mmc4: texts", texts, document["text_list"])
        images = [sha256(base64.b64decode(info["image_base64"])) for info in document["image_info"]]
        same("mmc4: images", [meta["sha256"] for meta in row["image_meta"]], images)
        same("mmc4: matrix", len(images), len(document["similarity_matrix"]))
        for info, similarities in zip(document["image_info"], document["similarity_matrix"]):
            best = max(range(len(similarities)), key=similarities.__getitem__)
            same("mmc4: best sentence", info["matched_text_index"], best)


def check_nemo(folder, kind, rows):
    key = "doc_id" if kind == "interleaved" else "key"
    tables = [pyarrow.parquet.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    for table in tables:
        if not table.schema.equals(NEMO):
            sys.exit(f"exports.py: nemo: expected {NEMO}, found {table.schema}")
    items = {}
    for item in pyarrow.concat_tables(tables).to_pylist():
        items.setdefault(item["sample_id"], []).append(item)
    same("nemo: samples", [row[key] for row in rows], list(items))
    for row in rows:
        metadata, *content = items[row[key]]
        same("nemo: metadata", (-1, "metadata"), (metadata["position"], metadata["modality"]))
        json.loads(metadata["text_content"])
        same("nemo: positions", list(range(len(content))), [item["position"] for item in content])
        found = [
            item["text_content"] if item["modality"] == "text" else sha256(item["binary_content"]) for item in content
        ]
        same("nemo: content", slots(kind, row), found)


def check_jsonl(folder, kind, rows):
    lines = [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.open()]
    same("jsonl: lines", len(rows), len(lines))
    for row, line in zip(rows, lines):
        stored = lambda name: sha256((folder / name).read_bytes())
        if kind == "interleaved":
            found = [text if file is None else stored(file) for text, file in zip(line["texts"], line["image_files"])]
            same("jsonl: metadata", len(line["texts"]), len(json.loads(line["metadata"])))
        elif kind == "image_text":
            found = [stored(line["image_file"]), line["caption"]]
        else:
            found = [stored(file) for file in line["frame_files"]] + [line["caption"]]
        same("jsonl: content", slots(kind, row), found)


def main(corpus, folder):
    manifest = json.loads((corpus / "manifest.json").read_text())
    kind = manifest["kind"]
    files = [corpus / shard["file"] for shard in manifest["shards"]]
    rows = [row for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]
    check_webdataset(folder / "webdataset", kind, rows)
    check_nemo(folder / "nemo", kind, rows)
    check_jsonl(folder / "jsonl", kind, rows)
    if kind == "interleaved":
        check_mmc4(folder / "mmc4", rows)
    print(f"{corpus}: {len(rows)} {kind} rows, the same in every export")


main(Path(sys.argv[1]), Path(sys.argv[2]))
