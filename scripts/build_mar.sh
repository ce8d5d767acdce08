#!/bin/sh
# Build the archive of one version from handler/ and models/<version>/: the same bytes each time.
#
#   scripts/build_mar.sh VERSION        ->  model_store/bloodcells-VERSION.mar
#
# PYTHON names the interpreter that has torch-model-archiver (default: python3).
set -eu

version=${1:?"usage: scripts/build_mar.sh VERSION, for example 1.0"}
cd "$(dirname "$0")/.."
model="models/$version"
python=${PYTHON:-python3}

for file in card.json golden.json model-config.yaml; do
    [ -f "$model/$file" ] || {
        echo "$model/$file is missing: run \`make train VERSION=$version\`, then \`make evaluate VERSION=$version\`." >&2
        exit 1
    }
done

PYTHONPATH=. "$python" - "$model" <<'END' || {
import json, pathlib, sys
from handler.checked import read_checked
folder = pathlib.Path(sys.argv[1])
card = json.loads((folder / "card.json").read_text())
if "classes" not in card:
    sys.exit(f'{folder}/card.json has no "classes".')
try:
    for name in {*card.get("sha256", {}), *(path.name for path in folder.glob("*.onnx"))}:
        read_checked(folder, card, name)
except RuntimeError as error:
    sys.exit(str(error))
END
    echo "The networks in $model do not match its card.json: run \`make train VERSION=$version\`." >&2
    exit 1
}

# The archiver works in a folder of the temporary directory that is named after the model. A separate
# temporary directory allows two builds at once.
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir -p "$stage/tmp" "$stage/out" "$stage/extra/handler" model_store
cp handler/*.py "$stage/extra/handler/"
# TorchServe's entry point must be outside the package.
rm "$stage/extra/handler/bloodcells_handler.py"
cp "$model"/*.onnx "$model/card.json" "$model/golden.json" "$stage/extra/"

TMPDIR="$stage/tmp" "$python" -c "from model_archiver.model_packaging import generate_model_archive as main; main()" \
    --model-name bloodcells \
    --version "$version" \
    --handler handler/bloodcells_handler.py \
    --config-file "$model/model-config.yaml" \
    --extra-files "$stage/extra" \
    --export-path "$stage/out"

PYTHONPATH=. "$python" scripts/reproducible_zip.py "$stage/out/bloodcells.mar" "model_store/bloodcells-$version.mar"
