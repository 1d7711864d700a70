#!/bin/sh
# Embeds a dataset in several processes on this machine, each with its part of the CPUs, and scores it.
#
#   examples/workers/two_processes.sh NAME [PROCESSES]
#
# NAME is a dataset of your visdiv.yaml, or a folder. Run it again after a failure or Ctrl-C: it goes on.
set -eu
name=$1
processes=${2:-2}
VISDIV_CPUS=$(($(nproc) / processes))
[ "$VISDIV_CPUS" -ge 1 ] || VISDIV_CPUS=1
export VISDIV_CPUS

visdiv plan "$name" --images 2000
pids=
end() {
  trap - EXIT INT TERM
  [ -z "$pids" ] || kill $pids 2>/dev/null || true
  wait
  exit "$1"
}
trap 'end $?' EXIT
trap 'end 130' INT
trap 'end 143' TERM
for k in $(seq "$processes"); do
  visdiv embed "$name" --units "$k/$processes" &
  pids="$pids $!"
done
failed=0
for pid in $pids; do
  wait "$pid" || failed=1
done
pids=
[ "$failed" = 0 ] || exit 1
visdiv merge "$name"
