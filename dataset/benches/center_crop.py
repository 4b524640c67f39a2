"""Compares center_crop with Resize and CenterCrop of torchvision (bicubic, on Pillow's pixels), on real photographs.

  target/loaders/bin/pip install torchvision==0.29.2    # beside what loaders.py needs
  cargo build --release --workspace --examples
  target/loaders/bin/python dataset/benches/center_crop.py
"""
import subprocess
from pathlib import Path

import numpy
from PIL import Image, ImageOps
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = sorted((ROOT / "../shared/data/real/photos").rglob("*.jpg"))

print("| size | photographs | decoded | lowest PSNR, dB | median PSNR, dB | largest difference of 255 |\n|---|---|---|---|---|---|")
for size in (224, 336):
    found = {"whole": [], "at a fraction": []}
    for path in PHOTOS:
        ours = subprocess.run([ROOT / "target/release/examples/center_crop", str(size), path], check=True, capture_output=True).stdout
        ours = numpy.frombuffer(ours, numpy.uint8).reshape(3, size, size).transpose(1, 2, 0).astype(int)
        photo = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        theirs = CenterCrop(size)(Resize(size, InterpolationMode.BICUBIC)(photo))
        apart = numpy.abs(ours - numpy.asarray(theirs, int))
        psnr = 10 * numpy.log10(255**2 / max(1e-9, (apart**2).mean()))
        found["at a fraction" if min(photo.size) // 2 >= 2 * size else "whole"].append((psnr, apart.max()))
    for decoded, values in found.items():
        psnrs = [psnr for psnr, _ in values]
        print(f"| {size} | {len(values)} | {decoded} | {min(psnrs):.1f} | {numpy.median(psnrs):.1f} | {max(most for _, most in values)} |")
