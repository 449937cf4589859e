//! What an image's status says of its rollout.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use objects::condition::{Condition, find_condition, set_condition};
use objects::machine::NodeImage;
use serde_json::{Value, json};

use super::{Guest, Site, Stage, is_missing, names, release};
use crate::action::{Action, Note, Steps, Target};
use crate::view::View;

/// Says how far the image that counts has come.
pub(super) fn tell(site: &Site<'_>, guests: &[Guest<'_>], steps: &mut Steps) {
    let count = |wanted: fn(&Stage) -> bool| guests.iter().filter(|one| wanted(&one.stage)).count();
    let updated = count(|stage| *stage == Stage::Updated);
    let version = &site.release.version;
    let on_their_way =
        guests.iter().filter(|one| !matches!(one.stage, Stage::Updated | Stage::Outdated));
    let on_their_way: BTreeSet<&str> =
        on_their_way.map(|one| one.node.metadata.name.as_str()).collect();
    let all = guests.len();
    let stuck = guests.iter().find_map(|one| match &one.stage {
        Stage::Stuck(why) => Some(why.as_str()),
        _ => None,
    });
    let broken = site.rollout.selector.as_ref().is_some_and(|one| one.compile().is_none());
    let so_far = format!("{updated} of {all} nodes run Muster {version}");
    let (progressing, reason, message) = if broken {
        (false, "InvalidSelector", "spec.rollout.selector cannot be read".to_owned())
    } else if updated == all {
        (false, "Complete", so_far)
    } else if let Some(why) = stuck {
        (false, "Stalled", format!("{so_far}; {why}"))
    } else if !on_their_way.is_empty() {
        (true, "RollingOut", format!("{so_far}; on their way: {}", names(&on_their_way)))
    } else if site.rollout.paused {
        (false, "Paused", so_far)
    } else {
        let missing = site.view.nodes.iter().filter(|node| is_missing(node));
        let missing: BTreeSet<&str> = missing.map(|node| node.metadata.name.as_str()).collect();
        let waits = format!("{so_far}; missing already: {}", names(&missing));
        (true, "RollingOut", if missing.is_empty() { so_far } else { waits })
    };
    let conditions = [
        Condition::new("Progressing", progressing, reason, &message),
        Condition::new("Complete", reason == "Complete", reason, &message),
        Condition::new("Degraded", stuck.is_some(), reason, &message),
    ];
    let numbers = json!({
        "nodes": all, "updatedNodes": updated, "updatingNodes": on_their_way.len(),
    });
    write(site.image, numbers, &conditions, site.now, steps);
}

/// Says of the other images that they are not brought to nodes, if they ever were meant to be.
pub(super) fn tell_others(view: &View, wanted: Option<&str>, now: Timestamp, steps: &mut Steps) {
    for image in view.node_images.iter() {
        let name = image.metadata.name.as_str();
        if image.metadata.is_deleting() || wanted == Some(name) {
            continue;
        }
        let meant = release(image).is_some_and(|one| one.rollout.is_some());
        let (reason, message) = match (meant, wanted) {
            (true, Some(other)) => ("Superseded", format!("image {other} is younger")),
            (true, None) => ("NoVersion", "spec.version is empty".to_owned()),
            // Never meant, or not any more.
            (false, _) if image.status.get("conditions").is_none() => continue,
            (false, _) => ("NoRollout", "spec has no rollout".to_owned()),
        };
        let conditions = ["Progressing", "Complete", "Degraded"]
            .map(|kind| Condition::new(kind, false, reason, &message));
        write(image, json!({}), &conditions, now, steps);
    }
}

fn write(
    image: &Arc<NodeImage>,
    numbers: Value,
    wanted: &[Condition],
    now: Timestamp,
    steps: &mut Steps,
) {
    let had = image.status.get("conditions").cloned().unwrap_or_default();
    let before: Vec<Condition> = serde_json::from_value(had).unwrap_or_default();
    let mut conditions = before.clone();
    let mut changed = false;
    for one in wanted {
        let generation = image.metadata.generation;
        let one = Condition { observed_generation: generation, ..one.clone() };
        changed |= set_condition(&mut conditions, one, now);
    }
    let mut status = numbers;
    let Some(fields) = status.as_object_mut() else { return };
    changed |= fields.iter().any(|(name, value)| image.status.get(name) != Some(value));
    if !changed {
        return;
    }
    fields.insert("conditions".to_owned(), json!(conditions));
    let reason =
        |all: &[Condition]| find_condition(all, "Progressing").map(|one| one.reason.clone());
    let target = Target::of(&**image);
    let told = wanted.first().filter(|_| reason(&before) != reason(&conditions));
    let note = told.and_then(|one| {
        let word = match one.reason.as_str() {
            "RollingOut" => "RolloutStarted",
            "Complete" => "RolloutComplete",
            "Stalled" => return Some(Note::warning(&target, "RolloutStalled", &*one.message)),
            _ => return None,
        };
        Some(Note::normal(&target, word, &*one.message))
    });
    let step = Action::patch_status(target, status);
    steps.push(match note {
        Some(note) => step.telling(note),
        None => step,
    });
}
