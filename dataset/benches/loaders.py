"""Reads the same JPEGs through this crate's loader and through the loaders of others.

  python3 -m venv target/loaders
  # Mosaic Streaming asks for older packages than it needs and datasets can use, so it comes first. PyTorch is 5 GB.
  target/loaders/bin/pip install mosaicml-streaming==0.13.0 litdata==0.2.76 torch==2.15.0
  target/loaders/bin/pip install --upgrade --requirement dataset/benches/requirements.txt
  cargo build --release --workspace --examples --bins
  target/loaders/bin/python dataset/benches/loaders.py [ROUNDS [IMAGES]]

IMAGES (20,000) JPEGs of 256 to 512 pixels a side are made from the photographs of ../shared/data/real/photos and packed as each
loader wants them, all from one webdataset tar. Then, ROUNDS (5) times in turn and with one and two workers:

  pixels   batches of 64: read in shuffled order, decode, shorter side to 224 by an antialiased bicubic filter, centre crop,
           normalise to f32 in planes
  bytes    the same rows, not decoded; each worker keeps what it reads
  batches  the same, as batches of 64 that arrive in the program that trains: from threads here,
           from the processes of a PyTorch DataLoader of peers
  random   rows from anywhere in one file of 2,000 images of some 100 KB; only Lance offers that

Two workers of a peer are two processes with half of the samples each, which is what their PyTorch loaders start. All but `batches`
leave out the cost of sending batches between processes: in the peers' favour. Medians; samples a second of wall-clock time, without the start of any
program and the opening of its dataset. The files of each are read through before, so that they come from memory and no disk is
measured.
"""
import io
import os
import random
import statistics
import subprocess
import sys
import tarfile
import time
from multiprocessing import get_context
from pathlib import Path

from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torch.utils.data._utils import worker as torch_worker

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = ROOT / "../shared/data/real/photos"
WORK = ROOT / "target/bench-loaders"
RELEASE = ROOT / "target/release"
BATCH = 64
SHARD = 1000


def make(n):
    """The samples as a tar of each thousand, a corpus, a Hugging Face dataset and a Lance table."""
    from PIL import Image
    folder = WORK / str(n)
    if folder.exists():
        return folder
    new = folder.with_name(f"{n}.new")
    subprocess.run(["rm", "-rf", new], check=True)
    (new / "tars").mkdir(parents=True)
    photos = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.rglob("*.jpg"))]
    photos = [photo for photo in photos if min(photo.size) >= 300]
    draw = random.Random(0)
    for first in range(0, n, SHARD):
        with tarfile.open(new / f"tars/{first // SHARD:05}.tar", "w") as tar:
            for i in range(first, min(n, first + SHARD)):
                photo = draw.choice(photos)
                side = draw.uniform(0.5, 1) * min(photo.size)
                left, top = draw.uniform(0, photo.width - side), draw.uniform(0, photo.height - side)
                size = (draw.randint(256, 512), draw.randint(256, 512))
                picture = photo.resize(size, Image.Resampling.BICUBIC, (left, top, left + side, top + side))
                jpeg = io.BytesIO()
                picture.save(jpeg, "JPEG", quality=90)
                for suffix, body in (("jpg", jpeg.getvalue()), ("txt", f"photograph number {i}".encode())):
                    info = tarfile.TarInfo(f"{i:08}.{suffix}")
                    info.size = len(body)
                    tar.addfile(info, io.BytesIO(body))
    (new / "plan.toml").write_text('[image]\nresize = "no"\noriginals = "web"\n[shard]\nrows_max = 5000\n')
    command = [RELEASE / "flamingo-ingest", "alt-text", "--plan", new / "plan.toml", "--out", new / "corpus", "--input"]
    subprocess.run([*command, *sorted((new / "tars").iterdir())], check=True, stdout=subprocess.DEVNULL)
    import lance
    import pyarrow
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageColumn
    rows = {"image": [], "caption": []}
    for path in sorted((new / "tars").iterdir()):
        with tarfile.open(path) as tar:
            for member in tar:
                column = "image" if member.name.endswith(".jpg") else "caption"
                rows[column].append(tar.extractfile(member).read())
    rows["caption"] = [caption.decode() for caption in rows["caption"]]
    columns = pyarrow.schema({"image": pyarrow.binary(), "caption": pyarrow.string()})
    lance.write_dataset(pyarrow.table(rows, schema=columns), str(new / "lance"))
    write_streams(new, rows)
    pictures = {"image": [{"bytes": image, "path": None} for image in rows["image"]], "caption": rows["caption"]}
    features = Features({"image": ImageColumn(), "caption": Value("string")})
    Dataset.from_dict(pictures, features=features).save_to_disk(str(new / "hf"), max_shard_size="200MB")
    new.rename(folder)
    return folder


def write_streams(new, rows):
    """Mosaic Streaming and litdata, in two halves each, one for each worker."""
    from litdata.streaming.writer import BinaryWriter
    from streaming import MDSWriter
    for half in range(2):
        part = [{"image": rows["image"][i], "caption": rows["caption"][i]} for i in range(half, len(rows["image"]), 2)]
        with MDSWriter(out=str(new / f"mds/{half}"), columns={"image": "bytes", "caption": "str"}, progress_bar=False) as writer:
            [writer.write(sample) for sample in part]
        (new / f"litdata/{half}").mkdir(parents=True)
        writer = BinaryWriter(str(new / f"litdata/{half}"), chunk_bytes="64MB")
        for i, sample in enumerate(part):
            writer[i] = sample
        writer.done()
        writer.merge()


def make_large(folder):
    """One file with 2,000 images of some 100 KB, and the same as a Lance table."""
    large = folder / "large"
    if large.exists():
        return large
    import lance
    import pyarrow
    from PIL import Image
    new = folder / "large.new"
    subprocess.run(["rm", "-rf", new], check=True)
    new.mkdir()
    photos = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.rglob("*.jpg"))]
    photos = [photo for photo in photos if min(photo.size) >= 300]
    draw, images = random.Random(1), []
    with tarfile.open(new / "large.tar", "w") as tar:
        for i in range(2000):
            photo = draw.choice(photos)
            for quality in (95, 98, 100):
                jpeg = io.BytesIO()
                photo.resize((480 + i % 64, 480), Image.Resampling.BICUBIC).save(jpeg, "JPEG", quality=quality)
                if len(jpeg.getvalue()) > 80_000:
                    break
            images.append(jpeg.getvalue())
            for suffix, body in (("jpg", jpeg.getvalue()), ("txt", f"photograph number {i}".encode())):
                info = tarfile.TarInfo(f"{i:08}.{suffix}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    (new / "plan.toml").write_text('[image]\nresize = "no"\noriginals = "web"\n[shard]\nbytes_max = 500000000\n')
    command = [RELEASE / "flamingo-ingest", "alt-text", "--plan", new / "plan.toml", "--out", new / "corpus", "--input"]
    subprocess.run([*command, new / "large.tar"], check=True, stdout=subprocess.DEVNULL)
    table = pyarrow.table({"image": images}, schema=pyarrow.schema({"image": pyarrow.binary()}))
    lance.write_dataset(table, str(new / "lance"))
    new.rename(large)
    print(f"large: {sum(map(len, images)) // len(images)} bytes an image", file=sys.stderr)
    return large


def webdataset_samples(folder, worker, workers):
    import webdataset
    tars = [str(path) for path in sorted((folder / "tars").iterdir())][worker::workers]
    for sample in webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0).shuffle(1000):
        yield sample["jpg"]


def lance_samples(folder, worker, workers):
    import lance
    table = lance.dataset(str(folder / "lance"))
    order = list(range(table.count_rows()))
    random.Random(0).shuffle(order)
    order = order[worker::workers]
    for first in range(0, len(order), BATCH):
        yield from (image.as_py() for image in table.take(order[first:first + BATCH], columns=["image"])["image"])


def hf_samples(folder, worker, workers):
    from datasets import Image as ImageColumn
    from datasets import load_from_disk
    data = load_from_disk(str(folder / "hf")).cast_column("image", ImageColumn(decode=False)).shuffle(seed=0)
    for i in range(worker, len(data), workers):
        yield data[i]["image"]["bytes"]


def halves(folder, worker, workers):
    """The halves of a worker."""
    return [str(folder / str(half)) for half in range(2) if workers == 1 or half == worker]


def mosaic_samples(folder, worker, workers):
    from streaming import Stream, StreamingDataset
    # Two processes that are no ranks of one job must not name their shared memory at the same time.
    time.sleep(5 * worker)
    streams = [Stream(local=half) for half in halves(folder / "mds", worker, workers)]
    for sample in StreamingDataset(streams=streams, shuffle=True, batch_size=BATCH):
        yield sample["image"]


def litdata_samples(folder, worker, workers):
    from litdata import StreamingDataset
    for half in halves(folder / "litdata", worker, workers):
        for sample in StreamingDataset(half, shuffle=True, seed=0):
            yield sample["image"]


PEERS = {"webdataset": webdataset_samples, "Lance": lance_samples, "HF datasets": hf_samples,
         "Mosaic Streaming": mosaic_samples, "litdata": litdata_samples}


def peer(name, what, folder, worker, workers, n, start, sender):
    import numpy
    from PIL import Image
    mean, std = numpy.array([0.48, 0.46, 0.41], numpy.float32), numpy.array([0.27] * 3, numpy.float32)

    def pixels(body):
        picture = Image.open(io.BytesIO(body)).convert("RGB")
        scale = 224 / min(picture.size)
        picture = picture.resize([max(224, round(side * scale)) for side in picture.size], Image.Resampling.BICUBIC)
        left, top = (picture.width - 224) // 2, (picture.height - 224) // 2
        values = numpy.asarray(picture.crop((left, top, left + 224, top + 224)), numpy.float32)
        return ((values / 255 - mean) / std).transpose(2, 0, 1)

    samples = PEERS[name](folder, worker, workers)
    batch, done = [], 0
    first = next(samples)
    start.wait()
    begun = time.time()
    while done < n:
        batch.append(pixels(first) if what == "pixels" else first)
        done += 1
        if len(batch) == BATCH and what == "pixels":
            numpy.stack(batch)
        if len(batch) == BATCH:
            batch = []
        if done < n:
            first = next(samples)
    sender.send((begun, time.time()))


class Samples(IterableDataset):
    """A peer's samples, divided among the workers of a PyTorch DataLoader."""

    def __init__(self, name, folder, workers):
        self.name, self.folder, self.workers = name, folder, workers

    def __iter__(self):
        number = get_worker_info().id
        # Streaming datasets would divide their half among the workers once more.
        torch_worker._worker_info = None
        return PEERS[self.name](self.folder, number, self.workers)


def peer_batches(name, folder, workers, n, sender):
    samples = Samples(name, folder, workers)
    batches = iter(DataLoader(samples, batch_size=BATCH, num_workers=workers, collate_fn=list))
    # One batch of each worker, so that all of them have begun.
    [next(batches) for _ in range(workers)]
    begun, done = time.time(), 0
    for batch in batches:
        done += len(batch)
        if done >= n - 2 * workers * BATCH:
            break
    sender.send(done / (time.time() - begun))


def run_peer_batches(name, folder, workers, n):
    warm(folder / FOLDERS[name])
    context = get_context("spawn")
    receiver, sender = context.Pipe(False)
    process = context.Process(target=peer_batches, args=(name, folder, workers, n, sender))
    process.start()
    speed = receiver.recv()
    process.join()
    return speed


FOLDERS = {"webdataset": "tars", "Lance": "lance", "HF datasets": "hf", "Mosaic Streaming": "mds", "litdata": "litdata"}


def run_peer(name, what, folder, workers, n):
    warm(folder / FOLDERS[name])
    context = get_context("spawn")
    start = context.Barrier(workers)
    receiver, sender = context.Pipe(False)
    arguments = [(name, what, folder, worker, workers, n // workers, start, sender) for worker in range(workers)]
    processes = [context.Process(target=peer, args=each) for each in arguments]
    [process.start() for process in processes]
    times = [receiver.recv() for _ in processes]
    [process.join() for process in processes]
    return n / (max(end for _, end in times) - min(begun for begun, _ in times))


def warm(folder):
    """Reads all files, so that the system has them in memory."""
    for path in filter(Path.is_file, folder.rglob("*")):
        with open(path, "rb") as file:
            while file.read(1 << 24):
                pass


def run_ours(what, folder, workers, n):
    warm(folder / "corpus")
    command = [RELEASE / "examples/read_corpus", folder / "corpus", what, str(workers), str(n // BATCH)]
    words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(words[words.index("s,") + 1])


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    n_images = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    folder = make(n_images)
    from streaming.base.util import clean_stale_shared_memory
    clean_stale_shared_memory()
    print("| job | workers | " + " | ".join(["flamingo-dataset", *PEERS, "ratio to the best"]) + " |\n|" + "---|" * (4 + len(PEERS)))
    for what in ("pixels", "bytes", "batches"):
        # Each worker of a peer has its half; decoding all of them takes two minutes a time.
        n = n_images // (16 if what == "pixels" else 1) // (2 * BATCH) * 2 * BATCH
        for workers in (1, 2):
            runs = {name: [] for name in ["flamingo-dataset", *PEERS]}
            for _ in range(rounds):
                runs["flamingo-dataset"].append(run_ours(what, folder, workers, n))
                for name in PEERS:
                    if what == "batches":
                        runs[name].append(run_peer_batches(name, folder, workers, n))
                    else:
                        runs[name].append(run_peer(name, what, folder, workers, n))
            median = {name: statistics.median(speeds) for name, speeds in runs.items()}
            best = max(median[name] for name in PEERS)
            cells = [f"{speed:.0f}" for speed in median.values()]
            print(f"| {what} | {workers} | {' | '.join(cells)} | {median['flamingo-dataset'] / best:.2f} |", flush=True)
    large = make_large(folder)
    for workers in (1, 2):
        ours, lance = [], []
        for _ in range(rounds):
            ours.append(run_ours("random", large, workers, 2000 // (2 * BATCH) * 2 * BATCH))
            lance.append(run_peer("Lance", "bytes", large, workers, 2000 // (2 * BATCH) * 2 * BATCH))
        ours, lance = statistics.median(ours), statistics.median(lance)
        print(f"| random | {workers} | {ours:.0f} | - | {lance:.0f} | - | - | - | {ours / lance:.2f} |", flush=True)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
