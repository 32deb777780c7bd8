//! The statistics of one cluster, in one block: a mesh has thousands of clusters with some thirty values each, so their
//! names exist only while they are written.

use super::stats::{Counter, Gauge, Histogram, Sample};

/// Names a block's values once, for the struct and for whoever writes them, in the order of their names.
macro_rules! cluster_stats {
    ($($field:ident: $kind:ident = $tail:literal,)*) => {
        /// Statistics of a cluster; Envoy's names follow `cluster.NAME.`.
        #[derive(Debug, Default)]
        pub(crate) struct ClusterStats {
            $(pub(crate) $field: $kind,)*
        }

        impl ClusterStats {
            /// Visits every value by the last part of its name, in the order of these.
            pub(super) fn visit(&self, mut visit: impl FnMut(&'static str, Sample<'_>)) {
                $(visit($tail, self.$field.sample());)*
            }
        }
    };
}

cluster_stats! {
    membership_healthy: Gauge = "membership_healthy",
    membership_total: Gauge = "membership_total",
    outlier_active: Gauge = "outlier_detection.ejections_active",
    outlier_ejections: Counter = "outlier_detection.ejections_enforced_total",
    outlier_overflow: Counter = "outlier_detection.ejections_overflow",
    ssl_fail: Counter = "ssl.connection_error",
    ssl_handshake: Counter = "ssl.handshake",
    cx_active: Gauge = "upstream_cx_active",
    cx_connect_fail: Counter = "upstream_cx_connect_fail",
    cx_connect_timeout: Counter = "upstream_cx_connect_timeout",
    cx_destroy: Counter = "upstream_cx_destroy",
    cx_none_healthy: Counter = "upstream_cx_none_healthy",
    cx_overflow: Counter = "upstream_cx_overflow",
    cx_total: Counter = "upstream_cx_total",
    rq_1xx: Counter = "upstream_rq_1xx",
    rq_2xx: Counter = "upstream_rq_2xx",
    rq_3xx: Counter = "upstream_rq_3xx",
    rq_4xx: Counter = "upstream_rq_4xx",
    rq_5xx: Counter = "upstream_rq_5xx",
    rq_active: Gauge = "upstream_rq_active",
    rq_completed: Counter = "upstream_rq_completed",
    rq_pending_overflow: Counter = "upstream_rq_pending_overflow",
    rq_per_try_timeout: Counter = "upstream_rq_per_try_timeout",
    rq_retry: Counter = "upstream_rq_retry",
    rq_retry_limit_exceeded: Counter = "upstream_rq_retry_limit_exceeded",
    rq_retry_overflow: Counter = "upstream_rq_retry_overflow",
    rq_retry_success: Counter = "upstream_rq_retry_success",
    rq_time: Histogram = "upstream_rq_time",
    rq_timeout: Counter = "upstream_rq_timeout",
    rq_total: Counter = "upstream_rq_total",
}

impl ClusterStats {
    /// Counts an answer in the class of its status.
    pub(crate) fn count_status(&self, status: u16) {
        match status / 100 {
            1 => self.rq_1xx.inc(),
            2 => self.rq_2xx.inc(),
            3 => self.rq_3xx.inc(),
            4 => self.rq_4xx.inc(),
            5 => self.rq_5xx.inc(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_visited_in_the_order_of_their_names() {
        let mut names = Vec::new();
        ClusterStats::default().visit(|name, _| names.push(name));
        assert_eq!(names.len(), 30);
        assert!(names.is_sorted(), "{names:?}");
    }
}
