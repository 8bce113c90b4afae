#!/usr/bin/env bash
# The tasks of `make real` in TRACE's form, from the package index alone: analyses/real/data.sh FOLDER
#
# They are task.json files of the package `bigbench` (358 MB, fetched once into FOLDER). BIG-bench asks that its data
# stay out of training corpora: FOLDER belongs in no repository (this one ignores data/).
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "error: Expected a folder to write to, $0 FOLDER" >&2
    exit 2
fi
python=${PYTHON:-python3}
folder=$1
package=$folder/bigbench-1.0.0.tar.gz
inside=bigbench-1.0.0/bigbench/benchmark_tasks
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

task() { # NAME, folder of its task.json
    [ -e "$folder/$1/test.json" ] && return
    if [ ! -e "$package" ]; then
        echo "fetching the package bigbench (358 MB)"
        "$python" -m pip --disable-pip-version-check download --quiet --no-deps --no-binary bigbench \
            --dest "$folder/partial" bigbench==1.0.0
        mv "$folder/partial/bigbench-1.0.0.tar.gz" "$package"
        rmdir "$folder/partial"
    fi
    tar -xzf "$package" -C "$scratch" "$inside/$2/task.json"
    "$python" analyses/convert.py --task "$1" --source "$scratch/$inside/$2" --output-dir "$folder"
}

task Sentiment multiemo/all_sentence_en
task Plural linguistic_mappings/plural_json
task PastTense linguistic_mappings/past_tense_json
task Negation linguistic_mappings/sentence_negation_json
