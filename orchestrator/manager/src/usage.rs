//! What pods use, as `metrics.k8s.io` tells.

use std::collections::BTreeMap;

use control::scaling::Usage;
use objects::Quantity;
use runtime::{Client, ClientError};
use serde_json::Value;

/// Where the metrics of all pods are.
const PATH: &str = "/apis/metrics.k8s.io/v1beta1/pods";

/// Asks what every pod uses; nothing when nobody serves metrics.
///
/// # Errors
///
/// Only when no answer came.
pub(crate) async fn observe(
    client: &Client,
) -> Result<BTreeMap<(String, String), Usage>, ClientError> {
    let answer = client.raw_get(PATH).await?;
    let list: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let items = list.get("items").and_then(Value::as_array).into_iter().flatten();
    Ok(items.filter_map(read).collect())
}

fn read(item: &Value) -> Option<((String, String), Usage)> {
    let text = |pointer: &str| item.pointer(pointer).and_then(Value::as_str);
    let key = (text("/metadata/namespace")?.to_owned(), text("/metadata/name")?.to_owned());
    let mut usage = Usage { at: text("/timestamp")?.parse().ok(), ..Usage::default() };
    for container in item.get("containers")?.as_array()? {
        let name = container.get("name")?.as_str()?;
        let amounts = container.get("usage")?.as_object()?.iter().filter_map(|(name, amount)| {
            let amount: Quantity = serde_json::from_value(amount.clone()).ok()?;
            let amount = if name == "cpu" { amount.milli_value() } else { amount.value() };
            Some((name.clone(), amount))
        });
        usage.containers.insert(name.to_owned(), amounts.collect());
    }
    Some((key, usage))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn usage_is_read_container_by_container() {
        let item = json!({
            "metadata": {"name": "p", "namespace": "n"}, "timestamp": "2026-01-01T00:00:00Z",
            "containers": [{"name": "c", "usage": {"cpu": "1500u", "memory": "2Ki"}}],
        });
        let (key, usage) = read(&item).unwrap();
        assert_eq!(key, ("n".to_owned(), "p".to_owned()));
        assert_eq!(usage.containers["c"]["memory"], 2048);
        assert_eq!(usage.containers["c"]["cpu"], 2);
        assert!(read(&json!({"metadata": {}})).is_none());
    }
}
