#!/bin/bash
# Eight workers that share one study. Submit more whenever you like, here and on other clusters:
#
#     export HOPAAS_STORE=/shared/campaign HOPAAS_STUDY=demo
#     sbatch array.sh python train.py --lr {lr} --depth {depth}
#
#SBATCH --job-name=hopaas
#SBATCH --array=0-7
#SBATCH --time=04:00:00
#SBATCH --requeue                 # when a node dies, or the job is pre-empted
#SBATCH --open-mode=append        # a requeued job appends to its output
#SBATCH --signal=B:USR1@330       # tell this script 330 s before the time limit
# Add what your training needs: --gpus=1 --cpus-per-task=8 --mem=16G --partition=…

hopaas-p2p worker --time-limit auto --grace "${HOPAAS_GRACE:-300}" -- "$@" &
worker=$!

# bash does not pass signals on by itself. TERM comes from scancel, or before a kill; the job is not requeued then.
cancelled=
trap 'kill -USR1 $worker 2>/dev/null' USR1
trap 'cancelled=yes; kill -TERM $worker 2>/dev/null' TERM

while kill -0 $worker 2>/dev/null; do wait $worker; done  # a trap interrupts `wait`
wait $worker
code=$?

# Exit code 75 means that the study is not done, but this job's time is up. The job is requeued.
if [ "$code" -eq 75 ] && [ -z "$cancelled" ]; then
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60  # Slurm ends this script
fi
exit "$code"
