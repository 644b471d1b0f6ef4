#!/bin/bash
# Written by hopaas-p2p for LSF. It contains no secrets: credentials are in files of yours that it names.
#BSUB -J @name@[1-@jobs@]
#BSUB -W @minutes@
#BSUB -n @cpus@
#BSUB -r
#BSUB -Q 75
#BSUB -wa USR1
#BSUB -wt @warningminutes@
#BSUB -o @folder@/@name@-%I.out
#BSUB -gpu num=@?gpus@
#BSUB -M @?memory@
#BSUB -q @?queue@
#BSUB -P @?account@
@more@
@exports@

exec @worker@
