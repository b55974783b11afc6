# shellcheck shell=bash
# A Ray cluster inside the allocation of a job. Sourced by build.sbatch, after site.env.
#   start_ray      head on the first node, a worker on each other; sets RAY_ADDRESS and DASHBOARD
#   it ends with the job, whatever happens

source cluster/slurm/node_address.bash

start_ray() {
  local nodes first address cpus port
  mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  first=${nodes[0]}
  address=$(node_address "$first")
  cpus=${SLURM_CPUS_ON_NODE:-1}
  # Jobs that share a node must not meet; below the range from which systems give out ports.
  port=$((20000 + SLURM_JOB_ID % 1000 * 10))
  export RAY_ADDRESS="$address:$port" DASHBOARD="http://$address:$((port + 1))"
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(python -c 'import secrets; print(secrets.token_hex(32))')}
  trap 'kill $(jobs -p) 2>/dev/null || true; wait 2>/dev/null || true' EXIT
  srun --nodes=1 --ntasks=1 --nodelist="$first" --overlap "${CONTAINER[@]}" ray start --head --block \
    --node-ip-address="$address" --port="$port" --dashboard-host=0.0.0.0 --dashboard-port="$((port + 1))" \
    --num-cpus="$cpus" --temp-dir="$SCRATCH/ray-$SLURM_JOB_ID" >"$SCRATCH/ray-$SLURM_JOB_ID-head.log" 2>&1 &
  wait_for_ray
  if [ "${#nodes[@]}" -gt 1 ]; then
    srun --nodes="$((${#nodes[@]} - 1))" --ntasks="$((${#nodes[@]} - 1))" --exclude="$first" --overlap "${CONTAINER[@]}" \
      ray start --block --address="$RAY_ADDRESS" --num-cpus="$cpus" >"$SCRATCH/ray-$SLURM_JOB_ID-workers.log" 2>&1 &
  fi
}

wait_for_ray() {
  for _ in $(seq 120); do
    if "${CONTAINER[@]}" ray status --address "$RAY_ADDRESS" >/dev/null 2>&1; then return; fi
    sleep 1
  done
  echo "error: Ray does not answer at $RAY_ADDRESS; see $SCRATCH/ray-$SLURM_JOB_ID-head.log on $(hostname)" >&2
  exit 1
}
