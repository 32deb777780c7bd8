//! `/certs` and `/certs/rotate`.

use std::time::{SystemTime, UNIX_EPOCH};

use http::StatusCode;
use mesh_identity::x509::CertificateFacts;
use serde_json::{Value, json};

use crate::agent::SharedAgent;
use crate::http::{Reply, json, text};

/// Envoy's `envoy.admin.v3.Certificates`.
pub(super) fn certs(agent: &SharedAgent) -> String {
    let mut certificates = Vec::new();
    if let Some(identity) = agent.identity() {
        let current = identity.current();
        let now = SystemTime::now();
        let roots: Vec<Value> = current
            .bundles
            .iter()
            .flat_map(mesh_identity::TrustBundle::roots)
            .filter_map(|root| CertificateFacts::read(root).ok())
            .map(|facts| details(&facts, now))
            .collect();
        let chain: Vec<Value> =
            current.credential.iter().map(|credential| details(credential.facts(), now)).collect();
        certificates.push(json!({ "ca_cert": roots, "cert_chain": chain }));
    }
    format!("{:#}\n", json!({ "certificates": certificates }))
}

fn details(facts: &CertificateFacts, now: SystemTime) -> Value {
    let names: Vec<Value> = facts
        .uri_sans
        .iter()
        .map(|uri| json!({ "uri": uri }))
        .chain(facts.dns_sans.iter().map(|dns| json!({ "dns": dns })))
        .collect();
    let days = facts.not_after.duration_since(now).map_or(0, |left| left.as_secs() / 86_400);
    json!({
        "path": "<inline>",
        "serial_number": facts.serial,
        "subject_alt_names": names,
        "days_until_expiration": days.to_string(),
        "valid_from": rfc3339(facts.not_before),
        "expiration_time": rfc3339(facts.not_after),
    })
}

/// Fetches a new certificate now.
pub async fn rotate(agent: &SharedAgent) -> Reply {
    let Some(svid) = &agent.svid else {
        return text(StatusCode::BAD_REQUEST, "there is no workload identity in this mode\n");
    };
    match svid.rotate_now().await {
        Ok(rotated) => json(
            json!({ "old_serial": rotated.old_serial, "new_serial": rotated.new_serial }).to_string() + "\n",
        ),
        Err(error) => text(StatusCode::BAD_GATEWAY, format!("{error}\n")),
    }
}

/// A time as RFC 3339, whole seconds, UTC.
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a civil date, counting years from March (Howard Hinnant's algorithm).
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_246_155, "2026-11-21T07:29:15Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
