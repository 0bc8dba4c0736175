#!/bin/sh
# All of RankBench on one GPU, within ten minutes: every cell with both alpha rules, and the one with 64 pairs. It goes on
# where it stopped, and writes the same Parquet as `mars bench run`. Not run so far: no GPU was at hand.
#
#   sh benchmarks/rankbench_gpu.sh [FOLDER] [PROCESSES]
#
# Small models leave a GPU idle between kernels, so several processes share it, each with every Nth cell. Results of a GPU are
# kept apart from those of a CPU (FOLDER): the same seeds give other rounding. Then: mars bench replay --folder FOLDER
set -u
cd "$(dirname "$0")/.."
out=${1:-rankbench_gpu}
processes=${2:-4}
python=${PYTHON:-python}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS=2
mkdir -p "$out"
[ -d "$out/backbones" ] || cp -r benchmarks/results/rankbench/backbones "$out/"

waiting=
number=1
while [ "$number" -le "$processes" ]; do
    timeout 570 "$python" -c 'from flows.cli.main import main; main()' bench run --folder "$out" --device cuda \
        --shard "$number/$processes" --minutes 8.5 >"$out/shard$number.log" 2>&1 &
    waiting="$waiting $!"
    number=$((number + 1))
done
failed=0
for process in $waiting; do
    wait "$process" || failed=1
done
tail -n 3 "$out"/shard*.log
"$python" -c 'from flows.cli.main import main; main()' bench list --folder "$out"
exit "$failed"
