#!/usr/bin/env bash
# One run on several nodes: sbatch launch/slurm.sh train --config=digits --workdir=/shared/folder/runs/many
#
# Each task is one process of the run, and jax gives it one accelerator of its node: set --ntasks-per-node and
# --gpus-per-node to the accelerators of a node (both away, or 1, where there are none). SLURM says who is who.
# SLURM sends SIGTERM two minutes before the time is over; the run saves, and the job asks to be queued again.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -u

verb=$1
shift
srun --kill-on-bad-exit=1 jaxvit "$verb" "$@" --distributed
code=$?
if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
