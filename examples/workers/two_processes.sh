#!/bin/sh
# Embeds a dataset in several processes on this machine, each with its part of the CPUs, and scores it.
#
#   examples/workers/two_processes.sh NAME [PROCESSES]
#
# NAME is a dataset of your visdiv.yaml, or a folder. Run it again after a failure: it goes on.
set -eu
name=$1
processes=${2:-2}
VISDIV_CPUS=$(($(nproc) / processes))
[ "$VISDIV_CPUS" -ge 1 ] || VISDIV_CPUS=1
export VISDIV_CPUS

visdiv plan "$name" --images 2000
pids=
for k in $(seq "$processes"); do
  visdiv embed "$name" --units "$k/$processes" &
  pids="$pids $!"
done
for pid in $pids; do
  wait "$pid" # ends the script if that process has failed
done
visdiv merge "$name"
