#!/usr/bin/env bash
# One run on several nodes: sbatch launch/slurm.sh train --config=digits --workdir=/shared/folder/runs/many
#
# Each task is one process of the run, with one accelerator of its node: set --ntasks-per-node and --gpus-per-node to the
# number of accelerators of a node (remove both, or use 1, for CPU nodes). SLURM tells each process its index.
# SLURM sends SIGTERM two minutes before the time limit; the run saves its state, and the job is queued again.
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
