#!/usr/bin/env bash
# The job that `launch.sh --on=slurm` submits: sbatch [OPTIONS] slurm_job.sh VENV VERB ARG…
#
# VENV is the folder of the environment. `train` with several tasks is one run of several processes; each process finds
# its index and the others in Slurm's variables. The job of an array trains the cells of its index.
#
# Slurm sends SIGTERM to the processes, not to this script, before the time limit (--signal) or by `scancel
# --signal=TERM`. They save and exit with 75, and this script has the job queued again. The script itself does not
# handle SIGTERM: `scancel` without a signal ends it, so the job is not queued again.
set -u
venv=$1 verb=$2
shift 2

if [ ! -r "$venv/bin/activate" ]; then
  echo "slurm_job.sh: $venv is not on $(hostname): set JAXVIT_VENV to a folder that all nodes share, and submit again" >&2
  exit 2
fi
# shellcheck source=/dev/null
. "$venv/bin/activate"

# srun takes over neither the cores of a task nor the mode of the log.
step=(srun --kill-on-bad-exit=0 --open-mode=append)
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || step+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
words=("$verb" "$@")
[ "$verb" = train ] && [ "${SLURM_NTASKS:-1}" -gt 1 ] && words+=(--distributed)
job=$SLURM_JOB_ID
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  # The first number of an array is the id of one of its jobs too; so jobs are named by both numbers.
  job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  words+=(--part="$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_MAX")
fi

# With --kill-on-bad-exit=0 the first process that exits with 75 does not end the others, which are still saving.
"${step[@]}" python -m jaxvit "${words[@]}"
code=$?
if [ "$code" -eq 75 ]; then
  for word in "$@"; do
    # A run that was stopped by its own --limit has done what it was asked for.
    case $word in --limit|--limit=*) exit 75 ;; esac
  done
  echo "slurm_job.sh: the run was stopped and its state is saved; queued again" >&2
  scontrol requeue "$job"
fi
exit "$code"
