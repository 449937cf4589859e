# From the lists of Ingresses and Services, and the names of certificates that are there ($tls,
# as NAMESPACE/SECRET), to nginx's servers. Names that nginx might read as something else are left
# out: whoever may write an Ingress must not write nginx's configuration.
.[0].items as $ingresses | .[1].items as $services

| def ours: (.spec.ingressClassName // .metadata.annotations["kubernetes.io/ingress.class"])
    == "nginx";

def address($namespace): . as $backend
    | $services[]
    | select(.metadata.namespace == $namespace and .metadata.name == $backend.name)
    | select((.spec.clusterIP // "None") != "None")
    | .spec.clusterIP as $ip
    | ($backend.port.number // (.spec.ports[] | select(.name == $backend.port.name) | .port))
    | "\($ip):\(.)";

# The certificate for a host, also one for all names of a domain.
def certificate($host): .metadata.namespace as $namespace
    | first(.spec.tls[]?
        | select(.hosts // [] | any(. == $host or
            (startswith("*.") and ltrimstr("*") == ($host | sub("^[^.]*"; "")))))
        | "\($namespace)/\(.secretName)"
        | select(. as $name | $tls | index($name)));

def location($match; $address):
    "    location \($match) { proxy_pass http://\($address); }";

def locations:
    if .type == "Exact" then location("= \(.path)"; .address)
    elif .path == "/" then location("/"; .address)
    else location("= \(.path)"; .address), location("\(.path)/"; .address) end;

def server($listen; $lines):
    "server {\n    \($listen)\n    server_name \(.[0].host);\n\($lines | unique | join("\n"))\n}";

[ $ingresses[]
  | select(ours)
  | . as $ingress
  | .metadata.namespace as $namespace
  | ( .spec.defaultBackend.service // empty
      | { host: "_", path: "/", type: "Prefix", address: address($namespace) } ),
    ( .spec.rules[]?
      | (.host // "_") as $host
      | .http.paths[]?
      | { host: $host, type: .pathType, certificate: (($ingress | certificate($host)) // null),
          path: (if .path == "/" then "/" else (.path // "/" | rtrimstr("/")) end),
          address: (.backend.service | address($namespace)) } ) ]
| map(select(.host | test("^(_|(\\*\\.)?[a-z0-9.-]+)$"))
    | select(.path | test("^/[A-Za-z0-9._~/%-]*$")))
| group_by(.host)
| map( [ unique_by([.type == "Exact", .path])[] | locations ] as $lines
    | (map(.certificate // empty) | first) as $certificate
    | (if .[0].host == "_" then " default_server" else "" end) as $default
    | if $certificate == null then server("listen 8080\($default);"; $lines)
      else server("listen 8080;"; ["    return 308 https://$host$request_uri;"]),
        server("listen 8443 ssl;\n    ssl_certificate \($dir)/\($certificate)/tls.crt;\n"
          + "    ssl_certificate_key \($dir)/\($certificate)/tls.key;"; $lines) end )
| .[]
