//! Network policies between pods of two racks.

use anyhow::Result;

use crate::scenario::workloads::{LIMIT, Site};
use crate::wait::{Seen, await_until};

/// Who reaches the server: friend and stranger.
type Reach = (bool, bool);

/// A policy that names nobody shuts everybody out; one that names friends lets those in.
pub(super) fn a_policy_blocks_and_allows(site: &Site) -> Result<()> {
    let server = site.kubectl.await_pods("app=server", 1, LIMIT, |_| true)?;
    let callers = site.kubectl.await_pods("app=caller", 2, LIMIT, |_| true)?;
    let address = server.first().map(|pod| pod.address.clone()).unwrap_or_default();
    let reaches = |caller: &str| {
        let url = format!("http://{address}:8080/");
        site.exec(caller, &["wget", "-q", "-T", "2", "-O", "-", &url])
            .is_ok_and(|page| page.trim() == "served")
    };
    let await_reach = |what: &str, wanted: Reach| {
        await_until(what, LIMIT, || {
            let found = (reaches("friend"), reaches("stranger"));
            Ok(if found == wanted { Seen::There(()) } else { Seen::NotYet(format!("{found:?}")) })
        })
    };
    await_reach("both callers to reach the server", (true, true))?;
    site.apply("closed", include_str!("closed.yaml"))?;
    await_reach("a policy to shut both out", (false, false))?;
    site.apply("friends", include_str!("friends.yaml"))?;
    await_reach("a policy to let friends in", (true, false))?;
    site.kubectl.run(&["label", "pod", "stranger", "is=friend", "--overwrite"])?;
    await_reach("a label to make a friend", (true, true))?;
    site.delete(&["networkpolicy/server"])?;
    let names: Vec<&str> = callers.iter().map(|pod| pod.name.as_str()).collect();
    site.story
        .ok(format_args!("a network policy blocks and allows {} by label", names.join(", ")))?;
    site.delete(&["pod/friend", "pod/stranger"])
}
