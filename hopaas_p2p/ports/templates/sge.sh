#!/bin/bash
# Written by hopaas-p2p for Grid Engine. It contains no secrets: credentials are in files of yours that it names.
#$ -N @name@
#$ -t 1-@jobs@
#$ -l h_rt=@time@
#$ -notify
#$ -r y
#$ -cwd
#$ -j y
#$ -o @folder@/
#$ -S /bin/bash
#$ -pe smp @?cores@
#$ -l gpu=@?gpus@
#$ -l h_vmem=@?memory@
#$ -q @?queue@
#$ -P @?account@
@more@
@exports@

@worker@ &
worker=$!
trap 'kill -TERM $worker 2>/dev/null' USR1 USR2 TERM
while kill -0 $worker 2>/dev/null; do wait $worker; done
wait $worker
code=$?
if [ "$code" -eq 75 ]; then exit 99; fi  # 99: queue this task again
exit "$code"
