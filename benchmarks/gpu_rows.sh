#!/usr/bin/env bash
# Runs rows of results/rows.toml on a GPU within a time limit, without network:
#
#   bash benchmarks/gpu_rows.sh OUT [SECONDS] [ROW …]
#
# NOT RUN ON A GPU so far: no number in the documentation comes from this script.
#
# Seeds of a row are trained in one program, in bfloat16 where the row's config says so. What is stopped by the limit
# goes on in the next call with the same OUT. OUT/results gets results.csv, its page, metrics and a log; OUT/runs the
# checkpoints.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
out=${1:?name a folder, such as: bash benchmarks/gpu_rows.sh rows_gpu 540}
limit=${2:-540}
shift; shift || true
rows=("$@")
[ ${#rows[@]} -gt 0 ] || rows=(mini_vit mini_vit_tl4 mini_vit_tl8 mini_vit_8l mini_vit_tl4_best cct cct_best \
  shiftvit shiftvit_true)
mkdir -p "$out/results" || exit 2
cp results/rows.toml "$out/results/" || exit 2
end=$(($(date +%s) + limit))
for row in "${rows[@]}"; do
  left=$((end - $(date +%s)))
  [ "$left" -gt 20 ] || { echo "$row: no time left" | tee -a "$out/results/log.txt"; continue; }
  # SIGTERM saves, and ends with 75.
  timeout -k 15 -s TERM "$left" "${PYTHON:-python}" -m jaxvit reproduce "$row" --together --runs="$out/runs" \
    --results="$out/results" ${DRY_RUN:+--dry_run} >>"$out/results/log.txt" 2>&1
  echo "$row ended with $?" | tee -a "$out/results/log.txt"
done
