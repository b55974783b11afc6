# shellcheck shell=bash
# A Ray cluster inside the allocation of a job. Sourced after site.env.
#   start_ray            head on the first node, a worker on each other; sets RAY_ADDRESS and DASHBOARD
#   beside_ray COMMAND   its exit code, or 75 where Slurm has asked the job to stop
# Ray ends with the job, whatever happens.

source cluster/slurm/interruption.bash
source cluster/slurm/node_address.bash

start_ray() {
  local first address port log
  mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  first=${NODES[0]}
  address=$(ip_of "$first" "${NODES[-1]}")
  # Jobs that share a node must not meet; below the range from which systems give out ports.
  port=$((20000 + SLURM_JOB_ID % 500 * 20))
  log=$SCRATCH/ray-$SLURM_JOB_ID
  export RAY_ADDRESS="$address:$port" DASHBOARD="http://$address:$((port + 1))"
  RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
  export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
  # It ends with the job: nobody waits for what it holds.
  export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
  rm -f "$log-stopped"
  trap end_ray EXIT
  ray_step 1 $((port + 3)) --nodelist="$first" -- --head --node-ip-address="$address" --port="$port" \
    --ray-client-server-port="$((port + 2))" --dashboard-host="$address" --dashboard-port="$((port + 1))" >"$log-head.log" 2>&1 &
  HEAD=$!
  wait_for_ray "$log-head.log"
  if [ "${#NODES[@]}" -gt 1 ]; then
    ray_step $((${#NODES[@]} - 1)) $((port + 7)) --exclude="$first" -- --address="$RAY_ADDRESS" >"$log-workers.log" 2>&1 &
  fi
}

# ray_step NODES PORT SRUN_OPTION ... -- RAY_OPTION ... &: on each node a Ray in a task that notes when Slurm tells it to stop.
ray_step() {
  local nodes=$1 port=$2 options=() cpus=${SLURM_CPUS_ON_NODE:-1}
  shift 2
  while [ "$1" != -- ]; do options+=("$1") && shift; done
  shift
  # Left to choose these ports itself, a Ray gives up where its agents take more than 15 seconds to load, from a slow disk for example.
  # In place of the shell that waits for it: what ends the job's steps must reach srun.
  # shellcheck disable=SC2016
  exec srun --overlap --nodes="$nodes" --ntasks="$nodes" --cpus-per-task="$cpus" "${options[@]}" \
    bash -c 'trap "touch \"$0\"; exit 75" TERM; "$@" & wait' "$SCRATCH/ray-$SLURM_JOB_ID-stopped" \
    "${CONTAINER[@]}" ray start --block --num-cpus="$cpus" --temp-dir="$SCRATCH/ray-$SLURM_JOB_ID" \
    --dashboard-agent-listen-port="$port" --dashboard-agent-grpc-port="$((port + 1))" --runtime-env-agent-port="$((port + 2))" \
    --metrics-export-port="$((port + 3))" "$@"
}

# The IPv4 address of a node as another one sees it: a node's own hosts file may lead its name to a loopback address.
ip_of() {
  local name
  name=$(node_address "$1")
  srun --overlap --nodes=1 --ntasks=1 --nodelist="$2" getent ahostsv4 "$name" | awk 'NR == 1 { print $1 }'
}

wait_for_ray() {
  for _ in $(seq 300); do
    if "${CONTAINER[@]}" ray status --address "$RAY_ADDRESS" >/dev/null 2>&1; then return; fi
    kill -0 "$HEAD" 2>/dev/null || break
    sleep 1
  done
  echo "error: Ray does not answer at $RAY_ADDRESS; see $1 on ${NODES[0]}" >&2
  exit 1
}

beside_ray() {
  local code=0
  "$@" || code=$?
  # When all of a job are told to stop, it may be Ray's end that its driver reports. The script runs on the head's node.
  if [ "$code" -ne 0 ] && [ -e "$SCRATCH/ray-$SLURM_JOB_ID-stopped" ]; then code=$INTERRUPTED; fi
  return "$code"
}

end_ray() {
  local code=$?
  # shellcheck disable=SC2046
  kill $(jobs -p) 2>/dev/null || true
  wait 2>/dev/null || true
  # Its logs are worth something only where something failed. Its last processes may still be ending.
  if [ "$code" -eq 0 ]; then
    # shellcheck disable=SC2016
    srun --overlap --nodes="${#NODES[@]}" --ntasks="${#NODES[@]}" \
      bash -c 'for _ in 1 2 3 4 5; do rm -rf "$@" 2>/dev/null && break; sleep 1; done' sh "$SCRATCH/ray-$SLURM_JOB_ID"{,-head.log,-workers.log,-stopped}
  fi
}
