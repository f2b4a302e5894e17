#!/usr/bin/env bash
# Measures jaxvit on one GPU, in under eight minutes, without network: bash benchmarks/on_gpu.sh OUT
#
# Not run on a GPU yet: no number in the documentation comes from this script.
#
# OUT gets a log, tables and small JSON files: the documents' models in bfloat16, ViT-B/16 with and without remat, scaling
# with the batch size, PyTorch and Keras if they are installed, and five epochs of the mini ViT if CIFAR-10 is prepared. A
# part that exceeds its time limit is stopped, and the next one runs. DRY_RUN=1 only prints what jaxvit would measure.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
out=${1:?name a folder for the results, such as: bash benchmarks/on_gpu.sh speed_gpu}
mkdir -p "$out" || exit 2
python=${PYTHON:-python}
dry=${DRY_RUN:+--dry_run}
failed=0

part() {  # part SECONDS NAME WORD…
  local seconds=$1 name=$2; shift 2
  echo "== $name" | tee -a "$out/log.txt"
  timeout -k 5 "$seconds" "$@" >"$out/$name.txt" 2>>"$out/log.txt" || { echo "$name ended with $?" | tee -a "$out/log.txt"; failed=1; }
}

measured() { local seconds=$1 name=$2; shift 2; part "$seconds" "$name" "$python" -m jaxvit benchmark "$@" --dtype=bfloat16 --json $dry; }

measured 75 vit_b16 --model=vit_b16_224 --batch=256 --rounds=2 --seconds=0.4
measured 75 vit_b16_remat --model=vit_b16_224 --batch=256 --config.model.remat=full --rounds=2 --seconds=0.4
for batch in 256 512 1024; do
  measured 25 "growth_$batch" --model=tutorial_mini_vit --batch=$batch --rounds=2 --seconds=0.5
done
for model in tutorial_mini_vit_tl4 tutorial_shiftvit; do
  measured 25 "$model" --model=$model --rounds=2 --seconds=0.5
done
if [ -z "$dry" ]; then
  part 110 peers "$python" benchmarks/against_peers.py --amp --models tutorial_mini_vit tutorial_cct \
    --peers jaxvit keras-jax torch-compile --rounds 2 --seconds 1 --out "$out/peers.md"
fi
if [ -n "$dry" ] || [ -e "${TFDS_DATA_DIR:-$HOME/tensorflow_datasets}/cifar10" ]; then
  part 60 epochs "$python" -m jaxvit train --config=configs/token_learner.py --config.model.name=tutorial_mini_vit \
    --config.augment.train=resize_crop --config.augment.evaluation=centre_crop --config.augment.resize=54 \
    --config.augment.size=48 --config.augment.pad_crop=0 --config.model.dtype=bfloat16 --config.train.duration='5 epochs' --config.train.steps_per_call=16 \
    --workdir="$out/epochs" $dry
fi
exit $failed
