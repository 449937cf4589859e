//! Jobs and cron jobs: pods that end.

use std::collections::BTreeMap;

use crate::{
    condition::Condition,
    kind,
    meta::{LabelSelector, ObjectMeta, ObjectReference},
    pod::PodTemplateSpec,
    time::Time,
    view::{objects, views},
};

objects! {
    /// Runs pods until enough of them succeeded.
    kind::JOB => pub struct Job {
        pub spec: JobSpec,
        pub status: JobStatus,
    }

    /// Makes jobs at given times.
    kind::CRON_JOB => pub struct CronJob {
        pub spec: CronJobSpec,
        pub status: CronJobStatus,
    }
}

views! {
    /// What a job is to do.
    pub struct JobSpec {
        pub parallelism: Option<i64>,
        pub completions: Option<i64>,
        pub active_deadline_seconds: Option<i64>,
        pub pod_failure_policy: Option<PodFailurePolicy>,
        pub success_policy: Option<SuccessPolicy>,
        pub backoff_limit: Option<i64>,
        pub backoff_limit_per_index: Option<i64>,
        pub max_failed_indexes: Option<i64>,
        pub selector: Option<LabelSelector>,
        pub manual_selector: Option<bool>,
        pub template: PodTemplateSpec,
        pub ttl_seconds_after_finished: Option<i64>,
        pub completion_mode: Option<String>,
        pub suspend: Option<bool>,
        pub pod_replacement_policy: Option<String>,
        pub managed_by: Option<String>,
    }

    /// Which failures of pods mean what.
    pub struct PodFailurePolicy {
        pub rules: Vec<PodFailurePolicyRule>,
    }

    /// One rule of a [`PodFailurePolicy`]; the first that matches counts.
    pub struct PodFailurePolicyRule {
        pub action: String,
        pub on_exit_codes: Option<OnExitCodes>,
        pub on_pod_conditions: Vec<OnPodCondition>,
    }

    /// Matches exit codes of containers.
    pub struct OnExitCodes {
        pub container_name: Option<String>,
        pub operator: String,
        pub values: Vec<i64>,
    }

    /// Matches a condition of the pod.
    pub struct OnPodCondition {
        #[serde(rename = "type")]
        pub kind: String,
        pub status: String,
    }

    /// Which successes are enough.
    pub struct SuccessPolicy {
        pub rules: Vec<SuccessPolicyRule>,
    }

    /// One rule of a [`SuccessPolicy`].
    pub struct SuccessPolicyRule {
        pub succeeded_indexes: Option<String>,
        pub succeeded_count: Option<i64>,
    }

    /// What is known of a job.
    pub struct JobStatus {
        pub conditions: Vec<Condition>,
        pub start_time: Option<Time>,
        pub completion_time: Option<Time>,
        pub active: i64,
        pub succeeded: i64,
        pub failed: i64,
        pub terminating: Option<i64>,
        pub completed_indexes: String,
        pub failed_indexes: Option<String>,
        pub uncounted_terminated_pods: Option<UncountedTerminatedPods>,
        pub ready: Option<i64>,
    }

    /// Pods that ended and still carry the finalizer.
    pub struct UncountedTerminatedPods {
        pub succeeded: Vec<String>,
        pub failed: Vec<String>,
    }

    /// When a cron job makes which jobs.
    pub struct CronJobSpec {
        pub schedule: String,
        pub time_zone: Option<String>,
        pub starting_deadline_seconds: Option<i64>,
        pub concurrency_policy: String,
        pub suspend: Option<bool>,
        pub job_template: JobTemplateSpec,
        pub successful_jobs_history_limit: Option<i64>,
        pub failed_jobs_history_limit: Option<i64>,
    }

    /// The job a cron job makes.
    pub struct JobTemplateSpec {
        pub metadata: ObjectMeta,
        pub spec: JobSpec,
    }

    /// What is known of a cron job.
    pub struct CronJobStatus {
        pub active: Vec<ObjectReference>,
        pub last_schedule_time: Option<Time>,
        pub last_successful_time: Option<Time>,
    }
}

impl Job {
    /// The condition by which the job ended: `Complete` or `Failed`.
    #[must_use]
    pub fn finished(&self) -> Option<&Condition> {
        let ends =
            |one: &&Condition| one.is_true() && matches!(one.kind.as_str(), "Complete" | "Failed");
        self.status.conditions.iter().find(ends)
    }

    /// Is the job one of numbered pods?
    #[must_use]
    pub fn is_indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    /// The job's labels and annotations, as they are given to its pods.
    #[must_use]
    pub fn template_labels(&self) -> &BTreeMap<String, String> {
        &self.spec.template.metadata.labels
    }
}
