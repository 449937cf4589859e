use super::*;

/// One request per line; the answer is the verb and where it goes, or the code of the refusal.
#[track_caller]
fn check(method: &str, url: &str, expected: &str) {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let said = match parse_request(method, path, query) {
        Ok(Route::Resource(r)) => {
            format!("{} {} [{}] [{}]", r.verb.as_str(), r.resource(), r.namespace, r.name)
        }
        Ok(Route::Document(found)) => format!("{found:?}"),
        Ok(Route::Review(to)) => format!("review {} {}/v1", to.resource, to.group),
        Ok(other) => format!("{other:?}"),
        Err(status) => status.code.to_string(),
    };
    assert_eq!(said, expected, "{method} {url}");
}

#[test]
fn paths_lead_to_resources() {
    check("GET", "/api/v1/pods", "list pods [] []");
    check("GET", "/api/v1/pods?watch=true", "watch pods [] []");
    check("GET", "/api/v1/watch/pods", "watch pods [] []");
    check("GET", "/api/v1/namespaces/a/pods/b", "get pods [a] [b]");
    check("GET", "/api/v1/namespaces/a/pods/b/log?follow=true", "get pods/log [a] [b]");
    check("POST", "/api/v1/namespaces/a/pods", "create pods [a] []");
    check("POST", "/api/v1/namespaces/a/pods/b/binding", "create pods/binding [a] [b]");
    check(
        "PUT",
        "/apis/apps/v1/namespaces/a/deployments/b/scale",
        "update deployments/scale [a] [b]",
    );
    check("PATCH", "/api/v1/nodes/n/status", "patch nodes/status [] [n]");
    check("DELETE", "/api/v1/namespaces/a/pods/", "deletecollection pods [a] []");
    check("GET", "/api/v1/namespaces/a", "get namespaces [] [a]");
    check("PUT", "/api/v1/namespaces/a/finalize", "update namespaces/finalize [] [a]");
    check("GET", "/apis/events.k8s.io/v1/events", "list events [] []");
    check("GET", "/apis/muster.dev/v1alpha1/machines/m", "get machines [] [m]");
}

#[test]
fn paths_lead_to_documents() {
    check("GET", "/api", "CoreVersions");
    check("GET", "/apis/", "Groups");
    check("GET", "/apis/apps", "Group(\"apps\")");
    check("GET", "/apis/apps/v1", "Resources(\"apps\", \"v1\")");
    check("GET", "/openapi/v3/apis/apps/v1?hash=1", "OpenApiV3Group(\"apps\", \"v1\")");
    check("GET", "/readyz", "Health(\"/readyz\")");
    check("GET", "/muster/v1/enroll", "Other(\"/muster/v1/enroll\")");
    check("GET", "/", "Other(\"/\")");
    check("POST", "/apis", "405");
}

#[test]
fn what_is_not_served_is_refused() {
    check("GET", "/api/v1/gadgets", "404");
    check("GET", "/apis/apps/v1beta1/deployments", "404");
    check("GET", "/api/v1/namespaces/a/nodes", "404");
    check("GET", "/api/v1/pods/b", "404");
    check("GET", "/api/v1/namespaces/a/pods/b%2Fc", "404");
    check("GET", "/api/v1/namespaces/../pods/b", "404");
    check("GET", "/api/v1/namespaces/a/configmaps/b/status", "404");
    check("POST", "/api/v1/pods", "405");
    check("POST", "/api/v1/namespaces/a/pods/b", "405");
    check("PUT", "/api/v1/namespaces/a/pods", "405");
    check("TRACE", "/api/v1/namespaces/a/pods", "405");
    check("GET", "/api/v1/pods?limit=x", "400");
    check("GET", "/api/v1/pods?labelSelector=a%20b", "400");
    check("GET", "/api/v1/pods?fieldSelector=spec.foo%3D1", "400");
    check("GET", "/api/v1/pods?dryRun=Some&fieldValidation=Some", "list pods [] []");
    check("POST", "/api/v1/namespaces/a/pods?dryRun=Some", "422");
    check("PUT", "/api/v1/namespaces/a/pods/b?fieldValidation=Some", "422");
}

#[test]
fn any_request_is_read_or_refused() {
    bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let (path, query) = text.split_once('?').unwrap_or((&text, ""));
        drop(parse_request("GET", path, query));
        drop(parse_request("GET", &format!("/api/v1/{path}"), query));
    });
}

#[test]
fn lengths_of_time_are_read_as_go_writes_them() {
    let ms = std::time::Duration::from_millis;
    for (text, expected) in [
        ("0", Some(ms(0))),
        ("30s", Some(ms(30_000))),
        ("1m30s", Some(ms(90_000))),
        ("1.5s", Some(ms(1500))),
        ("300ms", Some(ms(300))),
        ("", None),
        ("30", None),
        ("s", None),
        ("-1s", None),
        ("1d", None),
    ] {
        assert_eq!(parse_duration(text), expected, "{text}");
    }
    bolero::check!().with_iterations(5_000).for_each(|bytes: &[u8]| {
        let _outcome = parse_duration(&String::from_utf8_lossy(bytes));
    });
}
