//! `/metrics`.

use std::fmt::Write;

use weft_store::{Role, Status};

use super::Context;

/// Prometheus's text format.
pub(super) fn render(context: &Context) -> String {
    store(&context.store.status()) + &context.push.metrics()
}

fn store(status: &Status) -> String {
    let voters = status.members.iter().filter(|member| member.voter).count();
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let gauges = [
        ("weft_raft_term", "The term this member is in.", status.term),
        ("weft_raft_commit_index", "The last log entry that it knows to be committed.", status.commit.unwrap_or(0)),
        ("weft_raft_applied_index", "The last log entry that it has applied.", status.applied.unwrap_or(0)),
        ("weft_raft_last_index", "The last log entry that it has.", status.last.unwrap_or(0)),
        ("weft_raft_is_leader", "1 on the leader.", u64::from(status.role == Role::Leader)),
        ("weft_raft_has_leader", "1 when it knows who leads.", u64::from(status.leader.is_some())),
        ("weft_raft_members", "Members, with and without a vote.", count(status.members.len())),
        ("weft_raft_voters", "Members with a vote.", count(voters)),
        ("weft_store_revision", "The revision it has reached.", status.revision.0),
        ("weft_store_compacted_revision", "The revision up to which history is forgotten.", status.compacted.0),
        ("weft_store_objects", "Objects.", count(status.objects)),
        ("weft_store_leases", "Leases.", count(status.leases)),
        ("weft_store_log_bytes", "Size of the log's file.", status.log_bytes),
        ("weft_store_snapshot_bytes", "Size of the snapshots.", status.snapshot_bytes),
    ];
    let mut text = String::new();
    for (name, help, value) in gauges {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use http::Request;
    use http_body_util::{BodyExt, Full};

    use crate::{
        member::{Setup, start},
        pool::Pool,
    };

    #[tokio::test]
    async fn every_metric_is_documented() {
        let dir = tempfile::tempdir().unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let setup = Setup { name: "a".into(), data_dir: dir.path().into(), listen, advertise: None, join: Vec::new() };
        let member = start(setup).await.unwrap();
        let request = Request::get("/metrics").body(Full::default()).unwrap();
        let limit = Duration::from_secs(10);
        let answer = Pool::default().send(&member.address().to_string(), request, limit).await.unwrap();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(text.to_vec()).unwrap();
        tokio::time::timeout(limit, member.stop()).await.unwrap();
        let documented = include_str!("../../METRICS.md");
        let mut helped = Vec::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
            let (name, help) = line.split_once(' ').unwrap();
            assert!(documented.contains(&format!("| `{name}` | {help} |")), "METRICS.md lacks {name}");
            helped.push(name);
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            let name = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(helped.contains(&name), "{line}");
        }
        assert!(helped.contains(&"weft_push_convergence_seconds") && helped.contains(&"weft_raft_term"));
    }
}
