#!/bin/sh
# Builds the TensorRT engine of this bundle on the board on which it is started. It needs this folder and trtexec.
#
#   sh build_engine.sh [FOLDER]     the engine goes into FOLDER (default: engines/ beside this file)
#
# TRTEXEC says where trtexec is, where it is neither on the PATH nor in /usr/src/tensorrt/bin.
set -eu

precision=@PRECISION@
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
out=${1:-$here/engines}

die() { echo "build_engine.sh: $*" >&2; exit 1; }

trtexec=${TRTEXEC:-$(command -v trtexec || true)}
for program in /usr/src/tensorrt/bin/trtexec /usr/src/tensorrt/targets/*/bin/trtexec; do
  if [ -z "$trtexec" ] && [ -x "$program" ]; then trtexec=$program; fi
done
run() { "$trtexec" "$@"; }
if [ -z "$trtexec" ]; then
  python3 -c "import tensorrt" 2>/dev/null ||
    die "there is no trtexec: sudo apt install libnvinfer-bin, or say where it is with TRTEXEC=..."
  run() { python3 "$here/runner/trtexec.py" "$@"; }
fi

# v8502 is 8.5.2, v100300 is 10.3.0.
number=$(run --help 2>&1 | sed -n 's/.*\[TensorRT v\([0-9]*\)\].*/\1/p' | head -n 1)
case ${#number} in
  4) major=$((number / 1000)) minor=$((number / 100 % 10)) ;;
  6) major=$((number / 10000)) minor=$((number / 100 % 100)) ;;
  *) die "${trtexec:-tensorrt} does not tell its version" ;;
esac
version=$major.$minor.$((number % 100))
at=$((major * 100 + minor))
[ "$at" -ge 800 ] || die "TensorRT $version is too old: 8.0 is the first that this knows"

model=$here/model.onnx
if [ "$at" -ge 806 ]; then set -- --skipInference; else set -- --buildOnly; fi
if [ "$at" -lt 805 ]; then set -- "$@" --workspace=1024; fi
if [ "$at" -ge 1012 ]; then
  # From here on the types stand in the graph.
  if [ -f "$here/model-typed.onnx" ]; then model=$here/model-typed.onnx; fi
  if [ "$at" -lt 1100 ]; then set -- "$@" --stronglyTyped; fi
else
  case $precision in
    fp16) set -- "$@" --fp16 ;;
    int8) set -- "$@" --fp16 --int8 ;;
  esac
fi

board=$(tr -d '\000' < "${EDGECOMPILE_HOST_ROOT:-}/proc/device-tree/model" 2>/dev/null || echo gpu)
slug=$(printf %s "$board" | tr 'A-Z' 'a-z' | tr -cs 'a-z0-9' '-' | sed 's/^-*//; s/-*$//')
folder=$out/trt$version-$slug
mkdir -p "$folder"
for cache in "$here/engines/trt$version-"*/timing.cache; do
  if [ -f "$cache" ] && [ ! -f "$folder/timing.cache" ]; then cp "$cache" "$folder/timing.cache"; fi
done

echo "TensorRT $version on $board: building from $(basename "$model") with: $*"
if run "--onnx=$model" "--saveEngine=$folder/model.engine.part" "--timingCacheFile=$folder/timing.cache" "$@" \
    > "$folder/build.log" 2>&1; then
  mv "$folder/model.engine.part" "$folder/model.engine"
  echo "$folder/model.engine"
else
  code=$?
  rm -f "$folder/model.engine.part"
  tail -n 15 "$folder/build.log" >&2
  die "trtexec ended with $code; all it said is in $folder/build.log"
fi
