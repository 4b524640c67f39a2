"""What Pillow sees in each file of a folder: the oracle of `image/real_files.rs`.

    python3 -m venv target/pillow && target/pillow/bin/pip install pillow==13.0.0
    target/pillow/bin/python ingest/tests/formats/pillow.py ../shared/data/real/formats > ingest/tests/formats/pillow.csv

A line is a path below the folder, the format, the upright width and height, and the mean of red, green
and blue with transparent parts on white, of the first frame. Colour profiles are left alone. A file that Pillow
cannot read has its error in place of the format.
"""

import os
import sys
import warnings
from pathlib import Path

from PIL import Image, ImageOps, ImageStat


def seen(path):
    image = Image.open(path)
    image.load()
    name = image.format
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # Sixteen bits of grey; Pillow's own conversion cuts them off at 255.
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    means = ImageStat.Stat(image.convert("RGB")).mean
    return [name, *image.size, *(f"{mean:.2f}" for mean in means)]


def main(folder):
    warnings.simplefilter("ignore")
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        try:
            line = seen(path)
        except Exception as error:  # noqa: BLE001: whatever a broken file makes Pillow raise
            line = [type(error).__name__]
        print(path.relative_to(folder), *line, sep=",")


if __name__ == "__main__":
    # The C libraries below Pillow complain on their own.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    main(sys.argv[1])
