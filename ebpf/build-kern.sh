#!/usr/bin/env bash
# Builds the kernel programs (kern/) and writes the stripped object with its BTF to OUT [default: weft.bpf.o], and what
# it was built with to OUT.toolchain. Uses Debian's Rust with a core for BPF if it is there or can be installed, otherwise
# rustup's nightly with rust-src. `cargo build` of Weft needs none of this: the object is committed.
#   build-kern.sh [OUT]      builds
#   build-kern.sh --check    builds, and compares with the committed object if the toolchain is the recorded one; prints
#                            the path of the rebuilt object on the last line
set -euo pipefail
cd "$(dirname "$0")"

linker_version=0.13.0
target=bpfel-unknown-none
build=${CARGO_TARGET_DIR:-$PWD/../target}
work=$build/kern
tools=$build/tools
mkdir -p "$work" "$tools"

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

# Debian's packages: a rustc with a precompiled core for BPF, and the LLVM that bpf-linker links against.
debian=(rustc-web cargo-web libstd-rust-web-dev-bpf rust-web-llvm llvm-22-dev libpolly-22-dev zlib1g-dev libzstd-dev libxml2-dev)

debian_has() { [ -d "$(/usr/bin/rustc --print sysroot 2>/dev/null)/lib/rustlib/$target" ] && [ -x /usr/lib/llvm-22/bin/llvm-objcopy ]; }

debian_installs() {
  command -v apt-get >/dev/null || return 1
  as_root apt-get update -q >&2 || return 1
  DEBIAN_FRONTEND=noninteractive as_root apt-get install -q -y --no-install-recommends "${debian[@]}" >&2
}

# The linker goes with the LLVM of the compiler; one for each is kept under target/.
linker() {
  local flavour=$1
  shift
  local root=$tools/bpf-linker-$flavour
  if [ ! -x "$root/bin/bpf-linker" ]; then
    "$@" cargo install --quiet --locked --root "$root" --target-dir "$root/build" --version "$linker_version" bpf-linker \
      --no-default-features --features "$flavour" >&2
    rm -rf "$root/build"
  fi
  echo "$root/bin/bpf-linker"
}

# Paths of this machine must not be part of the object.
here=$PWD
remap() {
  local sysroot=$1 home=${CARGO_HOME:-$HOME/.cargo} registry
  echo -n "--remap-path-prefix=$here=/weft/ebpf --remap-path-prefix=$sysroot=/rust"
  for registry in "$home"/registry/src/*; do
    echo -n " --remap-path-prefix=$registry=/registry"
  done
}

compile() {
  local out=$1 bpf_linker objcopy version
  # Now: the names of the registries' directories are part of the flags.
  cargo fetch --quiet --locked --manifest-path kern/Cargo.toml >&2
  if debian_has || { debian_installs && debian_has; }; then
    bpf_linker=$(linker llvm-22 env LLVM_PREFIX=/usr/lib/llvm-22 LLVM_SYS_221_PREFIX=/usr/lib/llvm-22)
    objcopy=/usr/lib/llvm-22/bin/llvm-objcopy
    version="$(/usr/bin/rustc --version), $("$bpf_linker" --version)"
    (cd kern && RUSTC_BOOTSTRAP=1 RUSTC=/usr/bin/rustc CARGO_TARGET_DIR="$work" \
      RUSTFLAGS="-C linker=$bpf_linker -C link-arg=--btf $(remap "$(/usr/bin/rustc --print sysroot)")" \
      /usr/bin/cargo build --quiet --locked --release --target "$target") >&2
  elif rustup toolchain list 2>/dev/null | grep -q '^nightly'; then
    rustup component add --toolchain nightly rust-src >&2
    bpf_linker=$(linker rust-llvm)
    objcopy=$(command -v llvm-objcopy || command -v rust-objcopy)
    version="$(rustc +nightly --version), $("$bpf_linker" --version)"
    (cd kern && CARGO_TARGET_DIR="$work" \
      RUSTFLAGS="-C linker=$bpf_linker -C link-arg=--btf $(remap "$(rustc +nightly --print sysroot)")" \
      cargo +nightly build --quiet --locked --release -Z build-std=core --target "$target") >&2
  else
    echo "no compiler for BPF: on Debian install ${debian[*]}; elsewhere: rustup toolchain install nightly -c rust-src" >&2
    return 1
  fi
  "$objcopy" --strip-debug "$work/$target/release/weft" "$out"
  echo "$version" >"$out.toolchain"
}

case ${1:-weft.bpf.o} in
--check)
  rebuilt=$work/weft.bpf.o
  compile "$rebuilt"
  if cmp -s weft.bpf.o.toolchain "$rebuilt.toolchain"; then
    if ! cmp weft.bpf.o "$rebuilt"; then
      echo "ebpf/weft.bpf.o is not what its source compiles to: run ebpf/build-kern.sh and commit the result" >&2
      exit 1
    fi
    echo "ebpf/weft.bpf.o is what its source compiles to ($(cat weft.bpf.o.toolchain))" >&2
  else
    echo "built with $(cat "$rebuilt.toolchain") instead of $(cat weft.bpf.o.toolchain): not compared byte by byte" >&2
  fi
  echo "$rebuilt"
  ;;
*)
  compile "${1:-weft.bpf.o}"
  ;;
esac
