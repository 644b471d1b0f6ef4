#!/bin/sh
# Runs one study at several sites, each with its own batch system. The sites share only the store.
#
#     HOPAAS_STORE=postgresql://campaign@db.example.org/hopaas HOPAAS_STUDY=demo sh multi_site.sh north south
#
# A site is a host that you reach by ssh, with this directory in ~/hopaas. The credentials for the store are in files at
# each site (PGPASSFILE, HOPAAS_TOKEN_FILE), never in a command. With REMOTE=local, all sites run on this machine.
set -eu
: "${HOPAAS_STORE:?set it to the store}" "${HOPAAS_STUDY:?set it to the study}"

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
