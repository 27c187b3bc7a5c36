#!/bin/bash
# A Slurm job array: every task is a worker of one search, on a GPU of its own.
#
#     export FLATSEARCH_STORAGE=postgresql://USER:PASSWORD@HOST/DB
#     sbatch --export=FLATSEARCH_STORAGE slurm.sh
#
# Submit it again to go on, with 200 more trials. Tasks get SIGTERM two minutes before their time
# is up; a trial that is running then is begun again by another worker.
#SBATCH --job-name=flatsearch
#SBATCH --array=0-15
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=4
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --output=flatsearch-%A-%a.log
set -euo pipefail

: "${FLATSEARCH_STORAGE:?is the storage that all workers share}"
DATA=${DATA:-/shared/data}
ARTIFACTS=${ARTIFACTS:-/shared/flatsearch-artifacts}

if [ "${SLURM_ARRAY_TASK_ID}" = 0 ]; then
    # The first task makes the study, or goes on with it.
    set -- run --space resnet_small --data cifar10 --study cifar --trials 200
else
    set -- worker cifar
    # There is nothing to join before the first task has come so far.
    until flatsearch report cifar >/dev/null 2>&1; do sleep 10; done
fi
# In its place, so that Slurm's signal reaches it.
exec flatsearch "$@" --data-root "$DATA" --artifacts "$ARTIFACTS"
