//! Objects of one version made objects of another by a webhook: what it is asked, what it may say.
//!
//! Only labels and annotations of the metadata are the webhook's to change.
//!
//! Spec: upstream's ConversionReview (apiextensions.k8s.io/v1).

use objects::{
    field::{str_at, value_at},
    kind,
};
use serde_json::{Value, json};

/// The versions of reviews that are spoken.
const SPOKEN: [&str; 2] = ["v1", "v1beta1"];

/// What a webhook is asked: these objects in the version `desired`. `webhook` is the definition's
/// `spec.conversion.webhook`.
#[must_use]
pub fn review(webhook: &Value, objects: &[&Value], desired: &str, uid: &str) -> Value {
    let said = webhook.get("conversionReviewVersions").and_then(Value::as_array);
    let mut said = said.into_iter().flatten().filter_map(Value::as_str);
    let version = said.find(|version| SPOKEN.contains(version)).unwrap_or("v1");
    json!({
        "kind": "ConversionReview",
        "apiVersion": format!("apiextensions.k8s.io/{version}"),
        "request": {"uid": uid, "desiredAPIVersion": desired, "objects": objects},
    })
}

/// The kind of an object as messages name it.
#[must_use]
pub fn title(object: &Value) -> String {
    let text = |key| str_at(object, key).unwrap_or("");
    format!("{}, Kind={}", text("apiVersion"), text("kind"))
}

/// Reads the answer to a review of `originals`; the objects come in their order.
///
/// # Errors
///
/// In upstream's words, when the webhook failed or its objects are not the ones it was given.
pub fn verdict(
    originals: &[&Value],
    desired: &str,
    uid: &str,
    answer: &Value,
) -> Result<Vec<Value>, String> {
    let title = originals.first().map(|one| title(one)).unwrap_or_default();
    let failed = |why: &str| format!("conversion webhook for {title} failed: {why}");
    let response = answer.get("response").filter(|one| one.is_object());
    let response = response.ok_or_else(|| failed("no response provided"))?;
    let said = str_at(response, "uid").unwrap_or("");
    if said != uid {
        return Err(failed(&format!("expected response.uid={uid:?}, got {said:?}")));
    }
    match str_at(response, "result.status").unwrap_or("") {
        "Success" => {}
        status => {
            let why = match str_at(response, "result.message").filter(|why| !why.is_empty()) {
                Some(why) => why.to_owned(),
                None => format!("response.result.status was '{status}', not 'Success'"),
            };
            return Err(failed(&why));
        }
    }
    let converted = response.get("convertedObjects").and_then(Value::as_array);
    let converted = converted.map_or(&[][..], Vec::as_slice);
    if converted.len() != originals.len() {
        return Err(format!(
            "conversion webhook for {title} returned {} objects, expected {}",
            converted.len(),
            originals.len()
        ));
    }
    let pairs = originals.iter().zip(converted).enumerate();
    let checked = pairs.map(|(at, (original, one))| {
        check(original, one, desired).map_err(|why| {
            format!(
                "conversion webhook for {title} returned invalid converted object at index {at}: \
                 {why}"
            )
        })?;
        Ok(restore(original, one.clone()))
    });
    checked.collect()
}

/// Is it the same object, in the version that was asked for?
fn check(original: &Value, converted: &Value, desired: &str) -> Result<(), String> {
    let said = str_at(converted, "apiVersion").unwrap_or("");
    if said != desired {
        let (expected, got) = (kind::split_api_version(desired), kind::split_api_version(said));
        return Err(format!(
            "invalid groupVersion (expected {}, received {})",
            kind::join_api_version(expected.0, expected.1),
            kind::join_api_version(got.0, got.1)
        ));
    }
    for (path, what) in [
        ("kind", "kind"),
        ("metadata.name", "name"),
        ("metadata.namespace", "namespace"),
        ("metadata.uid", "UID"),
    ] {
        let text = |object| str_at(object, path).unwrap_or("").to_owned();
        let (before, after) = (text(original), text(converted));
        if before != after {
            return Err(format!("must have the same {what}: {before} != {after}"));
        }
    }
    Ok(())
}

/// Gives a converted object the metadata it had, with the labels and annotations it has now.
fn restore(original: &Value, mut converted: Value) -> Value {
    let mut metadata = original.get("metadata").cloned().unwrap_or_else(|| json!({}));
    for key in ["labels", "annotations"] {
        let now = value_at(&converted, &format!("metadata.{key}")).cloned();
        if let Some(fields) = metadata.as_object_mut() {
            match now {
                Some(now) => fields.insert(key.to_owned(), now),
                None => fields.remove(key),
            };
        }
    }
    if let Some(fields) = converted.as_object_mut() {
        fields.insert("metadata".to_owned(), metadata);
    }
    converted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn original() -> Value {
        json!({"apiVersion": "e.com/v1", "kind": "Tab",
            "metadata": {"name": "a", "uid": "u", "labels": {"x": "y"}}, "spec": {"at": "1:2"}})
    }

    #[track_caller]
    fn check(response: &Value, expected: Result<&Value, &str>) {
        let one = original();
        let answer = json!({"response": response});
        let got = verdict(&[&one], "e.com/v2", "id", &answer);
        match expected {
            Ok(object) => assert_eq!(got.unwrap(), std::slice::from_ref(object)),
            Err(why) => assert_eq!(got.unwrap_err(), why),
        }
    }

    #[test]
    fn a_webhook_changes_all_but_who_the_object_is() {
        let done = json!({"status": "Success"});
        let made = json!({"apiVersion": "e.com/v2", "kind": "Tab",
            "metadata": {"name": "a", "uid": "u", "annotations": {"n": "m"}, "generation": 9},
            "spec": {"hour": 1}});
        let kept = json!({"apiVersion": "e.com/v2", "kind": "Tab",
            "metadata": {"name": "a", "uid": "u", "annotations": {"n": "m"}},
            "spec": {"hour": 1}});
        let answer =
            |object: &Value| json!({"uid": "id", "result": done, "convertedObjects": [object]});
        check(&answer(&made), Ok(&kept));
        let index = "conversion webhook for e.com/v1, Kind=Tab returned invalid converted object \
                     at index 0:";
        for (path, value, why) in [
            ("/metadata/name", "b", "must have the same name: a != b"),
            ("/metadata/uid", "v", "must have the same UID: u != v"),
            ("/kind", "Tub", "must have the same kind: Tab != Tub"),
            (
                "/apiVersion",
                "e.com/v1",
                "invalid groupVersion (expected e.com/v2, received e.com/v1)",
            ),
        ] {
            let mut other = made.clone();
            *other.pointer_mut(path).unwrap() = json!(value);
            check(&answer(&other), Err(&format!("{index} {why}")));
        }
    }

    #[test]
    fn a_webhook_that_fails_says_why() {
        let title = "conversion webhook for e.com/v1, Kind=Tab";
        for (response, why) in [
            (json!(null), "failed: no response provided"),
            (json!({"uid": "x"}), "failed: expected response.uid=\"id\", got \"x\""),
            (
                json!({"uid": "id", "result": {"status": "Failure"}}),
                "failed: response.result.status was 'Failure', not 'Success'",
            ),
            (json!({"uid": "id", "result": {"status": "Failure", "message": "no"}}), "failed: no"),
            (
                json!({"uid": "id", "result": {"status": "Success"}}),
                "returned 0 objects, expected 1",
            ),
        ] {
            check(&response, Err(&format!("{title} {why}")));
        }
    }
}
