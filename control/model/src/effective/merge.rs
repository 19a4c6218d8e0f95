//! Two TrafficPolicies into one.

use serde_json::Value as Json;

use crate::written::TrafficPolicySpec;

/// Mappings of which one field excludes the others: a new choice replaces the old one.
const EXCLUSIVE: &[(&[&str], &[&str])] = &[
    (&["loadBalancer", "hash"], &["header", "cookie", "sourceIP", "path"]),
    (&["healthCheck"], &["path", "grpc", "tcp"]),
    (&["fault", "abort"], &["status", "grpcStatus"]),
];

impl TrafficPolicySpec {
    /// This spec with the fields that `over` sets. Lists are replaced whole.
    pub fn merged(&self, over: &Self) -> Self {
        let (Ok(mut base), Ok(over_json)) = (serde_json::to_value(self), serde_json::to_value(over)) else {
            return over.clone();
        };
        for (path, fields) in EXCLUSIVE {
            let find = |root: &Json| path.iter().try_fold(root.clone(), |json, part| json.get(part).cloned());
            let chosen = find(&over_json)
                .is_some_and(|json| fields.iter().any(|field| json.get(field).is_some_and(|json| !json.is_null())));
            if !chosen {
                continue;
            }
            let place = path.iter().try_fold(&mut base, |json, part| json.get_mut(*part));
            if let Some(Json::Object(place)) = place {
                fields.iter().for_each(|field| drop(place.remove(*field)));
            }
        }
        merge(&mut base, over_json);
        // Both were specs, and a merge of two specs is one.
        serde_json::from_value(base).unwrap_or_else(|_| over.clone())
    }
}

/// JSON merge patch, except that null means "not said" and removes nothing.
fn merge(base: &mut Json, over: Json) {
    match (base, over) {
        (_, Json::Null) => {}
        (Json::Object(base), Json::Object(over)) => {
            for (name, value) in over {
                merge(base.entry(name).or_insert(Json::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}
