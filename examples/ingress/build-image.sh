#!/bin/sh
# Makes the image lab.example/ingress:1 of Debian packages, with no container tools: a layer by
# mmdebstrap, and the two documents that make it an archive as `docker save` writes it.
# Usage: build-image.sh [ARCHIVE]
set -eu
out=$(realpath -m "${1:-ingress.tar}")
here=$(dirname "$(realpath "$0")")
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-1763000000}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# `extract` unpacks packages and what they depend on, and runs none of their scripts.
mmdebstrap --variant=extract \
    --include=base-files,nginx,curl,jq,dash,coreutils,diffutils,findutils,grep,sed \
    --extract-hook='cd "$1" && rm -rf usr/bin/perl* usr/lib/*/perl* usr/share/perl5 \
        usr/share/man usr/share/locale usr/share/info usr/share/zoneinfo \
        && find usr/share/doc -type f ! -name copyright -delete' \
    --extract-hook='ln -sf dash "$1/usr/bin/sh"; mkdir -p "$1/tmp"; chmod 1777 "$1/tmp"' \
    --extract-hook='echo "www-data:x:33:33::/:/usr/sbin/nologin" >"$1/etc/passwd"' \
    --extract-hook="install -D -m 755 '$here/ingress.sh' \"\$1/usr/local/bin/ingress\"" \
    --extract-hook="install -D -m 644 '$here/ingress.jq' \"\$1/usr/local/share/ingress.jq\"" \
    trixie "$work/layer.tar"

layer=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
cat >"$work/config.json" <<JSON
{"architecture": "amd64", "os": "linux",
 "config": {"Entrypoint": ["/usr/local/bin/ingress"], "User": "33:33",
  "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$layer"]}}
JSON
echo '[{"Config": "config.json", "RepoTags": ["lab.example/ingress:1"],
  "Layers": ["layer.tar"]}]' >"$work/manifest.json"
tar -C "$work" -cf "$out" manifest.json config.json layer.tar
echo "$out: now muster images add $out"
