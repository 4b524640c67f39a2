#!/usr/bin/env bash
# How long a step waits for its rows, decoding included: the share of the step, of a small model and of one of about 180 million parameters.
#   ./demo.sh --quick                        # makes corpora
#   train/benches/data_wait.sh [DEMO [PROGRAM]]
# The demo's mixture (72 images of pages, 16 of pairs, 16 frames of clips), resized to 64 pixels for the demo's model of 2 million
# parameters, and to 224 for CLIP's ViT-B/32 with a GPT-2 of 12 layers of width 512, here with weights that have learned nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
demo=${1:-runs/demo-quick} train=${2:-target/release/flamingo-train}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Without looks between steps: they would be no part of a step that learns.
sed '/^blindness_every\|^gates_every/d' configs/flamingo.toml >"$work/flamingo.toml"

share() { # NAME STEPS [SET...]: a run, and the shares of its steps after the first three
  local name=$1 steps=$2 sets=()
  shift 2
  for set in "$@" "steps=$steps" 'optimizer.schedule="constant"'; do sets+=(--set "$set"); done
  "$train" flamingo --config "$work/flamingo.toml" --root "$demo" --out "$work/$name" --device cpu "${sets[@]}" 2>/dev/null
  python3 - "$name" "$work/$name/metrics.jsonl" <<'PY'
import json, statistics, sys
lines = [json.loads(line) for line in open(sys.argv[2])][3:]
shares = [100 * line["data_wait_seconds"] / line["seconds"] for line in lines]
seconds = statistics.median(line["seconds"] for line in lines)
whole = 100 * sum(line["data_wait_seconds"] for line in lines) / sum(line["seconds"] for line in lines)
print(f"{sys.argv[1]}: {seconds:.3f} s a step, of which rows are waited for {statistics.median(shares):.2f} % in the median, {whole:.2f} % in all")
PY
}

share small 60
one_step() { "$train" "$@" --device cpu --set steps=1 2>/dev/null; }
one_step contrastive --config configs/vision.toml --root "$demo" --out "$work/vision" --set data.pairs.batch=2 --set image.size=224 \
  --set model.vision.image_size=224 --set model.vision.patch_size=32 --set model.vision.width=768 --set model.vision.layers=12 \
  --set model.vision.heads=12
one_step language --config configs/language.toml --root "$demo" --out "$work/language" --set model.width=512 --set model.layers=12 \
  --set model.heads=8
share large 8 image.size=224 "model.vision=\"$work/vision\"" "model.language=\"$work/language\"" model.resampler.latents=64 \
  model.resampler.heads=8 model.resampler.head_dim=64 model.cross_attention.heads=8 model.cross_attention.head_dim=64
