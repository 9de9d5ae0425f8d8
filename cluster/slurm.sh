#!/usr/bin/env bash
#SBATCH --job-name=raykfold
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Starts a Ray cluster on the nodes of this job, runs raykfold on it, and removes everything at the end:
#
#   sbatch cluster/slurm.sh --processed_dir /shared/data/us8k --model_dir /shared/runs/us8k
#
# The arguments are raykfold's. All nodes must see both folders, which can be URIs. The first node runs
# Ray's head and the driver. When time runs out, or Slurm takes nodes away, the job is queued again and
# resumes from its checkpoints.
#
# PYTHON is the interpreter of an environment that all nodes see (default: python). NODE_SECONDS is how
# long to wait for the other nodes (default: 300); then the run starts on those that are there.
set -euo pipefail

: "${SLURM_JOB_ID:?run this with sbatch}"
export PYTHON=${PYTHON:-python}
nodes=${SLURM_JOB_NUM_NODES:-1}
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${hosts[0]:?scontrol names no node}

# Every process that talks to Ray sends this token. It is for this job only, in a file that only its
# owner can read, in the home folder that the nodes share.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.raykfold-$SLURM_JOB_ID.token
unset RAY_AUTH_TOKEN RAY_ADDRESS # the one would override the file, the other names another cluster
(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")

# Ports and folders are not fixed, because other jobs may share these nodes.
logs=$(mktemp -d "${TMPDIR:-/tmp}/raykfold-$SLURM_JOB_ID-XXXXXX")
free_port() {
  "$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}
port=$(free_port)
client_port=$(free_port)
# Ray's head chooses its address in the same way.
address=$("$PYTHON" -c 'import ray; print(ray.util.get_node_ip_address())'):$port

# Each node runs Ray until it gets a signal, and then removes what Ray leaves. Ray's processes do not get
# the driver's secrets.
# shellcheck disable=SC2016 # the node expands them
on_node='
  unset HF_TOKEN HUGGING_FACE_HUB_TOKEN WANDB_API_KEY
  folder=/tmp/rkf-$SLURM_JOB_ID-$1 # short, because a path of a socket has at most 107 bytes
  [[ $1 == head ]] || folder=$folder$SLURM_PROCID
  shift
  "$PYTHON" -m ray.scripts.scripts start --block --temp-dir="$folder" --disable-usage-stats \
    --num-cpus="${SLURM_CPUS_PER_TASK:-$(nproc)}" --min-worker-port=0 --max-worker-port=0 \
    --dashboard-agent-listen-port=0 "$@" &
  trap "kill $! 2>/dev/null || :" TERM INT
  wait $! || wait $! || : # the first wait ends with the signal, the second with Ray
  rm -rf "$folder"
'

steps=()
driver='' stopped='' again=''
leave() {
  local code=$?
  trap '' TERM INT USR1
  # Not `ray stop`: it would also stop the Ray of this user's other jobs on the node.
  for step in "${steps[@]}"; do kill "$step" 2>/dev/null || :; done
  for step in "${steps[@]}"; do wait "$step" 2>/dev/null || :; done
  rm -rf "$RAY_AUTH_TOKEN_PATH" "$logs"
  # Last, because Slurm then ends the job at once.
  if [[ -n $again && $code -eq 130 ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
}
trap leave EXIT

# Before the driver starts, a signal ends the job. After that it is passed on to the driver, which stops
# its workers, prints the command that resumes, and exits with 130.
stop() {
  [[ -n $driver ]] || exit 130
  stopped=yes
  kill -TERM "$driver" 2>/dev/null || :
}
time_is_up() {
  again=yes
  stop
}
trap stop TERM INT
trap time_is_up USR1

# srun does not inherit --cpus-per-task from sbatch.
srun --nodes=1 --ntasks=1 --nodelist="$first" --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  bash -c "$on_node" node head --head --port="$port" --ray-client-server-port="$client_port" \
  --include-dashboard=false >"$logs/head" 2>&1 &
steps+=($!)

started() { cat "$logs"/* | grep -c 'Ray runtime started' || :; }
until [[ $(started) -ge 1 ]]; do
  if ! kill -0 "${steps[0]}" 2>/dev/null; then
    cat "$logs/head" >&2
    echo "slurm.sh: Ray did not start on $first" >&2
    exit 1
  fi
  sleep 1
done

if [[ $nodes -gt 1 ]]; then
  srun --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --exclude="$first" \
    --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    bash -c "$on_node" node w --address="$address" >"$logs/workers" 2>&1 &
  steps+=($!)
  deadline=$((SECONDS + ${NODE_SECONDS:-300}))
  until [[ $(started) -ge $nodes || $SECONDS -ge $deadline ]] || ! kill -0 "${steps[1]}" 2>/dev/null; do
    sleep 1
  done
  [[ $(started) -ge $nodes ]] || tail -n 20 "$logs/workers" >&2
fi
echo "slurm.sh: Ray at $address, $(started) of $nodes nodes" >&2

code=0
"$PYTHON" -m raykfold.run --address "$address" "$@" &
driver=$!
wait "$driver" || code=$?
if [[ -n $stopped ]]; then # the signal ended the first wait
  code=0
  wait "$driver" || code=$?
fi
exit "$code"
