//! Which volumes a pod needs on its node, and what is in them.
