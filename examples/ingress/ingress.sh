#!/bin/sh
# An ingress controller of Debian parts: reads Ingresses and Services from the API, renders nginx's
# configuration, and does so again whenever an Ingress changes.
set -u
api="https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT"
account=/var/run/secrets/kubernetes.io/serviceaccount
ingresses=/apis/networking.k8s.io/v1/ingresses
dir=/tmp/ingress
mkdir -p "$dir/body"

ask() {
    curl -sSfN --cacert "$account/ca.crt" -H "Authorization: Bearer $(cat "$account/token")" \
        "$api$1"
}

render() {
    ask "$ingresses" >"$dir/ingresses.json" || return 1
    ask /api/v1/services >"$dir/services.json" || return 1
    jq -rs -f /usr/local/share/ingress.jq "$dir/ingresses.json" "$dir/services.json" \
        >"$dir/new.conf"
}

: >"$dir/servers.conf"
cat >"$dir/nginx.conf" <<CONF
pid $dir/nginx.pid;
error_log stderr warn;
events { worker_connections 1024; }
http {
    access_log off;
    client_body_temp_path $dir/body;
    proxy_temp_path $dir/body;
    fastcgi_temp_path $dir/body;
    uwsgi_temp_path $dir/body;
    scgi_temp_path $dir/body;
    proxy_http_version 1.1;
    proxy_set_header Host \$http_host;
    proxy_set_header X-Forwarded-For \$proxy_add_x_forwarded_for;
    proxy_set_header X-Forwarded-Proto \$scheme;
    server { listen 8081; location / { return 200 "alive\n"; } }
    server { listen 8080; server_name ""; location / { return 404; } }
    include $dir/servers.conf;
}
CONF
nginx -c "$dir/nginx.conf" -g 'daemon off;' &
nginx=$!
trap 'kill -QUIT "$nginx"; wait "$nginx"; exit' TERM INT

while kill -0 "$nginx"; do
    if render && ! cmp -s "$dir/new.conf" "$dir/servers.conf"; then
        cp "$dir/servers.conf" "$dir/old.conf"
        cp "$dir/new.conf" "$dir/servers.conf"
        if nginx -q -t -c "$dir/nginx.conf"; then
            nginx -c "$dir/nginx.conf" -s reload
            echo "serving $(grep -c '^server {' "$dir/servers.conf") hosts"
        else
            # What nginx refuses must not be what it finds when it starts again.
            cp "$dir/old.conf" "$dir/servers.conf"
        fi
    fi
    # Sleeps until an Ingress changes; for changed Services half a minute must do.
    version=$(jq -r '.metadata.resourceVersion // "0"' "$dir/ingresses.json" 2>/dev/null)
    ask "$ingresses?watch=1&timeoutSeconds=30&resourceVersion=${version:-0}" 2>/dev/null |
        head -n 1 >"$dir/change" &
    watch=$!
    sleep 1 &
    wait "$watch" $!
done
exit 1
