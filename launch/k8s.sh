# shellcheck shell=bash disable=SC2154 # launch.sh and anywhere.sh set here, venv, kind and flag_NAME
# --on=k8s: a JobSet on Kubernetes through kubectl. Read by anywhere.sh.

about() {
  cat <<'TEXT'
Creates a JobSet on Kubernetes: one pod per node, each a process of the run with all accelerators of its node. The image
is built from the Dockerfile beside launch.sh. The cluster needs the JobSet controller (https://jobset.sigs.k8s.io).

  docker build --build-arg=ACCELERATOR=cuda13 --tag=REGISTRY/jaxvit:cuda13 . && docker push REGISTRY/jaxvit:cuda13
  ./launch.sh --on=k8s --name=vit --image=REGISTRY/jaxvit:cuda13 --nodes=2 --gpus_per_node=8 \
      --volume=runs:/runs train --config=cct --workdir=/runs/cct
  ./launch.sh --on=k8s --name=vit --image=REGISTRY/jaxvit:tpu --tpu=tpu-v5-lite-podslice --topology=4x4 \
      --volume=runs:/runs --dry_run train --config=cct --workdir=/runs/cct

Pods that are evicted or stopped save their state; then all pods are made again, and the run resumes. --volume mounts a
persistent volume claim that all pods can write (ReadWriteMany), which the folder of the run must be in.
TEXT
}

flags() {
  cat <<'TABLE'
name||NAME|name of the JobSet (needed)
image||IMAGE|image with jaxvit, built from the Dockerfile (needed)
nodes|1|N|nodes of the run; for TPUs this follows from --topology
gpus_per_node|0|N|NVIDIA GPUs of each node, 0 = none
tpu||KIND|TPU nodes of this kind, such as tpu-v5-lite-podslice or tpu-v6e-slice (GKE's label gke-tpu-accelerator)
topology||AxB|chips of the TPU slice, such as 4x4 or 4x4x4
chips_per_node|4|N|TPU chips of each node
node_label||KEY=VALUE...|only nodes with this label, such as cloud.google.com/gke-accelerator=nvidia-h100-80gb
volume||CLAIM:/FOLDER...|mount a persistent volume claim in this folder; may be repeated
cpus||N|CPU cores of each pod
memory||SIZE|memory of each pod, such as 64Gi
save_within|120|SECONDS|time that a pod has to save its state when it is stopped
retries|3|N|how often the run is started again after a failure; evictions and stops do not count
namespace||NAME|namespace (default: kubectl's)
TABLE
}

# A string of YAML in double quotes, which are those of JSON.
yaml() {
  local text=$1 code character
  text=${text//\\/\\\\} text=${text//\"/\\\"}
  text=${text//$'\n'/\\n} text=${text//$'\t'/\\t} text=${text//$'\r'/\\r}
  for code in 1 2 3 4 5 6 7 8 11 12 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 127; do
    printf -v character '%b' "\\0$(printf '%o' "$code")"
    case $text in *"$character"*) text=${text//"$character"/\\u$(printf '%04x' "$code")} ;; esac
  done
  printf '"%s"' "$text"
}

# A word of a command. Kubernetes replaces $(NAME) in it, and $$ by $.
argument() { yaml "${1//\$/\$\$}"; }

check_k8s_flags() {
  local word size
  for word in name image; do
    size=flag_$word
    [ -n "${!size}" ] || fail "--$word is missing; see ./launch.sh --on=k8s --help"
  done
  # Pods get this name with a suffix, and are found by it as a host.
  [[ $flag_name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
    fail "--name=$flag_name: at most 40 lower-case letters, digits and hyphens, from a letter on"
  whole nodes 1
  whole gpus_per_node 0
  whole chips_per_node 1
  whole save_within 1
  whole retries 0
  [ -z "$flag_cpus" ] || whole cpus 1
  [ -z "$flag_memory" ] || [[ $flag_memory =~ ^[0-9]+([KMGT]i?)?$ ]] || fail "--memory=$flag_memory: write it as 64Gi"
  for word in ${flag_volume[@]+"${flag_volume[@]}"}; do
    [[ $word =~ ^[a-z0-9]([a-z0-9.-]*[a-z0-9])?:/.+$ ]] || fail "--volume=$word: write it as CLAIM:/FOLDER, such as runs:/runs"
  done
  for word in ${flag_node_label[@]+"${flag_node_label[@]}"}; do
    [[ $word =~ ^[A-Za-z0-9./_-]+=[A-Za-z0-9._-]*$ ]] || fail "--node_label=$word: write it as KEY=VALUE"
  done
  if [ -n "$flag_tpu$flag_topology" ]; then
    [ -n "$flag_tpu" ] || fail "--topology=$flag_topology needs --tpu=KIND, such as --tpu=tpu-v5-lite-podslice"
    [ "$flag_gpus_per_node" -eq 0 ] || fail "--tpu and --gpus_per_node: a node has one of the two"
    [[ $flag_topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
      fail "--topology=$flag_topology: write the chips of the slice as 4x4 or 4x4x4"
    size=$((${flag_topology//x/*}))
    # A slice of one node may have fewer chips than a node of a larger slice.
    [ "$size" -ge "$flag_chips_per_node" ] || flag_chips_per_node=$size
    [ $((size % flag_chips_per_node)) -eq 0 ] ||
      fail "--topology=$flag_topology has $size chips, which --chips_per_node=$flag_chips_per_node does not divide"
    [ "$flag_nodes" -eq 1 ] || [ "$flag_nodes" -eq $((size / flag_chips_per_node)) ] ||
      fail "--nodes=$flag_nodes: --topology=$flag_topology has $((size / flag_chips_per_node)) nodes of $flag_chips_per_node chips; leave --nodes out"
    flag_nodes=$((size / flag_chips_per_node))
  fi
}

manifest() {  # manifest VERB ARG…
  local word index
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $flag_name
${flag_namespace:+  namespace: $flag_namespace
}spec:
  failurePolicy:
    maxRestarts: $flag_retries
    rules:
      # Pods that exit with 75 or were evicted have saved their state (podFailurePolicy below).
      - name: saved
        action: RestartJobSetAndIgnoreMaxRestarts
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: workers
      replicas: 1
      template:
        spec:
          parallelism: $flag_nodes
          completions: $flag_nodes
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: jaxvit
                  operator: In
                  values: [75]
              - action: FailJob
                onPodConditions:
                  - type: DisruptionTarget
                    status: "True"
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: $flag_save_within
YAML
  if [ -n "$flag_tpu" ] || [ -n "${flag_node_label[*]+x}" ]; then
    echo '              nodeSelector:'
    if [ -n "$flag_tpu" ]; then
      echo "                cloud.google.com/gke-tpu-accelerator: $(yaml "$flag_tpu")"
      echo "                cloud.google.com/gke-tpu-topology: $(yaml "$flag_topology")"
    fi
    for word in ${flag_node_label[@]+"${flag_node_label[@]}"}; do
      echo "                ${word%%=*}: $(yaml "${word#*=}")"
    done
  fi
  cat <<YAML
              containers:
                - name: jaxvit
                  image: $(yaml "$flag_image")
                  command: ["python", "-m", "jaxvit"]
                  args:
YAML
  for word in "$@"; do echo "                    - $(argument "$word")"; done
  if [ "$1" = train ] && [ "$flag_nodes" -gt 1 ]; then
    if [ -n "$flag_tpu" ]; then
      # GKE sets the variables by which jax finds the other workers of a slice.
      echo '                    - "--distributed"'
    else
      echo "                    - \"--coordinator=$flag_name-workers-0-0.$flag_name:9755\""
      echo "                    - \"--num_processes=$flag_nodes\""
      # Kubernetes fills in the index of the pod.
      echo "                    - \"--process_id=\$(JOB_COMPLETION_INDEX)\""
    fi
  fi
  if [ "$flag_gpus_per_node" -gt 0 ] || [ -n "$flag_tpu$flag_cpus$flag_memory" ]; then
    printf '                  resources:\n                    limits:\n'
    [ "$flag_gpus_per_node" -eq 0 ] || echo "                      nvidia.com/gpu: $flag_gpus_per_node"
    [ -z "$flag_tpu" ] || echo "                      google.com/tpu: $flag_chips_per_node"
    [ -z "$flag_cpus" ] || echo "                      cpu: $flag_cpus"
    [ -z "$flag_memory" ] || echo "                      memory: $flag_memory"
  fi
  printf '                  volumeMounts:\n                    - {name: shared-memory, mountPath: /dev/shm}\n'
  index=0
  for word in ${flag_volume[@]+"${flag_volume[@]}"}; do
    echo "                    - {name: volume-$index, mountPath: $(yaml "${word#*:}")}"
    index=$((index + 1))
  done
  # Containers have 64 MB of shared memory by default, which NCCL fills.
  printf '              volumes:\n                - {name: shared-memory, emptyDir: {medium: Memory}}\n'
  index=0
  for word in ${flag_volume[@]+"${flag_volume[@]}"}; do
    echo "                - {name: volume-$index, persistentVolumeClaim: {claimName: $(yaml "${word%%:*}")}}"
    index=$((index + 1))
  done
}

submit() {
  check_k8s_flags
  needs kubectl k8s "install it, and choose a cluster by: kubectl config use-context NAME"
  if [ "$1" != train ] && [ "$flag_nodes" -gt 1 ]; then
    fail "--nodes=$flag_nodes: only train runs on several nodes; $1 runs as one process"
  fi
  if [ -n "$flag_dry_run" ]; then manifest "$@"; exit 0; fi
  manifest "$@" | kubectl create -f - || fail "kubectl could not create the JobSet $flag_name (its reason is above)"
  local where=${flag_namespace:+ --namespace=$flag_namespace}
  echo "Next:  kubectl logs$where --follow --max-log-requests=64 --selector=jobset.sigs.k8s.io/jobset-name=$flag_name"
  echo "       kubectl get jobset$where $flag_name    kubectl delete jobset$where $flag_name"
}
