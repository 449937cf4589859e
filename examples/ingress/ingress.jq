# From the lists of Ingresses and Services to nginx's servers. Names that nginx might read as
# something else are left out: whoever may write an Ingress must not write nginx's configuration.
.[0].items as $ingresses | .[1].items as $services

| def address($namespace): . as $backend
    | $services[]
    | select(.metadata.namespace == $namespace and .metadata.name == $backend.name)
    | select((.spec.clusterIP // "None") != "None")
    | .spec.clusterIP as $ip
    | ($backend.port.number // (.spec.ports[] | select(.name == $backend.port.name) | .port))
    | "\($ip):\(.)";

def location($match; $address):
    "    location \($match) { proxy_pass http://\($address); }";

def locations:
    if .type == "Exact" then location("= \(.path)"; .address)
    elif .path == "/" then location("/"; .address)
    else location("= \(.path)"; .address), location("\(.path)/"; .address) end;

[ $ingresses[]
  | select((.spec.ingressClassName // .metadata.annotations["kubernetes.io/ingress.class"])
      == "nginx")
  | .metadata.namespace as $namespace
  | ( .spec.defaultBackend.service // empty
      | { host: "_", path: "/", type: "Prefix", address: address($namespace) } ),
    ( .spec.rules[]?
      | (.host // "_") as $host
      | .http.paths[]?
      | { host: $host, type: .pathType,
          path: (if .path == "/" then "/" else (.path // "/" | rtrimstr("/")) end),
          address: (.backend.service | address($namespace)) } ) ]
| map(select(.host | test("^(_|(\\*\\.)?[a-z0-9.-]+)$"))
    | select(.path | test("^/[A-Za-z0-9._~/%-]*$")))
| group_by(.host)
| map( "server {\n    listen 8080\(if .[0].host == "_" then " default_server" else "" end);\n"
    + "    server_name \(.[0].host);\n"
    + ([ unique_by([.type == "Exact", .path])[] | locations ] | unique | join("\n")) + "\n}" )
| .[]
