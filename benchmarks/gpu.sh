#!/usr/bin/env bash
# bash benchmarks/gpu.sh OUT [PART ...]
#   Measures training on one CUDA device, without a network: 25 minutes at most for all parts, less than 9 for each.
#   tests     the tests that need a GPU                                        at most 4 minutes
#   steps     training steps as they are, the peaks of the device, a profile   3
#   syncs     what makes the host wait inside of a step                        1.5
#   compiled  training steps compiled, and as CUDA graphs                      6
#   ops       point-cloud ops beside plain torch and, if it is there, others   3.5
#   train     ModelNet40, dense and EWA, for as many epochs as fit             6.5
# Each part leaves OUT/PART.json as it ends, one that fails too; OUT/gpu.md has the tables of all, OUT/log.txt what was
# printed. Exit code 1: a part failed, the others went on; 2: nothing was begun.
#   --rehearse ...          the same on a CPU in seconds, toy-sized: it measures nothing
#   PYTHON=python3.12 ...   the interpreter (default: python3); torch, triton, pydantic, einops, h5py, PyYAML, safetensors,
#                           scikit-learn and tqdm are needed, pytest and hypothesis for the tests
#   POINTNET2=FOLDER ...    the source of pointnet2_ops, to compile with nvcc and to compare with
# ModelNet40 is taken from datasets/modelnet40/modelnet40.h5 (see the README there); without it, the bundled furniture.
set -uo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3}"
rehearse=()
[ "${1:-}" != --rehearse ] || { rehearse=(--rehearse); shift; }
case "${1:-}" in -h | --help) sed -n '2,18s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;; esac
[ $# -gt 0 ] && [[ "$1" != -* ]] || { sed -n '2,18s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
declare -A limit=([tests]=240 [steps]=180 [syncs]=90 [compiled]=360 [ops]=210 [train]=390)
out="$1"; shift
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(tests steps syncs compiled ops train)
for part in "${parts[@]}"; do
  [ -n "$part" ] && [ -n "${limit[$part]:-}" ] || { echo "error: no part '$part'; choose from tests, steps, syncs, compiled, ops, train" >&2; exit 2; }
done
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
absent="$("$python" -c 'import importlib.util as u
print(*(n for n in "torch einops h5py numpy pydantic safetensors sklearn tqdm yaml".split() if not u.find_spec(n)))' 2>/dev/null)" ||
  { echo "error: PYTHON=$python does not run; name a Python that has torch" >&2; exit 2; }
[ -z "$absent" ] || { echo "error: $python lacks $absent; install them there, or name another with PYTHON=..." >&2; exit 2; }
if [ ${#rehearse[@]} = 0 ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "error: torch finds no CUDA device here; run this on a machine with one, or bash benchmarks/gpu.sh --rehearse OUT" >&2
  exit 2
fi
mkdir -p "$out" 2>/dev/null || { echo "error: OUT=$out cannot be made; choose another folder" >&2; exit 2; }
out="$(cd "$out" && pwd)"
cd "$root" || exit 2
failed=()
for part in "${parts[@]}"; do
  echo "== $part, at most ${limit[$part]} s" | tee -a "$out/log.txt"
  # The part itself ends in time, with what it has; the timeout is for one that hangs.
  timeout --kill-after=10 "${limit[$part]}" "$python" -m pc_ewa.benchmark.gpu "$part" "$out" \
    --seconds $((limit[$part] - 30)) "${rehearse[@]}" 2>&1 | tr '\r' '\n' | tee -a "$out/log.txt"
  code=${PIPESTATUS[0]}
  [ "$code" = 0 ] || { failed+=("$part"); echo "== $part failed with exit code $code" | tee -a "$out/log.txt"; }
done
"$python" -m pc_ewa.benchmark.gpu_page "$out" > "$out/gpu.md" || failed+=("gpu.md")
[ ${#failed[@]} = 0 ] || { echo "error: failed: ${failed[*]}; see $out/log.txt" >&2; exit 1; }
echo "done: $out/gpu.md"
