#!/bin/sh
# What a GPU does with MARS, within ten minutes: the training of `mars doctor --train`, the tests marked gpu, and packs
# against separate runs at the size of LLaVA-OneVision 0.5B. Needs no Prefect, no MLflow and no network; other versions of
# torch, transformers and peft than the pinned ones are printed, not refused. Results: tables on standard output,
# benchmarks/results/packed_speed_0.5b.json, and a log of each part in the folder that the first argument names.
#
#   sh benchmarks/gpu_check.sh [FOLDER]
set -u
cd "$(dirname "$0")/.."
out=${1:-gpu_check}
mkdir -p "$out"
python=${PYTHON:-python}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
failed=0

part() { # name, seconds, command: runs it within its time, keeps its log, goes on whatever it ends with
    name=$1 seconds=$2
    shift 2
    echo "== $name: $*"
    timeout "$seconds" "$@" >"$out/$name.log" 2>"$out/$name.err"
    code=$?
    tail -n 40 "$out/$name.log"
    if [ "$code" -ne 0 ]; then
        failed=1
        echo "-- $name ended with $code; the end of its messages:"
        tail -n 15 "$out/$name.err"
    fi
}

part doctor 180 "$python" -m mars_core.doctor
# Only files with such tests: others import what need not be here.
part tests 150 "$python" -m pytest -m gpu -q -p no:cacheprovider $(grep -rl "mark.gpu" tests/mars_core)
part speed 240 "$python" benchmarks/packed_speed.py --shape 0.5b --device cuda --rounds 2 --steps 8
cp benchmarks/results/packed_speed_0.5b.json "$out/" 2>/dev/null
exit "$failed"
