#!/usr/bin/env bash
# Trains and measures the models of docs/tokens.md on CIFAR-10: some three hours of two CPU cores (an estimate). It can be
# stopped and started again: finished runs are not repeated.
#
#   benchmarks/fewer_tokens.sh RUNS OUT [STEP…]      STEP: merge, retrofit, elastic, cascade, distill (default: all)
set -euo pipefail
runs=${1:?folder for the runs} out=${2:?folder for the tables}
shift 2
python=${PYTHON:-python}
here=$(dirname "$0")
mkdir -p "$out"

train() { # VARIANT NAME [OVERRIDES…]
  local variant=$1 name=$2
  shift 2
  "$python" -m jaxvit train --config="fewer_tokens:$variant" --workdir="$runs/$name" "$@"
}

for step in ${*:-merge retrofit elastic cascade distill}; do
  train vit vit
  case $step in
    merge) "$python" "$here/fewer_tokens.py" "$runs/vit" "$out/merging" --files ;;
    retrofit)
      "$python" -m jaxvit retrofit "$runs/vit" --at=2 --tokens=16 --workdir="$runs/vit16"
      "$python" "$here/paired_runs.py" "$out/retrofit" "vit=$runs/vit" "retrofit=$runs/vit16" \
        "merging=$runs/vit@merge:macs=.55" --pairs retrofit:vit retrofit:merging
      ;;
    elastic)
      models=() pairs=()
      for seed in 0 1; do
        train elastic "elastic-$seed" --config.seed=$seed
        for tokens in 4 16; do
          train "learned$tokens" "learned$tokens-$seed" --config.seed=$seed
          models+=("elastic$tokens-$seed=$runs/elastic-$seed@$tokens" "alone$tokens-$seed=$runs/learned$tokens-$seed")
          pairs+=("elastic$tokens-$seed:alone$tokens-$seed")
        done
      done
      "$python" "$here/paired_runs.py" "$out/elastic" "${models[@]}" --pairs "${pairs[@]}"
      ;;
    cascade)
      train elastic64 elastic64
      "$python" "$here/paired_runs.py" "$out/cascade" "all=$runs/elastic64" "from4=$runs/elastic64@4,64<.3" \
        "from16=$runs/elastic64@16,64<.3" --pairs from4:all from16:all
      ;;
    distill)
      train cct cct
      train small small
      train small taught --config.distill.from="$runs/cct"
      "$python" "$here/paired_runs.py" "$out/distill" "cct=$runs/cct" "small=$runs/small" "taught=$runs/taught" \
        --pairs taught:small
      ;;
    *) echo "no step '$step': merge, retrofit, elastic, cascade, distill" >&2 && exit 2 ;;
  esac
done
