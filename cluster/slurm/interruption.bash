# shellcheck shell=bash
# A job that was interrupted goes back into the queue by itself. Sourced after site.env.

INTERRUPTED=75

# end_or_requeue CODE: ends the script; with 75 and restarts left, the job goes back into the queue first.
end_or_requeue() {
  local code=$1 restarts=${SLURM_RESTART_COUNT:-0} job=$SLURM_JOB_ID
  # One task of an array has the number of the whole.
  if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi
  if [ "$code" -eq "$INTERRUPTED" ]; then
    if [ "$restarts" -lt "$MAX_RESTARTS" ]; then
      echo "interrupted; back into the queue (restart $((restarts + 1)) of at most $MAX_RESTARTS)"
      scontrol requeue "$job"
    else
      echo "interrupted after $restarts restarts, and MAX_RESTARTS is $MAX_RESTARTS: submit it again to go on" >&2
    fi
  fi
  exit "$code"
}
