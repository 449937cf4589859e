//! Runs the controllers and the scheduler: caches, rate limits, leader election.
