//! Envoy's response flags.

use std::fmt;

/// A set of response flags; prints as Envoy's short names joined by commas, or `-`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ResponseFlags(u32);

macro_rules! flags {
    ($($bit:literal $name:ident $short:literal $doc:literal),* $(,)?) => {
        impl ResponseFlags {
            $(#[doc = $doc] pub const $name: Self = Self(1 << $bit);)*
            const SHORT: &'static [(Self, &'static str)] = &[$((Self::$name, $short)),*];
        }
    };
}

flags! {
    0 NO_HEALTHY_UPSTREAM "UH" "No healthy upstream host (503).",
    1 UPSTREAM_CONNECTION_FAILURE "UF" "Connecting failed, the TLS handshake included (503).",
    2 UPSTREAM_OVERFLOW "UO" "A circuit breaker is open (503).",
    3 NO_ROUTE "NR" "No route (404), or no filter chain.",
    4 NO_CLUSTER "NC" "The cluster is unknown (503).",
    5 RETRY_LIMIT "URX" "The retry or connect-attempt limit is reached.",
    6 UPSTREAM_TIMEOUT "UT" "The upstream's time is up (504).",
    7 UPSTREAM_TERMINATION "UC" "The upstream closed the connection mid-request (503).",
    8 UPSTREAM_REMOTE_RESET "UR" "The upstream reset the stream (503).",
    9 LOCAL_RESET "LR" "We reset the stream (503).",
    10 DOWNSTREAM_CLOSED "DC" "The client left first.",
    11 DURATION_TIMEOUT "DT" "The maximum duration is exceeded.",
    12 DELAY_INJECTED "DI" "A delay was injected.",
    13 FAULT_INJECTED "FI" "An abort was injected.",
    14 RATE_LIMITED "RL" "Locally rate limited (429).",
    15 UNAUTHORIZED_EXTERNAL "UAEX" "Denied by external authorization (403).",
    16 STREAM_IDLE_TIMEOUT "SI" "The stream was idle for too long (408).",
    17 INVALID_HEADERS "IH" "A strictly checked header is invalid (400).",
    18 DOWNSTREAM_PROTOCOL_ERROR "DPE" "The client violated the protocol (400).",
    19 UPSTREAM_PROTOCOL_ERROR "UPE" "The upstream violated the protocol (502).",
    20 UPSTREAM_MAX_STREAM_DURATION "UMSDR" "The upstream's maximum stream duration is reached.",
    21 NO_FILTER_CONFIG "NFCF" "A filter's configuration is missing.",
    22 OVERLOAD "OM" "Refused because of overload.",
    23 DNS_FAILURE "DF" "DNS resolution failed.",
}

impl ResponseFlags {
    /// No flag.
    #[must_use]
    pub const fn empty() -> Self {
        Self(0)
    }

    /// Whether there is no flag.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Either set's flags.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other`'s flags are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any of `other`'s flags is set.
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The flag of a short name.
    #[must_use]
    pub fn from_short(short: &str) -> Option<Self> {
        Self::SHORT.iter().find(|(_, s)| *s == short).map(|(flag, _)| *flag)
    }

    /// Short names of the flags set.
    pub fn shorts(self) -> impl Iterator<Item = &'static str> {
        Self::SHORT.iter().filter(move |(flag, _)| self.contains(*flag)).map(|(_, short)| *short)
    }
}

impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        for (i, short) in self.shorts().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            f.write_str(short)?;
        }
        Ok(())
    }
}

impl fmt::Debug for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
