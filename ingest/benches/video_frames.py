#!/usr/bin/env python3
"""Frames at 1 per second of a 2-minute 1080p film: flamingo-ingest against the ffmpeg command line.

Both decode the same H.264 file with the same number of threads, take the same frames, scale them to
512 pixels (and, in a second table, keep them whole) and write JPEG. Runs alternate; medians are
printed. That the frames are the same is checked by their PSNR.

Needs ffmpeg and a Python with pyarrow:
  python3 -m venv target/peers && target/peers/bin/pip install -r ingest/benches/requirements.txt
  cargo build --release -p flamingo-ingest
  ${PEERS:-target/peers/bin/python} ingest/benches/video_frames.py [--repeats 5] [--threads 1 2]
"""

import argparse
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import tempfile
import time

import pyarrow.parquet as parquet

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 120
PSNR_MIN = 35.0


def measured(command):
    """Wall and processor seconds of a command, with those of its children."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"failed: {' '.join(map(str, command))}")
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime


def make_film(path):
    if path.exists():
        return
    print("making the film: 1920x1080, 25 frames per second, moving shapes with noise, x264")
    source = f"testsrc2=s=1920x1080:r=25:d={SECONDS},noise=alls=8:allf=t"
    part = path.with_suffix(".part.mp4")
    codec = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "24", "-pix_fmt", "yuv420p"]
    command = ["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", source, *codec, str(part)]
    subprocess.run(command, check=True)
    part.rename(path)


def ffmpeg_command(film, threads, side, out):
    scale = f",scale={side}:-2:flags=area" if side else ""
    frames = ["-vf", f"fps=1:round=up{scale}", "-q:v", "2", f"{out}/%04d.jpg"]
    return ["ffmpeg", "-v", "error", "-y", "-threads", str(threads), "-i", str(film), "-an", *frames]


def our_command(binary, film, plan, threads, side, out):
    plan.write_text(
        f"[video]\nframes_max = 1000\njpeg_quality = 95\nstored_side_max = {side}\n"
        f"decoder_threads = {threads}\n"
    )
    arguments = ["--plan", str(plan), "--input", str(film), "--out", str(out), "--workers", "1"]
    return [str(binary), "video-text", *arguments]


def same_frames(ours, theirs, work):
    """The lowest PSNR between the two sets of frames."""
    folder = work / "ours"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    n = 0
    for shard in sorted(ours.glob("shard-*.parquet")):
        for frames in parquet.read_table(shard, columns=["frames"]).column(0).to_pylist():
            for frame in frames:
                n += 1
                (folder / f"{n:04d}.jpg").write_bytes(frame["bytes"])
    n_theirs = len(list(theirs.glob("*.jpg")))
    if n != n_theirs or n != SECONDS:
        raise SystemExit(f"{n} frames of ours, {n_theirs} of ffmpeg, expected {SECONDS}")
    sides = ["-i", f"{folder}/%04d.jpg", "-i", f"{theirs}/%04d.jpg"]
    command = ["ffmpeg", "-v", "info", *sides, "-lavfi", "psnr", "-f", "null", "-"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return float(re.search(r" min:([0-9.inf]+)", text).group(1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 0])
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/release/flamingo-ingest")
    parser.add_argument("--film", type=pathlib.Path, default=ROOT / "target/bench-film.mp4")
    args = parser.parse_args()
    make_film(args.film)
    with tempfile.TemporaryDirectory() as name:
        work = pathlib.Path(name)
        film = work / "film.mp4"
        film.symlink_to(args.film.resolve())
        (work / "film.txt").write_text("a film")
        print("| threads | side | ffmpeg wall s | ours wall s | ratio | ffmpeg CPU s | ours CPU s | ratio | PSNR dB |")
        print("|---|---|---|---|---|---|---|---|---|")
        for threads in args.threads:
            for side in args.sides:
                theirs, ours = [], []
                for _ in range(args.repeats):
                    for folder in (work / "theirs", work / "corpus"):
                        shutil.rmtree(folder, ignore_errors=True)
                    (work / "theirs").mkdir()
                    command = ffmpeg_command(film, threads, side, work / "theirs")
                    theirs.append(measured(command))
                    plan = work / "plan.toml"
                    command = our_command(args.binary, film, plan, threads, side, work / "corpus")
                    ours.append(measured(command))
                psnr = same_frames(work / "corpus", work / "theirs", work)
                if psnr < PSNR_MIN:
                    raise SystemExit(f"the frames differ: {psnr} dB")
                medians = [[statistics.median(run[i] for run in runs) for runs in (theirs, ours)] for i in (0, 1)]
                (wall_a, wall_b), (cpu_a, cpu_b) = medians
                print(
                    f"| {threads} | {side or 'whole'} | {wall_a:.1f} | {wall_b:.1f} | {wall_b / wall_a:.2f}x "
                    f"| {cpu_a:.1f} | {cpu_b:.1f} | {cpu_b / cpu_a:.2f}x | {psnr:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
