"""Stories of the PyPI client `kubernetes`: typed, dynamic and watching clients against the server.

Run by the test of clients with the path of a kubeconfig; ends with 0 when every story ends well.
"""

import sys

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.exceptions import ApiException

NAMESPACE = "python"


def refused(code, call, *arguments, **options):
    """The reason of a refusal that must come with this code."""
    try:
        call(*arguments, **options)
    except ApiException as failure:
        assert failure.status == code, (failure.status, failure.body)
        return failure.reason
    raise AssertionError(f"not refused: {call}")


def core(api):
    """Objects of the core group: made, listed by pages, watched, patched, replaced, deleted."""
    v1 = client.CoreV1Api(api)
    v1.create_namespace({"metadata": {"name": NAMESPACE}})
    assert NAMESPACE in [one.metadata.name for one in v1.list_namespace().items]
    start = v1.list_namespaced_config_map(NAMESPACE).metadata.resource_version
    for number in range(5):
        metadata = client.V1ObjectMeta(name=f"m{number}", labels={"parity": str(number % 2)})
        body = client.V1ConfigMap(metadata=metadata, data={"number": str(number)})
        v1.create_namespaced_config_map(NAMESPACE, body)
    assert refused(409, v1.create_namespaced_config_map, NAMESPACE, body) == "Conflict"
    page = v1.list_namespaced_config_map(NAMESPACE, limit=2)
    names, token = [one.metadata.name for one in page.items], page.metadata._continue
    while token:
        page = v1.list_namespaced_config_map(NAMESPACE, limit=2, _continue=token)
        names += [one.metadata.name for one in page.items]
        token = page.metadata._continue
    assert names == [f"m{number}" for number in range(5)], names
    odd = v1.list_namespaced_config_map(NAMESPACE, label_selector="parity=1")
    assert len(odd.items) == 2, odd
    # A dictionary is sent as a strategic merge patch, a list as a JSON patch.
    patched = v1.patch_namespaced_config_map("m0", NAMESPACE, {"data": {"colour": "red"}})
    assert patched.data == {"number": "0", "colour": "red"}, patched.data
    operations = [{"op": "remove", "path": "/data/number"}]
    patched = v1.patch_namespaced_config_map("m0", NAMESPACE, operations)
    assert patched.data == {"colour": "red"}, patched.data
    stale = v1.read_namespaced_config_map("m1", NAMESPACE)
    stale.data["number"] = "one"
    v1.replace_namespaced_config_map("m1", NAMESPACE, stale)
    refused(409, v1.replace_namespaced_config_map, "m1", NAMESPACE, stale)
    v1.delete_namespaced_config_map("m2", NAMESPACE)
    refused(404, v1.read_namespaced_config_map, "m2", NAMESPACE)
    seen = []
    stream = watch.Watch()
    events = stream.stream(
        v1.list_namespaced_config_map, NAMESPACE, resource_version=start, timeout_seconds=30
    )
    for event in events:
        seen.append((event["type"], event["object"].metadata.name))
        if event["type"] == "DELETED":
            stream.stop()
    made = [("ADDED", f"m{number}") for number in range(5)]
    changed = [("MODIFIED", "m0"), ("MODIFIED", "m0"), ("MODIFIED", "m1"), ("DELETED", "m2")]
    assert seen == made + changed, seen
    v1.delete_collection_namespaced_config_map(NAMESPACE, label_selector="parity=0")
    left = v1.list_namespaced_config_map(NAMESPACE)
    assert [one.metadata.name for one in left.items] == ["m1", "m3"], left


def watch_from_forgotten(api):
    """A version nobody has seen is an end to the watch, told as 410."""
    v1 = client.CoreV1Api(api)
    stream = watch.Watch().stream(
        v1.list_namespaced_config_map, NAMESPACE, resource_version="99999999", timeout_seconds=10
    )
    refused(410, lambda: list(stream))


def workloads(api):
    """A deployment from a document, its scale and status; a pod bound and evicted."""
    utils.create_from_dict(api, {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "nginx"}]},
            },
        },
    })
    apps = client.AppsV1Api(api)
    scale = apps.read_namespaced_deployment_scale("web", NAMESPACE)
    assert scale.spec.replicas == 1, scale
    scale.spec.replicas = 3
    apps.replace_namespaced_deployment_scale("web", NAMESPACE, scale)
    status = {"status": {"observedGeneration": 2, "replicas": 3}}
    apps.patch_namespaced_deployment_status("web", NAMESPACE, status)
    web = apps.read_namespaced_deployment("web", NAMESPACE)
    assert (web.spec.replicas, web.status.replicas) == (3, 3), web
    v1 = client.CoreV1Api(api)
    spec = client.V1PodSpec(containers=[client.V1Container(name="c", image="i")])
    v1.create_namespaced_pod(
        NAMESPACE, client.V1Pod(metadata=client.V1ObjectMeta(name="p"), spec=spec)
    )
    target = client.V1ObjectReference(kind="Node", name="n1")
    binding = client.V1Binding(metadata=client.V1ObjectMeta(name="p"), target=target)
    # The client cannot read the answer, which is a Status, as upstream's is.
    v1.create_namespaced_pod_binding("p", NAMESPACE, binding, _preload_content=False)
    assert v1.read_namespaced_pod("p", NAMESPACE).spec.node_name == "n1"
    eviction = client.V1Eviction(metadata=client.V1ObjectMeta(name="p"))
    v1.create_namespaced_pod_eviction("p", NAMESPACE, eviction, _preload_content=False)
    assert v1.read_namespaced_pod("p", NAMESPACE).metadata.deletion_timestamp


def customs(api):
    """A kind that comes at run time, through the typed, the custom and the dynamic client."""
    schema = {"type": "object", "properties": {"spec": {
        "type": "object", "properties": {"size": {"type": "integer", "default": 1}}}}}
    version = {"name": "v1", "served": True, "storage": True, "subresources": {"status": {}},
               "schema": {"openAPIV3Schema": schema}}
    client.ApiextensionsV1Api(api).create_custom_resource_definition({
        "metadata": {"name": "snakes.python.example.com"},
        "spec": {"group": "python.example.com", "scope": "Namespaced", "versions": [version],
                 "names": {"plural": "snakes", "singular": "snake", "kind": "Snake"}},
    })
    place = ("python.example.com", "v1", NAMESPACE, "snakes")
    objects = client.CustomObjectsApi(api)
    snake = {"apiVersion": "python.example.com/v1", "kind": "Snake", "metadata": {"name": "monty"}}
    made = objects.create_namespaced_custom_object(*place, {**snake, "spec": {}})
    assert made["spec"] == {"size": 1}, made
    kinds = dynamic.DynamicClient(api)
    snakes = kinds.resources.get(api_version="python.example.com/v1", kind="Snake")
    applied = snakes.server_side_apply(
        body={**snake, "spec": {"size": 5}}, name="monty", namespace=NAMESPACE,
        field_manager="python", force_conflicts=True,
    )
    assert applied.spec.size == 5, applied
    managers = {one.manager: one.operation for one in applied.metadata.managedFields}
    assert managers["python"] == "Apply", managers
    other = {**snake, "spec": {"size": 6}}
    try:
        snakes.server_side_apply(
            body=other, name="monty", namespace=NAMESPACE, field_manager="other"
        )
        raise AssertionError("no conflict")
    except dynamic.exceptions.ConflictError:
        pass
    assert [one.metadata.name for one in snakes.get(namespace=NAMESPACE).items] == ["monty"]
    snakes.delete(name="monty", namespace=NAMESPACE)
    refused(404, objects.get_namespaced_custom_object, *place, "monty")


def rights(api):
    """Roles, an account's token, and what the account may do with it."""
    v1, rbac = client.CoreV1Api(api), client.RbacAuthorizationV1Api(api)
    v1.create_namespaced_service_account(NAMESPACE, {"metadata": {"name": "robot"}})
    rbac.create_namespaced_role_binding(NAMESPACE, {
        "metadata": {"name": "robots"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "robot", "namespace": NAMESPACE}],
    })
    wish = client.AuthenticationV1TokenRequest(
        spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=600)
    )
    token = v1.create_namespaced_service_account_token("robot", NAMESPACE, wish).status.token
    own = client.Configuration()
    own.host, own.ssl_ca_cert = api.configuration.host, api.configuration.ssl_ca_cert
    own.api_key = {"authorization": f"Bearer {token}"}
    robot = client.ApiClient(own)
    who = client.AuthenticationV1Api(robot).create_self_subject_review({})
    name = who.status.user_info.username
    assert name == f"system:serviceaccount:{NAMESPACE}:robot", name
    client.CoreV1Api(robot).list_namespaced_config_map(NAMESPACE)
    refused(403, client.CoreV1Api(robot).list_namespaced_secret, NAMESPACE)
    review = client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(
        resource_attributes=client.V1ResourceAttributes(
            verb="delete", resource="pods", namespace=NAMESPACE)))
    answer = client.AuthorizationV1Api(robot).create_self_subject_access_review(review)
    assert not answer.status.allowed, answer


def main():
    api = config.new_client_from_config(sys.argv[1])
    version = client.VersionApi(api).get_code()
    assert version.major == "1", version
    for story in [core, watch_from_forgotten, workloads, customs, rights]:
        story(api)
        print(story.__name__, "ended well")


main()
