#!/bin/sh
# An ingress controller of Debian parts: reads Ingresses, Services and certificates from the API,
# renders nginx's configuration, and does so again whenever an Ingress changes. Where clients reach
# it, as its own Service says, is told in the status of each Ingress.
set -u
api="https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT"
account=/var/run/secrets/kubernetes.io/serviceaccount
ingresses=/apis/networking.k8s.io/v1/ingresses
dir=/tmp/ingress
umask 077
mkdir -p "$dir/body" "$dir/tls"

ask() {
    path=$1
    shift
    curl -sSfN --cacert "$account/ca.crt" -H "Authorization: Bearer $(cat "$account/token")" \
        "$@" "$api$path"
}

# Words of our Ingresses, one line each.
each() {
    jq -r '.items[] | select((.spec.ingressClassName
        // .metadata.annotations["kubernetes.io/ingress.class"]) == "nginx") | '"$1" \
        "$dir/ingresses.json"
}

# Keeps the certificates that are named, each in NAMESPACE/SECRET.
certificates() {
    rm -rf "$dir/tls.new"
    mkdir "$dir/tls.new"
    each '.metadata.namespace as $n | .spec.tls[]? | "\($n) \(.secretName)"' | sort -u |
        while read -r namespace name; do
            place="$dir/tls.new/$namespace/$name"
            ask "/api/v1/namespaces/$namespace/secrets/$name" >"$dir/secret.json" || continue
            mkdir -p "$place"
            for part in tls.crt tls.key; do
                jq -r --arg part "$part" '.data[$part] // ""' "$dir/secret.json" |
                    base64 -d >"$place/$part"
            done
            # One that nginx would not take must not keep it from serving the others.
            echo "pid $dir/try.pid; error_log stderr; events {} http { access_log off;
                include $dir/paths.conf; ssl_certificate $place/tls.crt;
                ssl_certificate_key $place/tls.key; server { listen 8443 ssl; } }" >"$dir/try.conf"
            nginx -q -t -c "$dir/try.conf" || rm -rf "$place"
        done
    rm -f "$dir/secret.json"
    rm -rf "$dir/tls"
    mv "$dir/tls.new" "$dir/tls"
}

render() {
    ask "$ingresses" >"$dir/ingresses.json" || return 1
    ask /api/v1/services >"$dir/services.json" || return 1
    certificates
    known=$(cd "$dir/tls" && find . -mindepth 2 -maxdepth 2 | sed 's,^\./,,' | jq -Rn '[inputs]')
    jq -rs --argjson tls "$known" --arg dir "$dir/tls" -f /usr/local/share/ingress.jq \
        "$dir/ingresses.json" "$dir/services.json" >"$dir/new.conf" || return 1
    # A renewed certificate is a change, too.
    find "$dir/tls" -name tls.crt -exec sha256sum {} + | sort | sed 's/^/# /' >>"$dir/new.conf"
}

# Tells in each Ingress where clients reach us.
tell() {
    addresses=$(jq -c --arg namespace "$(cat "$account/namespace")" '[.items[]
        | select(.metadata.namespace == $namespace and .metadata.name == "ingress")
        | .status.loadBalancer.ingress[]?]' "$dir/services.json")
    each "select((.status.loadBalancer.ingress // []) != $addresses)
        | \"\(.metadata.namespace) \(.metadata.name)\"" |
        while read -r namespace name; do
            ask "/apis/networking.k8s.io/v1/namespaces/$namespace/ingresses/$name/status" \
                -X PATCH -H 'Content-Type: application/merge-patch+json' -o /dev/null \
                -d "{\"status\": {\"loadBalancer\": {\"ingress\": $addresses}}}"
        done
}

: >"$dir/servers.conf"
for kind in client_body proxy fastcgi uwsgi scgi; do
    echo "${kind}_temp_path $dir/body;"
done >"$dir/paths.conf"
cat >"$dir/nginx.conf" <<CONF
pid $dir/nginx.pid;
error_log stderr warn;
events { worker_connections 1024; }
http {
    access_log off;
    log_not_found off;
    root $dir/nothing;
    include $dir/paths.conf;
    proxy_http_version 1.1;
    proxy_set_header Host \$http_host;
    proxy_set_header X-Forwarded-For \$proxy_add_x_forwarded_for;
    proxy_set_header X-Forwarded-Proto \$scheme;
    server { listen 8081; location / { return 200 "alive\n"; } }
    server { listen 8080; server_name ""; location / { return 404; } }
    server { listen 8443 ssl; server_name ""; ssl_reject_handshake on; }
    include $dir/servers.conf;
}
CONF
nginx -c "$dir/nginx.conf" -g 'daemon off;' &
nginx=$!
trap 'kill -QUIT "$nginx"; wait "$nginx"; exit' TERM INT

while kill -0 "$nginx"; do
    if render; then
        tell
        if ! cmp -s "$dir/new.conf" "$dir/servers.conf"; then
            cp "$dir/servers.conf" "$dir/old.conf"
            cp "$dir/new.conf" "$dir/servers.conf"
            if nginx -q -t -c "$dir/nginx.conf"; then
                nginx -c "$dir/nginx.conf" -s reload
                echo "serving $(grep -c '^server {' "$dir/servers.conf") servers"
            else
                # What nginx refuses must not be what it finds when it starts again.
                cp "$dir/old.conf" "$dir/servers.conf"
            fi
        fi
    fi
    # Sleeps until an Ingress changes; for changed Services and Secrets half a minute must do.
    version=$(jq -r '.metadata.resourceVersion // "0"' "$dir/ingresses.json" 2>/dev/null)
    ask "$ingresses?watch=1&timeoutSeconds=30&resourceVersion=${version:-0}" 2>/dev/null |
        head -n 1 >"$dir/change" &
    watch=$!
    sleep 1 &
    wait "$watch" $!
done
exit 1
