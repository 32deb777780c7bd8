//! Programs and libraries that nobody here wrote. A missing one shows as ignored, or fails with
//! `MESH_REQUIRE_PEERS=1`.

#[cfg(feature = "sds")]
#[path = "peers/envoy.rs"]
mod envoy;
#[path = "peers/openssl.rs"]
mod openssl;
#[path = "peers/spiffe_crate.rs"]
mod spiffe_crate;
#[path = "peers/support.rs"]
mod support;

use libtest_mimic::{Arguments, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let mut trials: Vec<Trial> = openssl::trials();
    trials.extend(spiffe_crate::trials());
    #[cfg(feature = "sds")]
    trials.extend(envoy::trials());
    libtest_mimic::run(&arguments, trials).exit();
}
