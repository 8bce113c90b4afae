#!/usr/bin/env bash
# Tasks of BIG-bench in TRACE's form, from the package index alone:
#
#   analyses/real/bigbench.sh FOLDER TASK=PATH…   e.g. data/bigbench Sentiment=multiemo/all_sentence_en
#
# PATH is that of a task.json in the package `bigbench` (358 MB, fetched once into FOLDER). BIG-bench asks that its data
# stay out of training corpora: FOLDER belongs in no repository (this one ignores data/).
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "error: Expected a folder and tasks, $0 FOLDER TASK=PATH…" >&2
    exit 2
fi
python=${PYTHON:-python3}
folder=$1
shift
package=$folder/bigbench-1.0.0.tar.gz
for task in "$@"; do
    name=${task%%=*}
    [ -e "$folder/$name/test.json" ] && continue
    if [ ! -e "$package" ]; then
        echo "fetching the package bigbench (358 MB)"
        "$python" -m pip --disable-pip-version-check download --quiet --no-deps --no-binary bigbench \
            --dest "$folder/partial" bigbench==1.0.0
        mv "$folder/partial/bigbench-1.0.0.tar.gz" "$package"
        rmdir "$folder/partial"
    fi
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    tar -xzf "$package" -C "$scratch" "bigbench-1.0.0/bigbench/benchmark_tasks/${task#*=}/task.json"
    "$python" analyses/convert.py --task "$name" --output-dir "$folder" \
        --source "$scratch/bigbench-1.0.0/bigbench/benchmark_tasks/${task#*=}"
done
