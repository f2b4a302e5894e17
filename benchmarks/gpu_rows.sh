#!/usr/bin/env bash
# Trains rows of results/rows.toml on a GPU within a time limit, without network:
#
#   bash benchmarks/gpu_rows.sh OUT [SECONDS] [ROW …]        defaults: 540 seconds, the CIFAR-10 tutorials' rows
#   jaxvit reproduce --take=OUT/results                      then merges the results into the project's table
#
# Not run on a GPU yet: no number in the documentation comes from this script.
#
# All seeds of a row are trained in one program, from resident data, in bfloat16 (DTYPE=float32 for float32); the table
# states the dtype. If the time limit stops a row, the next call with the same OUT resumes it. OUT/results gets
# results.csv, its page, metrics and a log; OUT/runs gets the checkpoints.
#
# exit codes: 0 all rows pass; 1 a row fails; 2 a mistake in the command; 75 not finished.
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
  # On SIGTERM, jaxvit saves its state and exits with 75.
  timeout -k 15 -s TERM "$left" "${PYTHON:-python}" -m jaxvit reproduce "$row" --together --runs="$out/runs" \
    --dtype="${DTYPE:-bfloat16}" --results="$out/results" ${DRY_RUN:+--dry_run} >>"$out/results/log.txt" 2>&1
  code=$?
  echo "$row ended with $code" | tee -a "$out/results/log.txt"
  case $code in 124|137) code=75 ;; esac  # killed by timeout
  [ "$code" -le "$worst" ] || worst=$code
done
exit "$worst"
