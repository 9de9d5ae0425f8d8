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
# A Ray of this job's own over its nodes, one run of raykfold on it, and nothing left behind:
#
#   sbatch cluster/slurm.sh --processed_dir /shared/data/us8k --model_dir /shared/runs/us8k
#
# Arguments are raykfold's. Both folders must be ones that every node sees (or URIs). The first node
# has Ray's head and the driver. Where time runs out, or Slurm takes the nodes away, the job is queued
# again, and goes on from its checkpoints.
#
# PYTHON is the interpreter of an environment that all nodes see (`python` by default); NODE_SECONDS
# is how long to wait for the other nodes (300): the run then starts with those that came.
set -euo pipefail

: "${SLURM_JOB_ID:?run this with sbatch}"
export PYTHON=${PYTHON:-python}
nodes=${SLURM_JOB_NUM_NODES:-1}
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${hosts[0]:?scontrol names no node}

# Ray takes a token from every process that speaks to it. This one is the job's: in a file that only
# its owner can read, in the home folder, which the nodes share.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.raykfold-$SLURM_JOB_ID.token
unset RAY_AUTH_TOKEN RAY_ADDRESS # the one would go before the file, the other names another cluster
(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")

# Nothing here has a fixed port or folder: other jobs may be on these nodes.
logs=$(mktemp -d "${TMPDIR:-/tmp}/raykfold-$SLURM_JOB_ID-XXXXXX")
free_port() {
  "$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}
port=$(free_port)
client_port=$(free_port)
# By Ray's own rule, which its head goes by too.
address=$("$PYTHON" -c 'import ray; print(ray.util.get_node_ip_address())'):$port

# What a node runs: Ray, until it is told to stop, and then the removal of what Ray leaves. Its
# workers have no use for the secrets that the driver has.
# shellcheck disable=SC2016 # to be expanded on the node
on_node='
  unset HF_TOKEN HUGGING_FACE_HUB_TOKEN WANDB_API_KEY
  folder=/tmp/rkf-$SLURM_JOB_ID-$1 # short: the paths of the sockets below end at 107 bytes
  [[ $1 == head ]] || folder=$folder$SLURM_PROCID
  shift
  "$PYTHON" -m ray.scripts.scripts start --block --temp-dir="$folder" --disable-usage-stats \
    --num-cpus="${SLURM_CPUS_PER_TASK:-$(nproc)}" --min-worker-port=0 --max-worker-port=0 \
    --dashboard-agent-listen-port=0 "$@" &
  trap "kill $! 2>/dev/null || :" TERM INT
  wait $! || wait $! || : # the first one ends when the signal comes, the second with Ray
  rm -rf "$folder"
'

steps=()
driver='' stopped='' again=''
leave() {
  local code=$?
  trap '' TERM INT USR1
  # `ray stop` would take the Ray of every other job of this user on the node with it.
  for step in "${steps[@]}"; do kill "$step" 2>/dev/null || :; done
  for step in "${steps[@]}"; do wait "$step" 2>/dev/null || :; done
  rm -rf "$RAY_AUTH_TOKEN_PATH" "$logs"
  # Last, because Slurm ends the job there and then.
  if [[ -n $again && $code -eq 130 ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
}
trap leave EXIT

# Before the driver is there, a signal ends the job; the driver gets it passed on, stops its workers,
# says how to go on, and exits with 130.
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

# --cpus-per-task: srun does not take it over from sbatch by itself.
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
if [[ -n $stopped ]]; then # then it was the signal that ended the wait
  code=0
  wait "$driver" || code=$?
fi
exit "$code"
