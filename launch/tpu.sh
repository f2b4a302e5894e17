# shellcheck shell=bash disable=SC2154 # launch.sh and anywhere.sh set here, venv, kind and flag_NAME
# --on=tpu: Cloud TPU VMs through gcloud. Read by anywhere.sh; tpu_worker.sh runs on each VM.

about() {
  cat <<'TEXT'
Runs on Cloud TPU VMs through gcloud: makes the slice if it does not exist, copies this checkout to all its workers,
starts the verb on all of them, and follows the log of worker 0. If the slice is preempted, it is made again and the
same command is started again.

  ./launch.sh --on=tpu --name=vit --zone=us-west4-a --type=v5litepod-16 --spot --queued \
      --setup='sudo mkdir -p /mnt/runs && sudo mount -t nfs 10.0.0.2:/runs /mnt/runs' \
      train --config=cct --workdir=/mnt/runs/cct

`train` is one run of all workers; other verbs run on worker 0. A preempted VM loses its disk: the folder of a run must be
on a file system that outlives the VMs and that all workers mount, such as NFS (Filestore); --setup mounts it. Call the
same command again to follow a run that is still going, after Ctrl-C or a lost connection. The slice is not deleted at
the end, and costs money until it is: the last line tells how.
TEXT
}

flags() {
  cat <<'TABLE'
name||NAME|name of the slice (needed)
zone||ZONE|zone, such as us-west4-a (needed)
type||TYPE|accelerator type, such as v5litepod-16 or v6e-8 (needed)
version||NAME|runtime version of the VMs (default: by type)
project||PROJECT|project (default: gcloud's)
queued|||ask by a queued resource, which waits until the chips are free
spot|||cheaper VMs that can be preempted
reserved|||use a reservation
setup||COMMAND|a shell command that every worker runs before the verb, such as a mount
copy||PATH...|a file or folder to copy beside the checkout on every worker, such as mine.py; may be repeated
retries|100|N|how often a preempted slice is made again
poll|30|SECONDS|how often the state of the slice is asked for
gcloud||OPTION...|another option for making the slice, such as --gcloud=--network=NAME; may be repeated
TABLE
}

tpu() { gcloud compute tpus "$@" --zone="$flag_zone" ${flag_project:+--project="$flag_project"} --quiet; }

runtime_version() {
  case $flag_type in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v2-*|v3-*|v4-*) echo tpu-ubuntu2204-base ;;
    *) fail "--type=$flag_type: give the runtime version of the VMs with --version=NAME" ;;
  esac
}

# Instead of gcloud, in a dry run and at the end.
print_instead() {
  # shellcheck disable=SC2317 # the functions above call it
  gcloud() { show gcloud "$@"; }
}

make_slice() {
  local command
  if [ -n "$flag_queued" ]; then
    command=(queued-resources create "$flag_name" --node-id="$flag_name" --runtime-version="$flag_version")
  else
    command=(tpu-vm create "$flag_name" --version="$flag_version")
  fi
  command+=(--accelerator-type="$flag_type")
  [ -z "$flag_spot" ] || command+=(--spot)
  [ -z "$flag_reserved" ] || command+=(--reserved)
  command+=(${flag_gcloud[@]+"${flag_gcloud[@]}"})
  tpu "${command[@]}"
}

remove_slice() {
  if [ -n "$flag_queued" ]; then
    tpu queued-resources delete "$flag_name" --force
  else
    tpu tpu-vm delete "$flag_name"
  fi
}

# READY, a state of transition such as CREATING, a state of failure such as PREEMPTED, or "none". A queued resource waits
# (WAITING_FOR_RESOURCES …), is ACTIVE, and is SUSPENDED after a preemption; its VMs have their own state.
state_of_slice() {
  local state
  if [ -n "$flag_queued" ]; then
    state=$(tpu queued-resources describe "$flag_name" --format='value(state.state)' 2>"$work/error")
    if [ -n "$state" ] && [ "$state" != ACTIVE ]; then echo "$state"; return; fi
  fi
  if [ -z "$flag_queued" ] || [ -n "$state" ]; then
    state=$(tpu tpu-vm describe "$flag_name" --format='value(state)' 2>"$work/error")
  fi
  if [ -n "$state" ]; then echo "$state"
  elif grep -qiE 'NOT_FOUND|not found' "$work/error"; then echo none
  else echo unknown
  fi
}

bring_up() {  # waits for a slice that is ready; makes it if there is none
  local state shown='' unknown=0
  while :; do
    state=$(state_of_slice)
    if [ "$state" != "$shown" ]; then echo "launch.sh: $flag_name is $state" >&2; shown=$state; fi
    case $state in
      READY) return ;;
      none)
        make_slice || fail "gcloud could not make the slice $flag_name (its reason is above)" 70 ;;
      STOPPED|FAILED)
        fail "$flag_name is $state: start it again or delete it by gcloud, and call this command again" 70 ;;
      PREEMPTED|TERMINATED|SUSPENDED)
        [ "$made" -lt "$flag_retries" ] || fail "$flag_name was $state $made times; start again, or raise --retries" 75
        made=$((made + 1))
        remove_slice || fail "gcloud could not delete the slice $flag_name, which is $state (its reason is above)" 70
        continue ;;
      unknown)
        # A failing network may come back; a missing right does not.
        unknown=$((unknown + 1))
        grep -qiE 'account|permission|credential' "$work/error" && unknown=5
        [ "$unknown" -lt 5 ] || fail "gcloud does not tell the state of $flag_name: $(grep -m 1 . "$work/error")" 70 ;;
    esac
    sleep "$flag_poll"
  done
}

pack() {  # pack COMMAND…: puts the checkout without environments, runs, tests and pages into an archive, or shows how
  local without=() name
  for name in './.*' ./runs ./sweeps ./tests ./docs __pycache__; do without+=(--exclude="$name"); done
  "$@" tar -C "$here" -czf "$work/jaxvit.tar.gz" "${without[@]}" .
}

on_workers() {  # on_workers WORKERS COMMAND
  tpu tpu-vm ssh "$flag_name" --worker="$1" --command="$2"
}

install_and_start() {
  local workers=$1 path; shift
  tpu tpu-vm scp "$work/jaxvit.tar.gz" "$flag_name:" --worker=all || return
  for path in ${flag_copy[@]+"${flag_copy[@]}"}; do
    tpu tpu-vm scp "$path" "$flag_name:" --worker=all --recurse || return
  done
  on_workers all "mkdir -p jaxvit && tar -xzf jaxvit.tar.gz -C jaxvit" || return
  [ -z "$flag_setup" ] || on_workers all "$flag_setup" || return
  on_workers "$workers" "bash jaxvit/launch/tpu_worker.sh start $(quoted "$@")"
}

follow() {  # prints new lines of the log until the run ends or the connection does; sets `code` to the run's exit code
  local line
  code=''
  while IFS= read -r line; do
    case $line in
      'tpu_worker.sh: ended with '*) code=${line##* } ;;
      *) printf '%s\n' "$line"; seen=$((seen + 1)) ;;
    esac
  done < <(on_workers 0 "bash jaxvit/launch/tpu_worker.sh follow $seen")
}

submit() {
  local workers=0 state
  needs gcloud tpu "install the Google Cloud CLI and log in by: gcloud auth login"
  for state in name zone type; do
    local value=flag_$state
    [ -n "${!value}" ] || fail "--$state is missing; see ./launch.sh --on=tpu --help"
  done
  [[ $flag_name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
    fail "--name=$flag_name: lower-case letters, digits and hyphens, from a letter on"
  whole retries 0
  whole poll 0
  for state in ${flag_copy[@]+"${flag_copy[@]}"}; do [ -e "$state" ] || fail "--copy=$state: there is no such file or folder"; done
  [ -n "$flag_version" ] || flag_version=$(runtime_version) || exit 2
  if [ "$1" = train ]; then set -- "$@" --distributed; workers=all; fi
  made=0 seen=0
  work=$(mktemp -d) || exit 70
  trap 'rm -rf "$work"' EXIT
  if [ -n "$flag_dry_run" ]; then
    print_instead
    work=/tmp/FOLDER
    echo "# unless the slice exists:"; make_slice
    echo "# when it is READY:"
    pack show
    install_and_start "$workers" "$@"
    echo "# until the run ends:"; on_workers 0 "bash jaxvit/launch/tpu_worker.sh follow LINES_SEEN"
    echo "# after a preemption, before all of this again:"; remove_slice
    exit 0
  fi
  pack command || fail "the checkout cannot be packed" 70
  while :; do
    bring_up
    # A worker that already has this run only continues it.
    if ! install_and_start "$workers" "$@" >&2; then
      state=$(state_of_slice)
      [ "$state" != READY ] || fail "the workers of $flag_name could not be set up (the reason is above)" 70
      continue
    fi
    # The log of a new machine starts at its first line.
    [ "$made" = "${followed:-}" ] || seen=0
    followed=$made
    while :; do
      follow
      [ -z "$code" ] || break 2
      [ "$(state_of_slice)" = READY ] || break
      echo "launch.sh: lost the connection to $flag_name; the run goes on, following it again" >&2
      sleep "$flag_poll"
    done
  done
  echo "launch.sh: the run ended with $code; $flag_name still exists. To delete it:" >&2
  print_instead
  remove_slice >&2
  exit "$code"
}
