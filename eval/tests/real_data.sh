#!/usr/bin/env bash
# The main job on real input: textbook pages, their figures with alt texts, and clips, through every crate; then the corpora
# in the Python readers. Needs ../shared/data beside the checkout; without it, the made-up web takes its place.
set -euo pipefail
cd "$(dirname "$0")/../.."

out=target/real-data
rm -rf "$out"
real=../shared/data/real
if [ -d "$real" ]; then
  own=(--pages "$real/openstax-warc/astronomy-mini.warc.gz"
    --pairs "$real/openstax-warc/astronomy.csv" --images "$real/interleaved/openstax-astronomy"
    --videos "$real/video/mdn")
else
  echo "skipped: no real data at $real; the made-up web is used"
  own=()
fi
./demo.sh --quick --out "$out" "${own[@]}"

# Ten steps each, a table of scores, a report.
for stage in vision language flamingo; do
  [ "$(cat "$out/$stage/latest")" = step-10 ] || { echo "real_data.sh: $stage did not reach step 10" >&2; exit 1; }
done
for shots in 0 4 8; do
  # The benchmark was answered, and did not just fail to fit the model's context.
  grep -A3 "\"caption_${shots}shot\": {" "$out/scores/results.json" | grep -q '"cider,none"' ||
    { echo "real_data.sh: no CIDEr at $shots shots" >&2; exit 1; }
done
[ -s "$out/scores/report.html" ]
for corpus in webpages pairs clips; do
  target/release/flamingo-ingest check "$out/corpora/$corpus"
done

python=.venv/bin/python
if ! $python -c 'import datasets, duckdb, polars, pyarrow, webdataset, PIL' 2>/dev/null; then
  python3 -m venv .venv
  .venv/bin/pip install --quiet --requirement dataset/tests/requirements.txt
fi
$python dataset/tests/readers.py "$out"/corpora/{webpages,pairs,clips}
$python dataset/tests/layouts.py
