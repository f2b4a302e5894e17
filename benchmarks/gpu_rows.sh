#!/usr/bin/env bash
# Runs rows of results/rows.toml on a GPU within a time limit, without network:
#
#   bash benchmarks/gpu_rows.sh OUT [SECONDS] [ROW …]        SECONDS: 540 unless said; ROW: the CIFAR-10 tutorials'
#   jaxvit reproduce --take=OUT/results                      then adds what it has found to the project's table
#
# NOT RUN ON A GPU so far: no number in the documentation comes from this script.
#
# All seeds of a row are trained in one program, from data that lies on the device, in bfloat16, which the table says
# (DTYPE=float32 for the other). What is stopped by the limit goes on in the next call with the same OUT. OUT/results
# gets results.csv, its page, metrics and a log; OUT/runs the checkpoints.
#
# Ends with 0 if all rows were run and pass, 1 if not, 2 for a mistake in the command, 75 if there is more to do.
set -u
fail() { echo "gpu_rows.sh: $1" >&2; exit 2; }
[ $# -gt 0 ] || fail "name a folder, such as: bash benchmarks/gpu_rows.sh rows_gpu 540"
limit=${2:-540}
[[ $limit =~ ^[1-9][0-9]*$ ]] || fail "SECONDS=$limit: must be a whole number"
mkdir -p "$1/results" || fail "$1 cannot be written; name another folder"
out=$(cd "$1" && pwd)
shift; shift || true
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
rows=("$@")
[ ${#rows[@]} -gt 0 ] || rows=(mini_vit_tl4_1epoch cct cct_best mini_vit mini_vit_tl4 mini_vit_tl8 mini_vit_tl4_best \
  mini_vit_8l mini_vit_v11_g4t4 mini_vit_v11_g8t8 mini_vit_v11_g4t8 shiftvit shiftvit_true shiftvit_best cct_vit)
cp results/rows.toml "$out/results/" || fail "$out/results cannot be written; name another folder"
end=$(($(date +%s) + limit))
worst=0
for row in "${rows[@]}"; do
  left=$((end - $(date +%s)))
  [ "$left" -gt 20 ] || { echo "$row: no time left" | tee -a "$out/results/log.txt"; worst=75; continue; }
  # SIGTERM saves, and ends with 75.
  timeout -k 15 -s TERM "$left" "${PYTHON:-python}" -m jaxvit reproduce "$row" --together --runs="$out/runs" \
    --dtype="${DTYPE:-bfloat16}" --results="$out/results" ${DRY_RUN:+--dry_run} >>"$out/results/log.txt" 2>&1
  code=$?
  echo "$row ended with $code" | tee -a "$out/results/log.txt"
  case $code in 124|137) code=75 ;; esac  # it was stopped by force
  [ "$code" -le "$worst" ] || worst=$code
done
exit "$worst"
