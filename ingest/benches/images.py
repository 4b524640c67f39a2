"""Decode, resize, encode: our images per CPU-second beside img2dataset's Resizer, and a bomb.

    python3 -m venv target/peers && target/peers/bin/pip install -r ingest/benches/requirements.txt
    target/peers/bin/python ingest/benches/images.py [FOLDER_OF_PHOTOS ...]

98 photo-like JPEGs of about 0.91 megapixels and quality 80 are made from a seed, and each folder of
photographs that is named is measured too. Both sides read the same bytes from memory, one thread, in
turns; the tables hold medians of user and system seconds. Before any clock runs, our pixels are
compared with OpenCV's means over areas of the whole decoded picture. With `oversampling_min = 0`, where
every pixel is decoded, less than 40 dB fails the script; the default lets the decoder leave out detail
of JPEGs that are shrunk to less than a quarter, and less than 35 dB fails.
The environment variable IMAGES_BENCH names the bench when it is built already.
"""

import io
import json
import os
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

REPEATS = 5
ROUNDS = 3
# By `oversampling_min`.
PSNR_MIN = {0: 40.0, 2: 35.0}
PLAN = """[image]
resize = "{mode}"
size = 256
only_if_bigger = false
oversampling_min = {oversampling}
encode = "{encode}"
quality = 95
originals = "never"
aspect_max = 1000.0
side_min = 1
colour_profile = "ignore"
"""


def photo(seed):
    """A picture with the spectrum of a photograph: octaves of noise, edges, grain."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(seed)
    width = int(rng.integers(700, 1500))
    height = int(910_000 / width * rng.uniform(0.8, 1.2))
    image = np.zeros((height, width, 3), np.float32)
    strength = 60.0
    for octave in range(1, 9):
        cells = 2**octave
        shape = [max(2, cells * side // max(width, height)) for side in (height, width)]
        noise = rng.normal(0, 1, (*shape, 3)).astype(np.float32)
        noise = noise.mean(2, keepdims=True) * 0.8 + noise * 0.3
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * strength
        strength *= 0.62
    for _ in range(25):
        colour = rng.uniform(0, 255, 3)
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        axes = (int(rng.integers(10, width // 5)), int(rng.integers(10, height // 5)))
        layer = np.zeros((height, width), np.uint8)
        cv2.ellipse(layer, centre, axes, rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA)
        alpha = (layer.astype(np.float32) / 255 * 0.6)[..., None]
        image = image * (1 - alpha) + (colour - 128) * alpha
    # Grain of a strength that makes files of about 170 kB.
    image += rng.normal(0, 9.0, (height, width, 1))
    image = np.clip(image + 128, 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def bomb(path, side=16_000):
    """A black PNG of side x side pixels in 0.75 MB."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * side)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def ours(bench, folder, plan, rounds, *out):
    run = subprocess.run([*bench, folder, plan, str(rounds), *out], check=True, stdout=subprocess.PIPE)
    return json.loads(run.stdout)


def peer(folder, mode, area_max, rounds):
    """The Resizer of img2dataset in a process of its own, for its own peak of memory."""
    command = [sys.executable, __file__, "--peer", str(folder), mode, str(area_max), str(rounds)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def peer_process(folder, mode, area_max, rounds):
    from img2dataset.resizer import Resizer

    resizer = Resizer(256, mode, False, encode_quality=95, max_image_area=float(area_max))
    files = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    for _ in range(int(rounds)):
        kept = sum(resizer(io.BytesIO(file))[0] is not None for file in files)
    seconds = (time.process_time() - start) / int(rounds)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
    print(json.dumps({"kept": kept, "cpu_s": seconds, "grown_bytes": grown}))


def check_pixels(bench, folder, work, oversampling):
    """The worst and the median PSNR of our pixels against cv2.INTER_AREA, as lossless files."""
    import cv2
    import numpy as np

    plan, out = work / "png.toml", work / "stored"
    plan.write_text(PLAN.format(mode="keep_ratio_largest", encode="png", oversampling=oversampling))
    out.mkdir(exist_ok=True)
    ours(bench, folder, plan, 1, out)
    ratios = []
    for path in sorted(Path(folder).iterdir()):
        # OpenCV applies the orientation when it is asked for colour, as we do always.
        found = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if max(found.shape[:2]) < 256:
            continue
        stored = cv2.imread(str(out / path.name), cv2.IMREAD_COLOR)
        height, width = stored.shape[:2]
        scale = 256 / max(found.shape[:2])
        assert (height, width) == tuple(max(1, round(s * scale)) for s in found.shape[:2]), path
        wanted = cv2.resize(found, (width, height), interpolation=cv2.INTER_AREA)
        error = np.mean((stored.astype(float) - wanted) ** 2)
        ratios.append((10 * np.log10(255**2 / max(error, 1e-9)), path.name))
    worst = min(ratios)
    assert worst[0] >= PSNR_MIN[oversampling], f"{worst[1]}: {worst[0]:.1f} dB"
    return worst[0], statistics.median(ratio for ratio, _ in ratios)


def measure(bench, folder, work):
    n = len(list(Path(folder).iterdir()))
    print(f"\n{folder.name}: {n} files")
    for oversampling in PSNR_MIN:
        worst, median = check_pixels(bench, folder, work, oversampling)
        print(f"oversampling_min = {oversampling}: {worst:.1f} dB at worst, {median:.1f} in the median")
    print("\n| mode | img2dataset, images per CPU-second | ours | times | every pixel decoded | times |")
    print("|---|---|---|---|---|---|")
    for mode in ("border", "keep_ratio", "center_crop"):
        plans = {oversampling: work / f"{mode}{oversampling}.toml" for oversampling in (2, 0)}
        for oversampling, plan in plans.items():
            plan.write_text(PLAN.format(mode=mode, encode="jpeg", oversampling=oversampling))
        runs = {"peer": [], 2: [], 0: []}
        for _ in range(REPEATS):
            runs["peer"].append(peer(folder, mode, "inf", ROUNDS))
            for oversampling, plan in plans.items():
                runs[oversampling].append(ours(bench, folder, plan, ROUNDS))
        assert {run["kept"] for side in runs.values() for run in side} == {n}, "every file is kept by both"
        rates = {side: n / statistics.median(run["cpu_s"] for run in runs[side]) for side in runs}
        cells = [f"{rates[side]:.0f} | {rates[side] / rates['peer']:.2f}" for side in plans]
        print(f"| {mode} | {rates['peer']:.0f} | {' | '.join(cells)} |", flush=True)


def measure_bomb(bench, work):
    folder = work / "bomb"
    folder.mkdir()
    bomb(folder / "bomb.png")
    plan = work / "bomb.toml"
    plan.write_text(PLAN.format(mode="border", encode="jpeg", oversampling=2) + "pixels_max = 1000000\n")
    runs = [(peer(folder, "border", 1e6, 1), ours(bench, folder, plan, 1)) for _ in range(REPEATS)]
    assert all(run["kept"] == 0 for pair in runs for run in pair)
    size = (folder / "bomb.png").stat().st_size
    print(f"\na PNG of 16000 x 16000 pixels in {size} bytes, at most a megapixel allowed")
    print("| | CPU ms | peak MB |\n|---|---|---|")
    for name, side in (("img2dataset", 0), ("ours", 1)):
        milliseconds = 1000 * statistics.median(pair[side]["cpu_s"] for pair in runs)
        grown = max(pair[side]["grown_bytes"] for pair in runs) / 1e6
        print(f"| {name} | {milliseconds:.3f} | +{grown:.1f} |")
        if name == "ours":
            assert milliseconds < 5 and grown < 5


def main():
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    built = os.environ.get("IMAGES_BENCH")
    bench = [built] if built else "cargo bench -q -p flamingo-ingest --bench images --".split()
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        made = work / "made"
        made.mkdir()
        for i in range(98):
            (made / f"{i:03}.jpg").write_bytes(photo(1000 + i))
        n_bytes = sum(path.stat().st_size for path in made.iterdir())
        print(f"98 made-up photographs, {n_bytes / 1e6:.1f} MB")
        measure(bench, made, work)
        for n, argument in enumerate(sys.argv[1:]):
            flat = work / f"photos{n}"
            flat.mkdir()
            for i, path in enumerate(sorted(Path(argument).rglob("*.jpg"))):
                (flat / f"{i:03}-{path.name}").write_bytes(path.read_bytes())
            measure(bench, flat, work)
        measure_bomb(bench, work)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        peer_process(*sys.argv[2:])
    else:
        main()
