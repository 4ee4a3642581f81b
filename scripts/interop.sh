#!/usr/bin/env bash
# Basalt with what others have written: builds the stock placement driver (tikv/pd) from its Go module and programs on the
# stock Go client, and runs the tests that need them. Without Go there is nothing to do.
#
# The server is kept in ${XDG_CACHE_HOME:-~/.cache}/basalt/pd-VERSION, so that only the first run builds it.
# BASALT_STOCK_PD=FILE takes a server that is there already.
set -euo pipefail
cd "$(dirname "$0")/.."

# The release tags of PD are no versions of its module, whose path lacks their major number, and a proxy that resolves nothing
# by itself has those versions only that others depend on. This one is of April 2024, between v8.0.0 and v8.1.0. The sum is
# that of the go.sum database.
pd_version=v1.1.0-beta.0.20240407022249-7179657d129b
pd_sum=h1:t2XoZp4UHrkPpYPsxbRTRVExJnriWlh+ZsDIfpYyd98=
pd_release=v8.1.0-alpha

cache=${XDG_CACHE_HOME:-$HOME/.cache}/basalt/pd-$pd_version

# Builds pd-server into the cache. The module is copied, since its go.mod may replace others, which `go install` refuses.
build_pd() {
  local work module started=$SECONDS info=github.com/tikv/pd/pkg/versioninfo
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/build.XXXXXX")
  # shellcheck disable=SC2064
  trap "chmod -R u+w '$work'; rm -rf '$work'" EXIT
  echo "interop: building pd-server $pd_release ($pd_version), once"
  (cd "$work" && "$go" mod download -json "github.com/tikv/pd@$pd_version") >"$work/module.json" || {
    cat "$work/module.json" >&2
    return 1
  }
  grep -qF "\"Sum\": \"$pd_sum\"" "$work/module.json" || {
    echo "interop: the module is not the one that this script knows: $(grep '"Sum"' "$work/module.json")" >&2
    return 1
  }
  module=$(sed -n 's/^.*"Dir": "\(.*\)",*$/\1/p' "$work/module.json")
  cp -r "$module" "$work/pd"
  chmod -R u+w "$work/pd"
  (
    cd "$work/pd"
    nice "$go" build -p 2 -buildvcs=false -tags without_dashboard \
      -ldflags "-s -w -X $info.PDReleaseVersion=$pd_release -X $info.PDGitHash=${pd_version##*-}" \
      -o ../pd-server ./cmd/pd-server
  )
  mv "$work/pd-server" "$cache/pd-server"
  echo "interop: pd-server was built in $((SECONDS - started)) s"
}

go=$(PATH=$PATH:/usr/local/go/bin command -v go) || {
  echo "interop: left out, since Go is not installed (https://go.dev/dl)"
  exit 0
}
# The one that is installed, or none: no toolchain is downloaded.
export GOTOOLCHAIN=local

if [ -z "${BASALT_STOCK_PD:-}" ]; then
  export BASALT_STOCK_PD=$cache/pd-server
  [ -x "$BASALT_STOCK_PD" ] || build_pd
fi

export BASALT_CLIENT_GO=$PWD/target/interop
mkdir -p "$BASALT_CLIENT_GO"
(cd tests/interop/client-go && nice "$go" build -p 2 -buildvcs=false -o "$BASALT_CLIENT_GO/" ./...)

cargo build --release --workspace --bin basalt --test interop_pd --test interop_client_go
cargo test --release --workspace --test interop_pd --test interop_client_go -- --ignored
