# shellcheck shell=bash disable=SC2154 # launch.sh and anywhere.sh set here, venv, kind and flag_NAME
# --on=slurm: submits a job to Slurm. Read by anywhere.sh; slurm_job.sh is the job.

about() {
  cat <<'TEXT'
Submits a job to Slurm. The run saves its state before the time limit, the job is queued again, and the run resumes.

  ./launch.sh --on=slurm --nodes=2 --gpus_per_node=8 --time=04:00:00 train --config=cct --workdir=/shared/runs/cct
  ./launch.sh --on=slurm --gpus_per_node=1 sweep --config=token_learner:place --workdir=/shared/sweeps/place
  ./launch.sh --on=slurm --cpus_per_task=4 --dry_run evaluate --workdir=/shared/runs/cct

`train` runs as one process per GPU of each node (--tasks_per_node). `sweep` becomes an array with one job per cell of
the grid. Other verbs run as one process. The folders of the run, of the data and of the environment (JAXVIT_VENV) must
be on a file system that all nodes share.
TEXT
}

flags() {
  cat <<'TABLE'
nodes|1|N|nodes of the run
gpus_per_node|0|N|GPUs of each node, 0 = none
tasks_per_node||N|processes on each node (default: one per GPU; 1 without GPUs)
cpus_per_task||N|CPU cores of each process
partition||NAME|partition of the cluster
account||NAME|account to charge
time||HH:MM:SS|time limit; after it the job is queued again, and the run resumes
save_before|120|SECONDS|how long before the time limit the run is told to save
name||NAME|name of the job (default: jaxvit-VERB)
log||FILE|log file, in Slurm's notation (default: NAME-%j.out)
at_once||N|most jobs of a sweep that run at the same time
sbatch||OPTION...|another option of sbatch, such as --sbatch=--mem=64G; may be repeated
TABLE
}

number_of_cells() {  # number_of_cells ARG…: of a sweep
  if [ -n "$flag_dry_run" ] && [ ! -x "$venv/bin/python" ]; then
    echo "launch.sh: the environment is not installed yet; CELLS stands for the number of cells" >&2
    echo CELLS
  else
    "$venv/bin/python" -m jaxvit sweep "$@" --count
  fi
}

check_slurm_flags() {
  whole nodes 1
  whole gpus_per_node 0
  [ -n "$flag_tasks_per_node" ] || flag_tasks_per_node=$((flag_gpus_per_node > 1 ? flag_gpus_per_node : 1))
  whole tasks_per_node 1
  [ -z "$flag_cpus_per_task" ] || whole cpus_per_task 1
  [ -z "$flag_at_once" ] || whole at_once 1
  whole save_before 1
  [ -z "$flag_time" ] || [[ $flag_time =~ ^([0-9]+-)?[0-9]+(:[0-9]+){0,2}$ ]] ||
    fail "--time=$flag_time: write it as HH:MM:SS, or D-HH:MM:SS"
  if [ "$flag_gpus_per_node" -gt 0 ] && [ "$flag_tasks_per_node" -ne "$flag_gpus_per_node" ] &&
    [ $((flag_nodes * flag_tasks_per_node)) -gt 1 ]; then
    fail "--tasks_per_node=$flag_tasks_per_node: with several processes, each one uses one GPU; give --tasks_per_node=$flag_gpus_per_node, or leave it out"
  fi
}

submit() {
  local verb=$1 tasks cells name command dry='' word id
  shift
  check_slurm_flags
  needs sbatch slurm "run this on a login node of the cluster"
  tasks=$((flag_nodes * flag_tasks_per_node))
  if [ "$verb" != train ] && [ "$tasks" -gt 1 ]; then
    [ "$flag_nodes" -gt 1 ] && fail "--nodes=$flag_nodes: only train runs on several nodes; $verb runs as one process"
    [ -z "$flag_gpus_per_node" ] || [ "$flag_tasks_per_node" -ne "$flag_gpus_per_node" ] &&
      fail "--tasks_per_node=$flag_tasks_per_node: only train runs as several processes"
    flag_tasks_per_node=1 tasks=1  # one process that uses all GPUs of the node
  fi
  if [ -z "$flag_dry_run" ]; then
    if [ -z "${JAXVIT_ACCELERATOR:-}" ] && [ "$flag_gpus_per_node" -gt 0 ] && [ -z "$kind" ]; then
      kind=cuda12  # a login node has no GPU; these libraries work with all drivers from 525 on
    fi
    installed "$kind" || installed "${kind:+$kind,}test" || install "$kind"
  fi
  name=${flag_name:-jaxvit-$verb}
  command=(sbatch --parsable --job-name="$name" --nodes="$flag_nodes" --ntasks="$tasks" --ntasks-per-node="$flag_tasks_per_node")
  [ "$flag_gpus_per_node" -eq 0 ] || command+=(--gpus-per-node="$flag_gpus_per_node")
  [ -z "$flag_cpus_per_task" ] || command+=(--cpus-per-task="$flag_cpus_per_task")
  [ -z "$flag_partition" ] || command+=(--partition="$flag_partition")
  [ -z "$flag_account" ] || command+=(--account="$flag_account")
  [ -z "$flag_time" ] || command+=(--time="$flag_time")
  command+=(--signal="TERM@$flag_save_before" --requeue --open-mode=append)
  for word in "$@"; do [ "$word" = --dry_run ] && dry=1; done
  if [ "$verb" = sweep ] && [ -z "$dry" ]; then
    cells=$(number_of_cells "$@") || exit 2
    command+=(--array="1-$cells${flag_at_once:+%$flag_at_once}" --output="${flag_log:-$name-%A_%a.out}")
  else
    command+=(--output="${flag_log:-$name-%j.out}")
  fi
  command+=(${flag_sbatch[@]+"${flag_sbatch[@]}"} "$here/launch/slurm_job.sh" "$venv" "$verb" "$@")
  if [ -n "$flag_dry_run" ]; then
    show "${command[@]}"
    printf '\n%s:\n\n' "$here/launch/slurm_job.sh"
    cat "$here/launch/slurm_job.sh"
    exit 0
  fi
  id=$("${command[@]}") || fail "sbatch refused the job (its reason is above)" 2
  id=${id%%;*}
  echo "launch.sh: submitted job $id; its log is ${flag_log:-$name-$id*.out}"
  echo "Next:  squeue --job=$id    scancel --signal=TERM $id  (saves, and is queued again)    scancel $id  (ends it)"
}
