# Trains on two hosts that are network namespaces, cuts the cable of the second after step 28 and kills its processes; the
# first must finish alone. Takes 5 minutes, most of it gloo's patience. As root: bash tests/helpers/two_namespaces.sh FOLDER
set -u
out=$(realpath -m "${1:?give a folder for the run}")
cd "$(dirname "$0")/../.."
mkdir -p "$out"
trap 'ip netns del pcewa_a 2>/dev/null; ip netns del pcewa_b 2>/dev/null; rm -rf /etc/netns/pcewa_a /etc/netns/pcewa_b' EXIT

ip netns add pcewa_a && ip netns add pcewa_b || exit 2
ip link add pcewa_va type veth peer name pcewa_vb || exit 2
for side in a b; do
  host=$([ $side = a ] && echo 1 || echo 2)
  ip link set pcewa_v$side netns pcewa_$side
  ip -n pcewa_$side addr add 10.9.0.$host/24 dev pcewa_v$side
  ip -n pcewa_$side link set lo up
  ip -n pcewa_$side link set pcewa_v$side up
  mkdir -p /etc/netns/pcewa_$side
  printf '127.0.0.1 localhost\n10.9.0.1 hosta\n10.9.0.2 hostb\n' > /etc/netns/pcewa_$side/hosts  # `ip netns exec` mounts it
done

host() {
  export GLOO_SOCKET_IFNAME=pcewa_v$1 OMP_NUM_THREADS=1 GPUS=1 NODES=1:2 MASTER=10.9.0.1 RESTARTS=3
  exec ip netns exec pcewa_$1 unshare --uts sh -c "hostname host$1; exec \"\$@\"" host bash tools/run_train.sh \
    configs/quickstart.yaml output="$out/run" wandb=null train.epochs=6 train.eval_every=1 data.val_fraction=0
}

host a > "$out/a.log" 2>&1 & first=$!
host b > "$out/b.log" 2>&1 &
for _ in $(seq 1 120); do
  grep -q "step 28/" "$out/run/log.txt" 2>/dev/null && break
  sleep 1
done
grep -q "on 2 x cpu" "$out/run/log.txt" || { echo "the two hosts did not train together"; exit 1; }
echo "$(date +%T) the second host is lost"
ip -n pcewa_b link set pcewa_vb down
ip netns pids pcewa_b | xargs -r kill -9
wait $first; code=$?
echo "$(date +%T) the first host ends with $code"
grep -q "step 84/84" "$out/run/log.txt" && exit $code
