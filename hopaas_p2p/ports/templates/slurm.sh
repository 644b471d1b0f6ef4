#!/bin/bash
# Written by hopaas-p2p. This script contains no secrets; it names your files with credentials.
#SBATCH --job-name=@name@
#SBATCH --array=0-@last@
#SBATCH --time=@time@
#SBATCH --requeue                 # when a node dies, or the job is pre-empted
#SBATCH --open-mode=append        # a requeued job appends to its output
#SBATCH --output="@folder@/@name@-%a.out"
#SBATCH --signal=B:USR1@@warning@    # tell this script @warning@ s before the time limit
#SBATCH --cpus-per-task=@?cores@
#SBATCH --gpus=@?gpus@
#SBATCH --mem=@?memory@
#SBATCH --partition="@?queue@"
#SBATCH --account="@?account@"
@more@
@exports@

@worker@ &
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
