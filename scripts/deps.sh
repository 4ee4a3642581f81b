#!/usr/bin/env bash
# Makes sure that a build can begin: a C++ compiler, libclang for RocksDB's bindings, and cargo.
# ccache is installed too, since it saves half an hour of CPU on the second clone.
set -euo pipefail

missing=()
command -v c++ >/dev/null || missing+=(g++)
command -v make >/dev/null || missing+=(make)
command -v clang >/dev/null || missing+=(clang)
command -v ccache >/dev/null || missing+=(ccache)
ls /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang*.so* >/dev/null 2>&1 || missing+=(libclang-dev)

if [ ${#missing[@]} -gt 0 ]; then
  sudo=
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null && sudo=sudo
    if [ -z "$sudo" ] || ! $sudo -n true 2>/dev/null; then
      echo "basalt: please install: ${missing[*]}   (apt-get install ${missing[*]})" >&2
      exit 1
    fi
  fi
  command -v apt-get >/dev/null || { echo "basalt: please install: ${missing[*]}" >&2; exit 1; }
  echo "installing ${missing[*]}"
  $sudo apt-get update -qq
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
fi

command -v cargo >/dev/null || {
  echo "basalt: please install Rust 1.95 or newer (https://rustup.rs)" >&2
  exit 1
}
