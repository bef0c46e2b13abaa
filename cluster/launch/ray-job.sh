#!/usr/bin/env bash
# Submit a run to a Ray cluster that is up. The same command again goes on where the run stopped.
#   ray-job.sh http://HEAD:8265 /shared/my.yaml /shared/runs/mine [PROFILE]
# The run folder must be on a disk that the cluster's head node keeps, for the driver runs there (an entrypoint
# that asks for resources would be placed on any node).
set -euo pipefail

address=${1:?the dashboard, as http://HEAD:8265}
experiment=${2:?an experiment file that the head node can read}
out=${3:?the run folder, on the head node}
profile=${4:-gpu}

exec ray job submit --address "$address" -- \
  evomerge run "$experiment" --executor "$profile" --out "$out"
