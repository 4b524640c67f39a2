#!/usr/bin/env bash
# The main job end to end: web pages, image/alt-text pairs and clips -> corpora -> three training stages -> few-shot scores.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

usage() {
  cat <<'TEXT'
Runs the main job end to end on the CPU, in about ten minutes on two cores after the build.

Usage: ./demo.sh [OPTIONS]

Without options it makes up a small web of coloured shapes and learns to describe it.
What you give replaces the made-up part; held-out pairs become the few-shot benchmark.

  --pages FILE    a WARC file of web pages and their images (.warc, .warc.gz)
  --pairs FILE    a list of images and alt texts: CSV, TSV or JSONL with columns `file` and `caption`, or Parquet with
                  columns `image` and `caption`
  --images DIR    where the files of --pairs lie; by default the folder of the list
  --videos DIR    a folder of clips, each with a caption: a list `clips.csv` (columns `file`, `caption`) or a text or
                  subtitle file of the same name (.txt, .vtt)
  --out DIR       where everything goes [default: runs/demo, with --quick runs/demo-quick]; a run that was cut off goes
                  on there
  --quick         ten training steps a stage: shows that everything works, learns nothing
  --help          this text

Example: ./demo.sh --pages crawl.warc.gz --pairs alt.csv --videos clips/
TEXT
}

pages='' pairs='' images='' videos='' out='' quick=''
absolute() { (cd "$PWD" && realpath -m -- "$1"); }
while [ $# -gt 0 ]; do
  case $1 in
    --pages | --pairs | --images | --videos | --out)
      [ $# -ge 2 ] || { echo "demo.sh: $1 needs a value" >&2; exit 2; }
      printf -v "${1#--}" '%s' "$(absolute "$2")"
      shift 2
      ;;
    --quick) quick=yes; shift ;;
    --help | -h) usage; exit 0 ;;
    *) echo "demo.sh: unknown option $1 (see ./demo.sh --help)" >&2; exit 2 ;;
  esac
done
for given in "$pages" "$pairs" "$images" "$videos"; do
  [ -z "$given" ] || [ -e "$given" ] || { echo "demo.sh: $given does not exist" >&2; exit 1; }
done

out=${out:-$here/runs/demo${quick:+-quick}}
# Shown, and stored in reports, as a path from here where it is one.
out=${out#"$here"/}

cd "$here"
./setup.sh
cargo build --locked --release --workspace
bin=target/release
corpora=$out/corpora tasks=$out/tasks
started=$SECONDS
step() { printf '\n== %s (%ss)\n' "$1" "$((SECONDS - started))"; }
mkdir -p "$corpora"

# The web that the demo makes up, where the user gives none of his own.
web=$out/web
if [ -z "$pages" ] || [ -z "$pairs" ] || [ -z "$videos" ]; then
  step "a made-up web"
  size=(--pages 2500 --pairs 6000 --clips 200 --queries 300)
  [ -z "$quick" ] || size=(--pages 60 --pairs 200 --clips 12 --queries 20)
  [ -e "$web" ] || "$bin/flamingo-fixtures" web --out "$web" --seed 0 "${size[@]}"
fi

# corpus NAME COMMAND ARGUMENTS...: makes a corpus, or goes on with one that was cut off.
corpus() {
  local to=$1 command=$2
  shift 2
  [ -e "$to/manifest.json" ] && return
  local resume=()
  [ -e "$to" ] && resume=(--resume)
  "$bin/flamingo-ingest" "$command" "$@" --out "$to" "${resume[@]}"
}

step "three corpora"
corpus "$corpora/webpages" webpages --plan configs/plan-webpages.toml --input "${pages:-$web/pages.warc.gz}"
corpus "$corpora/clips" video-text --plan configs/plan-video-text.toml --input "${videos:-$web/clips}"
task_arguments=()
if [ -z "$pairs" ]; then
  corpus "$corpora/pairs" alt-text --plan configs/plan-alt-text.toml --input "$web/pairs.parquet"
  for task in caption label; do
    for side in support query; do
      corpus "$tasks/$task/$side" alt-text --plan configs/plan-alt-text.toml --input "$web/tasks/$task/$side.parquet"
    done
    cp "$web/tasks/$task/task.toml" "$tasks/$task/"
    task_arguments+=(--task "$task" --annotations "$tasks/$task")
  done
else
  from=(--input "$pairs" --images "${images:-$(dirname "$pairs")}")
  corpus "$corpora/pairs" alt-text --plan configs/plan-alt-text-train.toml "${from[@]}"
  corpus "$tasks/caption/support" alt-text --plan configs/plan-alt-text-support.toml "${from[@]}"
  corpus "$tasks/caption/query" alt-text --plan configs/plan-alt-text-held-out.toml "${from[@]}"
  task_arguments+=(--task caption --annotations "$tasks/caption")
fi

# stage NAME: one training stage, or the rest of one that was cut off.
stage() {
  local name=$1 command=$2 change=()
  shift 2
  [ -z "$quick" ] || change=(--set steps=10)
  local resume=()
  [ -e "$out/$name" ] && resume=(--resume)
  "$bin/flamingo-train" "$command" --config "configs/$name.toml" --root "$out" --out "$out/$name" "$@" "${change[@]}" "${resume[@]}"
}

# The made-up language has short sentences of few words; a real one needs more of both.
real_language=() real_pages=()
if [ -n "$pages$pairs$videos" ]; then
  real_pages=(--set data.webpages.tokens=768 --set data.webpages.batch=2)
  real_language=(--set tokenizer.train.vocabulary=2048 --set model.vocabulary=2048 --set model.context=768)
fi
step "vision encoder, by contrast of images and texts"
stage vision contrastive
step "language model"
stage language language "${real_language[@]}" "${real_pages[@]}"
step "Flamingo, on the mixture"
stage flamingo flamingo "${real_pages[@]}"

step "few-shot scores on held-out scenes"
# On lists of one's own, the first of the held-out pairs are enough.
limit=(--limit 300)
[ -z "$quick" ] || limit=(--limit 8)
"$bin/flamingo-eval" run --model "$out/flamingo" "${task_arguments[@]}" --shots 0,4,8 --out "$out/scores" "${limit[@]}"

cat <<TEXT

== done in $((SECONDS - started)) s
corpora   $corpora/{webpages,pairs,clips}   (each with report.html)
models    $out/{vision,language,flamingo}   (checkpoints, metrics.jsonl, report.html)
scores    $out/scores/results.json
report    $out/scores/report.html           (open it in a browser)

Next, on your own data:
  $bin/flamingo-ingest webpages --plan configs/plan-webpages.toml --input crawl.warc.gz --out $corpora/mine
  $bin/flamingo-train flamingo --config configs/flamingo.toml --root $out --out $out/mine --set 'data.webpages.corpus="corpora/mine"'
  $bin/flamingo-eval run --task caption --annotations $tasks/caption --model $out/mine --shots 0,4,8 --out $out/mine-scores
TEXT
