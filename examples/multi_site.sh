#!/bin/sh
# One study over several sites, each with a batch system of its own. They share nothing but the store.
#
#     HOPAAS_STORE=postgresql://campaign@db.example.org/hopaas HOPAAS_STUDY=demo sh multi_site.sh north south
#
# A site is a host that you reach by ssh, with this directory in ~/hopaas. What is needed to log in to the store lies
# on each site (PGPASSFILE, HOPAAS_TOKEN_FILE), never in a command. With REMOTE=local the sites run here, for a try.
set -eu
: "${HOPAAS_STORE:?where the study is}" "${HOPAAS_STUDY:?which study}"

for site in "$@"; do
    work="hopaas-p2p worker --site $site -- python train.py --lr {lr} --depth {depth} ${MORE:-}"
    if [ "${REMOTE:-ssh}" = local ]; then
        $work &
    else
        ssh "$site" "cd hopaas && HOPAAS_STORE='$HOPAAS_STORE' HOPAAS_STUDY='$HOPAAS_STUDY' sbatch slurm/array.sh \
            python train.py --lr {lr} --depth {depth} ${MORE:-}"
    fi
done
wait
# From anywhere: hopaas-p2p study show · watch · peers list · peers drain --site north
