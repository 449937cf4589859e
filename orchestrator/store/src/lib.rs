//! Bytes with revisions: compare-and-set, ranges at a revision, watch.
