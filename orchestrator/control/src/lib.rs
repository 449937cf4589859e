//! Cluster-wide decisions: the scheduler and every controller as a pure `reconcile`.
