#!/bin/bash
# Written by hopaas-p2p for PBS. It contains no secrets: credentials are in files of yours that it names.
#PBS -N @name@
#PBS -J 0-@last@
#PBS -l walltime=@time@
#PBS -l select=1:ncpus=@cpus@@gpuwords@@memorywords@
#PBS -r y
#PBS -j oe
#PBS -o @folder@/
#PBS -q @?queue@
#PBS -A @?account@
@more@
@exports@

cd "$PBS_O_WORKDIR" || exit 78
exec @worker@
