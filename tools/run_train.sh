#!/usr/bin/env bash
# bash tools/run_train.sh [CONFIG.yaml] [key=value ...]
#   Sets up what is missing, then trains, merges the experts, evaluates and reports. The same command resumes a run.
#   CONFIG.yaml (from the root of the repository) defaults to configs/quickstart.yaml; key=value changes a key of it,
#   as in train.lr=1e-3. It is `pc-ewa train`, with an environment and a process for each GPU.
#   GPUS=2 ...                              processes on this machine (default: one per GPU; without a GPU, one)
#   NODES=4 NODE_RANK=0 MASTER=10.0.0.1 ... start once on every node, each with its own NODE_RANK (PORT=29500)
#   NODES=2:4 MASTER=10.0.0.1 ...           start once on every node; the run continues with 2 to 4 of them
#   RESTARTS=3 ...                          a process that dies is started again, with all others (default: 0)
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in
  -h | --help) sed -n '2,9s/^# \{0,1\}//p' tools/run_train.sh; exit 0 ;;
  "" | *=* | -*) set -- configs/quickstart.yaml "$@" ;;
esac

source tools/setup.sh

whole() { [[ "$2" =~ ^[1-9][0-9]{0,5}$ ]] || fail "$1=$3; give a whole number from 1 on"; }
NODES="${NODES:-1}" RESTARTS="${RESTARTS:-0}" PORT="${PORT:-29500}"
fewest="${NODES%%:*}" most="${NODES##*:}"
[ "$NODES" = "$most" ] || [ "$NODES" = "$fewest:$most" ] || fail "NODES=$NODES; give a number, or the fewest and most as 2:4"
whole NODES "$fewest" "$NODES" && whole NODES "$most" "$NODES"
[ "$fewest" != "$most" ] || NODES="$most"
[ "$fewest" -le "$most" ] || fail "NODES=$NODES; give the fewest first, as 2:4"
[[ "$RESTARTS" =~ ^[0-9]{1,6}$ ]] || fail "RESTARTS=$RESTARTS; give a whole number from 0 on"
[[ "$PORT" =~ ^[1-9][0-9]{0,4}$ ]] && [ "$PORT" -le 65535 ] || fail "PORT=$PORT; give a number from 1 to 65535"
[ -z "${GPUS:-}" ] || whole GPUS "$GPUS" "$GPUS"
if [ "$fewest" != "$most" ]; then
  [ -n "${MASTER:-}" ] || fail "NODES=$NODES needs MASTER=address of a node that stays"
elif [ "$most" != 1 ]; then
  [ -n "${NODE_RANK:-}" ] && [ -n "${MASTER:-}" ] || fail "NODES=$NODES needs NODE_RANK=0..$((NODES - 1)) and MASTER=address of node 0"
  [[ "$NODE_RANK" =~ ^[0-9]{1,6}$ ]] && [ "$NODE_RANK" -lt "$NODES" ] || fail "NODE_RANK=$NODE_RANK; give 0 to $((NODES - 1))"
fi

setup requirements.txt

GPUS="${GPUS:-$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))')}"
if [ "$most" = 1 ] && [ "$GPUS" = 1 ] && [ "$RESTARTS" = 0 ]; then
  exec "$PYTHON" -m pc_ewa train --report "$@"
fi
# torchrun would try again and again, without a word on what is wrong.
[ "$most" = 1 ] || "$PYTHON" -c 'import socket, sys; socket.getaddrinfo(sys.argv[1], None)' "$MASTER" 2>/dev/null ||
  fail "MASTER=$MASTER; this machine knows no host of that name or address"

if [ "$most" = 1 ]; then
  shape=(--standalone)  # takes a free port: two runs on one machine do not collide
elif [ "$fewest" != "$most" ]; then
  shape=(--nnodes "$NODES" --rdzv-backend c10d --rdzv-endpoint "$MASTER:$PORT" --rdzv-id pc-ewa)
else
  shape=(--nnodes "$NODES" --node-rank "$NODE_RANK" --master-addr "$MASTER" --master-port "$PORT")
fi
# Check the config in one process first: a mistake is then one line, not a traceback per process. The batch must be
# divisible for every number of nodes that the run may have.
for nodes in $(seq "$fewest" "$most"); do
  "$PYTHON" -m pc_ewa train --check --processes "$((GPUS * nodes))" "$@" >/dev/null
done
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$("$PYTHON" -c "import os; print(max(1, (os.cpu_count() or 1) // $GPUS))")}"
exec "$PYTHON" -m pc_ewa.train.launch "${shape[@]}" --max-restarts "$RESTARTS" --nproc-per-node "$GPUS" -m pc_ewa train --report "$@"
