//! Decisions alone: the pure scheduler, fed as a perfect API server would feed it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use control::action::Action;
use control::scheduler::{Config, Decision, Event, Scheduler};
use jiff::{SignedDuration, Timestamp};
use objects::pod::Pod;
use serde_json::{Value, json};

use crate::workload::{Batch, Workload};
use crate::{Cost, Failure, Outcome};

/// Rounds without any progress after which a workload is given up.
const PATIENCE: usize = 400;

/// The story so far.
struct Story {
    scheduler: Scheduler,
    now: Timestamp,
    waiting: BTreeMap<String, Arc<Pod>>,
    /// Pods that must still find a node.
    left: usize,
    decisions: Vec<Duration>,
}

/// Plays a workload.
pub(crate) fn run(workload: &Workload) -> Result<Outcome, Failure> {
    let mut story = Story {
        scheduler: Scheduler::new(Config::default(), 1),
        now: Timestamp::now(),
        waiting: BTreeMap::new(),
        left: 0,
        decisions: Vec::new(),
    };
    let (mut nodes, mut pods) = (0, 0);
    let mut outcome = Outcome {
        nodes: workload.nodes(),
        pods: 0,
        elapsed: Duration::ZERO,
        decisions: Vec::new(),
        cost: Cost::default(),
    };
    for step in &workload.steps {
        if let Some(object) = &step.object
            && object.get("kind") == Some(&json!("Namespace"))
        {
            let namespace = Arc::new(serde_json::from_value(object.clone())?);
            story.scheduler.apply(Event::Namespace(namespace), story.now);
        }
        if let Some(batch) = &step.nodes {
            for _ in 0..batch.count {
                let node = Arc::new(serde_json::from_value(batch.node(nodes))?);
                story.scheduler.apply(Event::Node(node), story.now);
                nodes += 1;
            }
        }
        if let Some(batch) = &step.pods {
            for _ in 0..batch.count {
                story.add(batch, pods)?;
                pods += 1;
            }
            if batch.stranded {
                continue;
            }
            story.left = batch.count;
            story.decisions.clear();
            let begun = Instant::now();
            story.settle()?;
            if batch.measured {
                outcome.pods += batch.count;
                outcome.elapsed += begun.elapsed();
                outcome.decisions.append(&mut story.decisions);
            }
        }
    }
    Ok(outcome)
}

impl Story {
    fn add(&mut self, batch: &Batch, number: usize) -> Result<(), Failure> {
        let mut object = batch.pod(number);
        if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.insert("uid".to_owned(), json!(format!("uid-{number}")));
        }
        let pod: Arc<Pod> = Arc::new(serde_json::from_value(object)?);
        self.waiting.insert(pod.metadata.uid.clone(), Arc::clone(&pod));
        self.scheduler.apply(Event::Pod(pod), self.now);
        Ok(())
    }

    /// Goes on until every pod has its node.
    fn settle(&mut self) -> Result<(), Failure> {
        let mut idle = 0;
        while self.left > 0 {
            let begun = Instant::now();
            let decision = self.scheduler.next(self.now);
            let took = begun.elapsed();
            let Some(decision) = decision else {
                idle += 1;
                if idle > PATIENCE {
                    return Err(format!("{} pods find no node", self.left).into());
                }
                self.now = self.now.saturating_add(SignedDuration::from_secs(1))?;
                continue;
            };
            self.decisions.push(took);
            match decision {
                Decision::Bind { uid, bind, .. } => {
                    idle = 0;
                    let Action::Bind { node, .. } = *bind else { continue };
                    self.scheduler.bound(&uid, true, self.now);
                    if let Some(pod) = self.waiting.remove(&uid) {
                        self.left -= 1;
                        let mut pod = Pod::clone(&pod);
                        pod.spec.node_name = node;
                        self.scheduler.apply(Event::Pod(Arc::new(pod)), self.now);
                    }
                }
                Decision::Prepare { .. } => (),
                Decision::Tell(steps) => self.tell(steps)?,
            }
        }
        Ok(())
    }

    fn tell(&mut self, steps: Vec<Action>) -> Result<(), Failure> {
        for step in steps {
            match step {
                Action::Delete { target, .. } => {
                    self.scheduler.apply(Event::PodGone(target.uid), self.now);
                }
                Action::Patch { target, body, .. } => {
                    let Some(pod) = self.waiting.get_mut(&target.uid) else { continue };
                    let mut new = Pod::clone(pod);
                    if let Some(conditions) = body.pointer("/status/conditions") {
                        new.status.conditions = serde_json::from_value(conditions.clone())?;
                    }
                    if let Some(node) = body.pointer("/status/nominatedNodeName") {
                        new.status.nominated_node_name =
                            node.as_str().unwrap_or_default().to_owned();
                    }
                    *pod = Arc::new(new);
                    self.scheduler.apply(Event::Pod(Arc::clone(pod)), self.now);
                }
                _ => (),
            }
        }
        Ok(())
    }
}
