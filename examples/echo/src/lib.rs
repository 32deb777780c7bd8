//! The test workload: says who called and how.
