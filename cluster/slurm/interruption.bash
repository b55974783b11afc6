# shellcheck shell=bash
# A job that was interrupted goes back into the queue by itself. Sourced after site.env.

INTERRUPTED=75

# end_or_requeue CODE: ends the script; with 75 and restarts left, the job goes back into the queue first.
end_or_requeue() {
  local code=$1 restarts=${SLURM_RESTART_COUNT:-0}
  if [ "$code" -eq "$INTERRUPTED" ]; then
    if [ "$restarts" -lt "$MAX_RESTARTS" ]; then
      echo "interrupted; back into the queue (restart $((restarts + 1)) of at most $MAX_RESTARTS)"
      scontrol requeue "$SLURM_JOB_ID"
    else
      echo "interrupted after $restarts restarts, and MAX_RESTARTS is $MAX_RESTARTS: submit it again to go on" >&2
    fi
  fi
  exit "$code"
}
